"""What Prometheus reads of real processes: two workers, one of them killed, and counts right to the mail."""

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack, eventually
from tests.conftest import PASSWORD

SENDER = "agent@sender.example"
TOKEN = "t0ken-of-the-scraper"


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        found: int = free.getsockname()[1]
        return found


@pytest.fixture
def stack(
    tmp_path: Path, authority: ThrowAwayAuthority, smtp_server: ScriptedSmtpServer, port: int
) -> Iterator[Stack]:
    env = {
        "SSL_CERT_FILE": str(authority.ca_file),
        "BYO_EMAIL_ALLOWED_PORTS": str(smtp_server.port),
        "GOBII_METRICS_PORT": str(port),
        "METRICS_TOKEN": TOKEN,
        "GOBII_HEARTBEAT_FILE": str(tmp_path / "heartbeat"),
    }
    with Stack(tmp_path, env=env) as made:
        unlimited = {"per_minute": "100000", "per_hour": "100000", "per_day": "100000"}
        made.connect(SENDER, smtp_server.port, PASSWORD, **unlimited)
        yield made


def read(port: int, token: str = TOKEN) -> dict[str, float]:
    """Every sample, by its name and its labels' values."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {token}"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def sent(samples: dict[str, float]) -> float:
    return sum(
        value
        for name, value in samples.items()
        if name.startswith("gobii_email_attempts_total") and " sent " in name
    )


def send(stack: Stack, count: int) -> None:
    mail = {"from_endpoint": SENDER, "to": "bob@rcpt.example", "subject": "Hello", "body": "Hi"}
    stack.send(*[mail] * count)


def test_two_workers_count_every_mail_once_also_when_one_is_killed(
    stack: Stack, smtp_server: ScriptedSmtpServer, port: int, tmp_path: Path
) -> None:
    first = stack.start_worker()
    send(stack, 15)
    smtp_server.wait_for(15, seconds=120)
    eventually(lambda: sent(read(port)) == 15)
    second = stack.start_worker()
    first.kill()
    send(stack, 10)
    smtp_server.wait_for(25, seconds=120)
    # The port was the first worker's; the other one takes it over, with what both have counted.
    samples = eventually(lambda: _when(port, count=25), seconds=120, every=0.5)
    assert sent(samples) == 25 == len(smtp_server.messages)
    eventually(lambda: read(port)["gobii_email_stage_seconds_count dot"] == 25)
    eventually(lambda: read(port)["gobii_email_messages queued"] == 0)
    assert (tmp_path / "heartbeat").exists()
    assert second.is_running

    with pytest.raises(HTTPError) as refused:
        read(port, "wrong")
    assert refused.value.code == 401
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as alive:
        assert alive.read() == b"ok\n"


def _when(port: int, *, count: float) -> dict[str, float]:
    try:
        samples = read(port)
    except OSError:
        return {}
    return samples if sent(samples) == count else {}
