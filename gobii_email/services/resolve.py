"""Ending a doubt: by evidence, by the message's own policy, or by a person.

An attempt in doubt may or may not have reached the server. Only what is said here moves it on; a message
sent again keeps its Message-ID.
"""

import logging
from datetime import datetime

from django.db import transaction

from gobii_email.domain.lifecycle import AttemptStatus, Move, RecipientStatus, after
from gobii_email.domain.outcomes import Accepted, Lost, Outcome
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient
from gobii_email.services.follow import Next, queue_next, refresh_message
from gobii_email.services.tell import event, tell

logger = logging.getLogger(__name__)

_RECIPIENTS = {
    Move.FOUND: RecipientStatus.ACCEPTED,
    Move.ABSENT: RecipientStatus.DEFERRED,
    Move.GIVEN_UP: RecipientStatus.REFUSED,
}


def resolve(attempt: OutboundMessageAttempt, move: Move, *, evidence: str, now: datetime) -> bool:
    """Ends the doubt about `attempt` as FOUND (it was sent), ABSENT (send again) or GIVEN_UP.

    `evidence` is a sentence for the timeline. False when the attempt was not in doubt any more.
    """
    with transaction.atomic():
        if not _write(attempt, move, now):
            return False
        recipients = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk)
        recipients.filter(status=RecipientStatus.PENDING).update(status=_RECIPIENTS[move])
        if move is Move.GIVEN_UP:
            recipients.filter(status=RecipientStatus.DEFERRED).update(status=RecipientStatus.REFUSED)
        events = [event(attempt, f"doubt_{move.name.lower()}", evidence, at=now)]
        again = recipients.filter(status=RecipientStatus.DEFERRED).values_list("address", flat=True)
        if again:
            events.append(queue_next(attempt, list(again), Next(now, now), now))
        refresh_message(attempt, now)
        tell(events)
    return True


def _write(attempt: OutboundMessageAttempt, move: Move, now: datetime) -> bool:
    status = after(AttemptStatus.IN_DOUBT, move)
    values: dict[str, object] = {"status": status, "due_at": None, "finished_at": now}
    if move is Move.FOUND:
        values |= {"sent_at": attempt.marked_at or now, "error_code": "", "error_message": ""}
    rows = OutboundMessageAttempt.objects.filter(pk=attempt.pk, status=AttemptStatus.IN_DOUBT)
    if not rows.update(**values):
        return False
    for name, value in values.items():
        setattr(attempt, name, value)
    return True


def note_late_answer(attempt: OutboundMessageAttempt, outcome: Outcome, said: str, now: datetime) -> None:
    """Keeps the answer that a worker brings after its lease was lost.

    It overwrites nothing. Where the very same lease is the one in doubt, the server's own answer is the
    evidence that ends the doubt.
    """
    if isinstance(outcome, Lost):
        logger.info("attempt.lease_lost", extra={"attempt_id": str(attempt.pk)})
        return
    logger.warning("attempt.late_answer", extra={"attempt_id": str(attempt.pk)})
    tell([event(attempt, "late_answer", f"A worker that had lost its lease reports: {said}", at=now)])
    present = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
    if present.lease_token == attempt.lease_token and present.status == AttemptStatus.IN_DOUBT:
        move = Move.FOUND if isinstance(outcome, Accepted) else Move.ABSENT
        resolve(present, move, evidence=f"The late answer of its own worker ends the doubt: {said}", now=now)
