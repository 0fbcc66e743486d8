"""Mail as it was found in mailboxes: what became of each, the bytes, and the way out of quarantine.

Read-only but for that one act. The bytes are a stranger's: they leave here as a text to be saved, never as
something that a browser shows.
"""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils.html import format_html

from gobii_email.admin.newest import SEARCHED, NewestAdmin
from gobii_email.admin.pages import OwnPages, ReadOnly
from gobii_email.models import ReceivedMail
from gobii_email.services.receive import NotReleasable, release


@admin.register(ReceivedMail)
class ReceivedMailAdmin(ReadOnly, OwnPages, NewestAdmin):
    """Whoever may change received mail may let it out of quarantine."""

    newest = ("stored_at", "pk")
    list_display = ["sender", "endpoint", "state", "kind", "authentication", "reason_shown", "stored_at"]
    list_filter = ["state", "kind", "authentication", "is_automated", "stored_at"]
    list_select_related = ["endpoint"]
    search_fields = ["from_address"]
    search_help_text = f"Parts of the sender or Message-ID, looked for in the newest {SEARCHED:,} mails"
    fields = [
        "state", "reason", "from_address", "endpoint", "kind", "is_automated", "authentication",
        "rfc_message_id", "message_link", "attempt_link", "folder", "uid_validity", "uid", "size",
        "internal_at", "stored_at", "read_at", "announced_at", "readings",
    ]  # fmt: skip
    readonly_fields = ["message_link", "attempt_link"]
    change_form_template = "admin/gobii_email/receivedmail/change_form.html"

    class Media:
        css = {"all": ["gobii_email/admin.css"]}

    def get_queryset(self, request: HttpRequest) -> QuerySet[ReceivedMail]:
        return super().get_queryset(request).defer("raw")

    def mentioning(self, word: str) -> Q:
        return Q(from_address__icontains=word) | Q(rfc_message_id__icontains=word)

    @admin.display(description="from")
    def sender(self, mail: ReceivedMail) -> str:
        return mail.from_address or "(nobody readable)"

    @admin.display(description="why")
    def reason_shown(self, mail: ReceivedMail) -> str:
        return mail.reason[:119] + "…" if len(mail.reason) > 120 else mail.reason or "–"

    @admin.display(description="message")
    def message_link(self, mail: ReceivedMail) -> str:
        return _link("persistentagentmessage", mail.message_id)

    @admin.display(description="about the attempt")
    def attempt_link(self, mail: ReceivedMail) -> str:
        return _link("outboundmessageattempt", mail.about_id)

    # The page of one mail

    def get_urls(self) -> list[URLPattern]:
        raw = self.page("raw/", self.raw_view, "raw", "GET", "HEAD")
        return [raw, self.page("release/", self.release_view, "release", "GET", "POST"), *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        mail = options["obj"]
        has_raw = ReceivedMail.objects.filter(pk=mail.pk, raw__isnull=False).exists()
        may_release = request.user.has_perm("gobii_email.change_receivedmail")
        is_held = mail.state == ReceivedMail.State.QUARANTINED and has_raw
        context |= {
            "raw_url": self.url_of("raw", mail.pk) if has_raw else "",
            "release_url": self.url_of("release", mail.pk) if is_held and may_release else "",
        }
        return super().render_change_form(request, context, **options)

    def raw_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        mail = self.object_or_404(request, object_id)
        if not self.has_view_permission(request, mail) or mail.raw is None:
            raise Http404
        return HttpResponse(
            bytes(mail.raw),
            headers={
                "Content-Type": "text/plain; charset=utf-8",
                "Content-Disposition": f'attachment; filename="{mail.pk}.eml.txt"',
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "sandbox; default-src 'none'",
            },
        )

    def release_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        self.require(request, "change_receivedmail")
        mail = self.object_or_404(request, object_id)
        if request.method == "POST":
            return self._release(request, mail)
        context = self.page_context(request, mail, "Release?")
        template = "admin/gobii_email/receivedmail/release.html"
        return TemplateResponse(request, template, context | {"media": self.media})

    def _release(self, request: HttpRequest, mail: ReceivedMail) -> HttpResponseBase:
        try:
            state = release(mail.pk, by=request.user.get_username())
        except NotReleasable as refused:
            messages.error(request, str(refused))
        else:
            text = f"Released; it is now: {ReceivedMail.State(state).label}."
            self.log_change(request, mail, text)
            messages.success(request, text)
        return redirect(self.url_of("change", mail.pk))


def _link(name: str, key: object) -> str:
    if key is None:
        return "–"
    return format_html('<a href="{}">{}</a>', reverse(f"admin:gobii_email_{name}_change", args=[key]), key)
