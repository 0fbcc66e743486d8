"""`run_imap_idlers` as a process: it hears of mail, shares the mailboxes, dies and ends as it should."""

import itertools
import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from gobii_email.management.commands import run_imap_idlers
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.processes import ServerUnavailable, free_port
from gobii_email.testing.stack import Process, Stack, eventually

PASSWORD = "S3cret"
_numbers = itertools.count()
soon = partial(eventually, seconds=180)

_CONNECT = """
import json, sys
from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgent, PersistentAgentCommsEndpoint
facts = json.load(sys.stdin)
AgentEmailAccount.objects.all().delete()
for address in facts["addresses"]:
    agent = PersistentAgent.objects.create(name=address)
    endpoint, _ = PersistentAgentCommsEndpoint.objects.get_or_create(
        channel="email", address=address, defaults={"owner_agent": agent}
    )
    account = AgentEmailAccount(
        endpoint=endpoint, imap_host="localhost", imap_port=facts["port"], imap_username=address,
        last_seen_uid=facts["seen"], imap_idle_enabled=True, is_inbound_enabled=True, poll_interval_sec=86400,
    )
    account.set_imap_password(facts["password"])
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.save()
    Mailbox.objects.create(account=account)
"""


_WAIT_FOR = """
from gobii_email.models import Mailbox, ReceivedMail
from gobii_email.testing.stack import eventually
eventually(lambda: {}, seconds=180)
"""


class Installation:
    """A stack, and the mailboxes that it has on the server at `port`, and no others."""

    def __init__(self, stack: Stack, authority: ThrowAwayAuthority, port: int) -> None:
        self.stack = stack
        self._port = port
        self.env = {
            "SSL_CERT_FILE": str(authority.ca_file),
            "BYO_EMAIL_ALLOWED_PORTS": str(port),
            "IMAP_IDLE_SCAN_INTERVAL_SEC": "200ms",
            "IMAP_IDLE_LEASE_TTL_SEC": "6s",
            "IMAP_IDLE_DEBOUNCE_SEC": "300ms",
        }

    def connect(self, *addresses: str, seen: str = "v:1795292296:0") -> None:
        facts = {"addresses": addresses, "port": self._port, "password": PASSWORD, "seen": seen}
        self.stack.python(_CONNECT, input=json.dumps(facts))

    def start(self, *arguments: str, **env: str) -> Process:
        command = ["python", "manage.py", "run_imap_idlers", *arguments]
        process = self.stack.start_process(f"idlers{next(_numbers)}", command, self.env | env)
        process.wait_for("idle.started")
        return process

    @property
    def polls(self) -> int:
        """Polls that workers have been rung for, and there is none."""
        with redis.Redis.from_url(self.stack.valkey.url) as client:
            return int(client.llen("email.inbound"))


BOXES = [f"box{number}@mail.example" for number in range(6)]


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users=dict.fromkeys(BOXES, PASSWORD)) as made:
        yield made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("idlers")) as made:
        yield made


@pytest.fixture
def installation(
    stack: Stack, authority: ThrowAwayAuthority, server: ScriptedImapServer
) -> Iterator[Installation]:
    yield Installation(stack, authority, server.port)
    for process in stack.processes:
        process.kill()
    stack.processes.clear()


def test_two_processes_share_the_mailboxes_and_one_that_is_killed_is_followed(
    installation: Installation, server: ScriptedImapServer, tmp_path: Path
) -> None:
    installation.connect(*BOXES)
    before = installation.polls
    heartbeat = tmp_path / "heartbeat"
    one = installation.start("--heartbeat-file", str(heartbeat), IMAP_IDLE_MAX_CONNECTIONS="4")
    soon(lambda: server.waiting == 4)
    assert heartbeat.exists()
    row = doctor_s_row(installation.stack)
    assert row["status"] == "warn" and row["text"].endswith("6; waiting for a watcher: 2")
    two = installation.start()
    soon(lambda: server.waiting == 6)
    row = doctor_s_row(installation.stack)
    assert row["status"] == "ok" and f":{one.pid}" in row["text"] and f":{two.pid}" in row["text"]
    one.kill()
    soon(lambda: server.connections == 10 and server.waiting == 6)
    server.deliver(b"hello")
    soon(lambda: installation.polls == before + 6)
    assert two.stop() == 0
    soon(lambda: server.heard.count(b"DONE\r\nBYE LOGOUT\r\n") == 6)
    assert "idle.stopped" in two.output() and "Traceback" not in one.output() + two.output()
    with redis.Redis.from_url(installation.stack.valkey.url) as client:
        assert not client.keys("gobii:lease:*")


def doctor_s_row(stack: Stack) -> Any:
    rows = json.loads(stack.manage("email_doctor", "--json").stdout)["checks"]
    return next(row for row in rows if row["name"] == "watchers")


def test_it_shows_what_it_counted(server: ScriptedImapServer, installation: Installation) -> None:
    server.users[BOXES[0]] = "another"
    installation.connect(BOXES[0])
    port = free_port()
    installation.start(GOBII_METRICS_PORT=str(port))
    refused = r'^gobii_email_imap_failures_total\{.*purpose="idle".*\} 1\.0$'
    soon(lambda: re.search(refused, shown_at(port), re.MULTILINE))


def shown_at(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


def test_a_signal_ends_it_within_seconds_also_while_a_server_lets_it_wait(
    server: ScriptedImapServer, installation: Installation
) -> None:
    server.faults.answers["LOGIN"] = b""
    installation.connect(BOXES[0])
    process = installation.start()
    soon(lambda: b"LOGIN" in server.heard)
    os.kill(process.pid, signal.SIGINT)
    eventually(lambda: not process.is_running, seconds=20)  # the login would be waited for longer
    assert process.exit_code == 0 and "idle.stopped" in process.output(), process.output()


def test_a_real_server_tells_of_mail_and_a_worker_reads_it_long_before_it_is_due(
    stack: Stack, authority: ThrowAwayAuthority
) -> None:
    try:
        dovecot = RealDovecot(authority.good_certificate(), {BOXES[0]: PASSWORD})
    except ServerUnavailable as problem:
        pytest.skip(f"REAL DOVECOT IS NOT TESTED HERE: {problem}")
    with dovecot:
        installation = Installation(stack, authority, dovecot.ports["implicit"])
        installation.connect(BOXES[0], seen="")
        before = installation.polls
        process = installation.start()
        soon(lambda: installation.polls == before + 1)  # it has never been read
        for number in range(2, 5):
            dovecot.put(BOXES[0], b"From: anna@example.org\r\nSubject: Tea?\r\n\r\nAt five?\r\n")
            soon(lambda number=number: installation.polls >= before + number)
        stack.start_worker(queues="email.inbound", extra_env=installation.env)
        stack.python(_WAIT_FOR.format("Mailbox.objects.get().baseline_at"))
        dovecot.put(BOXES[0], b"From: anna@example.org\r\nSubject: Tea?\r\n\r\nAt six?\r\n")
        stack.python(_WAIT_FOR.format("ReceivedMail.objects.exists()"))
        assert process.stop() == 0
        soon(lambda: "Logged out" in dovecot.log)


def test_it_lets_itself_open_as_many_files_as_it_needs_and_no_more_than_it_may(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [(256, 100_000)]
    monkeypatch.setattr(run_imap_idlers.resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(run_imap_idlers.resource, "setrlimit", lambda _, made: limits.append(made))
    settings.IMAP_IDLE_MAX_CONNECTIONS = 5000
    assert run_imap_idlers.allow_files() == 5256 and limits[-1] == (5256, 100_000)
    limits.append((256, 1024))
    assert run_imap_idlers.allow_files() == 1024
    limits.append((256, -1))
    assert run_imap_idlers.allow_files() == 5256
    limits.append((-1, -1))
    assert run_imap_idlers.allow_files() == 5256 and limits[-1] == (-1, -1)
