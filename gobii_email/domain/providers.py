"""What is known about mail providers: hosts, ways to sign in, limits, habits.

The facts are data, in providers.toml beside this file, each with its source and, where a page
was looked at, the day. An operator's own settings win over them; for an unknown provider the
caller's defaults hold.
"""

import tomllib
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any


class Known(StrEnum):
    """An answer that may be missing."""

    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Username(StrEnum):
    """What a mailbox signs in with: its address, the part before the @, or another name altogether."""

    ADDRESS = "address"
    LOCAL_PART = "local_part"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server to connect to; `security` is "ssl" or "starttls"."""

    host: str
    port: int
    security: str


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. A limit that is None is not known; `unconfirmed` names the fields without proof.

    `auth` lists password, app_password and oauth2, the best first; `oauth` is "google" or "microsoft"
    where the sign-in is one that we speak. `files_sent` says whether the provider itself files a copy of
    submitted mail in Sent. Limits count per mailbox.
    """

    id: str
    name: str
    smtp: Endpoint
    auth: tuple[str, ...]
    advice: str
    caveats: tuple[str, ...]
    source: str
    unconfirmed: tuple[str, ...]
    domains: tuple[str, ...] = ()
    mx_suffixes: tuple[str, ...] = ()
    oauth: str = ""
    username: Username = Username.ADDRESS
    files_sent: Known = Known.UNKNOWN
    rewrites_message_id: Known = Known.UNKNOWN
    checked_at: date | None = None
    imap: Endpoint | None = None
    other_hosts: tuple[str, ...] = ()
    host_patterns: tuple[str, ...] = ()
    recipients_per_day: int | None = None
    recipients_per_hour: int | None = None
    messages_per_minute: int | None = None
    connections: int | None = None
    recipients_per_message: int | None = None
    max_bytes: int | None = None

    def has_host(self, host: str) -> bool:
        """Whether `host` (lower case, no final dot) is one of its servers."""
        named = {self.smtp.host, *self.other_hosts, *([self.imap.host] if self.imap else [])}
        return host in named or any(fnmatchcase(host, pattern) for pattern in self.host_patterns)

    def username_of(self, address: str) -> str:
        """What the mailbox `address` signs in with; empty where the address does not tell."""
        match self.username:
            case Username.ADDRESS:
                return address
            case Username.LOCAL_PART:
                return address.rpartition("@")[0]
            case Username.OTHER:
                return ""


@cache
def providers() -> tuple[Provider, ...]:
    """All known providers, in the order of the file."""
    text = files(__package__).joinpath("providers.toml").read_text(encoding="utf-8")
    return tuple(_provider(row) for row in tomllib.loads(text)["provider"])


def provider_of_host(host: str) -> Provider | None:
    """The provider that runs the server `host`; the first one where several share it."""
    wanted = _name(host)
    return next((provider for provider in providers() if provider.has_host(wanted)), None)


def provider_of_address(address: str) -> Provider | None:
    """The provider of a mailbox at one of the provider's own domains; None for own domains."""
    domain = _name(address.rpartition("@")[2])
    return next((provider for provider in providers() if domain in provider.domains), None)


def provider_of_mx(host: str) -> Provider | None:
    """The provider behind the mail exchanger `host`: the one with the longest fitting suffix."""
    wanted = f".{_name(host)}"
    fitting = [(s, p) for p in providers() for s in p.mx_suffixes if wanted.endswith(f".{s}")]
    return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else None


def similar_domain(domain: str) -> str:
    """The domain of the table that `domain` may be a slip of the keyboard for; empty when none is close."""
    known = [name for provider in providers() for name in provider.domains]
    return next(iter(get_close_matches(_name(domain), known, 1, cutoff=0.85)), "")


def _name(host: str) -> str:
    return host.strip().lower().rstrip(".")


_CLOSED_SETS = {"files_sent": Known, "rewrites_message_id": Known, "username": Username}


def _provider(row: dict[str, Any]) -> Provider:
    """The row of the file as a value; a misspelt or missing key raises TypeError."""
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in row.items()
    }
    values |= {key: Endpoint(**row[key]) for key in ("smtp", "imap") if key in row}
    values |= {key: kind(row[key]) for key, kind in _CLOSED_SETS.items() if key in row}
    return Provider(**values)


def as_markdown() -> str:
    """The table and the notes of docs/providers.md."""
    head = (
        "| provider | SMTP | IMAP | sign-in | limits | files Sent | rewrites Message-ID | checked |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    rows = "".join(f"| {_row(provider)} |\n" for provider in providers())
    return head + rows + "\n" + "\n".join(_notes(provider) for provider in providers()).rstrip()


_LIMITS = (
    "messages_per_minute",
    "recipients_per_hour",
    "recipients_per_day",
    "recipients_per_message",
    "connections",
    "max_bytes",
)


def _row(provider: Provider) -> str:
    limits = [(name, getattr(provider, name)) for name in _LIMITS]
    known = ", ".join(
        f"{value:,} {name.replace('_', ' ')}{_mark(provider, name)}" for name, value in limits if value
    )
    cells = (
        provider.name,
        _server(provider.smtp) + _mark(provider, "smtp"),
        _server(provider.imap) + _mark(provider, "imap"),
        ", ".join(provider.auth).replace("_", " ") + _mark(provider, "auth"),
        known or "not known",
        provider.files_sent + _mark(provider, "files_sent"),
        provider.rewrites_message_id + _mark(provider, "rewrites_message_id"),
        str(provider.checked_at or "never"),
    )
    return " | ".join(cells)


def _server(endpoint: Endpoint | None) -> str:
    return f"`{endpoint.host}:{endpoint.port}` {endpoint.security}" if endpoint else "none"


def _mark(provider: Provider, field: str) -> str:
    return " (?)" if field in provider.unconfirmed else ""


def _notes(provider: Provider) -> str:
    points = "".join(f"- {point}\n" for point in (provider.advice, *provider.caveats))
    exchangers = [f"mail exchangers under {suffix}" for suffix in provider.mx_suffixes]
    marks = ", ".join([*provider.domains, *exchangers]) or "its server's name alone"
    return f"### {provider.name}\n{points}\nFound by: {marks}.\n\nSource: {provider.source}\n"
