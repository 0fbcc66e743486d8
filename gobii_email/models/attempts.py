"""Attempts and events: the queue itself, and the story that is told of it.

Every write after a claim is conditional on the status and on the lease token, so a late worker changes
nothing. Which status follows which is decided in domain/lifecycle; who calls is decided in services.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection, models
from django.db.models import F, OuterRef, Q, Subquery, Value
from django.db.models.functions import Cast, Concat

from gobii_email.domain.lifecycle import OPEN, AttemptStatus, Priority, Provider
from gobii_email.domain.quotas import LIMITS
from gobii_email.models.accounts import AgentEmailAccount
from gobii_email.models.agents import PersistentAgentCommsEndpoint
from gobii_email.models.compiled import Compiled
from gobii_email.models.limits import MailHost
from gobii_email.models.messages import PersistentAgentMessage, choices


class AttemptQuerySet(models.QuerySet["OutboundMessageAttempt"]):
    """The queue's statements. Each of the fenced ones answers whether it still was ours to change."""

    def origin(self, attempt_id: str) -> "Origin | None":
        """Whose mail the attempt is, and how its account and its account's server are, in one statement."""
        found = _ORIGIN.rows(uuid.UUID(attempt_id))
        return _origin_of(found[0]) if found else None

    def with_origin(self, attempt_id: uuid.UUID) -> "AttemptQuerySet":
        """The attempt with what `origin` reads of its sender, and hardly anything of itself."""
        rows = self._with_host().annotate(
            lane_look_at=F("from_endpoint__lane__look_at"), lane_code=F("from_endpoint__lane__code")
        )
        rows = rows.select_related("from_endpoint__agentemailaccount").only("from_endpoint")
        return rows.filter(pk=attempt_id).order_by()

    def _with_host(self) -> "AttemptQuerySet":
        account = "from_endpoint__agentemailaccount__"
        port = Cast(OuterRef(f"{account}smtp_port"), models.CharField())
        host = MailHost.objects.filter(name=Concat(OuterRef(f"{account}smtp_host"), Value(":"), port))
        return self.annotate(
            host_backoff_until=Subquery(host.values("backoff_until")[:1]),
            host_backoff_reason=Subquery(host.values("reason")[:1]),
        )

    def for_delivery(self, attempt_id: str) -> "OutboundMessageAttempt":
        """The attempt with what is needed to write its ending, in one statement."""
        return (
            self._with_host()
            .select_related(
                "message",
                "from_endpoint__agentemailaccount__endpoint",
                "from_endpoint__agentemailaccount__oauth_credential",
            )
            .defer("message__body", "message__raw_payload")
            .get(pk=attempt_id)
        )

    def held_by(self, attempt_id: uuid.UUID, token: uuid.UUID | None) -> "AttemptQuerySet":
        """The attempt while it is being sent under `token`; empty once somebody else took it over."""
        return self.filter(pk=attempt_id, status=AttemptStatus.SENDING, lease_token=token)

    def write(self, attempt: "OutboundMessageAttempt", **values: object) -> bool:
        """Updates the row of `attempt`, and the object with it; False when the fence found no row."""
        if not self.update(**values):
            return False
        for name, value in values.items():
            setattr(attempt, name, value)
        return True

    def due(self, now: datetime, status: AttemptStatus) -> "AttemptQuerySet":
        """Attempts of `status` that somebody should look at now, longest overdue first."""
        return self.filter(status=status, due_at__lte=now).order_by("due_at")

    def expired(self, now: datetime) -> "AttemptQuerySet":
        """Queued attempts whose message's life is over."""
        return self.filter(status=AttemptStatus.QUEUED, expires_at__lte=now).order_by("expires_at")

    def locked(self, limit: int) -> list["OutboundMessageAttempt"]:
        """Up to `limit` of them, locked for this transaction, and none that another one locks."""
        rows = self.select_related("message")
        rows = rows.defer("message__body", "message__raw_payload")  # large, and nothing to a dispatcher
        skips = connection.features.has_select_for_update_skip_locked
        return list(rows.select_for_update(skip_locked=skips, of=("self",) if skips else ())[:limit])


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose mail a lane carries: the sender's endpoint, its account, and what its account's server wished.

    `is_handed_out` says that a dispatcher keeps others from the lane.
    """

    endpoint_id: uuid.UUID | None
    owner_agent_id: uuid.UUID | None
    address: str
    account: AgentEmailAccount | None
    host_backoff_until: datetime | None = None
    host_backoff_reason: str = ""
    is_handed_out: bool = False

    def is_as(self, earlier: "Origin") -> bool:
        """Whether a turn that began with `earlier` may go on."""
        return self._what_counts() == earlier._what_counts()

    def _what_counts(self) -> tuple[object, ...]:
        account = self.account
        if account is None:
            return (None,)
        limits = tuple(getattr(account, name) for name in (*LIMITS, "pool_ttl"))
        learned = (account.learned_per_minute, account.learned_connections)
        state = (account.state, account.state_until, account.is_outbound_enabled, self.host_backoff_until)
        return (account.smtp_fingerprint(), account.smtp_tested_fingerprint, limits, learned, state)


class OutboundMessageAttempt(models.Model):
    """One attempt to hand a message over: attempt 1, 2, … of its message.

    `due_at` says when somebody should next look at the row: to send or hand it out (queued), because its
    lease runs out (sending), for evidence (in doubt); null when it is over. `not_before` is the earliest
    time to send. `addresses` are the recipients it is for, fixed when it was queued.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    message = models.ForeignKey(PersistentAgentMessage, on_delete=models.CASCADE, related_name="attempts")
    number = models.PositiveIntegerField()
    from_endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint,
        null=True,
        on_delete=models.SET_NULL,
        related_name="attempts",
        db_index=False,  # attempt_sent_idx begins with it
    )
    priority = models.PositiveSmallIntegerField(
        choices=[(int(value), value.name.lower()) for value in Priority], default=int(Priority.INTERACTIVE)
    )
    addresses = models.JSONField(default=list)
    provider = models.CharField(max_length=32, choices=choices(*Provider), blank=True)
    provider_message_id = models.CharField(max_length=255, blank=True)
    status = models.CharField(max_length=16, choices=choices(*AttemptStatus), default=AttemptStatus.QUEUED)

    stage = models.CharField(max_length=16, blank=True)
    verdict = models.CharField(max_length=16, blank=True)
    scope = models.CharField(max_length=16, blank=True)
    smtp_code = models.PositiveSmallIntegerField(null=True, blank=True)
    enhanced_status = models.CharField(max_length=16, blank=True)
    reply = models.TextField(blank=True)
    error_code = models.CharField(max_length=64, blank=True)
    error_message = models.TextField(blank=True)
    stage_ms = models.JSONField(default=dict, blank=True)
    tls = models.CharField(max_length=16, blank=True)
    peer_address = models.CharField(max_length=64, blank=True)

    queued_at = models.DateTimeField()
    not_before = models.DateTimeField()
    due_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True, help_text="as its message's, for finding what is over")
    started_at = models.DateTimeField(null=True, blank=True)
    marked_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    sent_at = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    held_code = models.CharField(max_length=32, blank=True)
    held_reason = models.TextField(blank=True)
    releases = models.PositiveSmallIntegerField(
        default=0, help_text="how often a lost worker gave it back unsent"
    )
    lease_token = models.UUIDField(null=True, editable=False)
    lease_owner = models.CharField(max_length=128, blank=True, editable=False)

    objects = AttemptQuerySet.as_manager()

    successor: "OutboundMessageAttempt | None" = None
    """Attempt n+1, when it was queued in this process; not stored."""
    host_backoff_until: "datetime | None" = None
    host_backoff_reason: str | None = None
    """Of the account's server, as `for_delivery` found it; not stored."""
    lane_look_at: "datetime | None" = None
    lane_code: str | None = None
    """Of its lane, as `origin` found it; not stored."""

    class Meta:
        verbose_name = "attempt"
        ordering = ["message", "number"]
        constraints = [
            models.UniqueConstraint(fields=["message", "number"], name="attempt_number_once"),
            models.UniqueConstraint(
                fields=["message"],
                condition=Q(status__in=sorted(OPEN)),
                name="attempt_one_open",
            ),
            models.CheckConstraint(
                condition=Q(due_at__isnull=True) | Q(status__in=sorted(OPEN)), name="attempt_due_only_open"
            ),
        ]
        # Few and narrow: each is written again whenever one of its columns changes, several times a mail.
        indexes = [
            models.Index(
                fields=["due_at"],
                condition=Q(status__in=[str(AttemptStatus.SENDING), str(AttemptStatus.IN_DOUBT)]),
                name="attempt_look_idx",
            ),
            models.Index(
                fields=["from_endpoint", "priority", "due_at"],
                condition=Q(status=str(AttemptStatus.QUEUED)),
                name="attempt_turn_idx",
            ),
            models.Index(
                fields=["expires_at"],
                condition=Q(status=str(AttemptStatus.QUEUED)),
                name="attempt_expiry_idx",
            ),
            models.Index(fields=["from_endpoint", "sent_at"], name="attempt_sent_idx"),
            models.Index(
                fields=["provider_message_id"],
                condition=~Q(provider_message_id=""),
                name="attempt_provider_idx",
            ),
        ]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.message_id}"


_ORIGIN = Compiled(OutboundMessageAttempt.objects.with_origin, uuid.UUID(int=0x0F))


def _origin_of(attempt: OutboundMessageAttempt) -> Origin:
    endpoint = attempt.from_endpoint
    if endpoint is None:
        return Origin(None, None, "", None)
    account: AgentEmailAccount | None = getattr(endpoint, "agentemailaccount", None)
    if account is not None:
        account.endpoint = endpoint
    return Origin(
        endpoint.pk,
        endpoint.owner_agent_id,
        endpoint.address,
        account,
        attempt.host_backoff_until,
        attempt.host_backoff_reason or "",
        is_handed_out=attempt.lane_look_at is not None and not attempt.lane_code,
    )


class EventsAreKept(Exception):
    """Somebody tried to change or delete an event; the story is only ever added to."""


class OutboundMessageEvent(models.Model):
    """One decision, told in a sentence. Insert-only: the timeline of a message is its events in order."""

    id = models.BigAutoField(primary_key=True)
    message = models.ForeignKey(
        PersistentAgentMessage, on_delete=models.CASCADE, related_name="events", db_index=False
    )
    attempt = models.ForeignKey(
        OutboundMessageAttempt, null=True, on_delete=models.CASCADE, related_name="events"
    )
    at = models.DateTimeField()
    event = models.CharField(max_length=32)
    text = models.TextField()
    data = models.JSONField(default=dict, blank=True)

    class Meta:
        verbose_name = "event"
        ordering = ["at", "id"]
        indexes = [models.Index(fields=["message", "at"], name="event_timeline_idx")]

    def __str__(self) -> str:
        return self.text

    def save(self, *args: Any, **kwargs: Any) -> None:
        if self.pk is not None:
            raise EventsAreKept("events are only added; write a new one")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise EventsAreKept("events are kept as long as their message")
