"""Flower as it is started in production, over a real worker on a real Valkey."""

import base64
import json
import re
import runpy
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gobii_email.conf import config
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import free_port
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import ROOT, Process, Stack, eventually

LOGIN = "operator:only-for-this-test"
SECRET = "mailbox-S3cret"
CONTROL = [
    "/api/worker/shutdown/{worker}",
    "/api/worker/pool/shrink/{worker}",
    "/api/worker/queue/cancel-consumer/{worker}",
    "/api/task/apply/gobii_email.deliver",
    "/api/task/async-apply/gobii_email.deliver",
    "/api/task/send-task/gobii_email.deliver",
    "/api/task/revoke/{task}",
    "/api/task/abort/{task}",
    "/api/task/rate-limit/gobii_email.deliver",
]


class Client:
    def __init__(self, port: int) -> None:
        self.base = f"http://127.0.0.1:{port}"

    def ask(self, path: str, *, login: str | None = LOGIN, method: str = "GET") -> tuple[int, str]:
        """The status and the body of the answer; 0 when nobody answers."""
        request = urllib.request.Request(
            self.base + path, method=method, data=b"" if method == "POST" else None
        )
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as problem:
            return problem.code, problem.read().decode()
        except OSError:
            return 0, ""

    def tasks(self) -> dict[str, Any]:
        status, body = self.ask("/api/tasks")
        return json.loads(body) if status == 200 else {}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("flower")
    authority = ThrowAwayAuthority(directory)
    users = {"agent@sender.example": SECRET}
    with ScriptedSmtpServer(tls=authority.good(), users=users) as server:
        server.faults.always["nobody@rcpt.example"] = "550 5.1.1 No such user"
        env = {
            "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
            "SSL_CERT_FILE": str(authority.ca_file),
            "GOBII_FLOWER_AUTH": LOGIN,
            # Whoever sets this by mistake must not open anything.
            "FLOWER_UNAUTHENTICATED_API": "true",
        }
        with Stack(directory, env=env) as started:
            started.start_worker()
            started.connect("agent@sender.example", server.port, SECRET)
            yield started


def start_flower(stack: Stack, name: str, env: dict[str, str]) -> tuple[Process, Client]:
    port = free_port()
    command = [sys.executable, "-m", "celery", "-A", "worker", "flower", f"--port={port}"]
    process = stack.start_process(name, command, env)
    client = Client(port)
    eventually(lambda: client.ask("/healthcheck")[0] == 200, seconds=120)
    return process, client


@pytest.fixture(scope="module")
def client(stack: Stack) -> Client:
    _, client = start_flower(stack, "flower", {})
    # Flower has seen the worker's heartbeat, so it hears its events.
    eventually(lambda: "worker1@" in client.ask("/workers?json=1")[1], seconds=120)
    return client


@pytest.fixture(scope="module")
def tasks(stack: Stack, client: Client) -> list[dict[str, Any]]:
    """A mail that is sent, then one that is refused, each in its own turn, as /api/tasks tells them."""
    mail = {"from_endpoint": "agent@sender.example", "subject": "Private subject", "body": "Private body"}

    def finished(count: int) -> list[dict[str, Any]]:
        found = [task for task in client.tasks().values() if task["state"] == "SUCCESS"]
        return found if len(found) == count else []

    stack.send(mail | {"to": "to@rcpt.example"})
    eventually(lambda: finished(1), seconds=120)
    stack.send(mail | {"to": "nobody@rcpt.example"})
    return eventually(lambda: finished(2), seconds=120)


def test_real_sends_are_shown_by_name_with_their_outcome(tasks: list[dict[str, Any]]) -> None:
    assert {task["name"] for task in tasks} == {"gobii_email.deliver"}
    outcomes = sorted(task["result"].strip("'").partition(" → ")[2] for task in tasks)
    assert outcomes == ["failed", "sent"]


def test_a_task_shows_ids_only(tasks: list[dict[str, Any]]) -> None:
    for task in tasks:
        assert re.fullmatch(r"[(\[]'[0-9a-f-]{36}',?[)\]]", task["args"]), task["args"]
        assert re.fullmatch(r"\{('lane': '[0-9a-f-]{36}')?\}", task["kwargs"]), task["kwargs"]
        assert task["exception"] is None
    shown = json.dumps(tasks, ensure_ascii=False)
    for private in ("Private", "sender.example", "rcpt.example", SECRET):
        assert private not in shown


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("path", ["/", "/tasks", "/workers", "/broker", "/api/tasks", "/api/workers"])
@pytest.mark.parametrize("login", [None, "operator:wrong", "stranger:only-for-this-test"])
def test_nobody_sees_anything_without_the_login(client: Client, path: str, login: str | None) -> None:
    status, body = client.ask(path, login=login)
    assert status == 401
    assert "gobii_email.deliver" not in body
    assert client.ask(path)[0] == 200


@pytest.mark.parametrize("path", CONTROL)
def test_nothing_can_be_done_even_with_the_login(
    client: Client, stack: Stack, tasks: list[dict[str, Any]], path: str
) -> None:
    path = path.format(worker=tasks[0]["worker"], task=tasks[0]["uuid"])
    assert client.ask(path, login=None, method="POST")[0] == 401
    assert client.ask(path, method="POST")[0] == 403
    assert stack.processes[0].is_running


def test_it_listens_on_the_loopback_address_alone(client: Client, stack: Stack) -> None:
    port = int(client.base.rpartition(":")[2])
    table = Path("/proc/net/tcp")
    if not table.exists():
        pytest.skip("this system does not list its sockets under /proc")
    listening = [line.split()[1] for line in table.read_text().splitlines()[1:]]
    assert [address for address in listening if address.endswith(f":{port:04X}")] != []
    assert f"00000000:{port:04X}" not in listening


def test_without_a_login_of_ours_it_makes_one_and_keeps_it_for_its_owner(stack: Stack) -> None:
    process, client = start_flower(stack, "flower-alone", {"GOBII_FLOWER_AUTH": ""})
    path = stack.directory / "var" / "flower_login"
    assert client.ask("/api/workers", login=LOGIN)[0] == 401
    assert client.ask("/api/workers", login=path.read_text())[0] == 200
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_text() not in process.output()
    process.stop()


def test_task_events_can_be_opted_out_of(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = stack.start_worker(queues="email.inbound", extra_env={"GOBII_TASK_EVENTS": "0"})
    assert '"task_events": false' in worker.output()
    monkeypatch.setenv("GOBII_TASK_EVENTS", "0")
    monkeypatch.setenv("GOBII_FLOWER_AUTH", LOGIN)
    config.cache_clear()
    assert runpy.run_path(str(ROOT / "flowerconfig.py"))["enable_events"] is False, (
        "Flower must not switch them on"
    )
