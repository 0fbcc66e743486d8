"""The plant around the mail: workers rolled while it flows, a broker that is full, another kind of broker.

Every mail that was accepted goes out once. What kills single processes and servers is in test_ledger.
"""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.rabbitmq import RabbitMq
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack, eventually

PASSWORD = "only-for-this-test"
SENDER = "agent@sender.example"
AMPLE = {"per_minute": "100000", "per_hour": "100000", "per_day": "100000", "max_connections": "4"}


@pytest.fixture(scope="module")
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    tls = authority.good("localhost", "127.0.0.1")
    with ScriptedSmtpServer(tls=tls, users={SENDER: PASSWORD}) as server:
        yield server


@pytest.fixture(autouse=True)
def as_new(server: ScriptedSmtpServer) -> Iterator[None]:
    yield
    server.messages.clear()
    server.faults.delays.clear()


@pytest.fixture(scope="module")
def environment(authority: ThrowAwayAuthority, server: ScriptedSmtpServer) -> dict[str, str]:
    return {
        "SSL_CERT_FILE": str(authority.ca_file),
        "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
        "GOBII_HINT_LIFETIME": "3s",
        "GOBII_RING_GRACE": "1s",
        "GOBII_BREAKER_PAUSE": "1s",
    }


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], server: ScriptedSmtpServer
) -> Iterator[Stack]:
    """On Valkey, with a mailbox and a dispatcher."""
    with Stack(tmp_path_factory.mktemp("plant"), env=environment) as stack:
        stack.connect(SENDER, server.port, PASSWORD, **AMPLE)
        stack.start_dispatcher()
        yield stack


def mails(count: int, what: str) -> list[dict[str, object]]:
    return [
        {
            "from_endpoint": SENDER,
            "to": f"{what}{number}@rcpt.example",
            "subject": f"{what} {number}",
            "body": "Good morning",
        }
        for number in range(count)
    ]


def all_sent(stack: Stack, server: ScriptedSmtpServer, ids: list[str], count: int) -> None:
    """Once the server has `count` mails, those of `ids` are written down as sent."""
    eventually(lambda: len(server.messages) >= count, seconds=240)
    eventually(lambda: set(stack.statuses(ids)) == {"sent"}, seconds=240, every=1)


def received(server: ScriptedSmtpServer) -> Counter[str]:
    """How often each recipient got a mail."""
    return Counter(recipient for mail in server.messages for recipient in mail.recipients)


def test_workers_replaced_under_load_neither_lose_double_nor_doubt(
    stack: Stack, server: ScriptedSmtpServer
) -> None:
    old = [stack.start_worker(4, wait=False) for _ in range(2)]
    new = [stack.start_worker(4, wait=False) for _ in range(2)]
    for worker in old + new:
        worker.wait_for("worker.ready")
    # So slow that there is mail left for as long as the old ones take to end.
    server.faults.delays["DATA"] = timedelta(seconds=2)
    ids = stack.send(*mails(80, "rolled"))
    for worker in old:
        before = len(server.messages)
        eventually(lambda before=before: len(server.messages) > before)
        assert worker.stop(seconds=60) == 0
        assert len(server.messages) < 80
    server.faults.delays.clear()
    all_sent(stack, server, ids, 80)
    assert set(received(server).values()) == {1} and len(server.messages) == 80
    further = stack.python(
        "from gobii_email.models import OutboundMessageAttempt as A\n"
        "print(A.objects.filter(number__gt=1).count(), A.objects.filter(status='in_doubt').count())"
    )
    assert further.split() == ["0", "0"]
    for worker in new:
        worker.stop()


def test_a_full_broker_takes_no_mail_from_anybody(stack: Stack, server: ScriptedSmtpServer) -> None:
    with redis.Redis.from_url(stack.valkey.url) as client:
        client.config_set("maxmemory", 1)
        ids = stack.send(*mails(8, "full"))
        assert set(stack.statuses(ids)) == {"queued"}
        rows = {row["name"]: row for row in doctor(stack)}
        assert rows["redis"]["status"] == "fail" and "refuses writes" in rows["redis"]["text"]
        assert rows["database"]["status"] != "fail"
        client.config_set("maxmemory", 0)
    worker = stack.start_worker(4)
    all_sent(stack, server, ids, 8)
    assert set(received(server).values()) == {1}
    worker.stop()


def test_rabbitmq_is_a_broker_by_its_address_alone(
    tmp_path: Path, environment: dict[str, str], server: ScriptedSmtpServer
) -> None:
    try:
        broker = RabbitMq()
        broker.start()
    except ServerUnavailable as problem:
        pytest.skip(f"RABBITMQ IS NOT TESTED HERE: {problem}")
    try:
        with Stack(tmp_path, env=environment | {"CELERY_BROKER_URL": broker.url}) as stack:
            stack.connect(SENDER, server.port, PASSWORD, **AMPLE)
            stack.start_worker(4)
            ids = stack.send(*mails(8, "rung"))
            all_sent(stack, server, ids, 8)  # by rings alone: no dispatcher is there yet
            assert {row["name"]: row["status"] for row in doctor(stack)}["broker"] == "ok"
            broker.kill()
            assert {row["name"]: row["status"] for row in doctor(stack)}["broker"] == "fail"
            late = stack.send(*mails(8, "unrung"))
            assert set(stack.statuses(late)) == {"queued"}
            broker.start()
            stack.start_dispatcher()
            all_sent(stack, server, late, 16)
            assert set(received(server).values()) == {1}
    finally:
        broker.stop()


def doctor(stack: Stack) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(stack.manage("email_doctor", "--json").stdout)["checks"]
    return found
