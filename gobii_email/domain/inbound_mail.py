"""A received message as parts and header fields, read within bounds that no sender can stretch.

Never raises, whatever the bytes: what breaks MIME (RFC 2045 to 2047, 2231, 5322) is read as people's programs
read it, and what exceeds a limit is left unread and said in `problems`. Its own reader instead of the `email`
package, which recurses with the message's depth, stalls on long headers and differs between Python releases.
"""

import base64
import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from urllib.parse import unquote_to_bytes

MAX_OCTETS = 25 * 1024 * 1024
MAX_HEADER_OCTETS = 256 * 1024
MAX_FIELDS = 1_000
MAX_FIELD_OCTETS = 32 * 1024
MAX_DEPTH = 50
MAX_PARTS = 500
_MAX_DELIMITERS = 5_000
_MAX_BOUNDARY_OCTETS = 200

_END_OF_HEADER = re.compile(rb"\r?\n[ \t]*\r?\n|\r[ \t]*\r(?!\n)")
_FIELD = re.compile(rb"([!-9;-~]{1,200})[ \t]*:(.*)", re.DOTALL)
_LINE_BREAK = re.compile(rb"\r\n|\n|\r")
_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?]{0,2000})\?=")
_BETWEEN_WORDS = re.compile(r"(\?=)\s+(?==\?[^?\s]{1,60}\?[bBqQ]\?)")
_PARAMETER = re.compile(
    r';\s*([A-Za-z0-9_-]{1,40})(?:\*(\d{1,3}))?(\*)?\s*=\s*("(?:[^"\\]|\\.)*"|[^;\s"]*)', re.DOTALL
)
_EMBEDDED = frozenset(["message/rfc822", "message/global", "message/news"])
_HEADER_ONLY = frozenset(
    ["text/rfc822-headers", "text/rfc822-header", "message/rfc822-headers", "message/global-headers"]
)


@dataclass(frozen=True, slots=True)
class Fields:
    """The header of a message or part: (name in lower case, value as text, unfolded) in order."""

    items: tuple[tuple[str, str], ...] = ()

    def get(self, name: str) -> str:
        """The first value of `name` (in lower case) with its encoded words decoded, or ""."""
        return next(iter(self.all(name)), "")

    def all(self, name: str) -> tuple[str, ...]:
        return tuple(decoded(value) for key, value in self.items if key == name)

    def raw(self, name: str) -> str:
        """As `get`, with encoded words as they stand: for what is no free text."""
        return next((value for key, value in self.items if key == name), "")

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.items)


@dataclass(frozen=True, slots=True)
class Part:
    """A message or a part of one. `body` is as received, still in its transfer encoding.

    `parts` are those of a multipart, or the one message inside a message/rfc822.
    """

    fields: Fields
    body: bytes
    content_type: str = "text/plain"
    parameters: dict[str, str] = field(default_factory=dict)
    parts: "tuple[Part, ...]" = ()

    @property
    def is_multipart(self) -> bool:
        return self.content_type.startswith("multipart/")

    @property
    def is_message(self) -> bool:
        """Whether it holds another message, or another message's header."""
        return self.content_type in _EMBEDDED or self.content_type in _HEADER_ONLY

    @property
    def filename(self) -> str:
        """What the sender calls it, or "": no path can be trusted, nor that two differ."""
        disposition = parameters(self.fields.raw("content-disposition"))
        return decoded(disposition.get("filename") or self.parameters.get("name", ""))

    @property
    def is_attachment(self) -> bool:
        return self.fields.raw("content-disposition").strip().lower().startswith("attachment")

    def octets(self) -> bytes:
        """The body without its transfer encoding (RFC 2045 section 6); a damaged one gives what it can."""
        return _without_encoding(self.body, self.fields.raw("content-transfer-encoding"))

    def text(self, *, max_octets: int = MAX_OCTETS) -> str:
        """The body as text, at most so much of it; octets outside its charset are replaced."""
        limited = replace(self, body=self.body[: 3 * max_octets])
        return _text(limited.octets()[:max_octets], self.parameters.get("charset", ""))

    def walk(self, *, into_messages: bool = True) -> "Iterator[Part]":
        """Itself and all parts below, in order; those of embedded messages only if asked."""
        waiting = [self]
        while waiting:
            part = waiting.pop()
            yield part
            if part.is_multipart or into_messages or part is self:
                waiting.extend(reversed(part.parts))

    def embedded_fields(self) -> Fields:
        """The header of the message inside, for a part that `is_message`."""
        return self.parts[0].fields if self.parts else Fields()


@dataclass(frozen=True, slots=True)
class InboundMail:
    """A message as far as it was read; `problems` are sentences about what was not, () when all was."""

    root: Part
    problems: tuple[str, ...] = ()

    @property
    def fields(self) -> Fields:
        return self.root.fields


def read_inbound(raw: bytes) -> InboundMail:
    """`raw` as a tree of parts; bounded in size, depth, number of parts and length of headers."""
    reader = _Reader()
    if len(raw) > MAX_OCTETS:
        reader.note(f"It is larger than {MAX_OCTETS // 1024 // 1024} MiB; the rest was not read.")
    root = reader.part(_without_envelope_line(raw[:MAX_OCTETS]), depth=0, default="text/plain")
    return InboundMail(root, tuple(reader.problems))


def read_fields(block: bytes) -> Fields:
    """The header fields at the beginning of `block`; it ends at a blank line or what is no field."""
    return _Reader().split(block)[0]


def header_block(raw: bytes) -> bytes:
    """The header at the beginning of a whole message with the blank line after it, cut off where too long."""
    raw = _without_envelope_line(raw[: MAX_HEADER_OCTETS + 1024])
    end = _END_OF_HEADER.search(raw)
    return raw[: end.end()] if end else raw


def decoded(text: str) -> str:
    """`text` with its encoded words (RFC 2047) decoded; damaged ones stand as they are. One line."""
    if "=?" in text:
        text = _ENCODED_WORD.sub(_decoded_word, _BETWEEN_WORDS.sub(r"\1", text))
    return " ".join(text.split())


def parameters(value: str) -> dict[str, str]:
    """The parameters after the first `;` of a field such as Content-Type, names in lower case (RFC 2231)."""
    pieces: dict[str, dict[int, tuple[str, bool]]] = {}
    for name, number, is_extended, text in _PARAMETER.findall(value[:MAX_FIELD_OCTETS]):
        unquoted = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        pieces.setdefault(name.lower(), {}).setdefault(int(number or 0), (unquoted, bool(is_extended)))
    return {name: _joined(numbered) for name, numbered in pieces.items()}


class _Reader:
    """Counts what one message has used up of its limits."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._parts = 0
        self._delimiters = 0

    def note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def part(self, raw: bytes, *, depth: int, default: str) -> Part:
        self._parts += 1
        fields, body = self.split(raw)
        value = fields.raw("content-type")
        content_type = value.partition(";")[0].strip().lower()
        content_type = content_type if "/" in content_type else default
        part = Part(fields, body, content_type, parameters(value) if value else {})
        return replace(part, parts=self._below(part, depth))

    def split(self, raw: bytes) -> tuple[Fields, bytes]:
        """The header of `raw`, and what follows it."""
        if raw[:1] in (b"\r", b"\n"):
            return Fields(), raw.removeprefix(b"\r").removeprefix(b"\n")
        end = _END_OF_HEADER.search(raw, 0, MAX_HEADER_OCTETS + 4)
        header, rest = (raw[: end.start()], raw[end.end() :]) if end else (raw, b"")
        if len(header) > MAX_HEADER_OCTETS:
            self.note(f"A header is longer than {MAX_HEADER_OCTETS // 1024} KiB.")
            header, rest = header[:MAX_HEADER_OCTETS], raw[MAX_HEADER_OCTETS:]
        fields, unread = self._fields(header)
        return fields, unread + (raw[end.start() : end.end()] if end else b"") + rest if unread else rest

    def _fields(self, header: bytes) -> tuple[Fields, bytes]:
        """The fields, and the text from the first line on that is neither a field nor belongs to one."""
        found: list[tuple[str, list[bytes]]] = []
        lines = _LINE_BREAK.split(header)
        for number, line in enumerate(lines):
            if line[:1] in (b" ", b"\t") and found:
                found[-1][1].append(line)
            elif match := _FIELD.match(line):
                found.append((match[1].decode("ascii").lower(), [match[2]]))
            elif line.strip():
                return self._kept(found), b"\n".join(lines[number:])
        return self._kept(found), b""

    def _kept(self, found: list[tuple[str, list[bytes]]]) -> Fields:
        if len(found) > MAX_FIELDS:
            self.note(f"A header has more than {MAX_FIELDS} fields; the rest was not read.")
        return Fields(tuple((name, self._value(lines)) for name, lines in found[:MAX_FIELDS]))

    def _value(self, lines: list[bytes]) -> str:
        value = b" ".join(line.strip() for line in lines).strip()
        if len(value) > MAX_FIELD_OCTETS:
            self.note(f"A header field is longer than {MAX_FIELD_OCTETS // 1024} KiB; its end was not read.")
        return value[:MAX_FIELD_OCTETS].decode("utf-8", "replace")

    def _below(self, part: Part, depth: int) -> tuple[Part, ...]:
        if not (part.is_multipart or part.is_message):
            return ()
        if depth >= MAX_DEPTH:
            self.note(f"Its parts are nested more than {MAX_DEPTH} deep; those below were not read.")
            return ()
        if part.is_message:
            body = part.octets().lstrip(b"\r\n")
            return (self.part(body, depth=depth + 1, default="text/plain"),)
        default = "message/rfc822" if part.content_type == "multipart/digest" else "text/plain"
        parts = []
        for piece in self._pieces(part):
            if self._parts >= MAX_PARTS:
                self.note(f"It has more than {MAX_PARTS} parts; the rest was not read.")
                break
            parts.append(self.part(piece, depth=depth + 1, default=default))
        return tuple(parts)

    def _pieces(self, part: Part) -> Iterator[bytes]:
        """What stands between the delimiters of a multipart (RFC 2046 section 5.1)."""
        boundary = (
            part.parameters.get("boundary", "").encode("utf-8", "replace")[:_MAX_BOUNDARY_OCTETS].rstrip()
        )
        if not boundary:
            self.note("A multipart does not say where its parts begin.")
            return
        start: int | None = None
        for found, end, is_last in self._delimiters_in(b"\n" + part.body, boundary):
            if start is not None:
                yield part.body[start : max(start, found - 2)].removesuffix(b"\r")
            start = None if is_last else end - 1
        if start is not None:
            yield part.body[start:]

    def _delimiters_in(self, body: bytes, boundary: bytes) -> Iterator[tuple[int, int, bool]]:
        needle = b"\n--" + boundary
        at = body.find(needle)
        while at >= 0:
            self._delimiters += 1
            if self._delimiters > _MAX_DELIMITERS:
                self.note("It has too many lines that look like the beginning of a part.")
                return
            line_end = body.find(b"\n", at + len(needle))
            line_end = len(body) if line_end < 0 else line_end
            rest = body[at + len(needle) : min(line_end, at + len(needle) + 100)].strip()
            if rest in (b"", b"--"):
                yield at + 1, min(line_end + 1, len(body)), rest == b"--"
            at = body.find(needle, at + len(needle))


def _without_envelope_line(raw: bytes) -> bytes:
    """`raw` without what mailbox files put before a message: blank lines, and "From " (RFC 4155)."""
    raw = raw.lstrip(b"\r\n") if raw[:1] in (b"\r", b"\n") else raw.removeprefix(b"\xef\xbb\xbf")
    if raw.startswith((b"From ", b">From ")):
        return raw.partition(b"\n")[2]
    return raw


def _without_encoding(body: bytes, encoding: str) -> bytes:
    match encoding.strip().lower():
        case "base64":
            return _from_base64(body)
        case "quoted-printable":
            return quopri.decodestring(body)
    return body


def _from_base64(body: bytes) -> bytes:
    digits = re.sub(rb"[^A-Za-z0-9+/]", b"", body)
    try:
        return base64.b64decode(digits[: len(digits) - (len(digits) % 4 == 1)] + b"==")
    except binascii.Error:
        return b""


def _text(octets: bytes, charset: str) -> str:
    try:
        return octets.decode(charset.strip().lower() or "utf-8")
    except (UnicodeError, LookupError, ValueError):
        pass
    try:
        return octets.decode(charset, "replace") if charset else octets.decode("utf-8")
    except (UnicodeError, LookupError, ValueError):
        return octets.decode("latin-1")


def _decoded_word(found: re.Match[str]) -> str:
    charset, encoding, payload = found.groups()
    raw = payload.encode("utf-8", "replace")
    octets = _from_base64(raw) if encoding in "bB" else quopri.decodestring(raw, header=True)
    return _text(octets, charset.partition("*")[0])


def _joined(numbered: dict[int, tuple[str, bool]]) -> str:
    """One parameter from its numbered sections, of which some may be percent-encoded."""
    charset, octets = "", b""
    for number in sorted(numbered):
        text, is_extended = numbered[number]
        if is_extended and number == 0 and text.count("'") >= 2:
            charset, _, text = text.split("'", 2)
        octets += unquote_to_bytes(text) if is_extended else text.encode("utf-8", "replace")
    return _text(octets, charset)
