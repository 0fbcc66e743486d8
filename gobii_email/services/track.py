"""What became of a mail after Postmark took it: delivered, bounced, complained about.

Evidence moves recipients, then their attempt, then the message, in one transaction that locks in the order
attempt, message. Told twice, it changes nothing; told of mail that is not ours, it is logged and dropped.
"""

import logging
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial

from django.db import connection, transaction
from django.utils import timezone

from gobii_email.domain.addresses import normalise
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider, RecipientStatus, after
from gobii_email.domain.smtp_replies import Reply, reply_from, safe_text
from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent, OutboundMessageRecipient
from gobii_email.services.follow import refresh_message
from gobii_email.services.resolve import resolve
from gobii_email.services.tell import event, tell
from gobii_email.signals import recipient_bounced

logger = logging.getLogger(__name__)

_REPLY = re.compile(r"\b([245]\d\d)[ -](.*)")


class What(StrEnum):
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    COMPLAINED = "complained"


@dataclass(frozen=True, slots=True)
class Sighting:
    """One report of a provider about one recipient. `said` are the receiving server's words, untrusted.

    `attempt_id` is what we gave Postmark as metadata, `provider_message_id` its own id; one may be "".
    """

    what: What
    recipient: str
    attempt_id: str = ""
    provider_message_id: str = ""
    said: str = ""
    event_id: str = ""
    reported_at: datetime | None = None


class StillSending(Exception):
    """The report overtook our own note that Postmark took the mail; it has to be told again later."""


def track(sighting: Sighting) -> bool:
    """Writes down what `sighting` proves; False when it is of no mail of ours, or nothing new.

    Raises StillSending while a worker has the attempt.
    """
    now = timezone.now()
    with transaction.atomic():
        attempt = _locked_attempt(sighting)
        if attempt is None:
            return _ignored(sighting, "of no attempt of ours")
        if attempt.status == AttemptStatus.SENDING:
            raise StillSending(f"attempt {attempt.pk} is being sent")
        if attempt.status == AttemptStatus.IN_DOUBT:
            _end_doubt(attempt, sighting, now)
        recipient = _recipient(attempt, sighting)
        if recipient is None:
            return _ignored(sighting, "of nobody the attempt was for")
        if not _note(recipient, attempt, sighting):
            return False
        tell([_event(attempt, recipient, sighting, now)])
        if sighting.what is not What.COMPLAINED:
            _move_attempt(attempt, sighting, now)
            refresh_message(attempt, now)
    return True


def _ignored(sighting: Sighting, why: str) -> bool:
    facts = {
        "what": str(sighting.what),
        "reported_attempt_id": safe_text(sighting.attempt_id, max_characters=64),
    }
    logger.warning("tracking.ignored", extra=facts | {"why": why})
    return False


def _locked_attempt(sighting: Sighting) -> OutboundMessageAttempt | None:
    """The attempt, locked: by our own id, else by Postmark's; where both are known they have to agree."""
    rows = OutboundMessageAttempt.objects.select_related("message")
    if connection.features.has_select_for_update_of:
        rows = rows.select_for_update(of=("self",))
    if sighting.attempt_id:
        attempt_id = _uuid(sighting.attempt_id)
        found = None if attempt_id is None else rows.filter(pk=attempt_id).first()
    elif sighting.provider_message_id:
        found = rows.filter(
            provider=Provider.POSTMARK, provider_message_id=sighting.provider_message_id
        ).first()
    else:
        return None
    return found if found is not None and _is_its_own(found, sighting) else None


def _is_its_own(attempt: OutboundMessageAttempt, sighting: Sighting) -> bool:
    # A rescued attempt is in doubt without the name of its transport.
    is_postmarks = attempt.provider == Provider.POSTMARK or (
        not attempt.provider and attempt.marked_at is not None and not attempt.message.had_account
    )
    known, told = attempt.provider_message_id, sighting.provider_message_id
    return is_postmarks and (not known or not told or known == told)


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _end_doubt(attempt: OutboundMessageAttempt, sighting: Sighting, now: datetime) -> None:
    """Whatever Postmark reports of an attempt proves that it has the mail."""
    evidence = f"Postmark has it: it reports {sighting.recipient} as {sighting.what}."
    resolve(attempt, Move.FOUND, evidence=safe_text(evidence), now=now)
    attempt.provider, attempt.provider_message_id = Provider.POSTMARK, sighting.provider_message_id[:255]
    attempt.save(update_fields=["provider", "provider_message_id"])


def _recipient(attempt: OutboundMessageAttempt, sighting: Sighting) -> OutboundMessageRecipient | None:
    rows = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk)
    return rows.filter(address__iexact=normalise(sighting.recipient)).first()


def _note(recipient: OutboundMessageRecipient, attempt: OutboundMessageAttempt, sighting: Sighting) -> bool:
    """Moves the recipient; False when that was known. A bounce is the last word, whatever comes late."""
    match sighting.what:
        case What.DELIVERED:
            return _change(recipient, RecipientStatus.DELIVERED, sighting, {RecipientStatus.ACCEPTED})
        case What.BOUNCED:
            since = {RecipientStatus.ACCEPTED, RecipientStatus.DELIVERED}
            return _change(recipient, RecipientStatus.BOUNCED, sighting, since)
    told = OutboundMessageEvent.objects.filter(attempt_id=attempt.pk, event=What.COMPLAINED)
    return recipient.address not in {one.data.get("recipient") for one in told}


def _change(
    recipient: OutboundMessageRecipient,
    status: RecipientStatus,
    sighting: Sighting,
    since: set[RecipientStatus],
) -> bool:
    if recipient.status not in since:
        return False
    reply = _reply_in(sighting.said)
    recipient.status = status
    recipient.smtp_code = None if reply is None else reply.code
    recipient.enhanced_status = "" if reply is None else reply.enhanced
    recipient.reply = safe_text(sighting.said) if reply is None else reply.text
    recipient.save(update_fields=["status", "smtp_code", "enhanced_status", "reply"])
    if status is RecipientStatus.BOUNCED:
        tell_others = partial(
            recipient_bounced.send_robust,
            sender=OutboundMessageRecipient,
            message_id=str(recipient.message_id),
            attempt_id=str(recipient.attempt_id),
            address=recipient.address,
            reply=recipient.reply,
        )
        transaction.on_commit(tell_others)
    return True


def _reply_in(said: str) -> Reply | None:
    """The server's reply inside words such as `smtp;550 5.1.1 No such user`; None when there is none."""
    found = _REPLY.search(safe_text(said))
    return None if found is None else reply_from(int(found.group(1)), found.group(2))


def _event(
    attempt: OutboundMessageAttempt, recipient: OutboundMessageRecipient, sighting: Sighting, now: datetime
) -> OutboundMessageEvent:
    texts = {
        What.DELIVERED: "Delivered to {}",
        What.BOUNCED: "Bounced from {}",
        What.COMPLAINED: "{} reported it as spam",
    }
    said = safe_text(sighting.said)
    text = texts[sighting.what].format(recipient.address) + (f": {said}" if said else ".")
    data = {"recipient": recipient.address, "event_id": safe_text(sighting.event_id, max_characters=64)}
    if sighting.reported_at is not None:
        data["reported_at"] = sighting.reported_at.isoformat()
    return event(attempt, str(sighting.what), text, at=now, **data)


def _move_attempt(attempt: OutboundMessageAttempt, sighting: Sighting, now: datetime) -> None:
    """Delivered, or failed, once all that it had accepted are."""
    accepted = {RecipientStatus.ACCEPTED, RecipientStatus.DELIVERED, RecipientStatus.BOUNCED}
    statuses = accepted & set(OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk).statuses())
    status = AttemptStatus(attempt.status)
    if statuses == {RecipientStatus.DELIVERED} and status is AttemptStatus.SENT:
        attempt.status, attempt.delivered_at = after(status, Move.CONFIRMED), now
    elif statuses == {RecipientStatus.BOUNCED} and status in {AttemptStatus.SENT, AttemptStatus.DELIVERED}:
        attempt.status, attempt.error_code = after(status, Move.BOUNCED), "bounced"
        attempt.error_message = safe_text(sighting.said) or "It bounced."
    attempt.save(update_fields=["status", "delivered_at", "error_code", "error_message"])
