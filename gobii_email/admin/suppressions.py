"""Whom senders do not write to any more, and letting them be written to again."""

from django.contrib import admin, messages
from django.db.models import Q, QuerySet
from django.http import HttpRequest

from gobii_email.admin.newest import SEARCHED, NewestAdmin
from gobii_email.admin.pages import OwnPages, ReadOnly
from gobii_email.models import Suppression
from gobii_email.services import suppress


class InForce(admin.SimpleListFilter):
    """Those that count, unless the others are asked for: the history is for questions."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: object) -> list[tuple[str, str]]:
        return [("force", "In force"), ("lifted", "Lifted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Suppression]) -> QuerySet[Suppression]:
        if self.value() is None:
            return queryset
        return queryset.filter(lifted_at__isnull=self.value() == "force")


@admin.register(Suppression)
class SuppressionAdmin(ReadOnly, OwnPages, NewestAdmin):
    """Entered by bounces, complaints and people; rows stay, so that it can be told who lifted what."""

    list_display = ["address", "endpoint", "cause", "reason_shown", "created_at", "lifted_at", "lifted_by"]
    list_filter = [InForce, "cause"]
    list_select_related = ["endpoint"]
    search_fields = ["address", "endpoint__address"]
    search_help_text = f"Parts of an address, looked for in the newest {SEARCHED:,}"
    actions = ["lift"]

    def mentioning(self, word: str) -> Q:
        return Q(address__icontains=word) | Q(endpoint__address__icontains=word)

    @admin.display(description="reason")
    def reason_shown(self, row: Suppression) -> str:
        return row.reason[:120] + "…" if len(row.reason) > 120 else row.reason

    @admin.action(description="Let the selected addresses be written to again", permissions=["lift"])
    def lift(self, request: HttpRequest, queryset: QuerySet[Suppression]) -> None:
        for row in queryset.filter(lifted_at__isnull=True):
            self.log_change(request, row, f"Lifted: {row.endpoint} may write to {row.address} again.")
        lifted = suppress.lift(queryset, by=request.user.get_username())
        messages.success(request, f"Addresses that may be written to again: {lifted}.")

    def has_lift_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("gobii_email.change_suppression"))
