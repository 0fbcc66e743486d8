"""How `email_account test` shows a test: a line a step as it ends, or one JSON document at the end.

What is tested, and what a result means, is decided in services/diagnose.
"""

from typing import Any

from django.core.management.base import CommandError, CommandParser

from gobii_email.domain.diagnosis import Diagnosis, Step
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import AgentEmailAccount
from gobii_email.services import diagnose

MARKS = {"ok": "✓", "warn": "!", "fail": "✗", "skipped": "·"}


class MailboxTest:
    """One run of the command: the tests that were asked for, one after the other."""

    def __init__(self, command: EmailCommand, account: AgentEmailAccount, options: dict[str, Any]) -> None:
        self._command = command
        self._account = account
        self._until = options["until"]
        self._sends_to_self = options["send_to_self"]
        self._protocols = [name for name in ("smtp", "imap") if options[name]] or ["smtp"]
        self._wants_transcript = options["transcript"]
        self._transcript: list[str] = []

    @staticmethod
    def add_arguments(parser: CommandParser) -> None:
        parser.add_argument("--smtp", action="store_true", help="sending (the default)")
        parser.add_argument("--imap", action="store_true", help="receiving")
        parser.add_argument("--until", metavar="STEP", help="stop after this step, such as TLS or AUTH")
        parser.add_argument(
            "--send-to-self",
            action="store_true",
            help="also send a small mail to the mailbox itself, and look for it where IMAP is set",
        )
        parser.add_argument("--transcript", action="store_true", help="show what was said, without secrets")

    def run(self) -> None:
        if self._sends_to_self and "smtp" not in self._protocols:
            text, remedy = "--send-to-self belongs to a test of sending.", "Add --smtp, or leave out --imap."
            self._command.usage(text, field="send_to_self", remedy=remedy)
        found = [self._test(protocol) for protocol in self._protocols]
        failed = next((diagnosis for diagnosis in found if not diagnosis.ok), None)
        if self._command.is_json:
            self._command.answer(self._document(found, failed or found[0]), True, "")
        if failed is not None:
            raise CommandError(failed.text, returncode=1)

    def _test(self, protocol: str) -> Diagnosis:
        try:
            diagnosis = self._diagnosis(protocol)
        except ValueError as wrong:
            self._command.usage(str(wrong), field="until", remedy="Name one of those steps.")
        except diagnose.TooManyTests as wrong:
            self._command.fail(str(wrong))
        self._say(f"{MARKS['ok' if diagnosis.ok else 'fail']} {diagnosis.text} {diagnosis.advice}".rstrip())
        return diagnosis

    def _diagnosis(self, protocol: str) -> Diagnosis:
        options: dict[str, Any] = {"until": self._until, "on_step": self._show}
        if self._wants_transcript:
            options["on_line"] = self._hear
        if protocol == "imap":
            return diagnose.test_imap(self._account, **options)
        return diagnose.test_smtp(self._account, sends_to_self=self._sends_to_self, **options)

    def _show(self, step: Step) -> None:
        self._say(step_line(step))

    def _hear(self, line: str) -> None:
        self._transcript.append(line)
        self._say(f"      {line}")

    def _say(self, line: str) -> None:
        if not self._command.is_json:
            self._command.stdout.write(line)
            self._command.stdout.flush()

    def _document(self, found: list[Diagnosis], first: Diagnosis) -> dict[str, Any]:
        """That of the test which counts, with all of them below `tests`; `name` is a step's former `id`."""
        document = first.as_document() | {
            "address": self._account.endpoint.address,
            "ok": all(diagnosis.ok for diagnosis in found),
            "tests": [diagnosis.as_document() for diagnosis in found],
        }
        for step in document["steps"]:
            step["name"] = step["id"]
        if self._wants_transcript:
            document["transcript"] = self._transcript
        if not first.ok:
            document["error"] = {"field": first.protocol, "reason": first.text, "remedy": first.advice}
        return document


def step_line(step: Step) -> str:
    """One line: mark, step, time, what was found; the advice of a warning below it."""
    line = f"  {MARKS[step.status]} {step.id:<12}{step.milliseconds:>6} ms  {step.text}"
    advice = f"\n{'':27}{step.advice}" if step.advice and step.status == "warn" else ""
    return line + advice
