"""What operators switch while everything runs: the rollout of own mailboxes, and suspensions of sending.

Both are only ever added to or ended, so the rows are also the record of who did what, and why. What is in
force at a moment is asked in services/switches.
"""

from datetime import datetime

from django.db import models
from django.db.models import Q


class RolloutChange(models.Model):
    """Replaces BYO_EMAIL_ENABLED and BYO_EMAIL_ROLLOUT from `at` on; the newest row counts.

    A null `is_enabled` and an empty `rollout` each leave it to the setting.
    """

    at = models.DateTimeField()
    is_enabled = models.BooleanField(null=True)
    rollout = models.TextField(blank=True, help_text="`all`, `25%`, or agents and addresses")
    reason = models.TextField(blank=True)
    changed_by = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = "rollout change"
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.is_enabled} {self.rollout}"


class SuspensionQuerySet(models.QuerySet["Suspension"]):
    def in_force(self, now: datetime) -> "SuspensionQuerySet":
        return self.filter(Q(ends_at__isnull=True) | Q(ends_at__gt=now), lifted_at__isnull=True)


class Suspension(models.Model):
    """Nothing of `subject` is sent or polled until `ends_at`, or until it is lifted. Its mail waits."""

    class Scope(models.TextChoices):
        ACCOUNT = "account", "One mailbox"
        AGENT = "agent", "One agent"
        PROVIDER = "provider", "One provider"
        ALL = "all", "Everything"

    scope = models.CharField(max_length=8, choices=Scope.choices)
    subject = models.CharField(
        max_length=320,
        blank=True,
        help_text="the mailbox's address, the agent's id, or a provider's id, host or transport",
    )
    reason = models.TextField()
    created_at = models.DateTimeField()
    created_by = models.CharField(max_length=150, blank=True)
    ends_at = models.DateTimeField(null=True, blank=True)
    lifted_at = models.DateTimeField(null=True, blank=True)
    lifted_by = models.CharField(max_length=150, blank=True)

    objects = SuspensionQuerySet.as_manager()

    class Meta:
        verbose_name = "suspension"
        ordering = ["-id"]
        indexes = [
            models.Index(fields=["created_at"], condition=Q(lifted_at__isnull=True), name="suspension_idx")
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.subject}".strip()
