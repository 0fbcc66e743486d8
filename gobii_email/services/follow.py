"""What follows when an attempt is over: the next attempt, and the status of its message.

The one place that queues attempt n+1 and the one place that writes a message's status. To be called in
the transaction that ended the attempt; locks are taken in the order attempt, message.
"""

import random
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Max

from gobii_email import metrics
from gobii_email.conf import config
from gobii_email.domain.filing_habit import FIRST_LOOK
from gobii_email.domain.identifiers import new_id
from gobii_email.domain.lifecycle import (
    OPEN,
    REACHED,
    AttemptStatus,
    MessageStatus,
    Move,
    OnDoubt,
    RecipientStatus,
    after,
    message_status,
)
from gobii_email.domain.readings import Verdict
from gobii_email.domain.retry_schedule import RetrySchedule
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
    PersistentAgentMessage,
)
from gobii_email.services.tell import clock_time, event, tell


@dataclass(frozen=True, slots=True)
class Next:
    """When attempt n+1 may start, and until when it is held because its account is."""

    not_before: datetime
    due_at: datetime
    held_code: str = ""
    held_reason: str = ""


def next_attempt_at(
    attempt: OutboundMessageAttempt, now: datetime, hint: timedelta | None = None
) -> datetime | None:
    """When attempt n+1 may start by the schedule; None when the message will have expired by then.

    `hint` is the server's own wish, a span from now.
    """
    schedule = RetrySchedule(spans=config().retry_schedule, jitter=config().retry_jitter)
    expires_at = attempt.message.expires_at or now
    wish = None if hint is None else now + hint
    return schedule.next_attempt_at(attempt.number, now, expires_at, random.random, not_before=wish)


def doubt_due_at(attempt: OutboundMessageAttempt, now: datetime) -> datetime | None:
    """When somebody looks first at a doubt that begins now: soon where its account may tell, else when the
    message asks to be sent again; never where it does not.
    """
    message = attempt.message
    earlier = message.events.filter(event=AttemptStatus.IN_DOUBT).count()
    at = resend_after(message, now, earlier)
    account = getattr(attempt.from_endpoint, "agentemailaccount", None) if attempt.from_endpoint else None
    if account is None or not message.had_account:
        return at
    first = now + FIRST_LOOK
    # One that cannot be read says so once, where nothing else is waited for.
    return first if at is None or account.is_imap_tested else at


def doubt_began(attempt: OutboundMessageAttempt) -> datetime:
    """When the doubt about `attempt` began: later than its mark, when nobody would answer any more."""
    began: datetime | None = attempt.events.filter(event=AttemptStatus.IN_DOUBT).aggregate(at=Max("at"))["at"]
    return began or attempt.marked_at or attempt.queued_at


def resend_at(attempt: OutboundMessageAttempt) -> datetime | None:
    """When a doubt ends by itself: only where the message says resend, lives long enough, and was not sent
    again already.
    """
    if attempt.message.on_doubt != OnDoubt.RESEND or is_followed(attempt):
        return None
    began = doubt_began(attempt)
    earlier = attempt.message.events.filter(event=AttemptStatus.IN_DOUBT, at__lt=began)
    return resend_after(attempt.message, began, earlier.count())


def resend_after(message: PersistentAgentMessage, began: datetime, earlier: int) -> datetime | None:
    """When a message is sent again whose doubt `began` after `earlier` others, if it asks for that.

    Each further doubt doubles the wait: a server that takes mail and never says so would otherwise be given a
    copy every quarter of an hour.
    """
    if message.on_doubt != OnDoubt.RESEND:
        return None
    at = began + config().doubt_resend_after * 2 ** min(earlier, 10)
    return at if message.expires_at is None or at < message.expires_at else None


def is_followed(attempt: OutboundMessageAttempt) -> bool:
    """Whether there is a later attempt of the same message."""
    later = OutboundMessageAttempt.objects.filter(message=attempt.message_id, number__gt=attempt.number)
    return later.exists()


def people(addresses: Sequence[str]) -> str:
    return counted(len(addresses))


def counted(recipients: int) -> str:
    return "1 recipient" if recipients == 1 else f"{recipients} recipients"


def queue_next(
    attempt: OutboundMessageAttempt, addresses: Sequence[str], following: Next, now: datetime
) -> OutboundMessageEvent:
    """Queues attempt n+1 for `addresses` alone; answers the event that tells of it, not yet written."""
    # A doubt that came back is about an attempt that others have followed already.
    last = OutboundMessageAttempt.objects.filter(message_id=attempt.message_id).aggregate(last=Max("number"))
    successor = OutboundMessageAttempt.objects.create(
        id=new_id(now),
        message_id=attempt.message_id,
        number=last["last"] + 1,
        from_endpoint_id=attempt.from_endpoint_id,
        priority=attempt.priority,
        expires_at=attempt.message.expires_at,
        addresses=list(addresses),
        queued_at=now,
        not_before=following.not_before,
        due_at=following.due_at,
        held_code=following.held_code,
        held_reason=following.held_reason,
    )
    OutboundMessageRecipient.objects.filter(message_id=attempt.message_id, address__in=addresses).update(
        attempt=successor
    )
    attempt.successor = successor
    when = f"not before {clock_time(following.not_before, now)}"
    if following.held_code:
        when = f"held: {following.held_reason}"
    return event(
        successor, "queued", f"Attempt {successor.number} queued for {people(addresses)}, {when}.", at=now
    )


def refresh_message(
    attempt: OutboundMessageAttempt, now: datetime, *, own: Iterable[RecipientStatus] | None = None
) -> MessageStatus:
    """Writes the message's status, from `own` where they are all its recipients, else from the rows.

    To be called in the transaction that changed `attempt` or its recipients, after those writes.
    """
    message = attempt.message
    if own is None:
        state = _locked_state(message.pk)
        if state.open_attempt is None and _is_still_in_doubt(attempt, now):
            state = _locked_state(message.pk)
    else:
        state = _State(own, _open_status(attempt), was_withdrawn=attempt.status == AttemptStatus.CANCELLED)
    status = message_status(
        state.recipients, open_attempt=state.open_attempt, was_withdrawn=state.was_withdrawn
    )
    values: dict[str, object] = {
        "latest_status": status,
        "latest_error_code": attempt.error_code,
        "latest_error_message": attempt.error_message,
    }
    if attempt.sent_at is not None:
        values["latest_sent_at"] = max(attempt.sent_at, message.latest_sent_at or attempt.sent_at)
    if status is MessageStatus.DELIVERED:
        values["latest_delivered_at"] = now
    PersistentAgentMessage.objects.filter(pk=message.pk).update(**values)
    for name, value in values.items():
        setattr(message, name, value)
    return status


def _is_still_in_doubt(ended: OutboundMessageAttempt, now: datetime) -> bool:
    """Returns to an earlier attempt that may have reached those whom `ended`, its repetition, did not.

    A refusal of the second copy says nothing about the first one, so "failed" would be a guess.
    """
    if ended.number == 1:
        return False
    doubts = OutboundMessageAttempt.objects.filter(
        message_id=ended.message_id, status=AttemptStatus.DEFERRED, verdict=Verdict.IN_DOUBT
    )
    doubtful = doubts.order_by("number").last()
    if doubtful is None:
        return False
    unreached = OutboundMessageRecipient.objects.filter(
        message_id=ended.message_id, address__in=set(ended.addresses) & set(doubtful.addresses)
    ).exclude(status__in=[*REACHED, RecipientStatus.BOUNCED])
    if not unreached.update(status=RecipientStatus.PENDING, attempt=doubtful):
        return False
    doubtful.status = after(AttemptStatus(doubtful.status), Move.STILL_IN_DOUBT)
    doubtful.finished_at = None
    # A mailbox may still tell; nobody sends it again by itself.
    doubtful.due_at = now if doubtful.message.had_account else None
    doubtful.save(update_fields=["status", "finished_at", "due_at"])
    text = f"Attempt {ended.number} came to nothing, but attempt {doubtful.number} may have arrived."
    tell([event(doubtful, "still_in_doubt", text, at=now)])
    transaction.on_commit(metrics.DOUBTS.inc)
    return True


def _open_status(attempt: OutboundMessageAttempt) -> AttemptStatus | None:
    """Of a first attempt: itself when it is open, else its successor's when one was queued."""
    status = AttemptStatus(attempt.status)
    if status in OPEN:
        return status
    return None if attempt.successor is None else AttemptStatus.QUEUED


@dataclass(frozen=True, slots=True)
class _State:
    """What a message's status follows from. Its last attempt says whether it was withdrawn."""

    recipients: Iterable[RecipientStatus]
    open_attempt: AttemptStatus | None
    was_withdrawn: bool


def _locked_state(message_id: uuid.UUID) -> _State:
    """As the rows have it, with the message locked against other writers."""
    PersistentAgentMessage.objects.select_for_update().values_list("pk").get(pk=message_id)
    attempts = OutboundMessageAttempt.objects.filter(message_id=message_id).order_by("number")
    statuses = [AttemptStatus(status) for status in attempts.values_list("status", flat=True)]
    return _State(
        OutboundMessageRecipient.objects.filter(message_id=message_id).statuses(),
        next((status for status in statuses if status in OPEN), None),
        was_withdrawn=statuses[-1] is AttemptStatus.CANCELLED,
    )
