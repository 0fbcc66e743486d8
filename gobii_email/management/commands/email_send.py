"""`email_send`: queues one message from flags or many from a file, and if asked waits until they are over.

Reads arguments and files, calls services/write, prints ids; how a line of a batch is read is in
management/batch_file. A batch with a bad line sends nothing, unless told to keep going.
"""

import mimetypes
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import MessageStatus, OnDoubt
from gobii_email.management.batch_file import (
    Line,
    Ready,
    Spool,
    as_invalid,
    moment,
    prepared_lines,
    split_addresses,
)
from gobii_email.management.message_argument import as_sentence, printable
from gobii_email.management.progress import Progress
from gobii_email.management.terminal import EmailCommand, length_of_time
from gobii_email.models import PersistentAgentMessage
from gobii_email.services.status import delivery_status, is_over
from gobii_email.services.submit import BULK, PRIORITIES, IdempotencyConflict, Options
from gobii_email.services.write import NewMail, write, write_prepared

GOOD = frozenset({MessageStatus.SENT, MessageStatus.DELIVERED})
_OF_ONE_MESSAGE = (
    "sender", "to", "cc", "bcc", "subject", "body", "body_file", "attach", "in_reply_to", "header",
    "idempotency_key", "send_at", "expires_at", "expires_in", "on_doubt", "approved",
)  # fmt: skip
_FEW = 100
_AT_ONCE = 500


class Command(EmailCommand):
    help = "Queues a message, or a file of them, and prints the ids."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        one = parser.add_argument_group("one message")
        one.add_argument("--from", dest="sender", metavar="ADDRESS", help="an agent's own address")
        for name in ("to", "cc", "bcc"):
            one.add_argument(f"--{name}", nargs="+", action="extend", default=[], metavar="ADDRESS")
        one.add_argument("--subject")
        one.add_argument("--body", help="HTML, Markdown or plain text")
        one.add_argument(
            "--body-file", metavar="FILE", help="read the body from FILE, or - for standard input"
        )
        one.add_argument("--attach", action="append", default=[], metavar="FILE", type=Path)
        one.add_argument("--in-reply-to", metavar="ID", help="a message's id or its <Message-ID>")
        one.add_argument(
            "--approved",
            action="store_true",
            help="a person approved this answer: it is not an automatic one",
        )
        one.add_argument("--header", action="append", default=[], metavar="NAME:VALUE")
        one.add_argument("--idempotency-key", metavar="KEY", help="the same key and content is sent once")
        one.add_argument("--send-at", metavar="TIME", help="not before; ISO 8601 with a time zone")
        one.add_argument("--expires-at", metavar="TIME", help="not after; ISO 8601 with a time zone")
        one.add_argument(
            "--expires-in", type=length_of_time, metavar="SPAN", help="not after; such as 90s, 15m or 4h"
        )
        one.add_argument("--on-doubt", choices=[*OnDoubt])
        many = parser.add_argument_group("many messages")
        many.add_argument("--batch", metavar="FILE", help="NDJSON, one message a line; - for standard input")
        many.add_argument(
            "--keep-going", action="store_true", help="send the good lines although some are bad"
        )
        parser.add_argument(
            "--priority",
            choices=PRIORITIES,
            help="whose turn is first within a sender's mail; a batch is bulk unless it says otherwise",
        )
        parser.add_argument(
            "--wait",
            type=length_of_time,
            metavar="SECONDS",
            help="wait until all are over, that long at most",
        )

    def handle(self, *args: Any, batch: str | None, wait: timedelta | None, **options: Any) -> None:
        if batch is None:
            self._send_one(options, wait)
        else:
            self._refuse_flags_beside_a_batch(options)
            priority = options["priority"] or BULK
            self._send_batch(batch, wait, priority=priority, keep_going=options["keep_going"])

    # One message

    def _send_one(self, options: dict[str, Any], wait: timedelta | None) -> None:
        for name, value in (
            ("from", options["sender"]),
            ("to", options["to"]),
            ("subject", options["subject"]),
        ):
            if not value and value != "":
                self.usage(f"--{name} is missing.", field=name, remedy="Give it, or --batch FILE.")
        if (options["body"] is None) == (options["body_file"] is None):
            self.usage(
                "The body is missing or given twice.", field="body", remedy="Give --body or --body-file."
            )
        if options["expires_at"] and options["expires_in"]:
            self.usage(
                "--expires-at and --expires-in are both given.", field="expires_at", remedy="Give one."
            )
        mail = self._mail(options)
        try:
            (message,) = write([mail])
        except IdempotencyConflict as problem:
            raise as_invalid(problem) from None
        if wait is None:
            status = delivery_status(message)
            self.answer(status.as_document(), self.is_json, status.message_id)
        else:
            self._wait_for({message.pk: None}, wait)

    def _mail(self, options: dict[str, Any]) -> NewMail:
        return NewMail(
            from_endpoint=options["sender"],
            to=split_addresses(options["to"]),
            cc=split_addresses(options["cc"]),
            bcc=split_addresses(options["bcc"]),
            subject=options["subject"],
            body=options["body"] if options["body_file"] is None else self._body(options["body_file"]),
            in_reply_to=_parent(options["in_reply_to"]),
            attachments=tuple(map(_attachment, options["attach"])),
            headers=self._headers(options["header"]),
            options=Options(
                send_at=moment("send_at", options["send_at"]),
                expires_at=_end_of_life(options),
                idempotency_key=options["idempotency_key"],
                on_doubt=options["on_doubt"],
                priority=options["priority"],
                is_automatic=not options["approved"],
            ),
        )

    def _body(self, name: str) -> str:
        try:
            return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except OSError as problem:
            raise InvalidMail("body", f"{name} cannot be read: {problem.strerror}", "Give a file") from None
        except UnicodeDecodeError:
            raise InvalidMail("body", f"{name} is not UTF-8", "Save it as UTF-8") from None

    def _headers(self, given: list[str]) -> dict[str, str]:
        headers: dict[str, str] = {}
        for item in given:
            name, colon, value = item.partition(":")
            if not colon or name in headers:
                text = f"--header {item[:80]!a} has no colon or comes twice."
                self.usage(text, field="headers", remedy="Write NAME:VALUE.")
            headers[name] = value.strip()
        return headers

    # Many messages

    def _refuse_flags_beside_a_batch(self, options: dict[str, Any]) -> None:
        given = [name for name in _OF_ONE_MESSAGE if options[name]]
        if given:
            flag = "from" if given[0] == "sender" else given[0].replace("_", "-")
            self.usage(
                f"--{flag} does not go with --batch.", field=given[0], remedy="Write it into the lines."
            )

    def _send_batch(self, name: str, wait: timedelta | None, *, priority: str, keep_going: bool) -> None:
        self._bad = 0
        spool = Spool()
        with nullcontext(sys.stdin.buffer) if name == "-" else self._file(name) as file:
            spool.put(self._good_lines(file, priority))
        if self._bad and not keep_going:
            text = f"{_lines(self._bad)} bad: nothing was sent. Correct them, or use --keep-going."
            raise CommandError(text, returncode=1)
        sent: dict[uuid.UUID, int | None] = {}
        for number, message in self._queue(spool):
            sent[message.pk] = number
            if wait is None:
                self._tell_queued(number, message)
        if wait is not None:
            self._wait_for(sent, wait)
        if self._bad:
            raise CommandError(f"{_lines(self._bad)} bad; {len(sent)} queued.", returncode=1)

    def _file(self, name: str) -> IO[bytes]:
        try:
            return Path(name).open("rb")
        except OSError as problem:
            text = f"{name} cannot be read: {problem.strerror}."
            self.fail(text, field="batch", remedy="Give an NDJSON file.")

    def _good_lines(self, file: Iterable[bytes], priority: str) -> Iterator[Line]:
        """Reads all lines, and complains about the bad ones."""
        with Progress("read", 0, sys.stderr) as progress:
            for line in prepared_lines(file, priority=priority):
                if line.problem is None:
                    yield line
                else:
                    self._complain(line.number, line.problem)
                progress.at(line.number)

    def _complain(self, number: int, problem: InvalidMail) -> None:
        self._bad += 1
        if self.is_json:
            error = {"field": problem.field, "reason": problem.reason, "remedy": problem.remedy}
            self.answer({"line": number, "error": error}, True, "")
        else:
            self.stderr.write(printable(f"line {number}: {problem}"))

    def _queue(self, spool: Spool) -> Iterator[tuple[int, PersistentAgentMessage]]:
        """Queues the good lines in chunks; the number of each with its message."""
        done = 0
        with Progress("queued", spool.count, sys.stderr) as progress:
            for chunk in spool.chunks():
                yield from self._written(chunk)
                done += len(chunk)
                progress.at(done)

    def _written(self, chunk: list[Ready]) -> list[tuple[int, PersistentAgentMessage]]:
        try:
            messages = write_prepared([ready for _, ready in chunk])
        except (InvalidMail, IdempotencyConflict) as problem:
            # It was good when it was read: something changed since, so each stands for itself.
            if len(chunk) > 1:
                return [pair for one in chunk for pair in self._written([one])]
            self._complain(chunk[0][0], as_invalid(problem))
            return []
        return [(number, message) for (number, _), message in zip(chunk, messages, strict=True)]

    def _tell_queued(self, number: int, message: PersistentAgentMessage) -> None:
        document = {
            "line": number,
            "message_id": message.pk,
            "rfc_message_id": message.rfc_message_id,
            "status": message.latest_status,
        }
        self.answer(document, self.is_json, str(message.pk))

    # What becomes of them

    def _wait_for(self, sent: Mapping[uuid.UUID, int | None], wait: timedelta) -> None:
        """Tells of each message once it is over, of the others in the end; 1 if any was not sent."""
        waiting, went_out = dict(sent), 0
        with Progress("sent", len(sent), sys.stderr) as progress:
            for finished in _finished(waiting, wait):
                went_out += sum(self._tell(pk, waiting.pop(pk)) for pk in finished)
                progress.at(len(sent) - len(waiting))
        for pk, number in waiting.items():
            self._tell(pk, number)
        if went_out < len(sent):
            still = f", {len(waiting)} of them still on their way" if waiting else ""
            text = f"{len(sent) - went_out} of {len(sent)} not sent to everybody{still}."
            raise CommandError(text, returncode=1)

    def _tell(self, pk: uuid.UUID, number: int | None) -> bool:
        """Prints where the message is now; whether it went out."""
        status = delivery_status(PersistentAgentMessage.objects.get(pk=pk))
        document = status.as_document() | ({} if number is None else {"line": number})
        self.answer(document, self.is_json, as_sentence(status))
        self.stdout.flush()
        return status.status in GOOD


def _finished(waiting: Mapping[uuid.UUID, object], wait: timedelta) -> Iterator[list[uuid.UUID]]:
    """Those of `waiting` that are over, again and again, until none is left, time is up, or Ctrl-C."""
    deadline = time.monotonic() + wait.total_seconds()
    while waiting:
        yield _over(list(waiting))
        left = deadline - time.monotonic()
        if not waiting or left <= 0:
            return
        try:
            time.sleep(min(left, 0.2 if len(waiting) <= _FEW else 1.0))
        except KeyboardInterrupt:
            return


def _over(ids: list[uuid.UUID]) -> list[uuid.UUID]:
    found = []
    for start in range(0, len(ids), _AT_ONCE):
        rows = PersistentAgentMessage.objects.filter(pk__in=ids[start : start + _AT_ONCE])
        found += [pk for pk, status in rows.values_list("pk", "latest_status") if is_over(status)]
    return found


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count} lines are"


def _parent(given: str | None) -> PersistentAgentMessage | str | None:
    """The stored message with that id, or the text as the Message-ID of one that is not stored."""
    try:
        key = uuid.UUID(given or "")
    except ValueError:
        return given
    parent = PersistentAgentMessage.objects.filter(pk=key).first()
    if parent is None:
        raise InvalidMail(
            "in_reply_to", f"there is no message {key}", "Give the id of a stored one, or a <Message-ID>"
        )
    return parent


def _attachment(path: Path) -> EmailAttachmentPayload:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise InvalidMail(
            "attachments", f"{path} cannot be read: {problem.strerror}", "Give a file"
        ) from None
    content_type, encoding = mimetypes.guess_type(path.name)
    return EmailAttachmentPayload(
        path.name, content, content_type if content_type and not encoding else "application/octet-stream"
    )


def _end_of_life(options: Mapping[str, Any]) -> datetime | None:
    if options["expires_in"] is None:
        return moment("expires_at", options["expires_at"])
    return (moment("send_at", options["send_at"]) or timezone.now()) + options["expires_in"]
