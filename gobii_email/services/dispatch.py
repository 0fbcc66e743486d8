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
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus, Move, OnDoubt, RecipientStatus, after
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient
from gobii_email.services.end import end_unsent
from gobii_email.services.follow import Next, doubt_due_at, next_attempt_at, queue_next, refresh_message
from gobii_email.services.resolve import resolve
from gobii_email.services.tell import event, tell

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


def rescue(attempt: OutboundMessageAttempt, now: datetime) -> None:
    """Ends an attempt whose worker let its lease run out, by how far it had come.

    Before the connection: queued again. Before the mark: deferred, next attempt. After the mark: in doubt.
    To be called with the row locked.
    """
    logger.warning(
        "attempt.rescued", extra={"attempt_id": str(attempt.pk), "is_marked": bool(attempt.marked_at)}
    )
    if attempt.marked_at is not None:
        _into_doubt(attempt, now)
    elif attempt.message.latest_status == MessageStatus.SENDING:
        _defer(attempt, now)
    else:
        _queue_again(attempt, now)


def _queue_again(attempt: OutboundMessageAttempt, now: datetime) -> None:
    _move(attempt, Move.RELEASED, due_at=now, started_at=None, lease_token=None)
    tell([event(attempt, "released", "Its worker was lost before it connected; queued again.", at=now)])


def _defer(attempt: OutboundMessageAttempt, now: datetime) -> None:
    text = "The worker was lost before the message was handed to the server; nothing was sent."
    at = next_attempt_at(attempt, now)
    move = Move.EXPIRED if at is None else Move.LOST_BEFORE_MARK
    _move(
        attempt,
        move,
        due_at=None,
        finished_at=now,
        error_code=Cause.WORKER_LOST,
        error_message=text,
        verdict="temporary",
        scope="host",
    )
    recipients = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk)
    recipients.update(status=RecipientStatus.REFUSED if at is None else RecipientStatus.DEFERRED)
    events = [event(attempt, "worker_lost", f"Attempt {attempt.number}: {text}", at=now)]
    if at is not None:
        events.append(queue_next(attempt, attempt.addresses, Next(at, at), now))
    refresh_message(attempt, now)
    tell(events)


def _into_doubt(attempt: OutboundMessageAttempt, now: datetime) -> None:
    text = "The worker was lost after the message was handed to the server and before its answer was kept."
    _move(
        attempt,
        Move.LOST_AFTER_MARK,
        due_at=doubt_due_at(attempt, now),
        stage=Stage.DOT,
        verdict="in_doubt",
        scope="message",
        error_code=Cause.WORKER_LOST,
        error_message=text,
    )
    refresh_message(attempt, now)
    tell([event(attempt, "in_doubt", f"Attempt {attempt.number}: in doubt. {text}", at=now)])


def _move(attempt: OutboundMessageAttempt, move: Move, **values: object) -> None:
    values["status"] = after(AttemptStatus(attempt.status), move)
    OutboundMessageAttempt.objects.filter(pk=attempt.pk).update(**values)
    for name, value in values.items():
        setattr(attempt, name, value)


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
