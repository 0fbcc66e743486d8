"""Many workers on one database: each mail goes out once, and nobody meets a lock."""

import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.queue import Claim, Work, claim
from gobii_email.testing.processes import free_port
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.valkey import EmbeddedValkey
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db(transaction=True)

PROCESSES, THREADS, MAILS = 2, 4, 60
ROOT = Path(__file__).resolve().parents[2]

# What a worker's thread does, at its worst: it asks for every mail, whoever may have it already.
WORKER = f"""
import django; django.setup()
import random, sys, threading
from django.db import connection
from gobii_email.models import OutboundMessageAttempt
from gobii_email.services import turn
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import dispatch_round

turn.AT_ONCE = 3  # so that no process can claim everything before the other has begun
failures = []
print("ready", flush=True)
input()

def work(name):
    try:
        while True:
            attempts = OutboundMessageAttempt.objects
            waiting = attempts.filter(status="queued")
            ids = [str(pk) for pk in waiting.values_list("pk", flat=True)]
            is_busy = ids or attempts.filter(status="sending").exists()
            if not is_busy and attempts.count() >= {MAILS}:
                return
            dispatch_round()
            for attempt_id in random.sample(ids, len(ids)):
                deliver(attempt_id, owner=name)
    except BaseException as problem:
        failures.append(repr(problem))
        raise
    finally:
        connection.close()

names = [f"{{sys.argv[1]}}-{{number}}" for number in range({THREADS})]
threads = [threading.Thread(target=work, args=(name,)) for name in names]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.exit("; ".join(failures) or 0)
"""


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    """No test here rings a real broker."""


def send(number: int) -> PersistentAgentMessage:
    return api.send_agent_email(
        from_endpoint="agent@sender.example",
        to=f"to{number}@rcpt.example",
        subject=f"Mail {number}",
        body="Good morning",
    )


def database_url() -> str:
    """The database of the tests, for another process."""
    facts = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{facts['NAME']}"
    return f"postgres://{facts['USER']}:{facts['PASSWORD']}@{facts['HOST']}:{facts['PORT']}/{facts['NAME']}"


def worker_process(name: str, port: int, redis_url: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "TEST_DATABASE_URL"}
    environment |= {
        "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
        "DATABASE_URL": database_url(),
        "PYTHONPATH": str(ROOT),
        "BYO_EMAIL_ALLOWED_PORTS": str(port),
        "REDIS_URL": redis_url,
        "CELERY_BROKER_URL": f"redis://127.0.0.1:{free_port()}/0",
        "LOG_LEVEL": "WARNING",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, name],
        env=environment,
        cwd=ROOT,
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_together(workers: list["subprocess.Popen[str]"]) -> None:
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()


def test_several_processes_and_threads_send_each_mail_once_and_meet_no_lock(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    for number in range(MAILS // 2):
        send(number)
    # So slow that one turn cannot have done everything before the others have begun theirs.
    smtp_server.faults.delays["MAIL"] = timedelta(milliseconds=20)
    with EmbeddedValkey() as counters:
        names = [f"worker-{number}" for number in range(PROCESSES)]
        workers = [worker_process(name, smtp_server.port, counters.url) for name in names]
        try:
            start_together(workers)
            for number in range(MAILS // 2, MAILS):
                send(number)
            outputs = [worker.communicate(timeout=300)[0] for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert "locked" not in output and "Traceback" not in output, output[-3000:]
        assert worker.returncode == 0, output[-3000:]
    received = Counter(kept.recipients for kept in smtp_server.messages)
    assert received == {(f"to{number}@rcpt.example",): 1 for number in range(MAILS)}
    assert set(PersistentAgentMessage.objects.values_list("latest_status", flat=True)) == {"sent"}
    assert OutboundMessageAttempt.objects.count() == MAILS
    assert OutboundMessageEvent.objects.filter(event="sent").count() == MAILS
    owners = set(OutboundMessageAttempt.objects.values_list("lease_owner", flat=True))
    assert {owner.rpartition("-")[0] for owner in owners} == {"worker-0", "worker-1"}, "both took part"


def test_of_many_who_claim_one_attempt_one_gets_it(endpoint: PersistentAgentCommsEndpoint) -> None:
    attempt_id = send(1).attempts.get().pk
    now = timezone.now()
    barrier = threading.Barrier(8)
    answers: list[tuple[str, Any]] = []

    def work(name: str) -> None:
        barrier.wait()
        try:
            answers.append((name, claim(Claim(endpoint.pk, 10, name, now, now + timedelta(minutes=1)))))
        except Exception as problem:
            answers.append((name, problem))
        finally:
            connection.close()

    threads = [threading.Thread(target=work, args=(f"worker-{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    ((winner, (taken,)),) = [answer for answer in answers if answer[1] != []]
    assert isinstance(taken, Work) and taken.id == attempt_id
    held = OutboundMessageAttempt.objects.get(pk=attempt_id)
    assert (held.lease_token, held.lease_owner) == (taken.token, winner)
