"""One key, one message: for callers in other processes, and when a caller dies in the middle."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from gobii_email import api
from gobii_email.models import (
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services.submit import Options
from gobii_email.services.write import NewMail, write
from gobii_email.testing.processes import free_port
from tests.conftest import RecordingDoorbell
from tests.services.test_concurrency import database_url

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).resolve().parents[2]
KEYS = [f"order-{number}" for number in range(20)]

# Sends the same keys as every other caller, at the same moment; then says which messages they stand for.
CALLER = """
import django; django.setup()
import json, sys
from django.db import connection
from gobii_email import api
subject, keys = sys.argv[1], json.loads(sys.argv[2])
connection.ensure_connection()
print("ready", flush=True)
input()
answers = []
for key in keys:
    try:
        message = api.send_agent_email(
            from_endpoint="agent@sender.example", to="to@rcpt.example", subject=subject, body="Hello",
            idempotency_key=key,
        )
        answers.append(str(message.pk))
    except api.IdempotencyConflict:
        answers.append("conflict")
print(json.dumps(answers), flush=True)
"""

# Dies as kill -9 would, after everything was written and before it is committed.
DYING = """
import django; django.setup()
import os
from django.db import transaction
from gobii_email import api
with transaction.atomic():
    api.send_agent_email(
        from_endpoint="agent@sender.example", to="to@rcpt.example", subject="Hello", body="Hello",
        idempotency_key="order-7",
    )
    print("written", flush=True)
    os._exit(9)
"""


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    """No test here rings a real broker."""


def process(script: str, *arguments: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TEST_DATABASE_URL"}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
        "DATABASE_URL": database_url(),
        "PYTHONPATH": str(ROOT),
        "CELERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
        "LOG_LEVEL": "ERROR",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answers_of(*subjects: str) -> list[list[str]]:
    """What processes get that send all keys at the same time, each with a subject of its own."""
    callers = [process(CALLER, subject, json.dumps(KEYS)) for subject in subjects]
    try:
        for caller in callers:
            assert caller.stdout is not None
            assert caller.stdout.readline() == "ready\n"
        for caller in callers:
            assert caller.stdin is not None
            caller.stdin.write("go\n")
            caller.stdin.flush()
        outputs = [caller.communicate(timeout=300)[0] for caller in callers]
    finally:
        for caller in callers:
            caller.kill()
    assert all(caller.returncode == 0 for caller in callers), outputs
    return [json.loads(output) for output in outputs]


def test_processes_with_the_same_keys_and_content_get_the_same_messages(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    first, second = answers_of("Hello", "Hello")
    assert first == second
    assert len(set(first)) == len(KEYS)
    assert PersistentAgentMessage.objects.count() == OutboundMessageAttempt.objects.count() == len(KEYS)


def test_of_processes_with_the_same_keys_and_other_content_one_is_refused(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    pairs = list(zip(*answers_of("Hello", "Bye"), strict=True))
    assert [pair.count("conflict") for pair in pairs] == [1] * len(KEYS)
    assert PersistentAgentMessage.objects.count() == OutboundMessageAttempt.objects.count() == len(KEYS)


def test_a_caller_that_dies_in_the_middle_leaves_its_key_free(endpoint: PersistentAgentCommsEndpoint) -> None:
    dying = process(DYING)
    output, _ = dying.communicate(timeout=300)
    assert (output, dying.returncode) == ("written\n", 9)
    assert not PersistentAgentMessage.objects.exists()
    message = api.send_agent_email(
        from_endpoint=endpoint, to="to@rcpt.example", subject="Other", body="Hi", idempotency_key="order-7"
    )
    assert message.attempts.get().status == "queued"


def test_many_keys_are_looked_up_in_one_statement(
    endpoint: PersistentAgentCommsEndpoint, django_assert_max_num_queries: Any
) -> None:
    mails = [
        NewMail(endpoint, "to@rcpt.example", "Hello", "Hello", options=Options(idempotency_key=key))
        for key in KEYS
    ]
    first = write(mails[:10])
    with django_assert_max_num_queries(14):
        every = write(mails)
    assert [message.pk for message in every[:10]] == [message.pk for message in first]
    assert len({message.pk for message in every}) == len(KEYS)
    assert connection.in_atomic_block is False
