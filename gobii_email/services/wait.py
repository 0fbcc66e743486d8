"""Making a whole lane wait: for a limit, for the end of a hold, for a server that is left alone.

One row says until when and why, however long the backlog; the mails next in line are told of it in their
timelines, each once. Waiting uses up no attempt and no thread: the dispatcher looks again when it is time.
"""

import uuid
from datetime import datetime

from django.db import transaction

from gobii_email import metrics
from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.models import Lane, OutboundMessageAttempt
from gobii_email.services.select import LOOK_AGAIN_AFTER
from gobii_email.services.tell import clock_time, event, tell

TOLD_AT_ONCE = 20
RATE_LIMIT = "rate_limit"


def wait(
    endpoint_id: uuid.UUID | None,
    code: str,
    reason: str,
    until: datetime | None,
    now: datetime,
    *,
    tells: bool = True,
) -> None:
    """Leaves the lane alone until `until`; None stands for until somebody acts, and their act wakes it."""
    if endpoint_id is None:
        return
    row = Lane(endpoint_id=endpoint_id, look_at=until or now + LOOK_AGAIN_AFTER, code=code, reason=reason)
    with transaction.atomic():
        Lane.objects.bulk_create(
            [row],
            update_conflicts=True,
            unique_fields=["endpoint"],
            update_fields=["look_at", "code", "reason"],
        )
        if tells:
            metrics.POSTPONED.inc(code)
            _tell_next(endpoint_id, code, reason, until, now)


def _tell_next(endpoint_id: uuid.UUID, code: str, reason: str, until: datetime | None, now: datetime) -> None:
    queued = OutboundMessageAttempt.objects.filter(
        from_endpoint_id=endpoint_id, status=AttemptStatus.QUEUED, due_at__lte=now
    )
    rows = list(queued.order_by("priority", "due_at")[:TOLD_AT_ONCE])
    untold = [attempt for attempt in rows if attempt.held_code != code]
    if untold:
        OutboundMessageAttempt.objects.filter(
            pk__in=[attempt.pk for attempt in untold], status=AttemptStatus.QUEUED
        ).update(held_code=code, held_reason=reason)
        text = wait_sentence(code, reason, until, now)
        tell(event(attempt, "postponed", text, at=now, code=code) for attempt in untold)


def wait_sentence(code: str, reason: str, until: datetime | None, now: datetime) -> str:
    """Until when a mail waits, and what for."""
    if code == RATE_LIMIT and until is not None:
        return f"Waits for {reason}, next at {clock_time(until, now)}."
    when = "somebody acts" if until is None else clock_time(until, now)
    return f"Waits until {when}: {reason}"
