"""How a command answers: a sentence for people, or one JSON document, and an exit code that is true.

0 done, 1 the thing failed, 2 the command was used wrongly. With `--json` an error is a document on
standard output as well, `{"error": {"field", "reason", "remedy"}}`, and its sentence on standard error.
"""

import json
import re
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser, OutputWrapper
from django.db import OperationalError, ProgrammingError

from gobii_email.conf import span
from gobii_email.domain.account_document import InvalidAccount
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.encryption import KeyRingError, SecretUnreadable
from gobii_email.services.intervene import NotPossible

_ARGUMENT = re.compile(
    r"(?:argument|one of the arguments|.*arguments are required:|unrecognized arguments:) ([^\s:,]+)"
)
_TOLD = (NotPossible, SecretUnreadable, KeyRingError, ImproperlyConfigured)


def length_of_time(text: str) -> timedelta:
    """An argument such as 90s, 15m or 4h."""
    try:
        return span(text)
    except ValueError as wrong:
        raise ArgumentTypeError(str(wrong)) from None


class EmailCommand(BaseCommand):
    """A command with `--json`; what the services refuse ends it with 1, and without a traceback."""

    is_json = False

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_json_option(parser)

    def add_json_option(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="answer with one JSON document")

    def run_from_argv(self, argv: list[str]) -> None:
        if "--json" in argv[2:]:
            self._answer_wrong_usage(argv)
        super().run_from_argv(argv)

    def _answer_wrong_usage(self, argv: list[str]) -> None:
        """What the parser has to object, as a document; the sentence follows from the parser itself."""
        try:
            self.create_parser(argv[0], argv[1]).parse_args(argv[2:])
        except CommandError as wrong:
            reason = str(wrong).removeprefix("Error: ")
            error = {"field": _named(reason), "reason": reason, "remedy": "See what --help says."}
            self.answer({"error": error}, True, "")

    def execute(self, *args: Any, **options: Any) -> str | None:
        self.is_json = bool(options.get("json"))
        if options.get("stdout"):
            self.stdout = OutputWrapper(options["stdout"])
        self._refuse_broken_text(options)
        try:
            return super().execute(*args, **options)
        except InvalidMail as wrong:
            self.fail(str(wrong), field=wrong.field, reason=wrong.reason, remedy=wrong.remedy)
        except InvalidAccount as wrong:
            problems = [problem._asdict() for problem in wrong.problems]
            self.fail(str(wrong), **problems[0], problems=problems)
        except _TOLD as wrong:
            self.fail(str(wrong))
        except (OperationalError, ProgrammingError) as wrong:
            if "no such table" not in str(wrong) and "does not exist" not in str(wrong):
                raise
            self.fail("The database has no tables yet.", remedy="Run `manage.py migrate` first.")

    def _refuse_broken_text(self, options: Mapping[str, Any]) -> None:
        """Bytes of the command line that are not UTF-8 arrive as halves of characters."""
        for name, given in options.items():
            for text in given if isinstance(given, list) else [given]:
                if isinstance(text, str) and re.search("[\ud800-\udfff]", text):
                    self.usage(f"{name} is not UTF-8.", field=name, remedy="Write it in UTF-8.")

    def answer(self, document: Any, as_json: bool, text: str) -> None:
        """Prints `document` as JSON, moments in ISO 8601, or `text`."""
        self.stdout.write(json.dumps(document, ensure_ascii=False, default=_plain) if as_json else text)

    def fail(self, text: str, **error: object) -> NoReturn:
        """Ends the command with 1: it was understood, and did not work."""
        self._end(text, error, returncode=1)

    def usage(self, text: str, **error: object) -> NoReturn:
        """Ends the command with 2: what was asked is not something it can do."""
        self._end(text, error, returncode=2)

    def _end(self, text: str, error: Mapping[str, object], *, returncode: int) -> NoReturn:
        if self.is_json:
            self.answer({"error": {"field": "", "reason": text, "remedy": ""} | error}, True, "")
        remedy = error.get("remedy")
        sentence = f"{text} {remedy}" if remedy and str(remedy) not in text else text
        raise CommandError(sentence, returncode=returncode) from None


def _named(objection: str) -> str:
    """The first argument that the parser's `objection` is about; "" where it names none."""
    found = _ARGUMENT.match(objection)
    return found[1] if found else ""


def _plain(value: object) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
