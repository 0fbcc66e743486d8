"""`email_explain reply` and `email_explain mail`: how the system reads what comes back.

An entry point only: reads arguments, NDJSON or mails, asks the domain, prints. Needs no database.
"""

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from django.core.management.base import BaseCommand, CommandError, CommandParser

from gobii_email.domain.classification import AccountState, Reaction, Reading, Verdict, read_reply
from gobii_email.domain.inbound_mail import MAX_OCTETS
from gobii_email.domain.returned_mail import read_mail
from gobii_email.domain.smtp_replies import Reply, Stage, parse_reply

EXAMPLE = '{"stage": "rcpt", "reply": "550 5.1.1 …"}'
_OTHER_STAGE_NAMES = {
    "banner": Stage.CONNECT,
    "helo": Stage.EHLO,
    "starttls": Stage.TLS,
    "queue": Stage.DOT,
    ".": Stage.DOT,
}
_VERDICTS = {
    Verdict.ACCEPTED: "Accepted",
    Verdict.TEMPORARY: "A temporary refusal",
    Verdict.PERMANENT: "A permanent refusal",
    Verdict.IN_DOUBT: "In doubt",
}
_REACTIONS = {
    Reaction.RETRY: "we try again later",
    Reaction.GIVE_UP: "we give up",
    Reaction.HOLD_ACCOUNT: "the account is held and its mail waits",
    Reaction.SLOW_DOWN: "the account goes slower and its mail waits",
}


def stage_named(name: str) -> Stage:
    """The stage called `name`, in our words or the customary ones, in any case."""
    wanted = name.strip().lower()
    try:
        return _OTHER_STAGE_NAMES.get(wanted) or Stage(wanted)
    except ValueError:
        known = ", ".join([*Stage, *_OTHER_STAGE_NAMES])
        raise ArgumentTypeError(f"{name[:40]!r} is not a stage; use one of {known}") from None


@dataclass(frozen=True, slots=True)
class Explained:
    stage: Stage
    reply: Reply
    reading: Reading

    def as_json(self) -> str:
        reading = self.reading
        document = {
            "verdict": reading.verdict,
            "scope": reading.scope,
            "reaction": reading.reaction,
            "category": reading.category,
            "advice": reading.advice,
            "stage": self.stage,
            "code": self.reply.code,
            "enhanced": self.reply.enhanced,
            "hold": reading.hold,
            "hold_seconds": reading.hold_for and int(reading.hold_for.total_seconds()),
            "retry_after_seconds": reading.retry_after and int(reading.retry_after.total_seconds()),
            "source": reading.source,
        }
        return json.dumps(document, ensure_ascii=False)

    def as_text(self) -> str:
        reading = self.reading
        fields = {
            "verdict": reading.verdict,
            "scope": reading.scope,
            "reaction": reading.reaction or "none",
            "category": reading.category,
            "account": _hold_text(reading),
            "source": reading.source,
        }
        rows = "\n".join(f"  {name:<9} {value}" for name, value in fields.items())
        return f"{self._sentence()} {reading.advice}\n{rows}"

    def _sentence(self) -> str:
        reading = self.reading
        if reading.reaction is None:
            return f"{_VERDICTS[reading.verdict]}."
        # A hold wins over the reaction, so that is what must be told.
        is_held = reading.hold and reading.reaction in (Reaction.GIVE_UP, Reaction.RETRY)
        told = Reaction.HOLD_ACCOUNT if is_held else reading.reaction
        return f"{_VERDICTS[reading.verdict]}: {_REACTIONS[told]}."


def _hold_text(reading: Reading) -> str:
    if reading.hold is None:
        return AccountState.ACTIVE
    return f"{reading.hold} " + (f"for {reading.hold_for}" if reading.hold_for else "until a person acts")


def explain(stage: Stage, text: str) -> Explained:
    """The reading of a reply written out; ValueError when `text` is none."""
    reply = parse_reply(text)
    return Explained(stage, reply, read_reply(stage, reply))


class UnreadableRow(Exception):
    """An NDJSON row that cannot be explained; its text says why."""


def _explain_row(line: str) -> Explained:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise UnreadableRow(f"not a JSON object; write one row a line: {EXAMPLE}") from None
    if not isinstance(row, dict):
        raise UnreadableRow(f"not a JSON object; write {EXAMPLE}")
    for name in ("stage", "reply"):
        if not isinstance(row.get(name), str):
            raise UnreadableRow(f"{name!r} is missing or not a text; write {EXAMPLE}")
    try:
        return explain(stage_named(row["stage"]), row["reply"])
    except (ValueError, ArgumentTypeError) as wrong:
        raise UnreadableRow(str(wrong)) from None


def answers(lines: IO[str]) -> Iterator[tuple[str, bool]]:
    """A JSON row for each row that is not blank, and whether it could be read."""
    for line in lines:
        if not line.strip():
            continue
        try:
            yield _explain_row(line).as_json(), True
        except UnreadableRow as error:
            yield json.dumps({"error": str(error)}, ensure_ascii=False), False


def mail_answers(names: Sequence[str], stdin: BinaryIO) -> Iterator[tuple[str, bool]]:
    """A JSON row for each file, `-` being `stdin`, and whether the file could be read."""
    for name in names:
        try:
            raw = _read_file(name, stdin)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            text = f"cannot be read: {reason}; name a file, or - for standard input"
            yield json.dumps({"file": name, "error": text}, ensure_ascii=False), False
        else:
            document = {"file": name, **read_mail(raw).as_document()}
            # Half characters, which a damaged name may hold, cannot be printed.
            yield json.dumps(document, ensure_ascii=False).encode("utf-8", "replace").decode(), True


def _read_file(name: str, stdin: BinaryIO) -> bytes:
    """At most one octet more than is read of a mail, so that a longer one is noticed."""
    if name == "-":
        return stdin.read(MAX_OCTETS + 1)
    with Path(name).open("rb") as file:
        return file.read(MAX_OCTETS + 1)


class Command(BaseCommand):
    help = "Shows how the system reads what a mail server says, and what comes back to a mail."
    requires_system_checks = ()
    stealth_options = ("stdin",)

    def add_arguments(self, parser: CommandParser) -> None:
        subjects = parser.add_subparsers(dest="subject", required=True, metavar="reply|mail")
        reply = subjects.add_parser("reply", help="an SMTP reply: verdict, scope, reaction, advice")
        reply.add_argument(
            "text", metavar="REPLY", help='the reply, e.g. "535 5.7.8 …", or - for NDJSON rows'
        )
        reply.add_argument(
            "--stage",
            type=stage_named,
            help="how far the dialogue was: connect ehlo tls auth mail rcpt data dot",
        )
        reply.add_argument(
            "--json",
            action="store_true",
            help="one JSON document; the default where output is not a terminal",
        )
        mail = subjects.add_parser(
            "mail", help="received mails: bounces, complaints, automatic answers; one JSON line each"
        )
        mail.add_argument(
            "files", metavar="FILE", nargs="+", help="a mail as received, or - for standard input"
        )
        mail.add_argument("--json", action="store_true", help="always so; accepted for scripts")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["subject"] == "mail":
            self._explain_mails(options["files"], options.get("stdin"))
        elif options["text"] == "-":
            self._explain_rows(options.get("stdin"))
        else:
            self._explain_one(options["text"], options["stage"], as_json=options["json"])

    def _explain_one(self, text: str, stage: Stage | None, *, as_json: bool) -> None:
        if stage is None:
            raise CommandError(
                "--stage is missing: say at which step the reply came, e.g. --stage rcpt", returncode=2
            )
        try:
            explained = explain(stage, text)
        except ValueError as error:
            raise CommandError(f"REPLY: {error}", returncode=2) from None
        is_json = as_json or not self.stdout.isatty()
        self.stdout.write(explained.as_json() if is_json else explained.as_text())

    def _explain_mails(self, names: Sequence[str], stdin: BinaryIO | None) -> None:
        is_every_file_read = True
        for answer, is_read in mail_answers(names, stdin or sys.stdin.buffer):
            self.stdout.write(answer)
            is_every_file_read = is_every_file_read and is_read
        if not is_every_file_read:
            raise CommandError(
                "some files could not be read; each has its reason in its answer", returncode=1
            )

    def _explain_rows(self, stdin: IO[str] | None) -> None:
        is_every_row_read = True
        for answer, is_read in answers(stdin or _standard_input()):
            self.stdout.write(answer)
            is_every_row_read = is_every_row_read and is_read
        if not is_every_row_read:
            raise CommandError("some rows could not be read; each has its reason in its answer", returncode=1)


def _standard_input() -> IO[str]:
    """Standard input as UTF-8 whatever the locale says; bytes that are not are replaced, not fatal."""
    return open(0, encoding="utf-8", errors="replace", closefd=False)
