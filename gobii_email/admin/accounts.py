"""Endpoints and the mailboxes behind them: settings, write-only passwords, and what may be done about one.

The rules of an edit are those of services/accounts, the same as for every other way in; here they are
shown beside the fields they concern. The acts stand in mailbox_acts.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.db.models.functions import Lower
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.urls import URLPattern
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.timesince import timesince
from django.views.decorators.debug import sensitive_post_parameters

from gobii_email.admin.mailbox_acts import ACTS, MailboxAct, acts_for, confirmation, perform
from gobii_email.admin.pages import OwnPages
from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount, PersistentAgentCommsEndpoint, PersistentAgentEmailEndpoint
from gobii_email.services.accounts import InvalidAccount, edit_account, save_account

SENDING = ["smtp_host", "smtp_port", "smtp_security", "smtp_auth", "smtp_username"]
RECEIVING = ["imap_host", "imap_port", "imap_security", "imap_auth", "imap_username"]
FOLDER = ["imap_folder", "poll_interval_sec", "imap_idle_enabled", "copies_to_sent"]
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
    "imap_idle_enabled": "Watch for new mail (IDLE)",
    "copies_to_sent": "File copies in Sent",
    **{
        f"{side}_{part}": part.capitalize()
        for side in ("smtp", "imap")
        for part in ("host", "port", "security")
    },
    **{f"{side}_username": "User name" for side in ("smtp", "imap")},
}
TESTS_SHOWN = 10
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


def test_result(account: AgentEmailAccount, side: str = "smtp") -> str:
    """How the last test of sending stands, in words; with `side` "imap", that of receiving."""
    if error := getattr(account, f"{side}_error"):
        return str(error)
    if getattr(account, f"is_{side}_tested"):
        return f"Passed{_ago(getattr(account, f'{side}_last_ok_at'))}."
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
    readonly_fields = ["state_now", "last_test", "last_imap_test"]
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
            {
                "fields": [*RECEIVING, "imap_password", *FOLDER, "is_inbound_enabled", "last_imap_test"],
                "classes": ["collapse"],
            },
        ),
        ("Limits", {"fields": LIMITS, "classes": ["collapse"], "description": LIMITS_NOTE}),
    ]

    @admin.display(description="State")
    def state_now(self, account: AgentEmailAccount) -> str:
        return state_text(account)

    @admin.display(description="Test SMTP")
    def last_test(self, account: AgentEmailAccount) -> str:
        return test_result(account)

    @admin.display(description="Test IMAP")
    def last_imap_test(self, account: AgentEmailAccount) -> str:
        return test_result(account, "imap")


class EmailDetailsInline(admin.StackedInline):
    model = PersistentAgentEmailEndpoint
    fields = ["display_name"]
    verbose_name = verbose_name_plural = "sender"


class OwnerFilter(admin.SimpleListFilter):
    """One or the other, never both: each has an index of its own that is in the order of the list."""

    title = "whose"
    parameter_name = "whose"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [("own", "An agent's"), ("outside", "Outside contacts")]

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        _, own, outside = super().choices(changelist)
        yield own | {"selected": self.value() != "outside"}
        yield outside

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(owner_agent__isnull=self.value() == "outside")


@admin.register(PersistentAgentCommsEndpoint)
class EndpointAdmin(OwnPages):
    """Addresses. The mailbox is edited here, on an agent's own e-mail endpoint and nowhere else."""

    list_display = ["address", "channel", "owner_agent", "has_mailbox"]
    list_filter = [OwnerFilter, "channel"]
    list_select_related = ["owner_agent", "agentemailaccount"]
    ordering = [Lower("address")]
    sortable_by = ()
    search_fields = ["address"]
    search_help_text = "Parts of an agent's address or name; the whole address of an outside contact"
    autocomplete_fields = ["owner_agent"]
    fields = ["owner_agent", "channel", "address", "is_primary"]
    change_form_template = "admin/gobii_email/persistentagentcommsendpoint/change_form.html"

    class Media:
        css = {"all": ["gobii_email/admin.css"]}

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Contacts are as many as there are recipients, and have an index of whole addresses alone."""
        if not search_term:
            return queryset, False
        parts = Q(address__icontains=search_term) | Q(owner_agent__name__icontains=search_term)
        whole = queryset.alias(lower=Lower("address")).filter(
            owner_agent__isnull=True, lower=search_term.strip().lower()
        )
        is_outside = request.GET.get(OwnerFilter.parameter_name) == "outside"
        return whole if is_outside else queryset.filter(parts, owner_agent__isnull=False), False

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
        acts = [
            self.page(f"{name.replace('_', '-')}/", self._act_view(act), name, "GET", "POST")
            for name, act in ACTS.items()
        ]
        return [*acts, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        endpoint = options.get("obj")
        account = getattr(endpoint, "agentemailaccount", None) if endpoint else None
        if account is not None:
            may_act = request.user.has_perm("gobii_email.change_agentemailaccount")
            context["account_acts"] = [
                (act.button, self.url_of(act.name, account.pk))
                for act in (acts_for(account) if may_act else ())
            ]
            context["tests"] = account.tests.defer("steps").order_by("-started_at")[:TESTS_SHOWN]
        return super().render_change_form(request, context, **options)

    def _act_view(self, act: MailboxAct) -> Any:
        def view(request: HttpRequest, object_id: str) -> HttpResponseBase:
            return self._answer(request, act, self._account(request, object_id))

        return view

    def _account(self, request: HttpRequest, object_id: str) -> AgentEmailAccount:
        self.require(request, "change_agentemailaccount")
        endpoint = self.object_or_404(request, object_id)
        account: AgentEmailAccount | None = getattr(endpoint, "agentemailaccount", None)
        if account is None:
            raise Http404("This endpoint has no mailbox.")
        return account

    def _answer(self, request: HttpRequest, act: MailboxAct, account: AgentEmailAccount) -> HttpResponseBase:
        """Asks on GET; on POST does it, and leads to what came of it."""
        form = act.form(request.POST if request.method == "POST" else None)
        back = self.url_of("change", account.pk)
        if not form.is_valid():
            page = self.page_context(request, account.endpoint, act.button)
            return confirmation(request, act, [account], form, page | {"media": self.media, "back": back})
        done = perform(act, account, form, by=request.user.get_username())
        self.log_change(request, account.endpoint, f"{act.button}: {done.text}")
        messages.add_message(request, messages.SUCCESS if done.is_done else messages.ERROR, done.text)
        return redirect(done.url or back)
