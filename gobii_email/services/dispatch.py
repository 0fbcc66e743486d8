"""Finding what is due: lost leases, overdue attempts, doubts that wait for a decision.

Any number of replicas may run; each row is taken by one of them. Sending itself is left to the workers,
which are woken by a hint that may be lost or doubled without effect.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.lifecycle import AttemptStatus, Move, OnDoubt
from gobii_email.models import OutboundMessageAttempt
from gobii_email.services.end import end_unsent
from gobii_email.services.rescue import rescue
from gobii_email.services.resolve import resolve

logger = logging.getLogger(__name__)

BATCH = 200


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did, in attempts."""

    handed_out: int = 0
    rescued: int = 0
    expired: int = 0
    resent: int = 0

    @property
    def did_anything(self) -> bool:
        return bool(self.handed_out or self.rescued or self.expired or self.resent)


def dispatch_round() -> Round:
    """One look at everything that is due now, at most `BATCH` rows of each kind."""
    now = timezone.now()
    rescued = _each(AttemptStatus.SENDING, now, rescue)
    resent = _each(AttemptStatus.IN_DOUBT, now, look_at_doubt)
    due, expired = _take_due(now)
    if due and not wiring.doorbell().ring(due):
        _hand_out_again_soon(due)
    return Round(handed_out=len(due), rescued=rescued, expired=expired, resent=resent)


def _each(
    status: AttemptStatus, now: datetime, act: Callable[[OutboundMessageAttempt, datetime], None]
) -> int:
    if not OutboundMessageAttempt.objects.due(now).filter(status=status).exists():
        return 0
    with transaction.atomic():
        rows = OutboundMessageAttempt.objects.lock_due(now, status, BATCH)
        for attempt in rows:
            act(attempt, now)
    return len(rows)


def _take_due(now: datetime) -> tuple[list[str], int]:
    """Ids of attempts to hand out, their next look moved on; and how many had expired instead."""
    if not OutboundMessageAttempt.objects.due(now).filter(status=AttemptStatus.QUEUED).exists():
        return [], 0
    with transaction.atomic():
        rows = OutboundMessageAttempt.objects.lock_due(now, AttemptStatus.QUEUED, BATCH)
        expired = [
            row for row in rows if row.message.expires_at is not None and row.message.expires_at <= now
        ]
        for attempt in expired:
            end_unsent(attempt, Move.EXPIRED, "expired", _expiry_text(attempt), now)
        due = [row.pk for row in rows if row not in expired]
        OutboundMessageAttempt.objects.filter(pk__in=due, status=AttemptStatus.QUEUED).update(
            # The wait is over; `held_code` stays, so that the same hold is told once.
            due_at=now + config().hint_lifetime,
            held_reason="",
        )
    return [str(pk) for pk in due], len(expired)


def _hand_out_again_soon(attempt_ids: list[str]) -> None:
    """The broker is away: looks again when the breaker has closed, not when the hint would have expired."""
    rows = OutboundMessageAttempt.objects.filter(pk__in=attempt_ids, status=AttemptStatus.QUEUED)
    rows.update(due_at=timezone.now() + config().breaker_pause)


def _expiry_text(attempt: OutboundMessageAttempt) -> str:
    why = f" It had been waiting: {attempt.held_reason}" if attempt.held_reason else ""
    return f"The message expired before it could be sent.{why}"


def look_at_doubt(attempt: OutboundMessageAttempt, now: datetime) -> None:
    """Sends a doubtful message again where its own policy says so and no evidence came.

    Not once it has expired: then it would be called failed, though the server may have it.
    """
    expires_at = attempt.message.expires_at
    is_over = expires_at is not None and expires_at <= now
    if is_over or attempt.message.on_doubt != OnDoubt.RESEND:
        OutboundMessageAttempt.objects.filter(pk=attempt.pk).update(due_at=None)
        return
    resolve(
        attempt,
        Move.ABSENT,
        evidence="No evidence came; sent again as the message asks (on_doubt=resend).",
        now=now,
    )
