"""What operators switch while everything runs, as pages: suspensions, and the rollout of own mailboxes.

Rows are only added, or ended; services/suspend does it, and says what makes no sense.
"""

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone

from gobii_email.admin.pages import OwnPages
from gobii_email.models import RolloutChange, Suspension
from gobii_email.services import suspend
from gobii_email.services.intervene import NotPossible


class SuspensionForm(forms.ModelForm):
    class Meta:
        model = Suspension
        fields = ["scope", "subject", "reason", "ends_at"]
        labels = {"ends_at": "Until (UTC)"}
        help_texts = {
            "reason": "Whoever finds the mail waiting will read it.",
            "ends_at": "Empty: until somebody lifts it.",
        }

    def clean(self) -> dict[str, Any]:
        given = super().clean() or {}
        ends_at = given.get("ends_at")
        if ends_at is not None and ends_at <= timezone.now():
            self.add_error("ends_at", "That is past. Choose a later time, or leave it empty.")
        if "scope" in given and "subject" in given:
            try:
                given["subject"] = suspend.named(Suspension.Scope(given["scope"]), given["subject"].strip())
            except NotPossible as wrong:
                self.add_error("subject", str(wrong))
        return given


class RolloutForm(forms.ModelForm):
    class Meta:
        model = RolloutChange
        fields = ["is_enabled", "rollout", "reason"]
        labels = {"is_enabled": "Own mailboxes are served"}
        help_texts = {
            "is_enabled": "Unknown: as BYO_EMAIL_ENABLED says.",
            "rollout": "all, a percentage such as 25%, or agents and addresses; empty: BYO_EMAIL_ROLLOUT.",
        }

    def clean_rollout(self) -> str:
        try:
            suspend.parse_rollout(self.cleaned_data["rollout"])
        except ValueError as wrong:
            raise forms.ValidationError(f"{wrong}.") from None
        return str(self.cleaned_data["rollout"])


class AddOnly(OwnPages):
    """Newest first; what was done stays to be seen, and is changed by doing something else."""

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        return False


@admin.register(Suspension)
class SuspensionAdmin(AddOnly):
    """Works in every process within two seconds."""

    form = SuspensionForm
    list_display = [
        "scope",
        "subject",
        "reason",
        "created_by",
        "created_at",
        "ends_at",
        "lifted_at",
        "lifted_by",
    ]
    list_filter = ["scope"]
    actions = ["lift"]

    def save_model(self, request: HttpRequest, obj: Suspension, form: Any, change: bool) -> None:
        made = suspend.suspend(
            Suspension.Scope(obj.scope),
            obj.subject,
            reason=obj.reason,
            until=obj.ends_at,
            by=request.user.get_username(),
        )
        obj.pk, obj.created_at = made.pk, made.created_at

    @admin.action(description="Lift the selected suspensions: their mail goes on", permissions=["lift"])
    def lift(self, request: HttpRequest, queryset: QuerySet[Suspension]) -> None:
        by = request.user.get_username()
        lifted = [row for row in queryset if suspend.lift(row, by=by)]
        for row in lifted:
            self.log_change(request, row, "Lifted.")
        messages.success(request, f"Suspensions that were lifted: {len(lifted)}.")

    def has_lift_permission(self, request: HttpRequest) -> bool:
        return bool(request.user.has_perm("gobii_email.change_suspension"))


@admin.register(RolloutChange)
class RolloutChangeAdmin(AddOnly):
    """The newest row counts."""

    form = RolloutForm
    list_display = ["at", "is_enabled", "rollout", "reason", "changed_by"]

    def save_model(self, request: HttpRequest, obj: RolloutChange, form: Any, change: bool) -> None:
        made = suspend.change_rollout(
            is_enabled=obj.is_enabled, rollout=obj.rollout, reason=obj.reason, by=request.user.get_username()
        )
        obj.pk, obj.at = made.pk, made.at
