"""Finding what is due: lanes whose time has come, lost leases, ended lives, doubts that wait for a decision.

Any number of replicas may run; each row is taken by one of them. Sending itself is left to the workers,
which are woken by one hint a lane, that may be lost or doubled without effect.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Min
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.lifecycle import AttemptStatus, Move
from gobii_email.models import Lane, OutboundMessageAttempt
from gobii_email.models.attempts import AttemptQuerySet
from gobii_email.models.queue import due_lanes, hand_out
from gobii_email.ports import Hint
from gobii_email.services.end import end_unsent
from gobii_email.services.poll_schedule import hand_out_polls
from gobii_email.services.receive import read_what_is_stored
from gobii_email.services.reconcile import look_at_doubt
from gobii_email.services.rescue import rescue
from gobii_email.services.visit import hand_out_looks

logger = logging.getLogger(__name__)

BATCH = 200


@dataclass(frozen=True, slots=True)
class Round:
    """What one round did: lanes handed out, attempts, mailboxes and mail to be read, Sent folders visited."""

    handed_out: int = 0
    rescued: int = 0
    expired: int = 0
    resent: int = 0
    visits: int = 0
    polls: int = 0
    unread: int = 0

    @property
    def did_anything(self) -> bool:
        return any(asdict(self).values())


def dispatch_round() -> Round:
    """One look at everything that is due now, at most `BATCH` of each kind."""
    now = timezone.now()
    attempts = OutboundMessageAttempt.objects
    return Round(
        rescued=_each(attempts.due(now, AttemptStatus.SENDING), rescue, now),
        resent=_each(attempts.due(now, AttemptStatus.IN_DOUBT), look_at_doubt, now),
        expired=_each(attempts.expired(now), _expire, now),
        handed_out=_hand_out(now),
        visits=hand_out_looks(now),
        polls=hand_out_polls(now),
        unread=read_what_is_stored(now),
    )


def seconds_to_next_look(longest: float) -> float:
    """How long until a lane's wait is over, `longest` at most."""
    now = timezone.now()
    nearest = Lane.objects.filter(look_at__gt=now).aggregate(at=Min("look_at"))["at"]
    return longest if nearest is None else min(longest, (nearest - now).total_seconds())


def _each(
    rows: AttemptQuerySet, act: Callable[[OutboundMessageAttempt, datetime], object], now: datetime
) -> int:
    """How many of `rows` were acted on; False says that nothing came of one."""
    if not rows.exists():
        return 0
    with transaction.atomic():
        return sum(act(attempt, now) is not False for attempt in rows.locked(BATCH))


def _expire(attempt: OutboundMessageAttempt, now: datetime) -> None:
    end_unsent(attempt, Move.EXPIRED, "expired", _expiry_text(attempt), now)


def _hand_out(now: datetime) -> int:
    """Rings for the lanes that are due, each once a hint's lifetime."""
    heads = [head for head in due_lanes(now, BATCH) if not _is_left_to_its_own_ring(head, now)]
    lanes = {head.from_endpoint_id for head in heads if head.from_endpoint_id is not None}
    ours = hand_out(list(lanes), now=now, look_at=now + config().hint_lifetime)
    # Without the lane's name: whoever takes this up is to see that it was handed out.
    hints = [
        Hint(str(head.pk)) for head in heads if head.from_endpoint_id is None or head.from_endpoint_id in ours
    ]
    if hints and not wiring.doorbell().ring(hints):
        # The broker is away: looks again when the breaker has closed, not when the hint would have expired.
        Lane.objects.filter(pk__in=ours, code="").update(look_at=timezone.now() + config().breaker_pause)
    return len(hints)


def _is_left_to_its_own_ring(head: OutboundMessageAttempt, now: datetime) -> bool:
    """Fresh mail has been rung for on commit."""
    return head.number == 1 and head.due_at == head.queued_at and now - head.queued_at < config().ring_grace


def _expiry_text(attempt: OutboundMessageAttempt) -> str:
    why = f" It had been waiting: {attempt.held_reason}" if attempt.held_reason else ""
    return f"The message expired before it could be sent.{why}"
