"""What a received mail says about a mail that was sent before: a report, a complaint, an automatic answer,
or nothing.

Never raises, whatever the bytes, and believes nothing: a reading is what the mail claims, with where that
was read and how sure the reading is. Whether it names a mail that was really sent, to somebody it really
went to, is for the reader to check first.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from gobii_email.domain import bounce_prose, dsn
from gobii_email.domain.automated_mail import (
    has_autoreply_subject,
    has_null_return_path,
    is_autoreply,
)
from gobii_email.domain.bounce_prose import Prose, split_prose
from gobii_email.domain.dsn import Action, Evidence, OriginalMail, ReturnedRecipient, Source, Sureness
from gobii_email.domain.inbound_mail import InboundMail, Part, read_fields, read_inbound
from gobii_email.domain.plaintext import html_to_plaintext
from gobii_email.domain.ses_notifications import read_notification

_MAX_PROSE_OCTETS = 128 * 1024
_MAX_HTML_OCTETS = 64 * 1024
_MAX_REPORT_OCTETS = 512 * 1024
_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status", "message/delivery_status")
_RECEIPT = "message/disposition-notification"
_COPY_BEGINS = (
    "received:", "return-path:", "message-id:", "from:", "to:", "subject:", "date:", "mime-version:", "x-",
    "dkim-signature:", "reply-to:", "delivered-to:",
)  # fmt: skip
_MAX_COPY_LINES = 2_000
_WRITTEN_ID = re.compile(r"\bmessage[- ]id:?\s{0,3}(<[^<>\s]{3,250}>)", re.IGNORECASE)
_COMPLAINT_SENDERS = ("staff@hotmail.com", "staff@outlook.com")


class Kind(StrEnum):
    FAILED = "dsn-failed"
    DELAYED = "dsn-delayed"
    DELIVERED = "dsn-delivered"
    COMPLAINT = "arf"
    AUTOREPLY = "autoreply"
    ORDINARY = "ordinary"


@dataclass(frozen=True, slots=True)
class Returned:
    """The reading of one mail. Texts are "" where the mail is silent; ids have their angle brackets.

    `attempt_id` is our X-Gobii-Message-ID in the returned header, `envelope_id` what we gave as ENVID,
    `microsoft_message_id` our Message-ID where Exchange has put one of its own in its place. `evidence` says,
    for "kind" and each id that was found, where it was read and how sure that is; recipients carry their own.
    `problems` are sentences about what was not read because it broke a limit.
    """

    kind: Kind
    recipients: tuple[ReturnedRecipient, ...] = ()
    original_message_id: str = ""
    attempt_id: str = ""
    envelope_id: str = ""
    microsoft_message_id: str = ""
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def is_report(self) -> bool:
        """Whether it says what became of a mail, so that there is nobody to answer."""
        return self.kind not in (Kind.AUTOREPLY, Kind.ORDINARY)

    def as_document(self) -> dict[str, Any]:
        return {
            "kind": str(self.kind),
            "recipients": [_recipient_document(recipient) for recipient in self.recipients],
            "original_message_id": self.original_message_id or None,
            "attempt_id": self.attempt_id or None,
            "envelope_id": self.envelope_id or None,
            "microsoft_message_id": self.microsoft_message_id or None,
            "evidence": {name: _evidence_text(evidence) for name, evidence in self.evidence.items()},
            "problems": list(self.problems),
        }


def read_mail(raw: bytes) -> Returned:
    """The reading of a whole message as received."""
    return read_parts(read_inbound(raw))


def read_parts(mail: InboundMail) -> Returned:
    """The reading of a message that has been taken apart already."""
    return replace(_Letter(mail).read(), problems=mail.problems)


class _Letter:
    """One mail, and what several readings of it need to know."""

    def __init__(self, mail: InboundMail) -> None:
        self.fields = mail.fields
        self.parts = list(mail.root.walk(into_messages=False))
        self.is_multipart_report = mail.root.content_type == "multipart/report"
        self.subject = self.fields.get("subject")
        self.is_daemon = bounce_prose.is_daemon(self.fields.get("from"))
        self.is_report_subject = bounce_prose.is_report_subject(self.subject)
        self.failed = tuple(
            dsn.addresses_in(" , ".join(self.fields.all("x-failed-recipients")))[: dsn.MAX_RECIPIENTS]
        )

    def read(self) -> Returned:
        """The first reading that fits; those for machines come before those for people."""
        return (
            self._complaint()
            or self._status_report()
            or self._notification()
            or self._automatic_answer()
            or self._prose_report()
            or self._probable_answer()
            or self._receipt()
            or Returned(Kind.ORDINARY)
        )

    def _complaint(self) -> Returned | None:
        report = self._first("message/feedback-report")
        copy = self._copy()
        if report is not None:
            feedback = dsn.read_feedback(report.text(max_octets=_MAX_REPORT_OCTETS))
            recipients = feedback.recipients or _complainers(copy)
            return self._returned(Kind.COMPLAINT, recipients, copy, Source.FEEDBACK)
        is_known_sender = not {*_COMPLAINT_SENDERS}.isdisjoint(
            dsn.addresses_in(self.fields.raw("from").lower())
        )
        if is_known_sender and self.subject.lower().startswith("complaint about"):
            return self._returned(Kind.COMPLAINT, _complainers(copy), copy, Source.HEADER, Sureness.LIKELY)
        return None

    def _status_report(self) -> Returned | None:
        if not (self.is_multipart_report or self._is_from_a_program()):
            return None
        parts = [part for part in self.parts if part.content_type in _STATUS_TYPES]
        text = "\n\n".join(part.text(max_octets=_MAX_REPORT_OCTETS) for part in parts[:20])
        report = dsn.read_delivery_status(text)
        return self._from_report(report, self._copy(), Sureness.SURE) if report.recipients else None

    def _from_report(self, report: dsn.DeliveryReport, copy: OriginalMail, sureness: Sureness) -> Returned:
        if not copy.message_id and report.original_message_id:
            copy = replace(copy, message_id=dsn.message_id_in(report.original_message_id))
        kind = _kind_of(report.recipients)
        returned = self._returned(kind, report.recipients, copy, Source.REPORT, sureness)
        if not report.envelope_id:
            return returned
        evidence = {**returned.evidence, "envelope_id": Evidence(Source.REPORT, sureness)}
        return replace(returned, envelope_id=report.envelope_id, evidence=evidence)

    def _notification(self) -> Returned | None:
        """Amazon SES tells of bounces and complaints in JSON, which topics forward as mail."""
        notification = read_notification(self._text("text/plain", _MAX_PROSE_OCTETS))
        if notification is None:
            return None
        recipients = notification.recipients
        kind = Kind.COMPLAINT if recipients[0].action is Action.COMPLAINED else _kind_of(recipients)
        copy = OriginalMail(message_id=notification.original_message_id)
        return self._returned(kind, recipients, copy, Source.NOTIFICATION, Sureness.LIKELY)

    def _automatic_answer(self) -> Returned | None:
        is_servers = self.failed or self.is_daemon or self.is_report_subject or self.is_multipart_report
        return self._answer(Sureness.SURE) if is_autoreply(self.fields) and not is_servers else None

    def _probable_answer(self) -> Returned | None:
        return self._answer(Sureness.WEAK) if has_autoreply_subject(self.fields) else None

    def _answer(self, sureness: Sureness) -> Returned:
        return self._returned(Kind.AUTOREPLY, (), OriginalMail(), Source.HEADER, sureness)

    def _prose_report(self) -> Returned | None:
        is_receipt = self._first(_RECEIPT) is not None and not self.is_daemon
        if is_receipt or has_autoreply_subject(self.fields):
            return None
        if not (self.failed or self._is_from_a_program()):
            return None
        for content_type, max_octets in (("text/plain", _MAX_PROSE_OCTETS), ("text/html", _MAX_HTML_OCTETS)):
            text = self._text(content_type, max_octets)
            found = self._written_out(text) or self._told(split_prose(text))
            if found:
                return found
        return self._without_recipients()

    def _written_out(self, text: str) -> Returned | None:
        """The fields of a delivery status that stand in the text, where a damaged mail has lost its parts."""
        at = min(
            (
                found
                for name in ("final-recipient:", "original-recipient:")
                if (found := text.lower().find(name)) >= 0
            ),
            default=-1,
        )
        if at < 0:
            return None
        report = dsn.read_delivery_status(text[at:])
        return self._from_report(report, _copied(text[at:]), Sureness.LIKELY) if report.recipients else None

    def _told(self, prose: Prose) -> Returned | None:
        copy = self._copy_or(prose)
        if not (self.failed or self._is_believable(prose, copy)):
            return None
        strangers = self._strangers()
        recipients = bounce_prose.recipients_in(
            prose, subject=self.subject, named=self.failed, strangers=strangers
        )
        is_about_others = any(recipient.address.lower() not in strangers for recipient in recipients)
        is_evident = is_about_others or self.failed or self._returns_something(prose, copy)
        if not (recipients and is_evident):
            return None
        named = _named_in(prose, copy)
        return self._returned(_kind_of(recipients), recipients, named, Source.PROSE, Sureness.LIKELY)

    def _returns_something(self, prose: Prose, copy: OriginalMail) -> bool:
        return copy != OriginalMail() or prose.has_reply

    def _is_believable(self, prose: Prose, copy: OriginalMail) -> bool:
        """Whether two signs say that a server returned a mail: people and shops write of failures too."""
        signs = (
            self.is_daemon,
            self.is_report_subject,
            has_null_return_path(self.fields),
            self._returns_something(prose, copy),
        )
        return sum(signs) >= 2 and (self.is_report_subject or prose.says_failure)

    def _without_recipients(self) -> Returned | None:
        """A report that names nobody is about whom the returned mail was sent to, if to one."""
        prose = split_prose(self._text("text/plain", _MAX_PROSE_OCTETS))
        copy = self._copy_or(prose)
        if not (self.is_daemon and self.is_report_subject and self._returns_something(prose, copy)):
            return None
        addressed = Prose((*prose.lines, *(f"To: {address}" for address in copy.recipients[:1])))
        found = bounce_prose.recipients_in(addressed, subject=self.subject)
        # What is quoted of each would be the line that was added.
        recipients = tuple(replace(recipient, diagnostic="") for recipient in found)
        kind = _kind_of(recipients) if recipients else Kind.FAILED
        return self._returned(kind, recipients, _named_in(prose, copy), Source.PROSE, Sureness.WEAK)

    def _receipt(self) -> Returned | None:
        """What a person's program says of a mail that it showed or threw away (RFC 8098)."""
        part = self._first(_RECEIPT)
        if part is None:
            return None
        fields = read_fields(part.text(max_octets=_MAX_REPORT_OCTETS).lstrip().encode())
        copy = OriginalMail(message_id=dsn.message_id_in(fields.raw("original-message-id")))
        return self._returned(Kind.ORDINARY, (), copy, Source.REPORT)

    def _is_from_a_program(self) -> bool:
        return self.is_daemon or self.is_report_subject or has_null_return_path(self.fields)

    def _first(self, content_type: str) -> Part | None:
        return next((part for part in self.parts if part.content_type == content_type), None)

    def _text(self, content_type: str, max_octets: int) -> str:
        texts = [
            part.text(max_octets=max_octets)
            for part in self.parts
            if _reads_as(part) == content_type and not part.is_attachment
        ]
        text = "\n".join(texts[:20])[:max_octets]
        return html_to_plaintext(text) if content_type == "text/html" else text

    def _copy(self) -> OriginalMail:
        part = next((part for part in self.parts if part.is_message), None)
        return dsn.read_copy(part.embedded_fields()) if part else OriginalMail()

    def _copy_or(self, prose: Prose) -> OriginalMail:
        copy = self._copy()
        return copy if copy.message_id or copy.attempt_id or copy.recipients else _copied(prose.copy)

    def _strangers(self) -> frozenset[str]:
        names = ("from", "to", "reply-to", "delivered-to", "x-original-to", "envelope-to")
        return frozenset(
            address.lower() for name in names for address in dsn.addresses_in(self.fields.raw(name)[:4_000])
        )

    def _returned(
        self,
        kind: Kind,
        recipients: Sequence[ReturnedRecipient],
        copy: OriginalMail,
        source: Source,
        sureness: Sureness = Sureness.SURE,
    ) -> Returned:
        answered = "" if copy.message_id else self._answered()
        likely = sureness if kind is Kind.AUTOREPLY else Sureness.LIKELY
        evidence = {
            "kind": Evidence(source, sureness),
            "original_message_id": Evidence(Source.HEADER, likely)
            if answered
            else Evidence(Source.COPY, sureness),
            "attempt_id": Evidence(Source.COPY, sureness),
            "microsoft_message_id": Evidence(Source.COPY, sureness),
        }
        returned = Returned(
            kind,
            tuple(recipients),
            original_message_id=copy.message_id or answered,
            attempt_id=copy.attempt_id,
            microsoft_message_id=copy.microsoft_message_id,
        )
        return replace(
            returned, evidence={name: value for name, value in evidence.items() if getattr(returned, name)}
        )

    def _answered(self) -> str:
        """The message that this one answers, by its own header."""
        answered = dsn.message_id_in(self.fields.raw("in-reply-to"))
        return answered or dsn.message_id_in("".join(self.fields.raw("references").rpartition("<")[1:]))


def _reads_as(part: Part) -> str:
    """Its type; a multipart that has lost its delimiters is text."""
    return "text/plain" if part.is_multipart and not part.parts else part.content_type


def _kind_of(recipients: Sequence[ReturnedRecipient]) -> Kind:
    actions = {recipient.action for recipient in recipients}
    if Action.FAILED in actions:
        return Kind.FAILED
    return Kind.DELAYED if Action.DELAYED in actions else Kind.DELIVERED


def _complainers(copy: OriginalMail) -> tuple[ReturnedRecipient, ...]:
    return tuple(dsn.complained(address, Source.COPY, Sureness.LIKELY) for address in copy.recipients)


def _copied(text: str) -> OriginalMail:
    """The ids of a returned mail that stands in the text, be it indented or quoted."""
    lines = text.splitlines()[:_MAX_COPY_LINES]
    first = next(
        (n for n, line in enumerate(lines) if line.lstrip(" \t>").lower().startswith(_COPY_BEGINS)), None
    )
    if first is None:
        return OriginalMail()
    indent = len(lines[first]) - len(lines[first].lstrip(" \t>"))
    block = "\n".join(line[indent:] if not line[:indent].strip(" \t>") else line for line in lines[first:])
    return dsn.read_copy(read_fields(block.encode("utf-8", "replace")))


def _named_in(prose: Prose, copy: OriginalMail) -> OriginalMail:
    """`copy`, or where it names no mail, with the Message-ID that the report names in its words."""
    found = None if copy.message_id else _WRITTEN_ID.search("\n".join(prose.lines))
    return replace(copy, message_id=found[1]) if found else copy


def _recipient_document(recipient: ReturnedRecipient) -> dict[str, Any]:
    return {
        "address": recipient.address,
        "action": str(recipient.action),
        "status": recipient.status or None,
        "original": recipient.original or None,
        "diagnostic": recipient.diagnostic,
        "evidence": _evidence_text(recipient.evidence),
        "is_status_written": recipient.is_status_written,
    }


def _evidence_text(evidence: Evidence) -> str:
    return f"{evidence.source}, {evidence.sureness}"
