"""Putting an attempt back, or ending it, without a word to any server."""

from datetime import datetime

from django.db import transaction

from gobii_email.domain.lifecycle import AttemptStatus, Move, RecipientStatus, after
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient
from gobii_email.services.follow import refresh_message
from gobii_email.services.tell import clock_time, event, tell


def postpone(
    attempt: OutboundMessageAttempt, code: str, reason: str, until: datetime | None, now: datetime
) -> str:
    """Gives a claimed attempt back until `until` (or its end of life). Uses up no attempt."""
    expires_at = attempt.message.expires_at or now
    due_at = min(until or expires_at, expires_at)
    with transaction.atomic():
        held = OutboundMessageAttempt.objects.held_by(attempt.pk, attempt.lease_token)
        if not held.update(
            status=after(AttemptStatus.SENDING, Move.POSTPONED),
            due_at=due_at,
            started_at=None,
            held_code=code,
            held_reason=reason,
            lease_token=None,
        ):
            return "lease lost"
        if attempt.held_code != code:
            when = f"until {clock_time(due_at, now)}" if until else "until somebody acts"
            tell([event(attempt, "postponed", f"Waits {when}: {reason}", at=now, code=code)])
    return "postponed"


def end_unsent(
    attempt: OutboundMessageAttempt, move: Move, error_code: str, reason: str, now: datetime
) -> str:
    """Ends a queued or claimed attempt as `move` says; its recipients are refused, save when withdrawn."""
    status = after(AttemptStatus(attempt.status), move)
    rows = OutboundMessageAttempt.objects.filter(
        pk=attempt.pk, status=attempt.status, lease_token=attempt.lease_token, marked_at__isnull=True
    )
    values = {
        "status": status,
        "due_at": None,
        "finished_at": now,
        "error_code": error_code,
        "error_message": reason,
        "held_code": "",
        "held_reason": "",
    }
    with transaction.atomic():
        if not rows.write(attempt, **values):
            return "lease lost"
        if move is not Move.CANCELLED:
            OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk).update(
                status=RecipientStatus.REFUSED, reply=reason
            )
        tell([event(attempt, str(error_code), reason, at=now)])
        refresh_message(attempt, now)
    return str(status)
