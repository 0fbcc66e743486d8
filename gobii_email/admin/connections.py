"""Tests of mailboxes as reports to read, and the servers that are left alone for a while."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone

from gobii_email.admin.newest import SEARCHED, NewestAdmin
from gobii_email.admin.pages import OwnPages, ReadOnly
from gobii_email.models import ConnectionTest, MailHost
from gobii_email.services import hold

ICONS = {"ok": "✓", "warn": "!", "fail": "✗", "skipped": "·"}
WORDS = {"ok": "OK", "warn": "Warning", "fail": "Failed", "skipped": "Skipped"}


@admin.register(ConnectionTest)
class ConnectionTestAdmin(ReadOnly, OwnPages, NewestAdmin):
    """What each test found, step by step. Whoever may see mailboxes may see their tests."""

    list_display = ["account", "protocol", "result", "text_shown", "started_at", "asked_by"]
    list_filter = ["protocol", "is_ok"]
    list_select_related = ["account__endpoint"]
    search_fields = ["account__endpoint__address"]
    search_help_text = f"Parts of an address, looked for in the newest {SEARCHED:,} tests"
    fields: list[str] = []
    change_form_template = "admin/gobii_email/connectiontest/change_form.html"

    class Media:
        css = {"all": ["gobii_email/admin.css"]}

    def has_view_permission(self, request: HttpRequest, obj: object = None) -> bool:
        names = ("view_connectiontest", "view_agentemailaccount", "change_agentemailaccount")
        return any(request.user.has_perm(f"gobii_email.{name}") for name in names)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ConnectionTest]:
        # `steps` is the bulk of a row, and only the report shows them.
        rows = super().get_queryset(request)
        is_list = request.resolver_match is None or "object_id" not in request.resolver_match.kwargs
        return rows.defer("steps") if is_list else rows

    def mentioning(self, word: str) -> Q:
        return Q(account__endpoint__address__icontains=word)

    @admin.display(description="result")
    def result(self, test: ConnectionTest) -> str:
        status = status_of(test)
        return f"{ICONS[status]} {_RESULTS[status]}"

    @admin.display(description="found")
    def text_shown(self, test: ConnectionTest) -> str:
        text = test.as_of(timezone.now()).text
        return text[:120] + "…" if len(text) > 120 else text or "–"

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], **options: Any
    ) -> HttpResponse:
        test = options["obj"].as_of(timezone.now())
        pages = "admin:gobii_email_persistentagentcommsendpoint"
        may_act = request.user.has_perm("gobii_email.change_agentemailaccount")
        context |= {
            "test": test,
            "status": status_of(test),
            "steps": [shown(step) for step in test.steps],
            "mailbox_url": reverse(f"{pages}_change", args=[test.account_id]),
            "again_url": reverse(f"{pages}_test_{test.protocol}", args=[test.account_id]) if may_act else "",
            "seconds_to_reload": 1 if status_of(test) == "skipped" else None,
        }
        return super().render_change_form(request, context, **options)


_RESULTS = {"ok": "Passed", "fail": "Failed", "warn": "Did not finish", "skipped": "Under way"}


def status_of(test: ConnectionTest) -> str:
    """Of the whole test, in the words of a step: "skipped" while it runs, "warn" when it was cut off."""
    if test.as_of(timezone.now()).finished_at is None:
        return "skipped"
    if test.was_interrupted:
        return "warn"
    return "ok" if test.is_ok else "fail"


def shown(step: dict[str, Any]) -> dict[str, Any]:
    """A stored step as its row shows it: with icon and word, and lists as texts."""
    facts = {
        name.replace("_", " "): ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in step.get("facts", {}).items()
        if value not in ("", [], None)
    }
    status = step["status"]
    return step | {
        "facts": facts,
        "icon": ICONS[status],
        "word": WORDS[status],
        "name": step["id"].replace("_", " "),
    }


@admin.register(MailHost)
class MailHostAdmin(ReadOnly, OwnPages):
    """Servers that asked to be left alone; shared by all mailboxes at them."""

    list_display = ["name", "backoff_until", "failures", "reason", "updated_at"]
    search_fields = ["name"]
    ordering = ["name"]
    actions = ["clear_backoff"]

    @admin.action(description="Clear the backoff of the selected servers", permissions=["clear"])
    def clear_backoff(self, request: HttpRequest, queryset: QuerySet[MailHost]) -> None:
        for host in queryset:
            waiting = hold.end_host_backoff(host.name)
            self.log_change(request, host, f"Clear backoff: messages that were waiting: {waiting}.")
            messages.success(request, f"{host.name} is used again; messages that were waiting: {waiting}.")

    def has_clear_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("gobii_email.change_agentemailaccount"))
