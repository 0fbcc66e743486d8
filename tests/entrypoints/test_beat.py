"""Beat as a process: it shows that it ticks, and two of them do no more than one."""

import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gobii_email.testing.stack import Process, Stack, eventually

HURRIED = """
from worker.celery import app
app.conf.beat_schedule = {name: row | {"schedule": 0.5} for name, row in app.conf.beat_schedule.items()}
app.start(["beat", "-l", "INFO", "-s", "SCHEDULE"])
"""
"""What beat asks for every half minute and every hour, every half second."""

OLD_MAIL = """
from datetime import timedelta
from django.utils import timezone
from gobii_email.models import PersistentAgentMessage
rows = [PersistentAgentMessage(is_outbound=False, body="Hi") for _ in range(1500)]
PersistentAgentMessage.objects.bulk_create(rows)
PersistentAgentMessage.objects.update(timestamp=timezone.now() - timedelta(days=40))
"""
HOW_MANY = "from gobii_email.models import PersistentAgentMessage as M; print(M.objects.count())"
LAST_TICK = "from gobii_email.services import attend; print(len(attend.ticks()))"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    env = {"GOBII_KEEP_MESSAGES": "30d", "GOBII_HEARTBEAT_FILE": ""}
    with Stack(tmp_path, env=env) as made:
        yield made


def start_beat(stack: Stack, name: str, **env: str) -> Process:
    code = HURRIED.replace("SCHEDULE", str(stack.directory / f"{name}-schedule"))
    return stack.start_process(name, [sys.executable, "-c", code], env)


def test_what_two_beats_ask_for_is_done_once(stack: Stack) -> None:
    stack.python(OLD_MAIL)
    beats = [start_beat(stack, name) for name in ("beat1", "beat2")]
    for beat in beats:
        beat.wait_for("(gobii_email.prune)")
    worker = stack.start_worker(queues="email.control")
    eventually(lambda: stack.python(HOW_MANY).strip() == "0", seconds=60, every=0.5)
    before = [beat.output().count("(gobii_email.prune)") for beat in beats]
    for beat, count in zip(beats, before, strict=True):
        eventually(lambda beat=beat, count=count: beat.output().count("(gobii_email.prune)") > count + 2)
    assert [process.stop() for process in (*beats, worker)] == [0, 0, 0]
    rounds = worker.output().count("Task gobii_email.prune[")
    deleted = [int(count) for count in re.findall(r'"text": "messages (\d+), ', worker.output())]
    assert rounds > 4 and sum(deleted) == 1500, (rounds, deleted)
    assert stack.python(LAST_TICK).strip() == "1", "the ticks of both, by the worker that took them up"
    for process in (*beats, worker):
        assert "Traceback" not in process.output() and "task.failed" not in process.output()


def test_beat_shows_that_it_ticks_also_when_its_broker_goes(stack: Stack, tmp_path: Path) -> None:
    heartbeat = tmp_path / "alive"
    beat = start_beat(stack, "beat", GOBII_HEARTBEAT_FILE=str(heartbeat))
    beat.wait_for("Sending due task")
    stack.valkey.stop()
    beat.wait_for("Couldn't apply scheduled task")
    assert is_touched(heartbeat, within=30)


def test_a_beat_that_waits_for_its_broker_does_not_tick(stack: Stack, tmp_path: Path) -> None:
    stack.valkey.stop()
    heartbeat = tmp_path / "alive"
    beat = start_beat(stack, "beat", GOBII_HEARTBEAT_FILE=str(heartbeat))
    beat.wait_for("beat: Connection error")
    assert heartbeat.exists(), "until something was due it ticked"
    assert not is_touched(heartbeat, within=3)
    assert beat.is_running


def is_touched(path: Path, *, within: float) -> bool:
    os.utime(path, (1, 1))
    end = time.monotonic() + within
    while time.monotonic() < end:
        if path.stat().st_mtime > 1:
            return True
        time.sleep(0.05)
    return False
