"""Log lines as they reach whoever collects them."""

import io
import json
import logging
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gobii_email.logs import FIELDS, BackgroundHandler, JsonFormatter
from gobii_email.testing.stack import ROOT, Stack

SECRET = "S3cret-Passw0rd"
# \0agent@sender.example\0S3cret-Passw0rd
BLOB = "AGFnZW50QHNlbmRlci5leGFtcGxlAFMzY3JldC1QYXNzdzByZA=="


def line(message: str, *, problem: BaseException | None = None, **extra: Any) -> dict[str, Any]:
    record = logging.LogRecord("gobii_email.test", logging.WARNING, "x.py", 1, message, None, None)
    record.exc_info = (type(problem), problem, problem.__traceback__) if problem else None
    record.__dict__.update(extra)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return json.loads(text)


def test_a_line_is_one_json_object_with_its_facts_as_fields() -> None:
    told = line("attempt.rescued", attempt_id="7f", is_marked=False, smtp_code=451)
    assert told.pop("ts").endswith("+00:00")
    assert told == {
        "level": "WARNING",
        "event": "attempt.rescued",
        "logger": "gobii_email.test",
        "attempt_id": "7f",
        "is_marked": False,
        "smtp_code": 451,
    }


def test_what_is_not_on_the_list_of_fields_is_not_written() -> None:
    told = line("x", subject="Private", password=SECRET, data={"args": [SECRET]})
    assert "Private" not in str(told) and SECRET not in str(told)


@pytest.mark.parametrize(
    "text",
    [
        f"AUTH PLAIN {BLOB}",
        f"send: 'AUTH LOGIN {SECRET}'",
        f"535 5.7.8 cannot decode {BLOB}",
        f"Authorization: Bearer {SECRET}",
        f"postgres://gobii:{SECRET}@db.example/mail is away",
        f"redis://:{SECRET}@127.0.0.1:6379/0",
        "ya29.a0AfB_by-S3cret-Passw0rd",
        "eyJhbGciOiJIUzI1NiJ9.eyJzIjoiUzNjcmV0LVBhc3N3MHJkIn0.S3cret-Passw0rd",
        f'{{"password": "{SECRET}"}}',
    ],
)
def test_what_looks_like_a_credential_is_masked_in_events_fields_and_exceptions(text: str) -> None:
    for told in (line(text), line("x", text=text), line("x", problem=ValueError(text))):
        shown = json.dumps(told)
        assert "********" in shown
        assert SECRET not in shown and BLOB not in shown and "eyJzIjo" not in shown


def test_an_ordinary_text_is_left_alone() -> None:
    text = "550 5.1.1 No such user; queued as 4Zx1Qb2Jm1z3K, id 0f8fad5b-d9cb-469f-a165-70867728950e"
    assert line("x", text=text)["text"] == text


def test_an_exception_is_told_by_type_and_place_without_variables() -> None:
    def fails() -> None:
        password = SECRET
        raise RuntimeError(f"no {len(password)}")

    try:
        fails()
    except RuntimeError as problem:
        told = line("x", problem=problem)
    assert told["exception"]["type"] == "RuntimeError"
    assert told["exception"]["trace"][-1].endswith(" fails")
    assert SECRET not in json.dumps(told)


# What is no id makes the database raise, with what was asked for in its text.
SEND_AND_CRASH = f"""
from gobii_email import api
from gobii_email.models import PersistentAgent, PersistentAgentCommsEndpoint
from worker import app
agent = PersistentAgent.objects.create(name="Ada")
sender = PersistentAgentCommsEndpoint.objects.create(owner_agent=agent, channel="email", address="a@s.org")
api.send_agent_email(from_endpoint=sender, to="to@rcpt.example", subject="Private", body="Private")
app.send_task("gobii_email.deliver", args=["Bearer {SECRET}"], queue="email.send")
"""


@pytest.fixture(scope="module")
def worker_lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What a worker says of a task that sends, and of one that crashes."""
    with Stack(tmp_path_factory.mktemp("logs")) as stack:
        worker = stack.start_worker()
        stack.python(SEND_AND_CRASH)
        worker.wait_for("succeeded")
        worker.wait_for("raised unexpected")
        worker.stop()
        return worker.output().splitlines()


def test_celerys_own_lines_are_json_too(worker_lines: list[str]) -> None:
    told = [json.loads(text) for text in worker_lines if text.startswith("{")]
    by_logger = {entry["logger"] for entry in told}
    assert {"gobii_email.worker", "celery.worker.strategy", "celery.app.trace"} <= by_logger
    done = next(entry for entry in told if "succeeded" in entry["event"])
    assert re.search(r"'[0-9a-f-]{36} → delivered'", done["event"])


def test_a_crashed_task_is_told_once_and_without_locals(worker_lines: list[str]) -> None:
    crashed = [json.loads(text) for text in worker_lines if "raised unexpected" in text]
    assert [entry["level"] for entry in crashed] == ["ERROR"]
    assert not any(text.startswith("Traceback") for text in worker_lines)
    assert not any(SECRET in text for text in worker_lines)


def test_a_worker_that_forks_refuses_a_database_pool(tmp_path: Path) -> None:
    env = {"DATABASE_URL": "postgres://nobody@127.0.0.1:1/none", "GOBII_DB_POOL": "4"}
    stack = Stack(tmp_path)
    stack.env = stack._environment() | env
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker",
        "worker",
        "-Q",
        "email.send",
        "--pool",
        "processes",
    ]
    process = stack.start_process("prefork", command)
    assert process._process.wait(120) != 0
    assert "start the worker with `--pool threads`" in process.output()


def logged() -> tuple[set[str], set[str]]:
    """The event names and the field names that the code's own logger calls use."""
    source = "\n".join(
        path.read_text() for room in ("gobii_email", "worker") for path in (ROOT / room).rglob("*.py")
    )
    calls = re.findall(r"logger\.\w+\(\s*\"([^\"]+)\"(.*?)\)\n", source, re.DOTALL)
    fields = {name for _, rest in calls for name in re.findall(r"\"(\w+)\":", rest)}
    return {event for event, _ in calls}, fields


def test_every_field_that_is_logged_is_on_the_list() -> None:
    _, fields = logged()
    assert "attempt_id" in fields
    assert fields <= set(FIELDS)


def test_every_event_that_is_logged_is_documented() -> None:
    events, _ = logged()
    document = (ROOT / "docs" / "telemetry.md").read_text()
    assert "smtp.send.failed" in events
    assert [event for event in sorted(events) if f"`{event}`" not in document] == []
    assert [event for event in events if not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", event)] == []


class Awaited(io.StringIO):
    """A stream that is slow until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write(self, text: str) -> int:
        self.may_write.wait(60)
        return super().write(text)


def test_nobody_waits_for_a_slow_stream_and_no_line_is_lost() -> None:
    stream = Awaited()
    handler = BackgroundHandler(stream)
    lines = [f"line {number}" for number in range(50)]
    for line in lines:
        handler.handle(logging.makeLogRecord({"msg": line}))
    assert stream.getvalue() == ""
    stream.may_write.set()
    handler.flush()
    assert stream.getvalue().splitlines() == lines


def test_a_stream_that_is_gone_ends_nothing() -> None:
    stream = io.StringIO()
    handler = BackgroundHandler(stream)
    stream.close()
    handler.handle(logging.makeLogRecord({"msg": "lost"}))
    handler.flush()


def test_a_process_that_ends_has_written_every_line() -> None:
    code = (
        "import logging, sys; from gobii_email.logs import BackgroundHandler as Handler\n"
        "logging.getLogger().addHandler(Handler(sys.stderr))\n"
        "for number in range(500): logging.warning('line %d', number)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines() == [f"line {number}" for number in range(500)]
