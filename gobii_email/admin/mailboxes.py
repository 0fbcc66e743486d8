"""Every mailbox at a glance: how it is doing, what it waits for, and acts on several at once.

Each is edited on the page of its endpoint, in accounts.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import CharField, Exists, OuterRef, Q, QuerySet, Subquery, Value
from django.db.models.functions import Cast, Concat
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html

from gobii_email.admin.accounts import state_text, test_result
from gobii_email.admin.mailbox_acts import ACTS, MailboxAct, confirmation, perform
from gobii_email.admin.pages import OwnPages
from gobii_email.models import AgentEmailAccount, MailHost

State = AgentEmailAccount.State


class QueryFilter(admin.SimpleListFilter):
    """Choices in words, each a condition."""

    def conditions(self) -> dict[str, tuple[str, Q]]:
        raise NotImplementedError

    def lookups(self, request: HttpRequest, model_admin: Any) -> Sequence[tuple[str, str]]:
        return [(name, words) for name, (words, _) in self.conditions().items()]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.conditions().get(self.value() or "")
        return queryset if chosen is None else queryset.filter(chosen[1])


def in_force(now: datetime) -> Q:
    """Whether the state that is stored still holds: one with an end is over once that has passed."""
    return Q(state_until__isnull=True) | Q(state_until__gt=now)


class StateFilter(QueryFilter):
    title = "state in force"
    parameter_name = "state"

    def conditions(self) -> dict[str, tuple[str, Q]]:
        holds = in_force(timezone.now())
        held = holds & ~Q(state=State.ACTIVE)
        return {
            "held": ("Held, for any reason", held),
            "person": ("Held until somebody acts", held & Q(state_until__isnull=True)),
            State.ACTIVE.value: ("Active", ~held),
            **{
                state.value: (str(state.label), holds & Q(state=state))
                for state in State
                if state is not State.ACTIVE
            },
        }


class HealthFilter(QueryFilter):
    title = "health"
    parameter_name = "health"

    def conditions(self) -> dict[str, tuple[str, Q]]:
        return {
            "ok": ("Working", Q(smtp_error="", smtp_last_ok_at__isnull=False)),
            "failing": ("Last answer was an error", ~Q(smtp_error="")),
            "unused": ("Never reached", Q(smtp_error="", smtp_last_ok_at__isnull=True)),
        }


class TestFilter(QueryFilter):
    """An edit of what was tested empties the fingerprint, so an empty one says all."""

    title = "present settings"
    parameter_name = "tested"

    def conditions(self) -> dict[str, tuple[str, Q]]:
        return {
            "yes": ("SMTP has been tested", ~Q(smtp_tested_fingerprint="")),
            "no": ("SMTP is to be tested", Q(smtp_tested_fingerprint="")),
            "no-imap": ("IMAP is to be tested", Q(imap_tested_fingerprint="") & ~Q(imap_host="")),
        }


class BackoffFilter(QueryFilter):
    title = "backoff"
    parameter_name = "backoff"

    def conditions(self) -> dict[str, tuple[str, Q]]:
        now = timezone.now()
        limited = Q(state__in=[State.LIMITED, State.QUOTA]) & in_force(now)
        host = Exists(hosts().filter(backoff_until__gt=now))
        own = limited | Q(backoff_until__gt=now)
        return {
            "any": ("In backoff", own | Q(host)),
            "account": ("The mailbox itself", own),
            "host": ("Its server, for everybody", Q(host)),
        }


def hosts() -> QuerySet[MailHost]:
    """The server of the account of an outer query, where it was ever left alone."""
    port = Cast(OuterRef("smtp_port"), CharField())
    return MailHost.objects.filter(name=Concat(OuterRef("smtp_host"), Value(":"), port))


def _short(text: str) -> str:
    """What a cell has room for; all of it when one points there."""
    return format_html('<span title="{}">{}</span>', text, text[:60] + "…" if len(text) > 60 else text)


@admin.register(AgentEmailAccount)
class AccountAdmin(OwnPages):
    list_display = ["address", "state_now", "last_test", "server", "sends", "receives", "agent"]
    list_filter = [
        StateFilter, HealthFilter, BackoffFilter, TestFilter, "is_outbound_enabled", "is_inbound_enabled",
    ]  # fmt: skip
    list_select_related = ["endpoint__owner_agent"]
    search_fields = ["endpoint__address", "endpoint__owner_agent__name", "smtp_host"]
    actions = [
        "test_smtp_selected",
        "test_imap_selected",
        "poll_selected",
        "pause_selected",
        "resume_selected",
        "clear_backoff_selected",
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentEmailAccount]:
        until = hosts().filter(backoff_until__gt=timezone.now()).values("backoff_until")
        return super().get_queryset(request).annotate(host_backoff_until=Subquery(until[:1]))

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
    def server(self, account: Any) -> str:
        if not account.smtp_host:
            return "–"
        until = account.host_backoff_until
        return account.smtp_server_name + (f", left alone until {until:%Y-%m-%d %H:%M} UTC" if until else "")

    @admin.display(boolean=True, ordering="is_outbound_enabled")
    def sends(self, account: AgentEmailAccount) -> bool:
        return account.is_outbound_enabled

    @admin.display(boolean=True, ordering="is_inbound_enabled")
    def receives(self, account: AgentEmailAccount) -> bool:
        return account.is_inbound_enabled

    @admin.display(description="state", ordering="state")
    def state_now(self, account: AgentEmailAccount) -> str:
        return _short(state_text(account))

    @admin.display(description="Test SMTP", ordering="smtp_last_ok_at")
    def last_test(self, account: AgentEmailAccount) -> str:
        return _short(test_result(account))

    # Several at once

    @admin.action(description="Test SMTP of the selected mailboxes", permissions=["change"])
    def test_smtp_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["test_smtp"], queryset)

    @admin.action(description="Test IMAP of the selected mailboxes", permissions=["change"])
    def test_imap_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["test_imap"], queryset)

    @admin.action(description="Poll the selected mailboxes now", permissions=["change"])
    def poll_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["poll"], queryset)

    @admin.action(description="Pause the selected mailboxes", permissions=["change"])
    def pause_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["pause"], queryset)

    @admin.action(description="Resume the selected mailboxes", permissions=["change"])
    def resume_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["resume"], queryset)

    @admin.action(description="Clear the backoff of the selected mailboxes", permissions=["change"])
    def clear_backoff_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponseBase:
        return self._act_on(request, ACTS["clear_backoff"], queryset)

    def _act_on(self, request: HttpRequest, act: MailboxAct, queryset: QuerySet[Any]) -> HttpResponseBase:
        accounts = list(queryset.select_related("endpoint")[: act.most + 1])
        back = redirect(request.get_full_path())
        if len(accounts) > act.most:
            messages.error(request, f"{act.button} takes up to {act.most} mailboxes at once; select fewer.")
            return back
        is_confirmed = "confirmed" in request.POST
        form = act.form(request.POST if is_confirmed else None)
        if not is_confirmed or not form.is_valid():
            return self._ask(request, act, accounts, form)
        return self._do(request, act, accounts, form) or back

    def _ask(
        self, request: HttpRequest, act: MailboxAct, accounts: list[AgentEmailAccount], form: forms.Form
    ) -> HttpResponseBase:
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": act.button,
            "media": self.media,
            "action": f"{act.name}_selected",
            "back": request.get_full_path(),
        }
        return confirmation(request, act, accounts, form, context)

    def _do(
        self, request: HttpRequest, act: MailboxAct, accounts: list[AgentEmailAccount], form: forms.Form
    ) -> HttpResponseBase | None:
        """Does it to each and tells of each; leads to the reports where there are any."""
        has_report = False
        for account in accounts:
            by = request.user.get_username()
            done = perform(act, account, form, by=by, is_one_of_many=len(accounts) > 1)
            has_report |= bool(done.url)
            self.log_change(request, account, f"{act.button}: {done.text}")
            level = messages.SUCCESS if done.is_done else messages.ERROR
            messages.add_message(request, level, f"{account.endpoint.address}: {done.text}")
        return redirect(reverse("admin:gobii_email_connectiontest_changelist")) if has_report else None
