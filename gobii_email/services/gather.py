"""What stored messages say, and to whom: everything a submission reads of them, in few statements.

The number of statements grows neither with the messages nor with their recipients. Whether the mail may be
sent is asked of services/submit.
"""

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db.models import QuerySet, Value

from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.models import (
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.models.messages import subject_of
from gobii_email.services.submit import Mail, addresses, reply_ids, subject_line

Endpoints = PersistentAgentCommsEndpoint.objects


@dataclass(frozen=True, slots=True)
class Gathered:
    """Senders, addressees, files and parents of some messages."""

    senders: Mapping[uuid.UUID, PersistentAgentCommsEndpoint]
    addressees: Mapping[tuple[uuid.UUID, str], Sequence[str]]
    files: Mapping[uuid.UUID, Sequence[PersistentAgentMessageAttachment]]
    parents: Mapping[uuid.UUID, PersistentAgentMessage]

    def mail_of(self, message: PersistentAgentMessage) -> Mail:
        """What `message` says. Reads its files from their storage; raises InvalidMail."""
        endpoint = self.senders[message.from_endpoint_id]  # type: ignore[index]
        payload = message.raw_payload or {}
        in_reply_to, references = reply_ids(self.parents.get(message.parent_id))  # type: ignore[arg-type]
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
        )


def gather(messages: Sequence[PersistentAgentMessage]) -> Gathered:
    """Reads what belongs to `messages`, and hangs their senders onto them."""
    senders = ready_senders().in_bulk({message.from_endpoint_id for message in messages})
    for message in messages:
        message.from_endpoint = senders.get(message.from_endpoint_id)
    return Gathered(senders, _addressees(messages), _files(messages), _parents(messages))


def ready_senders() -> "QuerySet[PersistentAgentCommsEndpoint]":
    """Agents' endpoints with what is asked of every sender; its agent's owner is asked for more rarely."""
    return Endpoints.select_related("owner_agent", "email_meta", "agentemailaccount")


def _addressees(messages: Sequence[PersistentAgentMessage]) -> dict[tuple[uuid.UUID, str], list[str]]:
    """Addresses by message and kind."""
    found: dict[tuple[uuid.UUID, str], list[str]] = defaultdict(list)
    to = {message.to_endpoint_id for message in messages if message.to_endpoint_id}
    rows = Endpoints.filter(pk__in=to).order_by().values_list("pk", Value("to"), "address")
    copies = []
    for kind in ("cc", "bcc"):
        through = getattr(PersistentAgentMessage, f"{kind}_endpoints").through.objects
        copies.append(
            through.filter(persistentagentmessage__in=[message.pk for message in messages])
            .order_by()
            .values_list("persistentagentmessage_id", Value(kind), "persistentagentcommsendpoint__address")
        )
    for key, kind, address in rows.union(*copies, all=True):
        found[key, kind].append(address)
    for message in messages:
        if message.to_endpoint_id:
            found[message.pk, "to"] = found[message.to_endpoint_id, "to"]
    return found


def _files(
    messages: Sequence[PersistentAgentMessage],
) -> dict[uuid.UUID, list[PersistentAgentMessageAttachment]]:
    found = defaultdict(list)
    for file in PersistentAgentMessageAttachment.objects.filter(message__in=[m.pk for m in messages]):
        found[file.message_id].append(file)
    return found


def _parents(messages: Sequence[PersistentAgentMessage]) -> dict[uuid.UUID, PersistentAgentMessage]:
    """Those that are answered, with what a thread is named by; no statement when nobody is."""
    keys = {message.parent_id for message in messages if message.parent_id}
    if not keys:
        return {}
    return PersistentAgentMessage.objects.only("rfc_message_id", "raw_payload").in_bulk(keys)


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
