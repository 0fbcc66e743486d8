"""`email_dispatcher`: one round on demand, and a process that outlives what it depends on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import OperationalError

from gobii_email import api
from gobii_email.management.commands import email_dispatcher
from gobii_email.models import OutboundMessageAttempt
from gobii_email.services.dispatch import Round
from tests.entrypoints.commands import ago, an_endpoint, run

ROOT = Path(__file__).parents[2]


@pytest.mark.django_db
def test_one_round_hands_out_what_is_due_and_says_so(settings):
    settings.GOBII_BROKER_URL = "memory://"
    api.send_agent_email(from_endpoint=an_endpoint(), to="bob@example.com", subject="Tea", body="At five?")
    assert run("email_dispatcher", "--once", "--json").document["handed_out"] == 0
    OutboundMessageAttempt.objects.update(due_at=ago(seconds=1))
    answer = run("email_dispatcher", "--once", "--json")
    assert answer.document == {
        "handed_out": 1,
        "rescued": 0,
        "expired": 0,
        "resent": 0,
        "visits": 0,
        "polls": 0,
        "unread": 0,
    }
    assert "0 handed out" in run("email_dispatcher", "--once").out


class Stop(threading.Event):
    """An event that notes how long it was waited for, and is set by the last wait."""

    def __init__(self, waits: int) -> None:
        super().__init__()
        self.left = waits
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited.append(timeout or 0)
        self.left -= 1
        if not self.left:
            self.set()
        return self.is_set()


def rounds(monkeypatch, *results):
    """Makes the rounds end as `results` say, and the last of them again and again."""
    left = list(results)

    def dispatch_round():
        result = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(email_dispatcher, "dispatch_round", dispatch_round)
    return left


@pytest.mark.django_db
def test_a_round_that_did_something_is_followed_at_once(monkeypatch, settings):
    settings.GOBII_DISPATCH_EVERY = "3s"
    rounds(monkeypatch, Round(handed_out=200), Round(rescued=1), Round())
    stop = Stop(waits=2)
    email_dispatcher.run(stop)
    assert stop.waited == [3, 3]


@pytest.mark.django_db
def test_an_outage_is_outlived_with_pauses_that_grow_to_half_a_minute(monkeypatch, settings, caplog):
    settings.GOBII_DISPATCH_EVERY = "1s"
    rounds(monkeypatch, OperationalError("the database is away"))
    stop = Stop(waits=20)
    email_dispatcher.run(stop)
    assert stop.waited[:6] == [2, 4, 8, 16, 30, 30]
    assert max(stop.waited) == 30
    assert "dispatcher.round_failed" in caplog.messages


@pytest.mark.django_db
def test_after_an_outage_the_pauses_are_short_again_and_the_heart_beats(monkeypatch, settings, tmp_path):
    settings.GOBII_DISPATCH_EVERY = "1s"
    away = OperationalError("away")
    rounds(monkeypatch, away, away, Round(), away)
    heartbeat = tmp_path / "heartbeat"
    stop = Stop(waits=2)
    email_dispatcher.run(stop, heartbeat)
    assert not heartbeat.exists()
    rounds(monkeypatch, away, away, Round(), away)
    stop = Stop(waits=4)
    email_dispatcher.run(stop, heartbeat)
    assert stop.waited == [2, 4, 1, 2]
    assert heartbeat.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_in_order_even_while_the_broker_is_away(tmp_path, number):
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
        "DATABASE_URL": f"sqlite:///{tmp_path}/queue.sqlite3",
        "GOBII_VAR": str(tmp_path),
        "REDIS_URL": "redis://127.0.0.1:1/0",
    }
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v0"], cwd=ROOT, env=environment, check=True)
    heartbeat = tmp_path / "heartbeat"
    process = subprocess.Popen(
        [*manage, "email_dispatcher", "--heartbeat-file", heartbeat],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 120
        while not heartbeat.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        _, log = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, log
    assert b"dispatcher.stopped" in log
