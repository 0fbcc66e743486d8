"""Endpoints and the mailboxes behind them: settings, write-only passwords, Test SMTP, pause and resume.

The rules of an edit are those of services/accounts, the same as for every other way in; here they are
shown beside the fields they concern.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html
from django.utils.timesince import timesince
from django.views.decorators.debug import sensitive_post_parameters

from gobii_email.admin.pages import OwnPages
from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount, PersistentAgentCommsEndpoint, PersistentAgentEmailEndpoint
from gobii_email.services import diagnose, hold
from gobii_email.services.accounts import InvalidAccount, edit_account, save_account

SENDING = ["smtp_host", "smtp_port", "smtp_security", "smtp_auth", "smtp_username"]
RECEIVING = ["imap_host", "imap_port", "imap_security", "imap_auth", "imap_username"]
FOLDER = ["imap_folder", "poll_interval_sec"]
LIMITS = ["per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection", "pool_ttl"]
LIMITS_NOTE = (
    "Recipients in any minute, hour and day; from the next look on. Empty means the provider's limit, or a"
    " cautious one. What waits for a limit is sent later and never lost; email_quota shows what is in force."
)
LABELS = {
    "smtp_auth": "Authentication",
    "imap_auth": "Authentication",
    "is_outbound_enabled": "Sending is enabled",
    "is_inbound_enabled": "Receiving is enabled",
    "imap_folder": "Folder",
    "poll_interval_sec": "Seconds between polls",
    **{
        f"{side}_{part}": part.capitalize()
        for side in ("smtp", "imap")
        for part in ("host", "port", "security")
    },
    **{f"{side}_username": "User name" for side in ("smtp", "imap")},
}
EDITED = [*SENDING, "is_outbound_enabled", *RECEIVING, *FOLDER, "is_inbound_enabled", *LIMITS]


def _password_field() -> forms.CharField:
    return forms.CharField(
        label="Password",
        required=False,
        strip=False,
        widget=forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Leave blank to keep the stored password.",
    )


class AccountForm(forms.ModelForm):
    """One mailbox. What is wrong with an edit is said by edit_account, beside the field it concerns."""

    smtp_password = _password_field()
    imap_password = _password_field()
    different: frozenset[str] = frozenset()

    class Meta:
        model = AgentEmailAccount
        fields = EDITED
        labels = LABELS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for side in ("smtp", "imap"):
            if (
                getattr(self.instance, f"{side}_password_encrypted") is None
                and f"{side}_password" in self.fields
            ):
                self.fields[f"{side}_password"].help_text = "No password is stored."

    def _post_clean(self) -> None:
        given = {
            name: value
            for name, value in self.cleaned_data.items()
            if name in EDITED and (name in self.changed_data or self.instance._state.adding)
        }
        try:
            self.different = edit_account(
                self.instance,
                given,
                smtp_password=self._password("smtp_password"),
                imap_password=self._password("imap_password"),
            )
        except InvalidAccount as wrong:
            for problem in wrong.problems:
                self._complain(problem.field, f"{problem.reason} {problem.remedy}".strip())

    def _password(self, name: str) -> Secret | None:
        typed = self.cleaned_data.get(name)
        return Secret(typed) if typed else None

    def _complain(self, field: str, text: str) -> None:
        if field in self.errors:
            return
        is_shown = field in self.fields
        self.add_error(
            field if is_shown else None, text[:1].upper() + text[1:] if is_shown else f"{field}: {text}"
        )

    def save(self, commit: bool = True) -> AgentEmailAccount:
        if commit:
            save_account(self.instance, self.different)
        return self.instance


def test_result(account: AgentEmailAccount) -> str:
    """How the last test of sending stands, in words."""
    if account.smtp_error:
        return account.smtp_error
    if account.is_smtp_tested:
        return f"Passed{_ago(account.smtp_last_ok_at)}."
    return "Not tested in its present settings."


def state_text(account: AgentEmailAccount) -> str:
    state = AgentEmailAccount.State(account.state_at(timezone.now()))
    if state == AgentEmailAccount.State.ACTIVE:
        return str(state.label)
    until = f" until {account.state_until:%Y-%m-%d %H:%M} UTC" if account.state_until else ""
    return (
        f"{state.label}{until}: {account.state_reason}" if account.state_reason else f"{state.label}{until}"
    )


def _ago(moment: datetime | None) -> str:
    return f", {timesince(moment)} ago" if moment else ""


class AccountInline(admin.StackedInline):
    model = AgentEmailAccount
    form = AccountForm
    verbose_name = verbose_name_plural = "mailbox"
    readonly_fields = ["state_now", "last_test"]
    fieldsets = [
        (
            "Sending",
            {
                "fields": [*SENDING, "smtp_password", "is_outbound_enabled", "state_now", "last_test"],
                "description": "Save, press Test SMTP at the top, and enable sending once that has passed. "
                "A change of server, user name or password switches sending off until it is tested again.",
            },
        ),
        (
            "Receiving",
            {"fields": [*RECEIVING, "imap_password", *FOLDER, "is_inbound_enabled"], "classes": ["collapse"]},
        ),
        ("Limits", {"fields": LIMITS, "classes": ["collapse"], "description": LIMITS_NOTE}),
    ]

    @admin.display(description="State")
    def state_now(self, account: AgentEmailAccount) -> str:
        return state_text(account)

    @admin.display(description="Test SMTP")
    def last_test(self, account: AgentEmailAccount) -> str:
        return test_result(account)


class EmailDetailsInline(admin.StackedInline):
    model = PersistentAgentEmailEndpoint
    fields = ["display_name"]
    verbose_name = verbose_name_plural = "sender"


class OwnerFilter(admin.SimpleListFilter):
    title = "whose"
    parameter_name = "whose"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [("own", "An agent's"), ("outside", "Outside contacts")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() is None:
            return queryset
        return queryset.filter(owner_agent__isnull=self.value() == "outside")


@admin.register(PersistentAgentCommsEndpoint)
class EndpointAdmin(OwnPages):
    """Addresses. The mailbox is edited here, on an agent's own e-mail endpoint and nowhere else."""

    list_display = ["address", "channel", "owner_agent", "has_mailbox"]
    list_filter = [OwnerFilter, "channel"]
    list_select_related = ["owner_agent", "agentemailaccount"]
    search_fields = ["address", "owner_agent__name"]
    autocomplete_fields = ["owner_agent"]
    fields = ["owner_agent", "channel", "address", "is_primary"]
    change_form_template = "admin/gobii_email/persistentagentcommsendpoint/change_form.html"

    class Media:
        css = {"all": ["gobii_email/admin.css"]}

    @admin.display(description="mailbox", boolean=True)
    def has_mailbox(self, endpoint: PersistentAgentCommsEndpoint) -> bool:
        return hasattr(endpoint, "agentemailaccount")

    def get_inlines(self, request: HttpRequest, obj: PersistentAgentCommsEndpoint | None) -> list[Any]:
        return [EmailDetailsInline, AccountInline] if obj is not None and obj.is_own_email else []

    def get_readonly_fields(
        self, request: HttpRequest, obj: PersistentAgentCommsEndpoint | None = None
    ) -> list[str]:
        """What a mailbox rests on does not change under it."""
        return ["owner_agent", "channel", "address"] if obj and hasattr(obj, "agentemailaccount") else []

    @method_decorator(sensitive_post_parameters())
    def changeform_view(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        return super().changeform_view(request, *args, **kwargs)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        before = AgentEmailAccount.objects.filter(pk=form.instance.pk, is_outbound_enabled=True).exists()
        super().save_formset(request, form, formset, change)
        if formset.model is not AgentEmailAccount or not before:
            return
        account = AgentEmailAccount.objects.filter(pk=form.instance.pk).first()
        if account is not None and not account.is_outbound_enabled and not account.is_smtp_tested:
            messages.warning(
                request, "Sending is switched off until Test SMTP has passed with the new settings."
            )

    # Pages of the mailbox

    def get_urls(self) -> list[URLPattern]:
        pages = [
            self.page("test-smtp/", self.test_smtp_view, "test_smtp", "POST"),
            self.page("pause/", self.pause_view, "pause", "POST"),
            self.page("resume/", self.resume_view, "resume", "POST"),
        ]
        return [*pages, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        endpoint = options.get("obj")
        account = getattr(endpoint, "agentemailaccount", None) if endpoint else None
        if account is not None and request.user.has_perm("gobii_email.change_agentemailaccount"):
            is_active = account.state_at(timezone.now()) == AgentEmailAccount.State.ACTIVE
            context["account_actions"] = [
                ("Test SMTP", self.url_of("test_smtp", endpoint.pk)),
                ("Pause", self.url_of("pause", endpoint.pk))
                if is_active
                else ("Resume", self.url_of("resume", endpoint.pk)),
            ]
        return super().render_change_form(request, context, **options)

    def _account(self, request: HttpRequest, object_id: str) -> AgentEmailAccount:
        self.require(request, "change_agentemailaccount")
        endpoint = self.object_or_404(request, object_id)
        account: AgentEmailAccount | None = getattr(endpoint, "agentemailaccount", None)
        if account is None:
            raise Http404("This endpoint has no mailbox.")
        return account

    def test_smtp_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        account = self._account(request, object_id)
        test = diagnose.test_smtp(account)
        self.log_change(request, account.endpoint, f"Test SMTP: {'passed' if test.ok else 'failed'}.")
        context = self.page_context(request, account.endpoint, f"Test SMTP of {account.endpoint.address}")
        return TemplateResponse(
            request,
            "admin/gobii_email/persistentagentcommsendpoint/test_smtp.html",
            context | {"test": test, "again": self.url_of("test_smtp", object_id), "media": self.media},
        )

    def pause_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        account = self._account(request, object_id)
        hold.pause(account, reason=f"Paused by {request.user.get_username()}.")
        return self._done(request, account, "Paused. Its mail waits until it is resumed.")

    def resume_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        account = self._account(request, object_id)
        waiting = hold.resume(account)
        return self._done(request, account, f"Resumed; messages that were waiting: {waiting}.")

    def _done(self, request: HttpRequest, account: AgentEmailAccount, text: str) -> HttpResponseBase:
        self.log_change(request, account.endpoint, text)
        messages.success(request, text)
        return redirect(self.url_of("change", account.pk))


class HealthFilter(admin.SimpleListFilter):
    title = "health"
    parameter_name = "health"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [("ok", "Working"), ("failing", "Last answer was an error"), ("unused", "Never reached")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        rows = {
            "ok": Q(smtp_error="", smtp_last_ok_at__isnull=False),
            "failing": ~Q(smtp_error=""),
            "unused": Q(smtp_error="", smtp_last_ok_at__isnull=True),
        }
        return queryset.filter(rows.get(self.value() or "", Q()))


class TestFilter(admin.SimpleListFilter):
    title = "last test"
    parameter_name = "tested"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [("yes", "Passed in its present settings"), ("no", "To be tested")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        rows = {"yes": ~Q(smtp_tested_fingerprint=""), "no": Q(smtp_tested_fingerprint="")}
        return queryset.filter(rows.get(self.value() or "", Q()))


@admin.register(AgentEmailAccount)
class AccountAdmin(OwnPages):
    """Every mailbox at a glance; each is edited on the page of its endpoint."""

    list_display = ["address", "agent", "server", "is_outbound_enabled", "state_now", "last_test"]
    list_filter = ["state", HealthFilter, TestFilter, "is_outbound_enabled", "is_inbound_enabled"]
    list_select_related = ["endpoint__owner_agent"]
    search_fields = ["endpoint__address", "endpoint__owner_agent__name", "smtp_host"]
    actions = ["pause_selected", "resume_selected"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def change_view(
        self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any
    ) -> HttpResponseBase:
        return redirect(reverse("admin:gobii_email_persistentagentcommsendpoint_change", args=[object_id]))

    @admin.display(ordering="endpoint__address")
    def address(self, account: AgentEmailAccount) -> str:
        return account.endpoint.address

    @admin.display(ordering="endpoint__owner_agent__name")
    def agent(self, account: AgentEmailAccount) -> str:
        return str(account.endpoint.owner_agent)

    @admin.display(ordering="smtp_host")
    def server(self, account: AgentEmailAccount) -> str:
        return f"{account.smtp_host}:{account.smtp_port}" if account.smtp_host else "–"

    @admin.display(description="state", ordering="state")
    def state_now(self, account: AgentEmailAccount) -> str:
        return state_text(account)

    @admin.display(description="Test SMTP", ordering="smtp_last_ok_at")
    def last_test(self, account: AgentEmailAccount) -> str:
        text = test_result(account)
        return format_html('<span title="{}">{}</span>', text, text[:80] + "…" if len(text) > 80 else text)

    @admin.action(description="Pause the selected mailboxes", permissions=["change"])
    def pause_selected(self, request: HttpRequest, queryset: QuerySet[AgentEmailAccount]) -> None:
        for account in queryset:
            hold.pause(account, reason=f"Paused by {request.user.get_username()}.")
            self.log_change(request, account, "Paused.")
        messages.success(request, "Paused. Their mail waits until they are resumed.")

    @admin.action(description="Resume the selected mailboxes", permissions=["change"])
    def resume_selected(self, request: HttpRequest, queryset: QuerySet[AgentEmailAccount]) -> None:
        waiting = 0
        for account in queryset:
            waiting += hold.resume(account)
            self.log_change(request, account, "Resumed.")
        messages.success(request, f"Resumed; messages that were waiting: {waiting}.")
