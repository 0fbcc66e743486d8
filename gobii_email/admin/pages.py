"""What several admin pages share: truthful status codes, and pages that act on POST alone."""

from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_http_methods

from gobii_email.admin.newest import FewPaginator

View = Callable[..., HttpResponseBase]


class OwnPages(admin.ModelAdmin):
    """A ModelAdmin with further pages on one object, and 422 for a form that was not accepted."""

    paginator = FewPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each would count all rows

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        response = super().render_change_form(request, context, **options)
        if context.get("errors"):
            response.status_code = 422
        return response

    def page(self, route: str, view: View, name: str, *methods: str) -> URLPattern:
        """A page under an object's own address, for staff, answering 405 to all but `methods`."""
        guarded = self.admin_site.admin_view(require_http_methods(list(methods))(view))
        return path(
            f"<path:object_id>/{route}", guarded, name=f"{self.opts.app_label}_{self.opts.model_name}_{name}"
        )

    def url_of(self, name: str, object_id: object) -> str:
        return reverse(
            f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_{name}", args=[object_id]
        )

    def object_or_404(self, request: HttpRequest, object_id: str) -> Any:
        found = self.get_object(request, object_id)
        if found is None:
            raise Http404(f"There is no such {self.opts.verbose_name}.")
        return found

    def require(self, request: HttpRequest, permission: str) -> None:
        if not request.user.has_perm(f"gobii_email.{permission}"):
            raise PermissionDenied

    def page_context(self, request: HttpRequest, original: object, title: str) -> dict[str, Any]:
        return {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "original": original,
            "title": title,
        }


class ReadOnly:
    """Rows that tell what happened: to be looked at, not changed."""

    def has_add_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False
