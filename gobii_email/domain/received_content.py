"""What a received mail says to its reader: its text, its HTML, and the files that came with it.

Which parts are the body follows what mail programs show (RFC 2046 section 5.1, RFC 2183): an attached message
is a file and never the body, of alternatives the plain one is the text. Files beyond the limits are left out
and named, so that nobody takes a mail for complete that is not.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from gobii_email.domain.attachments import clean_content_type, clean_filename
from gobii_email.domain.inbound_mail import InboundMail, Part
from gobii_email.domain.plaintext import html_to_plaintext
from gobii_email.domain.safe_html import SafeHtml, safe_html
from gobii_email.domain.storable_text import storable

MAX_TEXT_CHARACTERS = 1_000_000
MAX_HTML_CHARACTERS = 1_000_000
MAX_PICTURE_BYTES = 256 * 1024
MAX_PICTURES_BYTES = 1024 * 1024
_MAX_TYPE_CHARACTERS = 128
_ENDINGS = {"message/rfc822": "eml", "text/calendar": "ics", "text/html": "html", "text/plain": "txt"}
_CHANNEL = "email"


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Which files are kept: of so many bytes at most, so many of one mail, none with these endings."""

    max_bytes: int
    max_files: int
    refused_endings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceivedFile:
    filename: str
    content_type: str
    content_id: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that was not kept. `reason` is too_large, too_many or not_allowed, `limit` the one it broke."""

    filename: str
    limit: int | str
    reason: str
    size: int
    channel: str = _CHANNEL


@dataclass(frozen=True, slots=True)
class Content:
    """`text` is never missing where there is HTML; `html` is as received, `safe` fit to be shown."""

    text: str
    html: str
    safe: SafeHtml
    files: tuple[ReceivedFile, ...]
    rejected: tuple[RejectedFile, ...]
    problems: tuple[str, ...]


def content_of(mail: InboundMail, limits: FileLimits) -> Content:
    """The content of `mail`, whatever it is made of."""
    shown = list(_pieces(mail.root))
    text = "\n\n".join(filter(None, (piece.as_text().strip("\n") for piece in shown)))
    html = "\n".join(piece.as_html() for piece in shown) if any(piece.html for piece in shown) else ""
    problems = [
        f"Its {name} is longer than {limit:,} characters; the rest is not shown."
        for name, whole, limit in (
            ("text", text, MAX_TEXT_CHARACTERS),
            ("HTML", html, MAX_HTML_CHARACTERS),
        )
        if len(whole) > limit
    ]
    files = list(_files(mail.root))
    kept, rejected = _within(files, limits)
    html = storable(html[:MAX_HTML_CHARACTERS])
    return Content(
        storable(text[:MAX_TEXT_CHARACTERS]),
        html,
        safe_html(html, _pictures(kept)),
        kept,
        rejected,
        tuple(problems),
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """One stretch of the body: as text, as HTML, or as both where the sender gave both."""

    text: str = ""
    html: str = ""

    def as_text(self) -> str:
        return self.text if self.text.strip() else html_to_plaintext(self.html)

    def as_html(self) -> str:
        return self.html or f"<pre>{escape(self.text)}</pre>"


def _pieces(part: Part) -> Iterator[_Piece]:
    """The stretches of the body in order. Recurses no deeper than parts are read."""
    if _is_file(part):
        return
    if not part.parts:
        yield _leaf(part)
    elif part.content_type == "multipart/alternative":
        below = [piece for child in part.parts for piece in _pieces(child)]
        text = "\n".join(piece.text for piece in below if piece.text.strip())
        html = next((piece.html for piece in reversed(below) if piece.html), "")
        yield _Piece(text, html)
    else:
        for child in part.parts:
            yield from _pieces(child)


def _leaf(part: Part) -> _Piece:
    if part.content_type == "text/html":
        # A byte more than is kept, to know that there was more.
        return _Piece(html=part.text(max_octets=4 * MAX_HTML_CHARACTERS)[: MAX_HTML_CHARACTERS + 1])
    return _Piece(text=part.text(max_octets=4 * MAX_TEXT_CHARACTERS)[: MAX_TEXT_CHARACTERS + 1])


def _is_file(part: Part) -> bool:
    """Whether it is shown as a file. A multipart that has lost its delimiters is text."""
    if part.is_multipart:
        return False
    is_text = part.content_type in ("text/plain", "text/html")
    return part.is_attachment or bool(part.filename) or not is_text


def _files(root: Part) -> Iterator[Part]:
    """The parts that are files; those of attached messages belong to these."""
    waiting = [(root, False)]
    while waiting:
        part, is_alternative = waiting.pop()
        if part.is_multipart:
            is_inside = part.content_type == "multipart/alternative"
            waiting.extend((child, is_inside) for child in reversed(part.parts))
        elif _is_file(part) and not (is_alternative and _is_rendition(part)):
            yield part


def _is_rendition(part: Part) -> bool:
    """Whether it says the same once more for other programs, such as AMP."""
    is_named = part.is_attachment or bool(part.filename)
    return part.content_type.startswith("text/") and part.content_type != "text/calendar" and not is_named


def _within(
    parts: Sequence[Part], limits: FileLimits
) -> tuple[tuple[ReceivedFile, ...], tuple[RejectedFile, ...]]:
    kept: list[ReceivedFile] = []
    rejected: list[RejectedFile] = []
    for part in parts:
        name, content = _name(part), part.octets()
        ending = name.rpartition(".")[2].lower()
        if ending in limits.refused_endings:
            rejected.append(RejectedFile(name, ending, "not_allowed", len(content)))
        elif len(content) > limits.max_bytes:
            rejected.append(RejectedFile(name, limits.max_bytes, "too_large", len(content)))
        elif len(kept) >= limits.max_files:
            rejected.append(RejectedFile(name, limits.max_files, "too_many", len(content)))
        else:
            kept.append(ReceivedFile(name, _type(part), _content_id(part), content))
    return tuple(kept), tuple(rejected)


def _name(part: Part) -> str:
    if part.filename:
        return storable(clean_filename(part.filename))
    ending = _ENDINGS.get(part.content_type) or _plain(part.content_type.rpartition("/")[2])
    subject = part.embedded_fields().get("subject") if part.is_message else ""
    return storable(clean_filename(f"{subject[:80] or 'attachment'}.{ending}"))


def _plain(ending: str) -> str:
    return ending if re.fullmatch(r"[a-z0-9]{1,8}", ending) else "bin"


def _type(part: Part) -> str:
    if part.is_message:
        return "message/rfc822"
    found = clean_content_type(part.content_type)
    return found if len(found) <= _MAX_TYPE_CHARACTERS else "application/octet-stream"


def _content_id(part: Part) -> str:
    return storable(part.fields.raw("content-id").strip().strip("<>"))[:255]


def _pictures(files: Sequence[ReceivedFile]) -> dict[str, str]:
    """The small pictures of the mail by their Content-ID, as addresses that need no network."""
    found: dict[str, str] = {}
    room = MAX_PICTURES_BYTES
    for file in files:
        is_picture = file.content_type in ("image/png", "image/gif", "image/jpeg", "image/webp")
        if file.content_id and is_picture and len(file.content) <= min(room, MAX_PICTURE_BYTES):
            data = base64.b64encode(file.content).decode()
            found[file.content_id] = f"data:{file.content_type};base64,{data}"
            room -= len(file.content)
    return found
