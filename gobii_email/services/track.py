"""What became of a mail after Postmark took it: delivered, bounced, complained about.

Evidence moves recipients, then their attempt, then the message, in one transaction that locks in the order
attempt, message. Told twice, it changes nothing; told of mail that is not ours, it is logged and dropped.
"""

import logging
import uuid
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from django.db import connection, transaction
from django.utils import timezone

from gobii_email.domain.addresses import normalise
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider, RecipientStatus
from gobii_email.domain.smtp_replies import safe_text
from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent, OutboundMessageRecipient
from gobii_email.services.complain import complained
from gobii_email.services.prove import Proof, StillSending, prove
from gobii_email.services.resolve import resolve
from gobii_email.services.suppress import suppress_bounced
from gobii_email.services.tell import event

logger = logging.getLogger(__name__)


class What(StrEnum):
    DELIVERED = "delivered"
    BOUNCED = "bounced"
    COMPLAINED = "complained"


_STATUSES = {What.DELIVERED: RecipientStatus.DELIVERED, What.BOUNCED: RecipientStatus.BOUNCED}


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
        told = _event(attempt, recipient, sighting, now)
        if sighting.what is What.COMPLAINED:
            return complained(recipient, attempt, told, now)
        proof = Proof.of(_STATUSES[sighting.what], sighting.said)
        if not prove(recipient, attempt, proof, told, now):
            return False
        suppress_bounced(attempt, recipient, proof, now)
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
