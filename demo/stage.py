"""The machinery of the demonstration: broker, database, submission server, workers, dispatcher, web.

Everything it starts it stops, by its own handle. What is sent over it, and whether that went well, is
left to scenes and show.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import redis

from demo.interruption import Interruption
from gobii_email.encryption import new_key
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.processes import free_port
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import ROOT, Process, Stack

if TYPE_CHECKING:
    from django.contrib.auth.models import User

WORKERS = 2
MAIL_USER = "ada"


class DemoFailed(Exception):
    """The demonstration cannot go on: one sentence with the remedy."""


@dataclass(frozen=True, slots=True)
class Door:
    """A page that people can open."""

    name: str
    url: str
    user: str
    password: str


class OtherBroker:
    """The broker at REDIS_URL, which somebody else runs: looked at, never started or stopped."""

    def __init__(self, url: str) -> None:
        self.url = url

    def start(self) -> None:
        """Raises DemoFailed when nobody answers there."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=3, socket_connect_timeout=3) as client:
                client.ping()
        except (redis.RedisError, ValueError):
            raise DemoFailed(
                f"No broker answers at REDIS_URL ({_place(self.url)}): start it,"
                " or unset REDIS_URL to use one of the demonstration's own."
            ) from None

    def stop(self) -> None: ...


class OwnStack(Stack):
    """A stack at REDIS_URL and DATABASE_URL where they are set, its processes never started halfway."""

    def __init__(self, directory: Path, interruption: Interruption, env: dict[str, str]) -> None:
        redis_url = os.environ.get("REDIS_URL")
        broker = OtherBroker(redis_url) if redis_url else None
        super().__init__(directory, os.environ.get("DATABASE_URL"), env, broker=broker)
        self._interruption = interruption

    def start_process(
        self, name: str, command: list[str], extra_env: Mapping[str, str] | None = None
    ) -> Process:
        with self._interruption.held():
            return super().start_process(name, command, extra_env)


class Stage:
    """`start()`, then `stop()` in any case. `suffix` tells this run from others on the same database."""

    def __init__(self, interruption: Interruption) -> None:
        home = Path(os.environ.get("GOBII_VAR") or ROOT / "var").resolve() / "demo"
        home.mkdir(parents=True, exist_ok=True)
        self.directory = Path(tempfile.mkdtemp(prefix="run-", dir=home))
        self.suffix = secrets.token_hex(3)
        self.mail_password = secrets.token_urlsafe(16)
        self._web_password = secrets.token_urlsafe(12)
        self._interruption = interruption
        authority = ThrowAwayAuthority(self.directory)
        self.server = ScriptedSmtpServer(tls=authority.good(), users={MAIL_USER: self.mail_password})
        self.server.start()
        try:
            self.stack = OwnStack(self.directory, interruption, _settings(home, authority, self.server.port))
        except BaseException:
            self.server.stop()
            raise
        self.admin: Process | None = None
        self.flower: Process | None = None
        self.killed: list[Process] = []
        self._flower_port = 0
        self._administrator: User | None = None

    @property
    def shown_directory(self) -> str:
        """Where the logs are, as short as it can be said."""
        with suppress(ValueError):
            return str(self.directory.relative_to(ROOT))
        return str(self.directory)

    @property
    def broker(self) -> str:
        """Where the broker is, without what it takes to sign in."""
        return _place(self.stack.env["REDIS_URL"])

    def start(self, *, has_flower: bool) -> None:
        """Returns when workers are ready. Raises DemoFailed."""
        try:
            with self._interruption.held():
                self.stack.start()
        except subprocess.CalledProcessError as problem:
            raise DemoFailed(f"The database could not be prepared: {_last_line(problem)}") from None
        self.stack.start_dispatcher()
        self.admin = self.stack.start_process("web", _web_command())
        if has_flower:
            self._start_flower()
        for _ in range(WORKERS):
            self.start_worker()

    def enter(self) -> None:
        """Sets up Django in this process as in all the others, its logs quiet."""
        os.environ.clear()
        os.environ.update(self.stack.env, LOG_LEVEL="ERROR")
        import django

        django.setup()

    def start_worker(self) -> Process:
        return self.stack.start_worker(concurrency=4)

    def kill_worker(self, owner: str) -> Process:
        """kill -9 of the worker that holds a lease as `owner`, such as "worker2@host"."""
        name = owner.partition("@")[0]
        process = next(found for found in self.stack.processes if found.name == name)
        self.killed.append(process)
        process.kill()
        return process

    def manage(self, *arguments: str, text: str | None = None) -> str:
        """What a command prints. Raises DemoFailed with its own sentence when it fails."""
        done = self.stack.manage(*arguments, input=text)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["it says nothing"]
            raise DemoFailed(f"`manage.py {' '.join(arguments)}` failed: {said[-1]}")
        return done.stdout

    @property
    def mail_server(self) -> str:
        return f"server {self.server.host}, port {self.server.port}"

    def open_doors(self) -> list[Door]:
        """The pages, once they listen. Makes the administrator, who goes when the stage does."""
        from django.contrib.auth import get_user_model

        user = f"demo-{self.suffix}"
        self._administrator = get_user_model().objects.create_superuser(user, password=self._web_password)
        url = self._admin_url()
        doors = [
            Door("console", f"{url}/console/", user, self._web_password),
            Door("admin", f"{url}/admin/", user, self._web_password),
        ]
        if self.flower is not None:
            self.flower.wait_for("Visit me at")
            doors.append(Door("Flower", f"http://127.0.0.1:{self._flower_port}/", "demo", self._web_password))
        return doors

    def ended(self) -> list[Process]:
        """The processes that are no longer there, though nobody stopped them."""
        return [found for found in self.stack.processes if not found.is_running and found not in self.killed]

    def stop(self, *, keeps_logs: bool) -> None:
        """Ends everything, all at once and then one by one."""
        for process in self.stack.processes:
            if process.is_running:
                os.kill(process.pid, signal.SIGTERM)
        self.stack.stop()
        self.server.stop()
        self._remove_administrator()
        if not keeps_logs or not any(self.directory.glob("*.log")):
            shutil.rmtree(self.directory, ignore_errors=True)

    def _remove_administrator(self) -> None:
        from django.db import DatabaseError

        if self._administrator is not None:
            with suppress(DatabaseError):
                self._administrator.delete()

    def _admin_url(self) -> str:
        assert self.admin is not None
        self.admin.wait_for("Listening at: ")
        found = re.search(r"Listening at: (http://\S+)", self.admin.output())
        assert found is not None
        return found.group(1)

    def _start_flower(self) -> None:
        self._flower_port = free_port()
        command = [sys.executable, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1"]
        self.flower = self.stack.start_process(
            "flower",
            [*command, f"--port={self._flower_port}"],
            {"GOBII_FLOWER_AUTH": f"demo:{self._web_password}"},
        )


def _settings(home: Path, authority: ThrowAwayAuthority, smtp_port: int) -> dict[str, str]:
    """The environment of every process: quick retries and short leases, so that nobody waits long."""
    return {
        "GOBII_ENCRYPTION_KEY": _encryption_key(home / "encryption_key"),
        "SSL_CERT_FILE": str(authority.ca_file),
        "BYO_EMAIL_ALLOWED_NETWORKS": "127.0.0.0/8",
        "BYO_EMAIL_ALLOWED_PORTS": f"{smtp_port},465,587",
        "GOBII_RETRY_SCHEDULE": "1s",
        "GOBII_LEASE": "5s",
        "GOBII_HINT_LIFETIME": "3s",
        "GOBII_RING_GRACE": "1s",
        "GOBII_DISPATCH_EVERY": "250ms",
        "ALLOWED_HOSTS": "127.0.0.1,localhost",
        "PUBLIC_URL": "http://127.0.0.1",
        "DEBUG": "false",
    }


def _encryption_key(path: Path) -> str:
    """The key ring in `path`, made when there is none; several demonstrations may start at once."""
    if not path.exists():
        handle, name = tempfile.mkstemp(dir=path.parent)  # readable by its owner alone
        with os.fdopen(handle, "w") as file:
            file.write(new_key("demo"))
        with suppress(FileExistsError):
            os.link(name, path)
        Path(name).unlink()
    return path.read_text().strip()


def _web_command() -> list[str]:
    return [
        *(sys.executable, "-m", "gunicorn", "gobii_email.wsgi:application"),
        *("--bind", "127.0.0.1:0", "--workers", "1", "--threads", "4"),
        # Without it a second demonstration would meet the first one's control socket.
        *("--no-control-socket",),
    ]


def _place(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2] or url


def _last_line(problem: subprocess.CalledProcessError) -> str:
    """The error of a command that ended in a traceback, without what follows it indented."""
    lines = [line for line in str(problem.stderr or "").splitlines() if line[:1].strip()]
    return re.sub(r"^[\w.]+: ", "", lines[-1]) if lines else f"exit code {problem.returncode}"
