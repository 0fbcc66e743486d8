"""What stored messages say, and to whom: everything a submission reads of them, in few statements.

The number of statements grows neither with the messages nor with their recipients. Whether the mail may be
sent is asked of services/submit.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Lower

from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.models import (
    CommsChannel,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.models.compiled import Compiled
from gobii_email.models.cursors import among, bound_cursor, stored_uuid
from gobii_email.models.messages import subject_of
from gobii_email.services.answer import answer_to
from gobii_email.services.submit import Mail, addresses, reply_ids, subject_line

Endpoints = PersistentAgentCommsEndpoint.objects

_ASKED_OF_SENDERS = ("owner_agent", "email_meta", "agentemailaccount")
"""An agent's owner is asked for more rarely."""


_ASKED_OF_PARENTS = (
    "rfc_message_id", "raw_payload", "thread_root", "is_outbound", "from_address", "from_endpoint",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gathered:
    """Senders, addressees, files and parents of some messages."""

    senders: Mapping[uuid.UUID, PersistentAgentCommsEndpoint]
    addressees: Mapping[tuple[uuid.UUID, str], Sequence[str]]
    files: Mapping[uuid.UUID, Sequence[PersistentAgentMessageAttachment]]
    parents: Mapping[uuid.UUID, PersistentAgentMessage]

    def mail_of(self, message: PersistentAgentMessage, *, is_automatic: bool = True) -> Mail:
        """What `message` says. Reads its files from their storage; raises InvalidMail.

        An answer to a received message `is_automatic` unless a person approved it.
        """
        endpoint = self.senders[message.from_endpoint_id]  # type: ignore[index]
        payload = message.raw_payload or {}
        parent = self.parents.get(message.parent_id)  # type: ignore[arg-type]
        in_reply_to, references = reply_ids(parent)
        to, cc, bcc = (self.addressees.get((message.pk, kind), ()) for kind in ("to", "cc", "bcc"))
        return Mail(
            from_name=endpoint.display_name,
            from_address=addresses("from", endpoint.address)[0],
            to=addresses("to", to),
            cc=addresses("cc", sorted(cc)),
            bcc=addresses("bcc", sorted(bcc)),
            subject=subject_line(subject_of(message)),
            body=message.body,
            in_reply_to=in_reply_to,
            references=references,
            reply_to=str(payload.get("reply_to") or ""),
            headers=dict(payload.get("headers") or {}),
            attachments=tuple(map(_payload, self.files.get(message.pk, ()))),
            answer=answer_to(parent, endpoint, is_automatic=is_automatic),
        )


def gather(messages: Sequence[PersistentAgentMessage]) -> Gathered:
    """Reads what belongs to `messages`, and hangs their senders onto them."""
    found = senders({message.from_endpoint_id for message in messages if message.from_endpoint_id})
    for message in messages:
        message.from_endpoint = found.get(message.from_endpoint_id)  # type: ignore[arg-type]
    addressees, with_files = _addressees(messages)
    return Gathered(found, addressees, _files(with_files), _parents(messages))


def senders(keys: Set[uuid.UUID]) -> dict[uuid.UUID, PersistentAgentCommsEndpoint]:
    """The endpoints of `keys` with what is asked of every sender, in one statement."""
    return {endpoint.pk: endpoint for endpoint in _ready(keys, _BY_KEY, _by_keys)}


def senders_by_address(addresses: Set[str]) -> dict[str, PersistentAgentCommsEndpoint]:
    """The same of agents' own endpoints, by their addresses in lower case."""
    return {endpoint.address: endpoint for endpoint in _ready(addresses, _BY_ADDRESS, _by_addresses)}


def _ready(
    keys: Set[Any],
    of_one: Compiled[PersistentAgentCommsEndpoint],
    of_many: "Callable[[Set[Any]], QuerySet[PersistentAgentCommsEndpoint]]",
) -> Sequence[PersistentAgentCommsEndpoint]:
    if len(keys) == 1:
        return of_one.rows(*keys)
    return list(of_many(keys)) if keys else []


def _by_keys(keys: Set[uuid.UUID]) -> "QuerySet[PersistentAgentCommsEndpoint]":
    return (
        Endpoints.select_related("owner_agent", "email_meta", "agentemailaccount")
        .filter(pk__in=keys)
        .order_by()
    )


def _by_addresses(addresses: Set[str]) -> "QuerySet[PersistentAgentCommsEndpoint]":
    # By the expression that is indexed.
    own = Endpoints.filter(owner_agent__isnull=False, channel=CommsChannel.EMAIL).order_by()
    ready = own.select_related(*_ASKED_OF_SENDERS)
    return ready.alias(lower=Lower("address")).filter(lower__in=addresses)


_BY_KEY = Compiled(lambda key: _by_keys({key}), uuid.UUID(int=0x0E))
_BY_ADDRESS = Compiled(lambda address: _by_addresses({address}), "somebody@example.invalid")

Addressees = Mapping[tuple[uuid.UUID, str], Sequence[str]]


def _addressees(messages: Sequence[PersistentAgentMessage]) -> tuple[Addressees, set[uuid.UUID]]:
    """Addresses by message and kind, and which messages have files, in one statement."""
    found: dict[tuple[uuid.UUID, str], list[str]] = defaultdict(list)
    with_files = set()
    to = [message.to_endpoint_id for message in messages if message.to_endpoint_id]
    among_to, endpoints = among(list(dict.fromkeys(to)))
    among_them, keys = among([message.pk for message in messages])
    with bound_cursor() as cursor:
        cursor.execute(_ADDRESSEES.format(to=among_to, them=among_them), [*endpoints, *keys, *keys, *keys])
        for stored, kind, address in cursor.fetchall():
            key = stored_uuid(stored)
            if kind == "file":
                with_files.add(key)
            else:
                found[key, kind].append(address)
    for message in messages:
        if message.to_endpoint_id:
            found[message.pk, "to"] = found[message.to_endpoint_id, "to"]
    return found, with_files


def _of_copies(kind: str) -> str:
    through = getattr(PersistentAgentMessage, f"{kind}_endpoints").through._meta.db_table
    return (
        f"SELECT persistentagentmessage_id, '{kind}', e.address FROM {through} AS c "
        f"JOIN {Endpoints.model._meta.db_table} AS e ON e.id = c.persistentagentcommsendpoint_id "
        "WHERE persistentagentmessage_id {them}"
    )


_ADDRESSEES = " UNION ALL ".join(
    [
        f"SELECT id, 'to', address FROM {Endpoints.model._meta.db_table} WHERE id {{to}}",
        _of_copies("cc"),
        _of_copies("bcc"),
        f"SELECT message_id, 'file', '' FROM {PersistentAgentMessageAttachment._meta.db_table} "
        "WHERE message_id {them}",
    ]
)


def _files(keys: Set[uuid.UUID]) -> dict[uuid.UUID, list[PersistentAgentMessageAttachment]]:
    """By message; no statement when there are no `keys`."""
    found = defaultdict(list)
    for file in PersistentAgentMessageAttachment.objects.filter(message__in=keys) if keys else ():
        found[file.message_id].append(file)
    return found


def _parents(messages: Sequence[PersistentAgentMessage]) -> dict[uuid.UUID, PersistentAgentMessage]:
    """Those that are answered, with what a thread is named by; no statement when nobody is."""
    keys = {message.parent_id for message in messages if message.parent_id}
    if not keys:
        return {}
    return PersistentAgentMessage.objects.only(*_ASKED_OF_PARENTS).in_bulk(keys)


def _payload(file: PersistentAgentMessageAttachment) -> EmailAttachmentPayload:
    return EmailAttachmentPayload(
        file.filename,
        _content_of(file),
        file.content_type,
        file.content_id,
        "inline" if file.content_id else "attachment",
    )


def _content_of(file: PersistentAgentMessageAttachment) -> bytes:
    try:
        with file.file.open("rb") as stored:
            content: bytes = stored.read()
            return content
    except (OSError, ValueError):
        raise InvalidMail("attachments", f"{file} cannot be read", "Attach the file again") from None
