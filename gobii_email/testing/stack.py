"""The service as it runs in production: real processes on a private broker, database and directory.

`Stack` starts a Valkey, migrates, and starts workers and dispatchers as subprocesses whose output goes to
files. Each is ended by its own handle; nothing is ever found by its name.
"""

import base64
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import gobii_email
from gobii_email.testing.valkey import EmbeddedValkey

ROOT = Path(gobii_email.__file__).resolve().parent.parent
_READY_SECONDS = 180.0
_OURS = (
    "GOBII_",
    "BYO_EMAIL_",
    "OTEL_",
    "POSTMARK_",
    "GOOGLE_",
    "MICROSOFT_",
    "CELERY_",
    "DJANGO_",
    "SIMULATE_EMAIL",
    "LOG_LEVEL",
    "TEST_DATABASE_URL",
)

_CONNECT = """
import json, sys
from gobii_email.models import AgentEmailAccount, PersistentAgent, PersistentAgentCommsEndpoint
facts = json.load(sys.stdin)
agent = PersistentAgent.objects.create(name=facts["address"])
endpoint = PersistentAgentCommsEndpoint.objects.create(
    owner_agent=agent, channel="email", address=facts["address"]
)
settings = {
    "smtp_host": "localhost", "smtp_security": "starttls", "smtp_auth": "plain",
    "smtp_username": facts["address"],
}
account = AgentEmailAccount(endpoint=endpoint, smtp_port=facts["port"], **settings | facts["settings"])
if account.smtp_auth != "none":
    account.set_smtp_password(facts["password"])
account.smtp_tested_fingerprint = account.smtp_fingerprint()
account.is_outbound_enabled = True
account.save()
"""
_SEND = """
import json, sys
from gobii_email import api
print(json.dumps([str(api.send_agent_email(**mail).pk) for mail in json.load(sys.stdin)]))
"""
_STATUSES = """
import json, sys
from gobii_email.models import PersistentAgentMessage
ids = json.load(sys.stdin)
found = {str(row.pk): row.latest_status for row in PersistentAgentMessage.objects.filter(pk__in=ids)}
print(json.dumps([found.get(message_id) for message_id in ids]))
"""


class Process:
    """One subprocess and what it said; `log` is the file of its output and errors."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # A group of its own: its children end with it, and Ctrl-C reaches the owner alone.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9, children included: no goodbye, no cleaning up."""
        self._signal_group(signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, then its exit code; killed when it does not end in time."""
        if self.is_running:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def freeze(self) -> None:
        self._signal_group(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_group(signal.SIGCONT)

    def wait_for(self, text: str, *, seconds: float = _READY_SECONDS) -> None:
        """Returns once its log has `text`; raises with its last words when it ends or never says so."""
        deadline = time.monotonic() + seconds
        while text not in self.output():
            if not self.is_running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} never said {text!r}: {self.output()[-2000:]}")
            time.sleep(0.05)

    def _signal_group(self, number: signal.Signals) -> None:
        if self.is_running:
            os.killpg(self._process.pid, number)


class Stack:
    """Workers and dispatchers on a Valkey and a database of their own, under `directory`.

    Without `database_url` the database is a SQLite file. `env` is added to the environment of every
    process. `broker`, with `url`, `start` and `stop`, takes the Valkey's place. Use as a context manager,
    or `start()` and `stop()`.
    """

    def __init__(
        self,
        directory: Path,
        database_url: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        broker: Any = None,
    ) -> None:
        self.directory = Path(directory)
        self.valkey = broker or EmbeddedValkey()
        self.processes: list[Process] = []
        self._database_url = database_url or f"sqlite:///{self.directory / 'stack.sqlite3'}"
        self._given = dict(env or {})
        self.env: dict[str, str] = {}

    def start(self) -> Self:
        self.valkey.start()
        try:
            self.env = self._environment()
            migrated = self.manage("migrate", "--verbosity", "0")
            if migrated.returncode:
                raise RuntimeError(f"the database could not be made: {migrated.stderr[-3000:]}")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends everything it started, the newest first. May be called again."""
        while self.processes:
            process = self.processes.pop()
            process.thaw()
            process.stop()
        self.valkey.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start_worker(
        self,
        concurrency: int = 4,
        queues: str = "email.send",
        extra_env: Mapping[str, str] | None = None,
        *,
        options: tuple[str, ...] = (),
        wait: bool = True,
    ) -> Process:
        """A Celery worker on threads that is ready for tasks; without `wait`, one that will be."""
        name = f"worker{len(self.processes) + 1}"
        command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-Q", queues]
        command += ["--pool", "threads", "-c", str(concurrency), "-n", f"{name}@%h"]
        command += ["--without-gossip", "--without-mingle", "-l", "INFO", *options]
        process = self.start_process(name, command, extra_env)
        if wait:
            process.wait_for("worker.ready")
        return process

    def start_dispatcher(self, extra_env: Mapping[str, str] | None = None) -> Process:
        command = [sys.executable, "manage.py", "email_dispatcher"]
        return self.start_process(f"dispatcher{len(self.processes) + 1}", command, extra_env)

    def start_process(
        self, name: str, command: list[str], extra_env: Mapping[str, str] | None = None
    ) -> Process:
        """Any other command, in the stack's environment, from the root of the repository."""
        log = self.directory / f"{name}.log"
        process = Process(name, command, self.env | dict(extra_env or {}), log)
        self.processes.append(process)
        return process

    def manage(self, *arguments: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        """`manage.py` with `arguments`, to its end."""
        return self._run([sys.executable, "manage.py", *arguments], input)

    def python(self, code: str, *, input: str | None = None) -> str:
        """What `code` prints, run with Django set up; raises with its errors when it fails."""
        result = self._run([sys.executable, "-c", f"import django; django.setup()\n{code}"], input)
        if result.returncode:
            raise RuntimeError(result.stderr[-3000:])
        return result.stdout

    def connect(self, address: str, port: int, password: str, **settings: str) -> None:
        """An agent of `address` with a mailbox at localhost's `port`, tested and enabled.

        `settings` are `smtp_host`, `smtp_security`, `smtp_auth`, `smtp_username`; by default
        STARTTLS and PLAIN, with the address as user name.
        """
        facts = {"address": address, "port": port, "password": password, "settings": settings}
        self.python(_CONNECT, input=json.dumps(facts))

    def send(self, *mails: Mapping[str, object]) -> list[str]:
        """Queues each of `mails` (arguments of `send_agent_email`); their message ids."""
        ids: list[str] = json.loads(self.python(_SEND, input=json.dumps(mails)))
        return ids

    def statuses(self, message_ids: Sequence[str]) -> list[str]:
        """The messages' present statuses, in order."""
        found: list[str] = json.loads(self.python(_STATUSES, input=json.dumps(message_ids)))
        return found

    def _run(self, command: list[str], text: str | None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=ROOT, env=self.env, input=text, capture_output=True, text=True, check=False
        )

    def _environment(self) -> dict[str, str]:
        """The caller's environment without the service's own variables, which would leak in."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        scripts = str(Path(sys.executable).parent)
        return inherited | {
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "REDIS_URL": self.valkey.url,
            "DATABASE_URL": self._database_url,
            "GOBII_VAR": str(self.directory / "var"),
            "GOBII_ENCRYPTION_KEY": f"stack:{base64.b64encode(secrets.token_bytes(32)).decode()}",
            "SECRET_KEY": secrets.token_urlsafe(32),
            "BYO_EMAIL_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            **self._given,
        }


def eventually(probe: Callable[[], Any], *, seconds: float = 60, every: float = 0.05) -> Any:
    """The first truthy answer of `probe`; raises TimeoutError with the last one when none comes."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came true; the last answer was {answer!r}")
        time.sleep(every)
    return answer
