"""What the services need from the outside, as protocols.

Adapters implement these; `wiring` chooses which. Values in, values out: an adapter translates
foreign exceptions itself and never lets one through that could hold a secret.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from gobii_email.domain.outcomes import Lost, Outcome, SessionFacts
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Reply, Stage


class Security(StrEnum):
    SSL = "ssl"
    STARTTLS = "starttls"
    NONE = "none"


class Auth(StrEnum):
    PLAIN = "plain"
    LOGIN = "login"
    NONE = "none"
    OAUTH2 = "oauth2"


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """Where and how to submit mail: one account's settings, with its secret still opaque.

    `secret` is the password, or the access token when `auth` is OAUTH2; None when `auth` is NONE.
    """

    host: str
    port: int
    security: Security
    auth: Auth
    username: str = ""
    secret: Secret | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who it is from and who it is for, as the server is told. Addresses are validated, domains A-labels.

    `envelope_id` goes out as ENVID where DSN is offered.
    """

    sender: str
    recipients: Sequence[str]
    envelope_id: str


class Progress(Protocol):
    """What a transport tells its caller while it works. Each call may commit and may raise LeaseLost."""

    def reached(self, stage: Stage) -> None:
        """The dialogue enters `stage`; called before its first byte. Renews the lease when due."""

    def mark(self) -> None:
        """Commits that the message may from now on be with the server. Raises LeaseLost if it cannot."""


class LeaseLost(Exception):
    """Somebody else has taken this attempt over, or the mark could not be written: send no dot."""


class AccountTransport(Protocol):
    """Hands one serialised message to an account's own server; never raises for what a server does."""

    def send(self, server: SmtpServer, envelope: Envelope, message: bytes, progress: Progress) -> Outcome: ...


class MailTransport(Protocol):
    """Hands one serialised message over where no account is involved; never raises for what a server does."""

    def send(self, envelope: Envelope, message: bytes, progress: Progress) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One step of a connection test. `status` is ok, warn, fail or skipped; `text` is safe to show."""

    name: str
    status: str
    text: str = ""
    milliseconds: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """A connection test without a message: the steps, and the first failure if there was one."""

    steps: Sequence[ProbeStep]
    failure: "ProbeFailure | None" = None
    facts: SessionFacts = field(default_factory=SessionFacts)

    @property
    def is_ok(self) -> bool:
        return self.failure is None


@dataclass(frozen=True, slots=True)
class ProbeFailure:
    """Where a test stopped and why: the server's `reply`, or the `lost` connection."""

    stage: Stage
    reply: Reply | None = None
    lost: Lost | None = None


class Doorbell(Protocol):
    """Wakes workers. Never raises, blocks no longer than its breaker allows; a lost ring loses nothing."""

    def ring(self, attempt_ids: Sequence[str]) -> bool:
        """Whether the broker took the hints."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Not now: `until` is the exact time of the next slot, `reason` a sentence."""

    until: datetime
    reason: str


class Limiter(Protocol):
    """Decides whether an account may send to `cost` recipients now."""

    def admit(self, account_id: str, *, cost: int) -> Wait | None: ...

    def refund(self, account_id: str, *, cost: int) -> None:
        """Gives back what `admit` charged, when no server accepted the message."""


Clock = Callable[[], datetime]
