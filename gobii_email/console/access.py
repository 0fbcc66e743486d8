"""Who sees what: owners their agents' mail, staff everybody's, others the page to sign in.

What somebody may not see does not exist for them: 404, whatever the address below it. The decorator here
is the only door to the console's views.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.http import urlencode
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods

from gobii_email.services.browse import Whose

View = Callable[..., HttpResponseBase]

_NOT_FOUND = "There is nothing here, or it is not yours to see."
_NOT_ALLOWED = "Your user may look at this but not change it. Ask an administrator for the right to."


def page(*methods: str) -> Callable[[View], View]:
    """A view of `(request, whose, …)` for people who are signed in, answering 405 to all but `methods`."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **named: Any) -> HttpResponseBase:
            if not request.user.is_authenticated:
                return _to_sign_in(request)
            try:
                return view(request, whose(request), *args, **named)
            except Http404:
                return _refusal(request, 404, "Not found", _NOT_FOUND)
            except PermissionDenied:
                return _refusal(request, 403, "Not allowed", _NOT_ALLOWED)

        return never_cache(require_http_methods(methods or ("GET", "HEAD"))(guarded))

    return decorate


def whose(request: HttpRequest) -> Whose:
    return Whose.everybodys() if request.user.is_staff else Whose.of_user(request.user)


def require_right(request: HttpRequest, permission: str, owner_id: object) -> None:
    """Owners act on what is theirs; staff on the rest with the admin's right to. Raises PermissionDenied."""
    if owner_id != request.user.pk and not request.user.has_perm(f"gobii_email.{permission}"):
        raise PermissionDenied


def _to_sign_in(request: HttpRequest) -> HttpResponseBase:
    if request.headers.get("HX-Request"):
        # A page that was left open: back to the page itself, not to the part of it that was asked for.
        return HttpResponse(status=204, headers={"HX-Refresh": "true"})
    where = request.get_full_path() if request.method in {"GET", "HEAD"} else reverse("console:overview")
    return redirect(f"{reverse('console:login')}?{urlencode({'next': where})}")


def _refusal(request: HttpRequest, status: int, title: str, text: str) -> HttpResponse:
    return render(request, "console/refusal.html", {"title": title, "text": text}, status=status)
