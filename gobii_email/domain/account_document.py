"""The JSON document of one mail account: which keys there are, and what each may hold.

Pure: reads a document into the account's own field names and lists everything that is wrong with it,
all at once. Whether the values fit the account that exists is decided by the services. No reason or
remedy quotes a value, so that a password in the wrong place is not repeated.
"""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_address
from typing import Any, NamedTuple

from gobii_email.domain.addresses import clean_display_name, normalise, parse_address
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.quotas import LIMITS, LONGEST_POOL_TTL, MOST
from gobii_email.domain.secret import Secret

MAX_SECRET_CHARACTERS = 8192
LONGEST_POLL_INTERVAL = 86_400
"""Seconds."""
_HOST = re.compile(r"[^\s/@:?#\[\]\\<>\x00-\x1f\x7f\ud800-\udfff]{1,253}")
# Half characters too, which nothing can store or send, and what turns the direction of text.
_UNPRINTABLE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
_NOT_IN_SECRETS = re.compile(r"[\0\r\n\ud800-\udfff]")


class Problem(NamedTuple):
    """One thing to put right: `field` as the writer knows it, what is wrong, and what to do."""

    field: str
    reason: str
    remedy: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.field}: {self.reason}", self.remedy) if part)


class InvalidAccount(ValueError):
    """Everything that is wrong with an account, one line a problem; `problems` is never empty."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(list(problems))
        self.problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class Unfit(ValueError):
    """A value that a key cannot hold; `remedy` says what it can."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class OAuthTokens:
    """What the document says of a sign-in with OAuth; None where it says nothing."""

    provider: str | None = None
    access_token: Secret | None = None
    refresh_token: Secret | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class AccountDocument:
    """A document, read. `changes` has only what it names, under the names of the account's fields."""

    address: str = ""
    agent: str | None = None
    display_name: str | None = None
    changes: Mapping[str, object] = field(default_factory=dict)
    smtp_password: Secret | None = None
    imap_password: Secret | None = None
    oauth: OAuthTokens | None = None
    sections: frozenset[str] = frozenset()
    problems: Sequence[Problem] = ()


def host_name(value: object) -> str:
    """A host name or address in the one form under which it is stored. Raises Unfit."""
    name = text(value).lower().removesuffix(".")
    bare = name.removeprefix("[").removesuffix("]")
    try:
        return str(ip_address(bare))
    except ValueError:
        pass
    if not _HOST.fullmatch(name) or "" in name.split(".") or name.isdigit():
        raise Unfit(
            "it is not a host name.", "Give the name alone, like smtp.example.com, without port or ://."
        )
    return name


def text(value: object) -> str:
    """Text on one line, stripped, not empty. Raises Unfit."""
    if not isinstance(value, str):
        raise Unfit("it is not a text.", "Write it in quotation marks.")
    if not value.strip():
        raise Unfit("it is empty.", "Give a value, or leave it out to keep what is stored.")
    if _UNPRINTABLE.search(value) or len(value) > 255:
        raise Unfit("it is longer than 255 characters or has control characters.", "Write it on one line.")
    return value.strip()


def port(value: object) -> int:
    """A TCP port. Raises Unfit."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 65535:
        raise Unfit("it is not a port.", "Give a number from 1 to 65535; 465 and 587 are usual for sending.")
    return value


def secret(value: object) -> Secret:
    """A password or token, opaque. Raises Unfit, whose texts never hold it."""
    if not isinstance(value, str):
        raise Unfit("it is not a text.", "Write it in quotation marks.")
    if not value:
        raise Unfit("it is empty.", "Give it, or leave it out to keep what is stored.")
    if _NOT_IN_SECRETS.search(value) or len(value) > MAX_SECRET_CHARACTERS:
        raise Unfit(
            "it is too long or has a line break, NUL or half character in it.",
            "Give it as the provider shows it.",
        )
    return Secret(value)


def limit(value: object) -> int | None:
    """A limit from 1 to a billion, or null for the default. Raises Unfit."""
    if value is None:
        return None
    if value == 0 and not isinstance(value, bool):
        raise Unfit("a limit of zero would never send.", "Pause the mailbox instead, or give 1 or more.")
    return _whole_number(value, 1, MOST, "who wants no limit gives the largest")


def idle_seconds(value: object) -> int | None:
    """How long a connection may wait for its next use, or null for the default. Raises Unfit."""
    if value is None:
        return None
    return _whole_number(value, 0, LONGEST_POOL_TTL, "in seconds; 0 closes a connection after its turn")


def _whole_number(value: object, least: int, most: int, hint: str) -> int:
    remedy = f"Give a number from {least} to {most:,} ({hint}), or null for the default."
    if not isinstance(value, int) or isinstance(value, bool):
        raise Unfit("it is not a whole number.", remedy)
    if value < least:
        raise Unfit("it is negative.", remedy)
    if value > most:
        raise Unfit(f"it is more than {most:,}.", remedy)
    return value


def yes_or_no(value: object) -> bool:
    """true or false. Raises Unfit."""
    if not isinstance(value, bool):
        raise Unfit("it is neither true nor false.", "Write true or false, without quotation marks.")
    return value


def poll_seconds(value: object) -> int:
    """How often a mailbox is polled. Raises Unfit."""
    if not isinstance(value, int) or isinstance(value, bool) or not 30 <= value <= LONGEST_POLL_INTERVAL:
        remedy = f"Give a whole number of seconds from 30 to {LONGEST_POLL_INTERVAL:,}."
        raise Unfit("it is not the time between two polls.", remedy)
    return value


def moment(value: object) -> datetime:
    """A moment with its time zone. Raises Unfit."""
    try:
        found = datetime.fromisoformat(text(value))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise Unfit("it is not a moment with a time zone.", "Write it like 2026-01-31T12:00:00Z.")
    return found


def one_of(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if not isinstance(value, str) or value.strip().lower() not in allowed:
            raise Unfit(
                "it is not one of the possible values.", f"Use {', '.join(allowed[:-1])} or {allowed[-1]}."
            )
        return value.strip().lower()

    return read


def _address(value: object) -> str:
    try:
        return normalise(str(parse_address(text(value))))
    except InvalidMail as wrong:
        raise Unfit("it is not an e-mail address.", wrong.remedy + ".") from None


def _display_name(value: object) -> str:
    if not isinstance(value, str):
        raise Unfit("it is not a text.", "Write it in quotation marks.")
    return clean_display_name(value)


_SECURITY = one_of("ssl", "starttls", "none")
_SERVER = {"host": host_name, "port": port, "security": _SECURITY, "username": text, "password": secret}
_SECTIONS: Mapping[str, Mapping[str, Callable[[object], Any]]] = {
    "smtp": {**_SERVER, "auth": one_of("plain", "login", "oauth2", "none")},
    "imap": {
        **_SERVER,
        "auth": one_of("login", "oauth2", "none"),
        "folder": text,
        "copies_to_sent": yes_or_no,
        "idle": yes_or_no,
        "poll_interval": poll_seconds,
    },
    "limits": {**dict.fromkeys(LIMITS, limit), "pool_ttl": idle_seconds},
    "oauth": {"provider": text, "access_token": secret, "refresh_token": secret, "expires_at": moment},
}
FIELDS = {
    "imap.copies_to_sent": "copies_to_sent",
    "imap.idle": "imap_idle_enabled",
    "imap.poll_interval": "poll_interval_sec",
}
"""Keys that are not called like the account's own field."""
_PLAIN = {"agent": text, "address": _address, "display_name": _display_name}


def read_document(document: object) -> AccountDocument:
    """`document` read as far as it can be; everything wrong with it is in `problems`.

    null stands for "not given", and for the default where it is a limit.
    """
    if not isinstance(document, Mapping):
        problem = Problem(
            "document", "it is not a JSON object.", 'Write {"agent": …, "address": …, "smtp": {…}}.'
        )
        return AccountDocument(problems=[problem])
    problems = _unknown("", document, [*_PLAIN, *_SECTIONS])
    plain = _values("", document, _PLAIN, problems)
    sections = {
        name: _section(name, document[name], problems) for name in _SECTIONS if document.get(name) is not None
    }
    if document.get("address") is None:
        problems.append(Problem("address", "it is missing.", "Give the mailbox's e-mail address."))
    changes = {
        FIELDS.get(f"{name}.{key}", f"{name}_{key}"): value
        for name in ("smtp", "imap")
        for key, value in sections.get(name, {}).items()
        if key != "password"
    }
    return AccountDocument(
        **plain,
        changes={**changes, **sections.get("limits", {})},
        smtp_password=sections.get("smtp", {}).get("password"),
        imap_password=sections.get("imap", {}).get("password"),
        oauth=OAuthTokens(**sections["oauth"]) if "oauth" in sections else None,
        sections=frozenset(name for name in sections if isinstance(document[name], Mapping)),
        problems=problems,
    )


def _section(name: str, given: object, problems: list[Problem]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        problems.append(Problem(name, "it is not a JSON object.", f'Write "{name}": {{…}}.'))
        return {}
    problems += _unknown(f"{name}.", given, list(_SECTIONS[name]))
    return _values(f"{name}.", given, _SECTIONS[name], problems)


def _values(
    prefix: str,
    given: Mapping[str, object],
    readers: Mapping[str, Callable[[object], Any]],
    problems: list[Problem],
) -> dict[str, Any]:
    values = {}
    for key, read in readers.items():
        if given.get(key) is None and not (read in {limit, idle_seconds} and key in given):
            continue
        try:
            values[key] = read(given[key])
        except Unfit as wrong:
            problems.append(Problem(prefix + key, wrong.reason, wrong.remedy))
    return values


def _unknown(prefix: str, given: Mapping[str, object], known: list[str]) -> list[Problem]:
    return [_not_a_key(prefix, str(key), known) for key in given if key not in known]


def _not_a_key(prefix: str, key: str, known: list[str]) -> Problem:
    close = difflib.get_close_matches(key.lower(), known, n=1)
    remedy = f"Did you mean {prefix}{close[0]}?" if close else f"Known here are {', '.join(known)}."
    shown = key if len(key) <= 40 and key.isprintable() else ascii(key[:40])
    return Problem(prefix + shown, "there is no such key.", remedy)
