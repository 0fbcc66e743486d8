"""One answer of `email_doctor`, and what all that give one share."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage
from django.core.checks.messages import ERROR

OK, WARN, FAIL = "ok", "warn", "fail"
PATIENCE_SECONDS = 2.0
"""How long one examination may wait for what it asks."""


@dataclass(frozen=True, slots=True)
class Row:
    """One answer. `text` says what was found, `hint` what to do about it; "" when all is well."""

    name: str
    status: str
    text: str
    hint: str = ""


Examination = Callable[[], Row]


def from_checks(name: str, fine: str, found: Iterable[CheckMessage]) -> Row:
    """The messages of system checks as one row, `fine` when there are none."""
    messages = list(found)
    if not messages:
        return Row(name, OK, fine)
    worst = FAIL if any(message.level >= ERROR for message in messages) else WARN
    return Row(name, worst, " ".join(message.msg for message in messages), messages[0].hint or "")


def named(addresses: Sequence[str], most: int = 3) -> str:
    """The first few of `addresses`, and that there are more."""
    return ", ".join([*addresses[:most], *(["…"] if len(addresses) > most else [])])


def brief(problem: BaseException) -> str:
    """The kind of a foreign error: its text may hold an address with a password."""
    return type(problem).__name__


def place(url: str) -> str:
    """Host and port of `url`, without the credentials."""
    parts: Any = urlsplit(url)
    return f"{parts.hostname or 'local'}:{parts.port or 'default'}"
