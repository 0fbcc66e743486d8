"""Making a message for the agent of a mail that was understood.

Its text is a stranger's and untrusted, its header is kept apart from it, and `provenance` says how far From
can be believed. To be called in the transaction that also says what became of the mail.
"""

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.db.models import Q

from gobii_email.domain.addresses import one_line
from gobii_email.domain.authentication_results import Assessment
from gobii_email.domain.identifiers import new_id
from gobii_email.domain.inbound_mail import Fields
from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.domain.mail_reading import MailReading
from gobii_email.domain.received_content import Content, ReceivedFile
from gobii_email.domain.senders import addresses_of, answered_ids, mailbox_of
from gobii_email.models import (
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
    ReceivedMail,
)
from gobii_email.services.contacts import contacts_of
from gobii_email.services.thread import answered_by, root_of

MAX_SUBJECT_CHARACTERS = 998
MOST_COPIES = 100
_MAX_HEADER_CHARACTERS = 1_000
_MOST_PROBLEMS = 20
_HEADERS = (
    "Date", "From", "Sender", "To", "Cc", "Reply-To", "Auto-Submitted", "Precedence", "List-Id", "Importance",
    "X-Auto-Response-Suppress", "X-Gobii-Hops",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail understood, with who wrote it, how far that is proven, and where its files lie."""

    mail: ReceivedMail
    endpoint: PersistentAgentCommsEndpoint
    reading: MailReading
    sender: str
    assessment: Assessment
    files: Sequence[str] = ()
    note: str = ""
    """In place of a text, where only the header was read."""


def take_in(letter: Letter, now: datetime) -> PersistentAgentMessage:
    """Stores the message with its copies and files."""
    endpoint, reading = letter.endpoint, letter.reading
    copied = _copied(letter)
    contacts = contacts_of({letter.sender, *copied})
    parent = answered_by(endpoint, answered_ids(reading.fields))
    subject = one_line(reading.fields.get("subject"))[:MAX_SUBJECT_CHARACTERS]
    message = PersistentAgentMessage.objects.create(
        id=new_id(now),
        is_outbound=False,
        from_endpoint_id=contacts[letter.sender],
        to_endpoint=endpoint,
        parent=parent,
        thread_root=root_of(parent),
        owner_agent_id=endpoint.owner_agent_id,
        from_address=letter.sender,
        subject=subject,
        body=letter.note or reading.content.text,
        rfc_message_id=letter.mail.rfc_message_id,
        latest_status=MessageStatus.DELIVERED,
        latest_delivered_at=now,
        raw_payload=_payload(letter, subject, is_first_contact=_is_first(endpoint, contacts[letter.sender])),
    )
    _copy(message, [contacts[address] for address in copied])
    _attach(message, reading.content.files, letter.files)
    return message


def _copy(message: PersistentAgentMessage, endpoints: Sequence[uuid.UUID]) -> None:
    through = PersistentAgentMessage.cc_endpoints.through
    through.objects.bulk_create(
        through(persistentagentmessage_id=message.pk, persistentagentcommsendpoint_id=key)
        for key in endpoints
    )


def _copied(letter: Letter) -> list[str]:
    """Who else it went to, by its header."""
    fields = letter.reading.fields
    found = dict.fromkeys((*addresses_of(fields, "to"), *addresses_of(fields, "cc")))
    return [address for address in found if address != letter.endpoint.address][:MOST_COPIES]


def _is_first(endpoint: PersistentAgentCommsEndpoint, contact: uuid.UUID) -> bool:
    """Whether nothing ever went between the agent and this contact."""
    either_way = Q(from_endpoint_id=contact, to_endpoint=endpoint) | Q(
        to_endpoint_id=contact, from_endpoint=endpoint
    )
    return not PersistentAgentMessage.objects.filter(either_way).exists()


def _payload(letter: Letter, subject: str, *, is_first_contact: bool) -> dict[str, Any]:
    """Under the platform's names."""
    fields, content, mail = letter.reading.fields, letter.reading.content, letter.mail
    answered = answered_ids(fields)
    return {
        "subject": subject,
        "message_id": mail.rfc_message_id,
        "in_reply_to": answered[0] if "in-reply-to" in fields and answered else "",
        "references": " ".join(reversed(answered)),
        "headers": _headers(fields),
        "from_name": mailbox_of(fields)[0],
        "reply_to": " ".join(addresses_of(fields, "reply-to")[:1]),
        "imap_folder": mail.folder,
        "imap_uid": str(mail.uid),
        "provenance": {
            "authenticated_domain": letter.assessment.domain or None,
            "authentication": str(letter.assessment.verdict),
            "is_automated": letter.reading.is_automated,
            "is_first_contact": is_first_contact,
        },
        **_bodies(content),
    }


def _bodies(content: Content) -> Mapping[str, Any]:
    return {
        "body_html": content.html,
        "chat_body_html_v1": content.safe.body,
        "chat_body_css": content.safe.css,
        "rejected_attachments": [asdict(file) for file in content.rejected],
        "problems": list(content.problems[:_MOST_PROBLEMS]),
    }


def _headers(fields: Fields) -> dict[str, str]:
    found = {name: one_line(fields.get(name.lower()))[:_MAX_HEADER_CHARACTERS] for name in _HEADERS}
    return {name: value for name, value in found.items() if value}


def _attach(message: PersistentAgentMessage, files: Sequence[ReceivedFile], names: Sequence[str]) -> None:
    PersistentAgentMessageAttachment.objects.bulk_create(
        PersistentAgentMessageAttachment(
            message=message,
            file=name,
            filename=file.filename,
            content_type=file.content_type,
            content_id=file.content_id,
            file_size=len(file.content),
            content_sha256=hashlib.sha256(file.content).hexdigest(),
        )
        for file, name in zip(files, names, strict=True)
    )
