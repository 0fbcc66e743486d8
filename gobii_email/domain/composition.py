"""How the parts of a mail become the bytes that go on the wire, once.

Knows the MIME tree, the identity header fields and the final check that the bytes say what was
meant and nothing else; how a single field is written is in header_fields. Rules from RFC 5322,
RFC 2045 and RFC 2387; the result is 7-bit, with CRLF line ends and lines of at most 998 octets.
"""

import base64
import binascii
import hashlib
import io
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.header import decode_header, make_header
from email.utils import format_datetime, getaddresses
from types import MappingProxyType

from gobii_email.domain.addresses import clean_display_name, one_line, parse_address
from gobii_email.domain.attachments import EmailAttachmentPayload, clean_attachment, match_inline_images
from gobii_email.domain.header_fields import (
    check_headers,
    encode_mailbox,
    encode_parameter,
    encode_text,
    fold,
)
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.thread_headers import bounded_references, clean_message_id

__all__ = [
    "ATTEMPT_HEADER",
    "EmailAttachmentPayload",
    "MailParts",
    "check_headers",
    "clean_subject",
    "compose",
    "match_inline_images",
    "new_message_id",
    "with_attempt_header",
]

ATTEMPT_HEADER = "X-Gobii-Message-ID"
MAX_BYTES = 25 * 1024 * 1024
MAX_RECIPIENTS = 500
MAX_SUBJECT_CHARACTERS = 998
MAX_LINE_OCTETS = 998

_BODY_CONTROLS = bytes({*range(0x20), 0x7F} - {*b"\t\r\n"})
_BASE64_AT_ONCE = 57 * 4096
_PLAIN_PHRASE = re.compile(r"[A-Za-z0-9'_-]+(?: [A-Za-z0-9'_-]+)*\Z")
_ATTEMPT_ID = re.compile(r"[A-Za-z0-9-]{1,64}\Z")


@dataclass(frozen=True, slots=True)
class MailParts:
    """Everything a mail is made of. `to` and `cc` are bare addresses; who is in Bcc is not known here.

    `date` is aware. `html` may be "", then the mail is plain text. `headers` are extra ones from the
    allow-list, `own_headers` ours, which no caller may set and which win. `message_id` and `references`
    carry their angle brackets.
    """

    from_name: str
    from_address: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    subject: str
    text: str
    html: str
    message_id: str
    date: datetime
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    reply_to: str = ""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    own_headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    attachments: tuple[EmailAttachmentPayload, ...] = ()


def compose(parts: MailParts, *, max_bytes: int = MAX_BYTES, max_recipients: int = MAX_RECIPIENTS) -> bytes:
    """The finished mail; the same `parts` always give the same bytes.

    Only where an address has a local part outside ASCII do the header fields contain UTF-8 (RFC 6532).
    Raises InvalidMail when the mail cannot be written safely or is larger than the bounds.
    """
    parts = _checked(parts, max_bytes=max_bytes, max_recipients=max_recipients)
    content = _content(parts)
    mail = _Part(_identity_fields(parts) | content.fields, content.body)
    wire = _serialised(mail)
    if len(wire) > max_bytes:
        raise _too_large(parts, max_bytes)
    _assert_says_what_was_meant(wire, parts, list(mail.fields))
    return wire


def with_attempt_header(frozen: bytes, attempt_id: str) -> bytes:
    """The mail of one attempt: `X-Gobii-Message-ID: <attempt_id>`, then `frozen` unchanged."""
    if not _ATTEMPT_ID.match(attempt_id):
        raise InvalidMail("attempt_id", "it is not a plain id", "Give letters, digits and hyphens")
    return f"{ATTEMPT_HEADER}: {attempt_id}\r\n".encode("ascii") + frozen


def new_message_id(sender_address: str) -> str:
    """A fresh `<…@sender's domain>` that nobody can guess, searchable on every IMAP server."""
    return f"<{secrets.token_hex(20)}@{parse_address(sender_address, field='from').domain}>"


def clean_subject(subject: str) -> str:
    """`subject` on one line; control and direction characters vanish. InvalidMail if it is too long."""
    cleaned = one_line(subject)
    if len(cleaned) > MAX_SUBJECT_CHARACTERS:
        raise InvalidMail("subject", f"it has more than {MAX_SUBJECT_CHARACTERS} characters", "Shorten it")
    return cleaned


def _checked(parts: MailParts, *, max_bytes: int, max_recipients: int) -> MailParts:
    if len(parts.to) + len(parts.cc) > max_recipients:
        raise InvalidMail("to", f"there are more than {max_recipients} recipients", "Send several mails")
    if sum(attachment.size_bytes for attachment in parts.attachments) > max_bytes:
        raise _too_large(parts, max_bytes)
    if parts.date.tzinfo is None:
        raise InvalidMail("date", "it has no time zone", "Give an aware moment")
    return replace(
        parts,
        from_name=clean_display_name(parts.from_name),
        from_address=str(parse_address(parts.from_address, field="from")),
        to=tuple(str(parse_address(address, field="to")) for address in parts.to),
        cc=tuple(str(parse_address(address, field="cc")) for address in parts.cc),
        reply_to=str(parse_address(parts.reply_to, field="reply_to")) if parts.reply_to else "",
        subject=clean_subject(parts.subject),
        message_id=_checked_id(parts.message_id, "message_id"),
        in_reply_to=_checked_id(parts.in_reply_to, "in_reply_to") if parts.in_reply_to else "",
        references=bounded_references(tuple(_checked_id(text, "references") for text in parts.references)),
        headers=check_headers(parts.headers),
        attachments=tuple(clean_attachment(attachment) for attachment in parts.attachments),
    )


def _checked_id(text: str, field_name: str) -> str:
    if not (message_id := clean_message_id(text)):
        raise InvalidMail(field_name, f"{text[:80]!a} is not a message id", "Give <left@right> in ASCII")
    return message_id


def _identity_fields(parts: MailParts) -> dict[str, str]:
    """The header fields that say who, to whom, about what and when, in the order they are written."""
    fields = {
        "From": encode_mailbox(parts.from_name, parts.from_address),
        "To": _address_list(parts.to),
        "Cc": _address_list(parts.cc),
        "Reply-To": parts.reply_to,
        "Subject": encode_text(parts.subject),
        "Date": format_datetime(parts.date),
        "Message-ID": parts.message_id,
        "In-Reply-To": parts.in_reply_to,
        "References": fold(parts.references),
        **{name: encode_text(value) for name, value in _extra_fields(parts).items()},
        "MIME-Version": "1.0",
    }
    return {name: body for name, body in fields.items() if body or name == "Subject"}


def _extra_fields(parts: MailParts) -> dict[str, str]:
    own = {name.lower() for name in parts.own_headers}
    given = {name: value for name, value in parts.headers.items() if name.lower() not in own}
    return given | dict(parts.own_headers)


def _address_list(addresses: Sequence[str]) -> str:
    return fold([f"{address}," for address in addresses[:-1]] + list(addresses[-1:]))


@dataclass(frozen=True, slots=True)
class _Part:
    """A node of the MIME tree: its header fields, and the bytes of its body piece by piece.

    Written here rather than by the `email` package, which costs twenty times as much and holds a large file
    several times over.
    """

    fields: dict[str, str]
    body: Iterable[bytes]

    def pieces(self) -> Iterator[bytes]:
        yield "".join(f"{name}: {body}\r\n" for name, body in self.fields.items()).encode() + b"\r\n"
        yield from self.body


def _serialised(mail: _Part) -> bytes:
    wire = io.BytesIO()
    wire.writelines(mail.pieces())
    return wire.getvalue()


def _content(parts: MailParts) -> _Part:
    """The MIME tree, as far as needed: mixed(alternative(text, related(html, inline images)), files)."""
    inline = [attachment for attachment in parts.attachments if attachment.is_inline]
    attached = [attachment for attachment in parts.attachments if not attachment.is_inline]
    body = _text_part("plain", parts.text)
    if parts.html:
        shown = _text_part("html", parts.html)
        if inline:
            related = 'related; type="text/html"'
            shown = _multipart(related, [shown, *map(_file_part, inline)], parts.message_id)
        body = _multipart("alternative", [body, shown], parts.message_id)
    else:
        attached = inline + attached
    if attached:
        body = _multipart("mixed", [body, *map(_file_part, attached)], parts.message_id)
    return body


def _text_part(subtype: str, text: str) -> _Part:
    """Never 7bit or 8bit: encoded text contains no boundary, no lone dot and no long line."""
    raw = _clean_body(text)
    quoted = binascii.b2a_qp(raw).replace(b"\n", b"\r\n")
    is_mostly_ascii = len(quoted) <= len(raw) * 4 / 3 + 76
    fields = {
        "Content-Type": f'text/{subtype}; charset="utf-8"',
        "Content-Transfer-Encoding": "quoted-printable" if is_mostly_ascii else "base64",
    }
    return _Part(fields, [quoted] if is_mostly_ascii else _base64(raw.replace(b"\n", b"\r\n")))


def _clean_body(text: str) -> bytes:
    """`text` in UTF-8 with LF line ends, without NUL and other controls, without half characters."""
    raw = text.encode("utf-8", "replace").translate(None, _BODY_CONTROLS)
    return raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _file_part(attachment: EmailAttachmentPayload) -> _Part:
    disposition = "inline" if attachment.is_inline else "attachment"
    fields = {
        "Content-Type": attachment.content_type + encode_parameter("name", attachment.filename),
        "Content-Transfer-Encoding": "base64",
        "Content-Disposition": disposition + encode_parameter("filename", attachment.filename),
    }
    if attachment.is_inline:
        fields["Content-ID"] = f"<{attachment.content_id}>"
    return _Part(fields, _base64(attachment.content))


def _base64(content: bytes) -> Iterator[bytes]:
    """Lines of 76 characters, some at a time: a large file is never held encoded beside the mail."""
    view = memoryview(content)
    for start in range(0, len(view), _BASE64_AT_ONCE):
        yield base64.encodebytes(view[start : start + _BASE64_AT_ONCE]).replace(b"\n", b"\r\n")


def _multipart(subtype: str, children: Sequence[_Part], message_id: str) -> _Part:
    boundary = _boundary(subtype.partition(";")[0], message_id)
    fields = {"Content-Type": f'multipart/{subtype}; boundary="{boundary}"'}
    return _Part(fields, _between(f"--{boundary}".encode(), children))


def _between(delimiter: bytes, children: Sequence[_Part]) -> Iterator[bytes]:
    for child in children:
        yield delimiter + b"\r\n"
        yield from child.pieces()
        yield b"\r\n"
    yield delimiter + b"--\r\n"


def _boundary(subtype: str, message_id: str) -> str:
    """Fixed for a message, and impossible inside encoded content, where "=" is never followed by "_"."""
    return f"=_{subtype}_{hashlib.sha256(f'{subtype} {message_id}'.encode()).hexdigest()[:32]}"


def _assert_says_what_was_meant(wire: bytes, parts: MailParts, names: list[str]) -> None:
    """Reads the finished bytes back and compares; InvalidMail if they differ from what was meant.

    The last line of defence: nothing above should let such bytes arise.
    """
    line_ends = wire.count(b"\r\n")
    if wire.count(b"\r") != line_ends or wire.count(b"\n") != line_ends or b"\0" in wire:
        raise _unsafe("it would have a bare CR, LF or NUL")
    if _has_long_line(wire):
        raise _unsafe("it would have a line that is too long")
    read = _fields_of(wire)
    if [name for name, _ in read] != names:
        raise _unsafe("its header fields would not be the intended ones")
    bodies = dict(read)
    for name, addresses in (("To", parts.to), ("Cc", parts.cc), ("Reply-To", (parts.reply_to,))):
        # No valid address has a comma or a blank in it.
        if name in bodies and tuple(bodies[name].split(", ")) != addresses:
            raise _unsafe(f"its {name} would not be the intended one")
    if not _is_from(bodies["From"], parts.from_address):
        raise _unsafe("its From would not be the intended one")
    if _subject_of(bodies["Subject"]) != parts.subject:
        raise _unsafe("its subject would not be the intended one")


def _has_long_line(wire: bytes) -> bool:
    """Looks for a line end in every stretch that a line with its end may fill; copies nothing."""
    start, longest = 0, MAX_LINE_OCTETS + 2
    while len(wire) - start > MAX_LINE_OCTETS:
        end = wire.rfind(b"\n", start, start + longest)
        if end < 0:
            return True
        start = end + 1
    return False


def _is_from(body: str, address: str) -> bool:
    """Whether a reader takes `body` for one mailbox, `address`; plain names need no parser."""
    name, _, rest = body.rpartition(" <")
    if body == address or (rest == f"{address}>" and _PLAIN_PHRASE.match(name)):
        return True
    return [found for _, found in getaddresses([body])] == [address]


def _subject_of(body: str) -> str:
    return str(make_header(decode_header(body))) if "=?" in body else body


def _fields_of(wire: bytes) -> list[tuple[str, str]]:
    """The header fields of `wire`, unfolded, as a receiving server splits them."""
    head = wire[: max(0, wire.find(b"\r\n\r\n"))].decode("utf-8")
    lines = head.replace("\r\n ", " ").replace("\r\n\t", "\t").split("\r\n")
    return [(name, body.strip()) for name, _, body in (line.partition(":") for line in lines)]


def _unsafe(reason: str) -> InvalidMail:
    return InvalidMail("message", f"{reason}, so it was not made", "Simplify the subject, names and headers")


def _too_large(parts: MailParts, max_bytes: int) -> InvalidMail:
    field_name = "attachments" if parts.attachments else "body"
    return InvalidMail(
        field_name, f"the mail would be larger than {max_bytes:,} bytes", "Send less, or a link to it"
    )
