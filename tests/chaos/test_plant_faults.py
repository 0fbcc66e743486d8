"""The plant around the mail: workers rolled while it flows, a broker that is full, another kind of broker.

Every mail that was accepted goes out once. What kills single processes and servers is in test_ledger.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.rabbitmq import RabbitMq
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Process, Stack, eventually

PASSWORD = "only-for-this-test"
SENDERS = [f"agent{number}@sender.example" for number in range(2)]
AMPLE = {"per_minute": "100000", "per_hour": "100000", "per_day": "100000", "max_connections": "2"}


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    users = dict.fromkeys(SENDERS, PASSWORD)
    with ScriptedSmtpServer(tls=authority.good("localhost", "127.0.0.1"), users=users) as server:
        yield server


def environment(authority: ThrowAwayAuthority, server: ScriptedSmtpServer) -> dict[str, str]:
    return {
        "SSL_CERT_FILE": str(authority.ca_file),
        "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
        "GOBII_HINT_LIFETIME": "3s",
        "GOBII_RING_GRACE": "1s",
        "GOBII_BREAKER_PAUSE": "1s",
    }


def connect(stack: Stack, server: ScriptedSmtpServer) -> None:
    for address in SENDERS:
        stack.connect(address, server.port, PASSWORD, **AMPLE)


def mails(count: int, what: str) -> list[dict[str, object]]:
    return [
        {
            "from_endpoint": SENDERS[number % len(SENDERS)],
            "to": f"to{number}@rcpt.example",
            "subject": f"{what} {number}",
            "body": "Good morning",
        }
        for number in range(count)
    ]


def all_sent(stack: Stack, server: ScriptedSmtpServer, ids: list[str], count: int) -> None:
    """Once the server has `count` mails, those of `ids` are written down as sent."""
    eventually(lambda: len(server.messages) >= count, seconds=60)
    eventually(lambda: set(stack.statuses(ids)) == {"sent"}, seconds=60, every=1)


def received(server: ScriptedSmtpServer) -> Counter[str]:
    """How often each recipient got a mail."""
    return Counter(recipient for mail in server.messages for recipient in mail.recipients)


def test_a_rolling_restart_under_load_neither_loses_doubles_nor_doubts(
    tmp_path: Path, authority: ThrowAwayAuthority, server: ScriptedSmtpServer
) -> None:
    with Stack(tmp_path, env=environment(authority, server)) as stack:
        connect(stack, server)
        stack.start_dispatcher()
        workers: list[Process] = [stack.start_worker(4), stack.start_worker(4)]
        ids: list[str] = []
        submitting = threading.Thread(
            target=lambda: [ids.extend(stack.send(*mails(40, f"round {n}"))) for n in range(3)]
        )
        submitting.start()
        for _ in range(2):
            eventually(lambda: len(server.messages) > 0)
            workers.append(stack.start_worker(4))
            assert workers.pop(0).stop(seconds=30) == 0
        submitting.join()
        all_sent(stack, server, ids, 120)
        assert len(ids) == len(server.messages) == 120
        assert set(received(server).values()) == {3}
        events = stack.python(
            "from gobii_email.models import OutboundMessageAttempt as A\n"
            "print(A.objects.filter(number__gt=1).count(), A.objects.filter(status='in_doubt').count())"
        )
        assert events.split() == ["0", "0"]


def test_a_full_broker_takes_no_mail_from_anybody(
    tmp_path: Path, authority: ThrowAwayAuthority, server: ScriptedSmtpServer
) -> None:
    with Stack(tmp_path, env=environment(authority, server)) as stack:
        connect(stack, server)
        with redis.Redis.from_url(stack.valkey.url) as client:
            client.config_set("maxmemory", 1)
            began = time.monotonic()
            ids = stack.send(*mails(8, "full"))
            assert set(stack.statuses(ids)) == {"queued"} and time.monotonic() - began < 60
            rows = {row["name"]: row for row in doctor(stack)}
            assert rows["redis"]["status"] == "fail" and "refuses writes" in rows["redis"]["text"]
            assert rows["database"]["status"] != "fail"
            stack.start_dispatcher()
            client.config_set("maxmemory", 0)
            stack.start_worker(4)
        all_sent(stack, server, ids, 8)
        assert set(received(server).values()) == {1}


def test_rabbitmq_is_a_broker_by_its_address_alone(
    tmp_path: Path, authority: ThrowAwayAuthority, server: ScriptedSmtpServer
) -> None:
    try:
        broker = RabbitMq()
        broker.start()
    except ServerUnavailable as problem:
        pytest.skip(f"RABBITMQ IS NOT TESTED HERE: {problem}")
    try:
        env = environment(authority, server) | {"CELERY_BROKER_URL": broker.url}
        with Stack(tmp_path, env=env) as stack:
            connect(stack, server)
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
            assert set(received(server).values()) == {2}
    finally:
        broker.stop()


def doctor(stack: Stack) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(stack.manage("email_doctor", "--json").stdout)["checks"]
    return found
