"""Putting an attempt back, or ending it, without a word to any server."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial

from django.db import transaction
from django.db.models.functions import Coalesce, Least

from gobii_email import metrics
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus, Move, RecipientStatus, after
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient, PersistentAgentMessage
from gobii_email.models.queue import Work
from gobii_email.services import measure
from gobii_email.services.follow import refresh_message
from gobii_email.services.tell import clock_time, event, tell


def postpone(works: Sequence[Work], code: str, reason: str, until: datetime, now: datetime) -> dict[str, str]:
    """Gives claimed attempts back until `until` or the end of their life; their outcomes by id.

    Uses up no attempt. For what concerns these messages alone: a whole lane waits by `wait`.
    """
    ids, tokens = [work.id for work in works], {work.token for work in works}
    with transaction.atomic():
        rows = OutboundMessageAttempt.objects.filter(
            pk__in=ids, lease_token__in=tokens, status=AttemptStatus.SENDING
        )
        mine = list(rows.order_by("pk").select_for_update())
        rows.update(
            status=after(AttemptStatus.SENDING, Move.POSTPONED),
            due_at=Least(until, Coalesce("expires_at", until)),
            started_at=None,
            stage="",
            held_code=code,
            held_reason=reason,
            lease_token=None,
        )
        messages = [attempt.message_id for attempt in mine]
        PersistentAgentMessage.objects.filter(pk__in=messages).update(latest_status=MessageStatus.QUEUED)
        tell(
            event(attempt, "postponed", f"Waits until {clock_time(until, now)}: {reason}", at=now, code=code)
            for attempt in mine
            if attempt.held_code != code
        )
        metrics.POSTPONED.inc(code, by=len(mine))
    found = {attempt.pk for attempt in mine}
    return {str(pk): "postponed" if pk in found else "lease lost" for pk in ids}


def end_unsent(
    attempt: OutboundMessageAttempt, move: Move, error_code: str, reason: str, now: datetime
) -> str:
    """Ends a queued or claimed attempt as `move` says; its recipients are refused, save when withdrawn."""
    status, waited_for = after(AttemptStatus(attempt.status), move), attempt.held_code
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
        transaction.on_commit(partial(measure.ended_unsent, attempt, waited_for))
    return str(status)
