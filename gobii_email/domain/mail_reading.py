"""Everything that is read of one received mail, and how that is passed on between processes.

Pure, and as costly as the sender wished within the limits of inbound_mail: adapters/mail_reader has it done
by a process that may die of it. Nothing here is believed; services/receive asks who wrote and what is true.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gobii_email.domain.automated_mail import Reason, reasons
from gobii_email.domain.dsn import Action, Evidence, ReturnedRecipient, Source, Sureness
from gobii_email.domain.inbound_mail import Fields, read_inbound
from gobii_email.domain.received_content import (
    Content,
    FileLimits,
    ReceivedFile,
    RejectedFile,
    content_of,
)
from gobii_email.domain.returned_mail import Kind, Returned, read_parts
from gobii_email.domain.safe_html import SafeHtml
from gobii_email.domain.storable_text import storable


@dataclass(frozen=True, slots=True)
class MailReading:
    """One mail understood. All texts can be stored; `reasons` say why a program wrote it, if one did."""

    fields: Fields
    returned: Returned
    reasons: tuple[Reason, ...]
    content: Content

    @property
    def is_automated(self) -> bool:
        """Whether nothing may be answered automatically to it; a subject alone does not suffice."""
        return any(reason is not Reason.SUBJECT for reason in self.reasons)


def read_whole(raw: bytes, limits: FileLimits, own_addresses: Sequence[str] = ()) -> MailReading:
    """The reading of a whole message as received."""
    mail = read_inbound(raw)
    content = content_of(mail, limits)
    returned = read_parts(mail)
    return MailReading(
        Fields(tuple((name, storable(value)) for name, value in mail.fields.items)),
        replace(returned, problems=()),
        reasons(mail, own_addresses=frozenset(own_addresses)),
        replace(content, problems=(*mail.problems, *content.problems)),
    )


def as_document(reading: MailReading) -> tuple[dict[str, Any], Sequence[bytes]]:
    """`reading` as plain values for JSON, and beside them the bytes of its files in order."""
    content = reading.content
    document = {
        "fields": reading.fields.items,
        "returned": asdict(replace(reading.returned, evidence=dict(reading.returned.evidence))),
        "reasons": reading.reasons,
        "text": content.text,
        "html": content.html,
        "safe": asdict(content.safe),
        "files": [[file.filename, file.content_type, file.content_id] for file in content.files],
        "rejected": [asdict(file) for file in content.rejected],
        "problems": content.problems,
    }
    return document, [file.content for file in content.files]


def from_document(document: Mapping[str, Any], files: Sequence[bytes]) -> MailReading:
    """The reading again. Raises ValueError, KeyError or TypeError for what is none."""
    content = Content(
        document["text"],
        document["html"],
        SafeHtml(**document["safe"]),
        tuple(
            ReceivedFile(name, content_type, content_id, content)
            for (name, content_type, content_id), content in zip(document["files"], files, strict=True)
        ),
        tuple(RejectedFile(**facts) for facts in document["rejected"]),
        tuple(document["problems"]),
    )
    return MailReading(
        Fields(tuple((name, value) for name, value in document["fields"])),
        _returned(document["returned"]),
        tuple(map(Reason, document["reasons"])),
        content,
    )


def _returned(facts: Mapping[str, Any]) -> Returned:
    recipients = tuple(map(_recipient, facts["recipients"]))
    evidence = {name: _evidence(value) for name, value in facts["evidence"].items()}
    rest = dict(facts) | {"kind": Kind(facts["kind"]), "recipients": recipients, "evidence": evidence}
    return Returned(**rest | {"problems": tuple(facts["problems"])})


def _recipient(facts: Mapping[str, Any]) -> ReturnedRecipient:
    rest = dict(facts) | {"action": Action(facts["action"]), "evidence": _evidence(facts["evidence"])}
    return ReturnedRecipient(**rest)


def _evidence(facts: Mapping[str, str]) -> Evidence:
    return Evidence(Source(facts["source"]), Sureness(facts["sureness"]))
