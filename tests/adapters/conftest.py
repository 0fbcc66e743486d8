"""Loopback servers, a certificate authority that is trusted for one run, and a caller that takes notes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.smtp import Deadlines, SmtpTransport
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Auth, Envelope, LeaseLost, Probe, Reuse, Security, SmtpServer
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
MESSAGE = (
    b"From: a@sender.example\r\nTo: b@rcpt.example\r\nSubject: hello\r\n\r\n.dotted line\r\nlast line\r\n"
)
PASSWORD = "pässwörd-S3cret"
USERS = {"anna": PASSWORD, "berta": "pw-of-berta", "clara": "pw-of-clara"}
MANY = Reuse("key", 100)


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> ThrowAwayAuthority:
    return ThrowAwayAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def authority(one_authority: ThrowAwayAuthority, monkeypatch: pytest.MonkeyPatch) -> ThrowAwayAuthority:
    """Trusted, beside the system's own, while the test lasts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(one_authority.ca_file))
    return one_authority


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    """A submission server behind STARTTLS that knows USERS and takes everything; `faults` are the test's."""
    with ScriptedSmtpServer(tls=authority.good(), users=USERS) as running:
        yield running


def loopback_policy(port: int) -> DialPolicy:
    return DialPolicy(LOOPBACK, frozenset({port}), lambda _host, _port: ["127.0.0.1"])


def quick_deadlines(seconds: float = 0.4, **others: float) -> Deadlines:
    names = ("connect", "banner", "ehlo", "tls", "auth", "envelope", "body", "dot", "quit", "blocked")
    spans = {"quit": 0.2, "blocked": 0.4, **others}
    chosen: dict[str, Any] = {name: timedelta(seconds=spans.get(name, seconds)) for name in names}
    return replace(Deadlines(), **chosen)


def failed(found: Probe) -> Step:
    """The one step at which a test ended."""
    (step,) = [step for step in found.steps if step.status is StepStatus.FAIL]
    assert found.failure is not None
    return step


def step_of(found: Probe, name: str) -> Step:
    return next(step for step in found.steps if step.id == name)


@dataclass
class Notes:
    """Progress that notes what it is told; `lose_at` is the stage, or "mark", where the lease is gone."""

    lose_at: str = ""
    told: list[str] = field(default_factory=list)
    on_mark: Callable[[], None] = lambda: None

    def reached(self, stage: Stage) -> None:
        self.told.append(str(stage))
        if stage == self.lose_at:
            raise LeaseLost

    def mark(self) -> None:
        self.on_mark()
        if self.lose_at == "mark":
            raise LeaseLost
        self.told.append("mark")


def transport_to(port: int, deadlines: Deadlines | None = None) -> SmtpTransport:
    return SmtpTransport(loopback_policy(port), deadlines or quick_deadlines(60))


def account(
    port: int,
    *,
    security: Security = Security.STARTTLS,
    auth: Auth = Auth.PLAIN,
    host: str = "localhost",
    username: str = "anna",
    password: str = PASSWORD,
) -> SmtpServer:
    return SmtpServer(host, port, security, auth, username, None if auth is Auth.NONE else Secret(password))


def in_the_clear(port: int) -> SmtpServer:
    """For a test that is about neither TLS nor a login."""
    return account(port, security=Security.NONE, auth=Auth.NONE)


def envelope(*recipients: str, sender: str = "a@sender.example") -> Envelope:
    return Envelope(sender, recipients or ("b@rcpt.example",), "attempt-1")
