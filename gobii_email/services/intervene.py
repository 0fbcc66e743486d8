"""What a person or an agent may do to a message on its way: withdraw it, try it again, end its doubt."""

from datetime import datetime

from django.db import transaction
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.lifecycle import OPEN, AttemptStatus, Move, RecipientStatus
from gobii_email.domain.readings import Verdict
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient, PersistentAgentMessage
from gobii_email.ports import Hint
from gobii_email.services.end import end_unsent
from gobii_email.services.follow import Next, queue_next, refresh_message
from gobii_email.services.resolve import resolve
from gobii_email.services.tell import event, tell

RESOLUTIONS = {"sent": Move.FOUND, "resend": Move.ABSENT, "failed": Move.GIVEN_UP}


class NotPossible(Exception):
    """The message is not in a state that allows it; the sentence says which state, and what is possible."""


def open_attempt(message: PersistentAgentMessage) -> OutboundMessageAttempt | None:
    rows = OutboundMessageAttempt.objects.select_related("message").filter(message=message, status__in=OPEN)
    return rows.first()


def cancel(message: PersistentAgentMessage, *, by: str = "") -> bool:
    """Withdraws `message` unless a server may have it; whether it did. Stops a worker before the mark."""
    reason = f"Withdrawn{f' by {by}' if by else ''} before it was handed to a server."
    with transaction.atomic():
        _lock_attempts(message)
        attempt = open_attempt(message)
        if attempt is None or attempt.status == AttemptStatus.IN_DOUBT:
            return False
        ended = end_unsent(attempt, Move.CANCELLED, "cancelled", reason, timezone.now())
    return ended == AttemptStatus.CANCELLED


def _lock_attempts(message: PersistentAgentMessage) -> None:
    """Lets whoever is writing about an attempt finish first; what is read next is what is true."""
    list(OutboundMessageAttempt.objects.select_for_update().filter(message=message).values_list("pk"))


def retry(
    message: PersistentAgentMessage, *, by: str = "", use_default_transport: bool = False
) -> OutboundMessageAttempt:
    """Makes `message` due now: a waiting attempt at once, an ended one as attempt n+1 for who did not get it.

    With `use_default_transport`, mail that waits for a mailbox that is gone may take the installation's
    own transport. Raises NotPossible when it was accepted for all, is being sent, or is in doubt.
    """
    now = timezone.now()
    with transaction.atomic():
        # Attempts before their message, in the order in which everybody locks them.
        _lock_attempts(message)
        rows = PersistentAgentMessage.objects.select_for_update().values_list("emptied_at", flat=True)
        if rows.get(pk=message.pk) is not None:
            raise NotPossible("What the message said is not kept any more; write it anew.")
        _extend_life(message, now, use_default_transport)
        attempt = open_attempt(message)
        attempt = _queue_ended(message, now, by) if attempt is None else _make_due(attempt, now, by)
        hint = Hint(str(attempt.pk), str(attempt.from_endpoint_id or ""))
        transaction.on_commit(lambda: wiring.doorbell().ring([hint]), robust=True)
    return attempt


def _extend_life(message: PersistentAgentMessage, now: datetime, use_default_transport: bool) -> None:
    if message.expires_at is None or message.expires_at <= now + config().expires_after / 2:
        message.expires_at = now + config().expires_after
    if use_default_transport:
        message.had_account = False
    message.save(update_fields=["expires_at", "had_account"])
    queued = OutboundMessageAttempt.objects.filter(message=message, status=AttemptStatus.QUEUED)
    queued.update(expires_at=message.expires_at)


def _make_due(attempt: OutboundMessageAttempt, now: datetime, by: str) -> OutboundMessageAttempt:
    if attempt.status == AttemptStatus.SENDING:
        raise NotPossible("The message is being sent right now; wait for its outcome.")
    if attempt.status == AttemptStatus.IN_DOUBT:
        raise NotPossible("The message is in doubt; use email_resolve to say whether it was sent.")
    OutboundMessageAttempt.objects.filter(pk=attempt.pk, status=AttemptStatus.QUEUED).update(
        not_before=now, due_at=now, held_code="", held_reason=""
    )
    tell([event(attempt, "retried", _by("Made due now", by), at=now)])
    return attempt


def _queue_ended(message: PersistentAgentMessage, now: datetime, by: str) -> OutboundMessageAttempt:
    last = OutboundMessageAttempt.objects.select_related("message").filter(message=message).last()
    if last is None:
        raise NotPossible("The message was never submitted; call deliver_agent_email with it.")
    unsent = OutboundMessageRecipient.objects.filter(
        message=message,
        status__in=[RecipientStatus.PENDING, RecipientStatus.DEFERRED, RecipientStatus.REFUSED],
    )
    addresses = list(unsent.values_list("address", flat=True))
    if not addresses:
        raise NotPossible("Every recipient's server accepted the message already; nothing is left to send.")
    unsent.update(status=RecipientStatus.PENDING)
    queued = queue_next(last, addresses, Next(now, now), now)
    tell([event(last, "retried", _by("Sent again", by), at=now), queued])
    refresh_message(last, now)
    assert last.successor is not None
    return last.successor


def _by(what: str, who: str) -> str:
    return f"{what} by {who}." if who else f"{what} by hand."


def resolve_by_hand(message: PersistentAgentMessage, how: str, *, by: str = "") -> None:
    """Ends the doubt about `message`: `how` is sent, resend or failed. Raises NotPossible without one."""
    attempt = open_attempt(message)
    if attempt is None or attempt.status != AttemptStatus.IN_DOUBT:
        raise NotPossible(f"The message is not in doubt; it is {message.latest_status}.")
    text = {
        "sent": "Settled as sent",
        "resend": "Settled as not sent, to be sent again",
        "failed": "Settled as failed",
    }
    now = timezone.now()
    with transaction.atomic():
        if how == "failed":
            # The word is about the message: no earlier doubt comes back.
            doubts = OutboundMessageAttempt.objects.filter(message=message, verdict=Verdict.IN_DOUBT)
            doubts.exclude(pk=attempt.pk).update(verdict=Verdict.PERMANENT)
        if not resolve(attempt, RESOLUTIONS[how], evidence=_by(text[how], by), now=now):
            raise NotPossible("Somebody else has just settled it; look at it again.")
        if how == "resend":
            _extend_life(message, now, use_default_transport=False)
