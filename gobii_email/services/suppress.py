"""Whom a sender does not write to any more: entered by bounces, complaints and people, until lifted.

A submission asks once for all its recipients and is refused with a sentence; what is queued already still
goes out. Which refusals count is decided in domain/suppression.
"""

import logging
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from gobii_email.domain.addresses import normalise, parse_address
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import RecipientStatus
from gobii_email.domain.smtp_replies import Reply, safe_text
from gobii_email.domain.suppression import DEAD, is_dead
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageRecipient,
    PersistentAgentCommsEndpoint,
    Suppression,
)
from gobii_email.models.bulk_rows import insert_missing
from gobii_email.models.cursors import among, bound_cursor, stored_uuid
from gobii_email.services.prove import Proof
from gobii_email.services.submit import Mail

logger = logging.getLogger(__name__)

Cause = Suppression.Cause
Key = tuple[uuid.UUID, str]
"""A sending endpoint, and an address in lower case."""

MOST_OF_A_REASON = 200
MOST_NAMED = 5
"""Addresses that one refusal names."""

_NAMES = (
    "endpoint_id", "address", "cause", "reason", "enhanced_status", "message_id", "created_at",
    "lifted_at", "lifted_by",
)  # fmt: skip
_ASKED = (
    f"SELECT endpoint_id, address, reason, created_at FROM {Suppression._meta.db_table} "
    "WHERE lifted_at IS NULL AND endpoint_id {senders} AND address {addresses}"
)


@dataclass(frozen=True, slots=True)
class Why:
    """Since when somebody is not written to, and why, in words."""

    since: datetime
    reason: str


def suppressed(mails: Iterable[tuple[PersistentAgentCommsEndpoint, Mail]]) -> dict[Key, Why]:
    """Whom the senders of `mails` do not write to, of all recipients of theirs, in one statement."""
    wanted = {(endpoint.pk, normalise(address)) for endpoint, mail in mails for address, _ in mail.recipients}
    if not wanted:
        return {}
    with bound_cursor() as cursor:
        cursor.execute(*question({sender for sender, _ in wanted}, {address for _, address in wanted}))
        rows = cursor.fetchall()
    return {(stored_uuid(key), address): Why(_moment(since), reason) for key, address, reason, since in rows}


def question(senders: Collection[uuid.UUID], addresses: Collection[str]) -> tuple[str, list[Any]]:
    """The statement that asks whom of `addresses` each of `senders` does not write to, and its parameters."""
    among_senders, keys = among(list(senders))
    among_addresses, texts = among(list(addresses))
    return _ASKED.format(senders=among_senders, addresses=among_addresses), [*keys, *texts]


def _moment(stored: datetime | str) -> datetime:
    """SQLite stores text, and naive UTC."""
    moment = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return moment if timezone.is_aware(moment) else moment.replace(tzinfo=UTC)


def check_suppressed(endpoint: PersistentAgentCommsEndpoint, mail: Mail, known: Mapping[Key, Why]) -> None:
    """Raises InvalidMail that names those recipients of `mail` who are not written to any more, and why."""
    if not known:
        return
    named = [
        (kind, address, known[key])
        for address, kind in mail.recipients
        if (key := (endpoint.pk, normalise(address))) in known
    ]
    if not named:
        return
    reasons = [
        f"{address} since {why.since:%Y-%m-%d} ({safe_text(why.reason, max_characters=MOST_OF_A_REASON)})"
        for _, address, why in named
    ]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    raise InvalidMail(
        named[0][0],
        f"this sender does not write to {', '.join(reasons[:MOST_NAMED])}{more}",
        f"Leave the address out, or lift it: email_suppression {endpoint.address} --lift {named[0][1]}",
    )


def suppress_bounced(
    attempt: OutboundMessageAttempt, recipient: OutboundMessageRecipient, proof: Proof, now: datetime
) -> bool:
    """Enters a recipient whose bounce or refusal says that the address is no good; whether it did."""
    if attempt.from_endpoint_id is None or proof.status is not RecipientStatus.BOUNCED:
        return False
    if not is_dead(proof.enhanced_status, proof.said):
        return False
    return suppress(
        attempt.from_endpoint_id,
        recipient.address,
        cause=Cause.BOUNCED,
        reason=f"It bounced: {proof.sentence}",
        enhanced_status=proof.enhanced_status,
        message_id=attempt.message_id,
        now=now,
    )


def suppress_refused(attempt: OutboundMessageAttempt, refused: Mapping[str, Reply], now: datetime) -> None:
    """Enters those whom the sender's own server refused one by one, in words that are about the address.

    Not at the first time: a server whose directory is away says the same of everybody for a while.
    """
    for address, reply in refused.items():
        if attempt.from_endpoint_id is None or not is_dead(reply.enhanced, reply.text):
            continue
        if _was_refused_before(attempt, address):
            suppress(
                attempt.from_endpoint_id,
                address,
                cause=Cause.BOUNCED,
                reason=f"It was refused: {reply}",
                enhanced_status=reply.enhanced,
                message_id=attempt.message_id,
                now=now,
            )


def _was_refused_before(attempt: OutboundMessageAttempt, address: str) -> bool:
    """Whether another message of the same sender met with the same."""
    rows = OutboundMessageRecipient.objects.filter(
        address=address,
        status=RecipientStatus.REFUSED,
        enhanced_status__in=DEAD,
        message__from_endpoint=attempt.from_endpoint_id,
    )
    return rows.exclude(message=attempt.message_id).exists()


def suppress(
    endpoint_id: uuid.UUID,
    address: str,
    *,
    cause: Cause,
    reason: str,
    now: datetime,
    enhanced_status: str = "",
    message_id: uuid.UUID | None = None,
) -> bool:
    """Enters `address` for one sender; False when it stands there already, with its first reason."""
    row = (endpoint_id, normalise(address), str(cause), reason, enhanced_status, message_id, now, None, "")
    if not insert_missing(Suppression, _NAMES, [row]):
        return False
    logger.info("suppression.added", extra={"account_id": str(endpoint_id), "why": str(cause)})
    return True


def suppress_by_hand(endpoint: PersistentAgentCommsEndpoint, address: str, reason: str, *, by: str) -> bool:
    """Enters `address` because a person says so. Raises InvalidMail for what is no address or no reason."""
    parsed = str(parse_address(address, field="recipient"))
    if not reason.strip():
        raise InvalidMail("reason", "it is empty", "Say why this address is not to be written to")
    words = f"{reason.strip()} (entered by {by})" if by else reason.strip()
    return suppress(endpoint.pk, parsed, cause=Cause.BY_HAND, reason=words, now=timezone.now())


def in_force(endpoint: PersistentAgentCommsEndpoint) -> QuerySet[Suppression]:
    """Whom `endpoint` does not write to, the latest first."""
    return Suppression.objects.filter(endpoint=endpoint, lifted_at__isnull=True)


def lift(rows: QuerySet[Suppression], *, by: str) -> int:
    """Lets those of `rows` that are in force be written to again; how many these were."""
    lifted = rows.filter(lifted_at__isnull=True).update(lifted_at=timezone.now(), lifted_by=by[:150])
    if lifted:
        logger.info("suppression.lifted", extra={"found": lifted})
    return lifted
