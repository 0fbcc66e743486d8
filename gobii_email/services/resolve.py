"""Ending a doubt: by evidence, by the message's own policy, or by a person.

An attempt in doubt may or may not have reached the server. Only what is said here moves it on; a message
sent again keeps its Message-ID.
"""

from datetime import datetime
from functools import partial

from django.db import transaction

from gobii_email import metrics
from gobii_email.domain.lifecycle import AttemptStatus, Move, RecipientStatus, after
from gobii_email.domain.readings import Verdict
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient
from gobii_email.services.follow import Next, queue_next, refresh_message
from gobii_email.services.tell import event, tell

_RECIPIENTS = {
    Move.FOUND: RecipientStatus.ACCEPTED,
    Move.ABSENT: RecipientStatus.DEFERRED,
    Move.GIVEN_UP: RecipientStatus.REFUSED,
}
_VERDICTS = {
    Move.FOUND: Verdict.ACCEPTED,
    Move.ABSENT: Verdict.TEMPORARY,
    Move.GIVEN_UP: Verdict.PERMANENT,
}


def resolve(
    attempt: OutboundMessageAttempt, move: Move, *, evidence: str, now: datetime, is_proven: bool = True
) -> bool:
    """Ends the doubt about `attempt` as FOUND (it was sent), ABSENT (send again) or GIVEN_UP.

    `evidence` is a sentence for the timeline. What is ABSENT without being proven so comes back as a doubt
    when sending again comes to nothing. False when the attempt was not in doubt any more.
    """
    with transaction.atomic():
        if not _write(attempt, move, evidence, now, is_proven=is_proven):
            return False
        recipients = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk)
        recipients.filter(status=RecipientStatus.PENDING).update(status=_RECIPIENTS[move])
        if move is Move.GIVEN_UP:
            recipients.filter(status=RecipientStatus.DEFERRED).update(status=RecipientStatus.REFUSED)
        events = [event(attempt, f"doubt_{move.name.lower()}", evidence, at=now)]
        again = recipients.filter(status=RecipientStatus.DEFERRED).values_list("address", flat=True)
        if again:
            events.append(queue_next(attempt, list(again), Next(now, now), now))
            transaction.on_commit(metrics.RETRIES.inc)
        tell(events)
        refresh_message(attempt, now)
        transaction.on_commit(partial(metrics.DOUBTS_ENDED.inc, move.name.lower()))
    return True


def _write(
    attempt: OutboundMessageAttempt, move: Move, evidence: str, now: datetime, *, is_proven: bool
) -> bool:
    status = after(AttemptStatus.IN_DOUBT, move)
    values: dict[str, object] = {"status": status, "due_at": None, "finished_at": now}
    if is_proven:
        values["verdict"] = _VERDICTS[move]
    if move is Move.FOUND:
        values |= {"sent_at": attempt.marked_at or now, "error_code": "", "error_message": ""}
    if move is Move.GIVEN_UP:
        values["error_message"] = evidence
    rows = OutboundMessageAttempt.objects.filter(pk=attempt.pk, status=AttemptStatus.IN_DOUBT)
    return rows.write(attempt, **values)
