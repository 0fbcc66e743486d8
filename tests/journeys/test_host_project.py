"""Another project plugs the app in: it submits, our worker delivers, and its own Celery hears nothing."""

from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack, eventually
from tests.conftest import PASSWORD

CONNECT = f"""
from django.conf import settings
from gobii_email.models import AgentEmailAccount, PersistentAgent, PersistentAgentCommsEndpoint
agent = PersistentAgent.objects.create(name="Shop Agent")
endpoint = PersistentAgentCommsEndpoint.objects.create(
    owner_agent=agent, channel="email", address="agent@sender.example"
)
account = AgentEmailAccount(
    endpoint=endpoint, smtp_host="localhost", smtp_port=settings.BYO_EMAIL_ALLOWED_PORTS[0],
    smtp_security="starttls", smtp_auth="plain", smtp_username="agent@sender.example",
)
account.set_smtp_password({PASSWORD!r})
account.smtp_tested_fingerprint = account.smtp_fingerprint()
account.is_outbound_enabled = True
account.full_clean()
account.save()
"""
SUBMIT = """
from celery import current_app
from django.db import transaction
from gobii_email.api import send_agent_email
assert current_app.main == "shop", current_app.main
with transaction.atomic():
    message = send_agent_email(
        from_endpoint="agent@sender.example",
        to="to@rcpt.example",
        subject="From the shop",
        body="Thank *you*",
    )
assert current_app.main == "shop", current_app.main
print(message.pk)
"""


@pytest.fixture(scope="module")
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    users = {"agent@sender.example": PASSWORD}
    with ScriptedSmtpServer(tls=authority.good("localhost", "127.0.0.1"), users=users) as made:
        yield made


class Host(Stack):
    """The stack with the host's settings in place of ours."""

    def __init__(self, directory: Path, server: ScriptedSmtpServer) -> None:
        super().__init__(directory)
        self._server = server

    def _environment(self) -> dict[str, str]:
        inherited = super()._environment()
        ours = {"REDIS_URL", "DATABASE_URL", "SECRET_KEY", "GOBII_VAR", "GOBII_ENCRYPTION_KEY"}
        kept = {
            name: value
            for name, value in inherited.items()
            if name not in ours | {"BYO_EMAIL_ALLOWED_NETWORKS"}
        }
        return kept | {
            "DJANGO_SETTINGS_MODULE": "tests.host_project.settings",
            "HOST_VAR": str(self.directory),
            "HOST_REDIS": self.valkey.url,
            "HOST_BROKER": self.broker_of_the_host,
            "HOST_SMTP_PORT": str(self._server.port),
        }

    @property
    def broker_of_the_host(self) -> str:
        return self.valkey.url.removesuffix("/0") + "/5"


@pytest.fixture(scope="module")
def host(
    tmp_path_factory: pytest.TempPathFactory, server: ScriptedSmtpServer, authority: ThrowAwayAuthority
) -> Iterator[Host]:
    with Host(tmp_path_factory.mktemp("host"), server) as made:
        made.python(CONNECT)
        yield made


def status(host: Host, message_id: str) -> str:
    code = f"from gobii_email.api import delivery_status\nprint(delivery_status('{message_id}').status)"
    return host.python(code).strip()


def keys(url: str) -> dict[str, int]:
    """The lists of a broker, with their lengths; the counters of the limits are beside them."""
    with Redis.from_url(url) as redis:
        return {
            key.decode(): int(redis.llen(key))  # type: ignore[arg-type]
            for key in redis.keys("*")  # type: ignore[union-attr]
            if redis.type(key) == b"list" and not key.startswith(b"gobii:limit:")
        }


def test_the_host_submits_and_our_worker_delivers(host: Host, server: ScriptedSmtpServer) -> None:
    message_id = host.python(SUBMIT).strip()
    assert keys(host.valkey.url) == {"email.send": 1}
    assert keys(host.broker_of_the_host) == {}, "the host's own Celery hears nothing"
    assert status(host, message_id) == "queued"

    worker = host.start_worker(concurrency=2)
    (kept,) = server.wait_for(1, seconds=120)
    mail = message_from_bytes(kept.content, policy=policy.SMTP)
    assert (kept.sender, kept.recipients, kept.mechanism) == (
        "agent@sender.example",
        ("to@rcpt.example",),
        "PLAIN",
    )
    assert (mail["Subject"], mail["From"]) == ("From the shop", "Shop Agent <agent@sender.example>")
    assert eventually(lambda: status(host, message_id) == "sent")
    assert keys(host.valkey.url) == {}
    assert keys(host.broker_of_the_host) == {}
    assert worker.stop() == 0


def test_the_host_submits_while_redis_is_away_and_the_dispatcher_finds_the_mail(
    host: Host, server: ScriptedSmtpServer
) -> None:
    sent_before = len(server.messages)
    host.valkey.kill()
    message_id = host.python(SUBMIT).strip()
    host.valkey.restart()
    worker = host.start_worker(concurrency=2)
    host.start_dispatcher()
    server.wait_for(sent_before + 1, seconds=120)
    assert eventually(lambda: status(host, message_id) == "sent")
    assert worker.is_running


def test_the_hosts_migrations_are_complete_and_its_checks_are_silent(host: Host) -> None:
    plan: Any = host.manage("migrate", "--check")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    drift = host.manage("makemigrations", "--check", "--dry-run", "gobii_email")
    assert drift.returncode == 0, drift.stdout
    checks = host.manage("check", "--fail-level", "ERROR")
    assert checks.returncode == 0, checks.stdout + checks.stderr
