"""Answers that no person looked at (RFC 3834): which are refused, and what the others say of themselves.

An answer to a received mail is automatic unless its caller says that a person approved it. Nothing that a
program wrote is answered automatically, and nobody is answered often: two agents that are wired to each other
stop. What tells a program's mail is known to domain/automated_mail.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import Q
from django.db.models.functions import Lower

from gobii_email.conf import config
from gobii_email.domain.addresses import normalise
from gobii_email.domain.automated_mail import answer_headers, hops, is_automated
from gobii_email.domain.inbound_mail import Fields, InboundMail, Part
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.thread_headers import clean_message_id
from gobii_email.models import (
    OutboundMessageRecipient,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services.tell import clock_time

MOST_HOPS = 5
"""Automatic answers that may have led to a mail which is answered automatically."""
PER_THREAD = timedelta(minutes=1)
PER_CORRESPONDENT = timedelta(hours=1)

_BY_A_PERSON = "Let a person look at it, and send it with is_automatic=False"


class AutomaticAnswerRefused(InvalidMail):
    """An answer that no person approved is not sent: to a program, after too many others, or too often."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a mail that answers another one has from it: its thread, and the fields of an automatic answer."""

    parent_id: uuid.UUID
    thread_root: uuid.UUID
    is_automatic: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


def answer_to(
    parent: PersistentAgentMessage | None, sender: PersistentAgentCommsEndpoint, *, is_automatic: bool
) -> Answer | None:
    """How a mail of `sender` answers `parent`; None without one. Raises AutomaticAnswerRefused.

    Only an answer to a received message can be automatic.
    """
    if parent is None:
        return None
    root = parent.thread_root or parent.pk
    if parent.is_outbound or not is_automatic:
        return Answer(parent.pk, root)
    header = _header_of(parent)
    if _is_programs(parent, header, sender):
        reason = "what it answers was written by a program, and two programs would never stop"
        raise AutomaticAnswerRefused("in_reply_to", reason, _BY_A_PERSON)
    if hops(header) >= MOST_HOPS:
        reason = f"{hops(header)} automatic answers led to what it answers"
        raise AutomaticAnswerRefused("in_reply_to", reason, _BY_A_PERSON)
    return Answer(parent.pk, root, True, answer_headers(header))


def _header_of(parent: PersistentAgentMessage) -> Fields:
    stored = (parent.raw_payload or {}).get("headers")
    items = stored.items() if isinstance(stored, dict) else ()
    return Fields(tuple((str(name).lower(), str(value)) for name, value in items))


def _is_programs(
    parent: PersistentAgentMessage, header: Fields, sender: PersistentAgentCommsEndpoint
) -> bool:
    """By what was found out when it was received, by its header, or because the sender wrote it itself."""
    provenance = (parent.raw_payload or {}).get("provenance")
    was_found = isinstance(provenance, dict) and provenance.get("is_automated") is True
    is_own = normalise(parent.from_address) == sender.address or parent.from_endpoint_id == sender.pk
    return was_found or is_own or is_automated(InboundMail(Part(header, b"")))


Parents = Mapping[tuple[uuid.UUID, str], PersistentAgentMessage]
"""Received messages by the endpoint that received them and their Message-ID."""


def received_under(asked: Sequence[tuple[PersistentAgentCommsEndpoint, str]]) -> Parents:
    """The messages that are answered by their Message-ID alone, in one statement; none without any."""
    ids = {cleaned for _, text in asked if (cleaned := clean_message_id(text))}
    if not ids:
        return {}
    rows = PersistentAgentMessage.objects.filter(
        rfc_message_id__in=ids, to_endpoint__in={endpoint.pk for endpoint, _ in asked}, is_outbound=False
    )
    rows = rows.defer("body").order_by("timestamp")
    return {(row.to_endpoint_id, row.rfc_message_id): row for row in rows if row.to_endpoint_id}


@dataclass(frozen=True, slots=True)
class Sending:
    """An automatic answer that is about to be queued."""

    sender_id: uuid.UUID
    thread_root: uuid.UUID
    addresses: frozenset[str]


def check_frequency(answers: Sequence[Sending], now: datetime) -> None:
    """Raises AutomaticAnswerRefused where a thread or somebody has had enough automatic answers lately.

    To be called in the transaction that queues them: it lets in a sender's submissions one at a time.
    """
    if not answers:
        return
    said = _lately(answers, now)
    for answer in answers:
        _check_thread(answer, said, now)
        _check_correspondents(answer, said, now)
        said += [_Said(answer.sender_id, answer.thread_root, address, now) for address in answer.addresses]


@dataclass(frozen=True, slots=True)
class _Said:
    """One automatic answer to one recipient."""

    sender_id: uuid.UUID | None
    thread_root: uuid.UUID | None
    address: str
    at: datetime


def _lately(answers: Sequence[Sending], now: datetime) -> list[_Said]:
    senders = {answer.sender_id for answer in answers}
    locked = PersistentAgentCommsEndpoint.objects.select_for_update(no_key=True).filter(pk__in=senders)
    list(locked.order_by("pk").values_list("pk"))
    rows = OutboundMessageRecipient.objects.filter(
        message__is_automatic=True,
        message__from_endpoint__in=senders,
        message__timestamp__gt=now - timedelta(days=1),  # what is indexed; a stored message may wait before
        message__submitted_at__gt=now - PER_CORRESPONDENT,
    )
    rows = rows.alias(lower=Lower("address")).filter(
        Q(message__thread_root__in={answer.thread_root for answer in answers})
        | Q(lower__in={address for answer in answers for address in answer.addresses})
    )
    facts = ("message__from_endpoint_id", "message__thread_root", "address", "message__submitted_at")
    return [
        _Said(sender, root, normalise(address), at)
        for sender, root, address, at in rows.order_by().values_list(*facts)
    ]


def _check_thread(answer: Sending, said: Sequence[_Said], now: datetime) -> None:
    thread = (answer.sender_id, answer.thread_root)
    mine = [one.at for one in said if (one.sender_id, one.thread_root) == thread]
    again_at = max(mine, default=now - PER_THREAD) + PER_THREAD
    if again_at > now:
        raise AutomaticAnswerRefused(
            "in_reply_to",
            "this thread had an automatic answer within the last minute",
            f"Wait until {clock_time(again_at, now)}. {_BY_A_PERSON}",
        )


def _check_correspondents(answer: Sending, said: Sequence[_Said], now: datetime) -> None:
    most = config().answers_per_hour
    for address in sorted(answer.addresses):
        had = sorted(one.at for one in said if (one.sender_id, one.address) == (answer.sender_id, address))
        if len(had) >= most:
            again_at = (had[-most] if most else now) + PER_CORRESPONDENT
            raise AutomaticAnswerRefused(
                "to",
                f"{address} had {len(had)} automatic answers within the last hour",
                f"Wait until {clock_time(again_at, now)}. {_BY_A_PERSON}",
            )
