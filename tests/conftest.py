"""What many tests need: a trusted authority, a real submission server, an agent with a tested mailbox."""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone
from fakeredis import FakeRedis

from gobii_email import wiring
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.conf import config
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.queue import Claim, Work, claim
from gobii_email.ports import Call
from gobii_email.services import switches
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer

PASSWORD = "pässwörd-S3cret"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThrowAwayAuthority]:
    """Trusted, beside the system's own, while the session lasts."""
    made = ThrowAwayAuthority(tmp_path_factory.mktemp("authority"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(made.ca_file))
        yield made


@pytest.fixture
def smtp_server(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    """A submission server with STARTTLS and AUTH that keeps what it accepts."""
    with ScriptedSmtpServer(
        tls=authority.good("localhost", "127.0.0.1"), users={"agent@sender.example": PASSWORD}
    ) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_switched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches are as the settings say, at once and without a statement; see `real_switches`."""
    if "real_switches" not in request.fixturenames:
        monkeypatch.setattr(switches._known, "now", switches.settings_alone)


@pytest.fixture
def real_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switches are read from the database whenever anybody asks."""
    monkeypatch.setattr(switches, "FRESH_SECONDS", 0)


class RecordingDoorbell:
    """Rings nobody; keeps the ids of attempts, and the calls."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.called: list[Call] = []

    def ring(self, hints: Any, *, once: bool = False) -> bool:
        self.rung += [hint.attempt_id for hint in hints]
        return True

    def call(self, calls: Any) -> bool:
        self.called += calls
        return True

    def waiting(self, queue: str) -> int | None:
        return len([call for call in self.called if call.queue == queue])


@pytest.fixture
def doorbell(monkeypatch: pytest.MonkeyPatch) -> RecordingDoorbell:
    made = RecordingDoorbell()
    monkeypatch.setattr(wiring, "doorbell", lambda: made)
    return made


@pytest.fixture
def agent(db: None) -> PersistentAgent:
    return PersistentAgent.objects.create(name="Ada Agent")


@pytest.fixture
def endpoint(agent: PersistentAgent) -> PersistentAgentCommsEndpoint:
    return PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="agent@sender.example"
    )


AMPLE = {
    "per_minute": 1_000_000_000,
    "per_hour": 1_000_000_000,
    "per_day": 1_000_000_000,
    "max_connections": 8,
}
"""Limits that no test reaches: an account without any has those of a server that nobody knows."""


def connect(endpoint: PersistentAgentCommsEndpoint, port: int, **values: Any) -> AgentEmailAccount:
    """An account of `endpoint` at the local server's `port`, tested, enabled and practically unlimited."""
    settings = {
        "smtp_host": "localhost",
        "smtp_security": "starttls",
        "smtp_auth": "plain",
        **AMPLE,
        **values,
    }
    account = AgentEmailAccount(endpoint=endpoint, smtp_port=port, **settings)
    if account.smtp_auth != "none":
        account.smtp_username = account.smtp_username or endpoint.address
        account.set_smtp_password(PASSWORD)
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.is_outbound_enabled = True
    account.full_clean()
    account.save()
    return account


@pytest.fixture
def account(
    endpoint: PersistentAgentCommsEndpoint, smtp_server: ScriptedSmtpServer, settings: Any
) -> AgentEmailAccount:
    settings.BYO_EMAIL_ALLOWED_PORTS = str(smtp_server.port)
    return connect(endpoint, smtp_server.port)


def taken(message: PersistentAgentMessage, owner: str = "worker-1") -> Work:
    """The attempt of `message` that waits, claimed by a worker; it has to be the next one of its lane."""
    attempt = message.attempts.get(status="queued")
    now = timezone.now()
    (work,) = claim(Claim(attempt.from_endpoint_id, 1, owner, now, now + timedelta(seconds=60)))
    assert work.id == attempt.pk
    return work


def row_of(work: Work) -> OutboundMessageAttempt:
    """The attempt as whoever claimed it knows it, to be settled."""
    attempt = OutboundMessageAttempt.objects.for_delivery(str(work.id))
    assert attempt.lease_token == work.token
    return attempt


def live_until(at: datetime) -> None:
    """Every message, and with it its attempts, lives until `at`."""
    PersistentAgentMessage.objects.update(expires_at=at)
    OutboundMessageAttempt.objects.update(expires_at=at)


@pytest.fixture
def deliver_all(db: None) -> Callable[[], list[str]]:
    """Sends everything that is queued and due, as a worker would; answers the outcomes."""
    from gobii_email.services.deliver import deliver

    def act() -> list[str]:
        queued = OutboundMessageAttempt.objects.filter(status="queued").order_by("queued_at")
        return [deliver(str(pk), owner="test") for pk in list(queued.values_list("pk", flat=True))]

    return act


@pytest.fixture(autouse=True)
def limiter(monkeypatch: pytest.MonkeyPatch) -> RedisLimiter:
    """The real limiter, over a Redis in this process that knows nothing yet."""
    made = RedisLimiter("redis://limiter.test")
    made._redis = FakeRedis(decode_responses=True)
    made._script = made._redis.register_script(made._script.script)
    monkeypatch.setattr(wiring, "limiter", lambda: made)
    return made


@pytest.fixture(autouse=True)
def fresh_settings() -> Iterator[None]:
    """Settings read from a changed environment do not outlive a test."""
    yield
    config.cache_clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that nobody waits for it when all others are done."""
    items.sort(key=lambda item: "journeys/test_on_postgresql.py" not in item.nodeid)
