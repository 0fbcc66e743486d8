"""One message a line: reading NDJSON into mails, with what is wrong in every line that is no mail.

Streams: a file may be longer than memory, also between the judging of its lines and their writing. Whether
a mail may be sent is asked of services/write.
"""

import hashlib
import json
import pickle
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.services.submit import BULK, IdempotencyConflict, Options
from gobii_email.services.write import NewMail, Prepared, Problem, prepare

CHUNK = 250
MOST_IN_MEMORY = 32 * 1024 * 1024
MAX_LINE_BYTES = 50_000_000

_REQUIRED = ("from", "to", "subject", "body")
_TEXTS = (
    "from", "subject", "body", "in_reply_to", "idempotency_key", "send_at", "expires_at", "on_doubt",
    "priority",
)  # fmt: skip
_ADDRESSES = ("to", "cc", "bcc")
_KNOWN = {*_TEXTS, *_ADDRESSES, "headers", "is_automatic"}
# A comma between addresses, not one inside a quoted name.
_BETWEEN = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"|")+')


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: its mail, or what is wrong with it."""

    number: int
    mail: NewMail | None
    problem: InvalidMail | None = None
    ready: Prepared | None = None

    @property
    def complaint(self) -> str:
        return f"line {self.number}: {self.problem}"


Ready = tuple[int, Prepared]
"""A line's number and its mail, ready to be written."""


def read_lines(lines: Iterable[bytes], *, priority: str = BULK) -> Iterator[Line]:
    """A Line for each of `lines` that is not blank, judged by itself and by the keys of those before it."""
    keys: dict[tuple[str, str], tuple[int, bytes]] = {}
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        try:
            document = _document(raw)
            mail = new_mail(document, priority=priority)
            _check_key(mail, document, number, keys)
        except InvalidMail as problem:
            yield Line(number, None, problem)
        else:
            yield Line(number, mail)


def prepared_lines(lines: Iterable[bytes], *, priority: str = BULK) -> Iterator[Line]:
    """The same, with each mail judged as submission will, and ready to be written if it is good."""
    rows = read_lines(lines, priority=priority)
    while chunk := list(islice(rows, CHUNK)):
        found = iter(prepare([row.mail for row in chunk if row.mail is not None]))
        for row in chunk:
            yield row if row.mail is None else _judged(row, next(found))


def _judged(line: Line, found: Prepared | Problem) -> Line:
    if isinstance(found, Prepared):
        return replace(line, ready=found)
    return Line(line.number, None, as_invalid(found))


class Spool:
    """Good lines between their judgement and their writing, in a file of its own once they are many.

    Nothing is written before every line is judged, and rendering is too dear to be done twice.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MOST_IN_MEMORY)  # noqa: SIM115
        self.count = 0

    def put(self, lines: Iterable[Line]) -> None:
        rows = iter(lines)
        while chunk := [(line.number, line.ready) for line in islice(rows, CHUNK)]:
            pickle.dump(chunk, self._file, protocol=pickle.HIGHEST_PROTOCOL)
            self.count += len(chunk)

    def chunks(self) -> Iterator[list[Ready]]:
        """What was put, in order and in pieces of at most `CHUNK`; the spool is gone afterwards."""
        self._file.seek(0)
        with self._file as file:
            left = self.count
            while left:
                chunk = pickle.load(file)  # noqa: S301 - written above, and seen by nobody else
                left -= len(chunk)
                yield chunk


def as_invalid(problem: InvalidMail | IdempotencyConflict) -> InvalidMail:
    if isinstance(problem, InvalidMail):
        return problem
    reason, _, remedy = str(problem).partition("; ")
    return InvalidMail("idempotency_key", reason, remedy[:1].upper() + remedy[1:])


def new_mail(document: Mapping[str, Any], *, priority: str = BULK) -> NewMail:
    """The mail that one object of the file describes, of `priority` unless it says so itself.

    Raises InvalidMail naming the field.
    """
    for name in document:
        if name not in _KNOWN:
            raise InvalidMail(name[:40], "it is no field of a message", f"Use {', '.join(sorted(_KNOWN))}")
    for name in _REQUIRED:
        if not document.get(name) and not (name in ("body", "subject") and document.get(name) == ""):
            raise InvalidMail(name, "it is missing", f"Give the message its {name!r}")
    for name in _TEXTS:
        if not isinstance(document.get(name), str | None):
            raise InvalidMail(name, "it is not a text", "Write it in quotation marks")
    return NewMail(
        from_endpoint=document["from"],
        to=_addresses("to", document),
        cc=_addresses("cc", document),
        bcc=_addresses("bcc", document),
        subject=document["subject"],
        body=document["body"],
        in_reply_to=document.get("in_reply_to"),
        headers=_headers(document.get("headers")),
        options=Options(
            send_at=moment("send_at", document.get("send_at")),
            expires_at=moment("expires_at", document.get("expires_at")),
            idempotency_key=document.get("idempotency_key"),
            on_doubt=document.get("on_doubt"),
            priority=priority if document.get("priority") is None else document["priority"],
            is_automatic=_flag("is_automatic", document, default=True),
        ),
    )


def _flag(name: str, document: Mapping[str, Any], *, default: bool) -> bool:
    value = document.get(name)
    if not isinstance(value, bool | None):
        raise InvalidMail(name, "it is neither true nor false", "Write it without quotation marks")
    return default if value is None else value


def _document(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise InvalidMail("line", f"it has more than {MAX_LINE_BYTES:,} bytes", "Send less, or a link to it")
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise InvalidMail("line", "it is not UTF-8", "Save the file as UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidMail("line", "it is not a JSON object", "Write one message a line as {…}") from None
    if not isinstance(found, dict):
        raise InvalidMail("line", "it is not a JSON object", "Write one message a line as {…}")
    return found


def _addresses(name: str, document: Mapping[str, Any]) -> list[str]:
    given = document.get(name)
    items = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(item, str) for item in items):
        raise InvalidMail(
            name, "it is not an address or a list of addresses", "Give texts like a@example.com"
        )
    return split_addresses(items)


def split_addresses(items: Sequence[str]) -> list[str]:
    """Each address of `items`, where one text may name several with commas between them."""
    return [part.strip() for item in items for part in _BETWEEN.findall(item) if part.strip()]


def _headers(given: object) -> dict[str, str]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
        raise InvalidMail("headers", "it is not an object of texts", 'Write {"X-Name": "value"}')
    return given


def moment(name: str, text: str | None) -> datetime | None:
    """The moment in ISO 8601. Raises InvalidMail when it is none, or has no time zone."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidMail(
            name, f"{text[:40]!a} is not a moment", "Write it like 2030-01-31T09:00:00Z"
        ) from None
    if found.tzinfo is None:
        raise InvalidMail(name, f"{text[:40]!a} has no time zone", "Add Z, or an offset such as +02:00")
    return found


def _check_key(
    mail: NewMail, document: Mapping[str, Any], number: int, keys: dict[tuple[str, str], tuple[int, bytes]]
) -> None:
    key = mail.options.idempotency_key
    if key is None:
        return
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    first, content = keys.setdefault((str(mail.from_endpoint).lower(), key), (number, digest))
    if content != digest:
        raise InvalidMail(
            "idempotency_key",
            f"line {first} has the same with other content",
            "Use a new key for new content",
        )
