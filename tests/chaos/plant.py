"""A whole service under test: real workers, dispatchers, broker and database, and the oracle outside.

Starts and replaces what the faults end, knows which worker is behind a connection, and reads the rows without
the service's own code. What goes wrong, and when, is decided in faults.
"""

import contextlib
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.oracle import Oracle, Rule, Trap, process_behind
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import Process, Stack, eventually
from gobii_email.testing.valkey import EmbeddedValkey
from tests.chaos.books import SETTLED, Rows

LEASE_SECONDS = 3.0
PASSWORD = "chaos-pässwörd"
WIDE_OPEN = {"per_minute": 1_000_000_000, "per_hour": 1_000_000_000, "per_day": 1_000_000_000}
REUSING = WIDE_OPEN | {"max_connections": 8, "messages_per_connection": 20, "pool_ttl": 5}
SINGLE = WIDE_OPEN | {"max_connections": 8, "messages_per_connection": 1}

_APPLY = """
import json, sys
from pathlib import Path
from django.core.management import call_command
for path in json.load(sys.stdin):
    address = json.loads(Path(path).read_text())["address"]
    call_command("email_account", "apply", path, "--json", stdout=sys.stderr)
    call_command("email_account", "test", address, "--smtp", "--json", stdout=sys.stderr)
    call_command("email_account", "enable", address, "--outbound", "--json", stdout=sys.stderr)
"""
_MESSAGES = (
    "SELECT id, rfc_message_id, latest_status, on_doubt, subject FROM gobii_email_persistentagentmessage"
)
_ATTEMPTS = "SELECT id, message_id, number, status, marked_at FROM gobii_email_outboundmessageattempt"
_RECIPIENTS = "SELECT message_id, address, status FROM gobii_email_outboundmessagerecipient"
_DOUBTS = "SELECT attempt_id FROM gobii_email_outboundmessageevent WHERE event = 'in_doubt'"
_OPEN = "SELECT latest_status, count(*) FROM gobii_email_persistentagentmessage GROUP BY 1"
_HELD = "SELECT id, lease_token FROM gobii_email_outboundmessageattempt WHERE status = 'sending'"


class Database:
    """Reads the service's rows as they are, whichever database they are in."""

    def __init__(self, url: str) -> None:
        self._url = url

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Asked again while the database is away."""
        return eventually(lambda: [self._rows(statement)], seconds=30)[0]  # type: ignore[no-any-return]

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        parts = urlsplit(self._url)
        if parts.scheme == "sqlite":
            with contextlib.closing(sqlite3.connect(parts.path[1:], timeout=20)) as connection:
                return connection.execute(statement).fetchall()
        import psycopg

        for _ in range(100):
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._url) as connected:
                return connected.execute(statement).fetchall()  # type: ignore[arg-type]
            time.sleep(0.1)
        raise TimeoutError("the database does not come back")


class Plant:
    """Use as a context manager. `database` is "sqlite" or "postgresql", whose server is the plant's own."""

    def __init__(
        self,
        directory: Path,
        *,
        database: str = "sqlite",
        accounts: int = 10,
        workers: int = 2,
        threads: int = 4,
        dispatchers: int = 2,
        beats: int = 0,
        seed: int = 0,
        env: Mapping[str, str] | None = None,
        worker_options: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self.authority = ThrowAwayAuthority(directory)
        certificate = directory / "oracle.pem"
        self.authority.good_certificate().private_key_and_cert_chain_pem.write_to_path(str(certificate))
        self.oracle = Oracle(directory, ports=accounts, certificate=certificate, password=PASSWORD, seed=seed)
        self.oracle.on_trap = self._caught
        self.valkey = EmbeddedValkey(persistent=True)
        self.postgres = EmbeddedPostgres(own=True) if database == "postgresql" else None
        self.senders = [f"agent{number}@sender.example" for number in range(accounts)]
        self.clock = directory / "clock"
        self.submissions = directory / "submissions.ndjson"
        self.on_trap: dict[str, Callable[[Trap, Process], None]] = {}
        self.workers: list[Process] = []
        self.dispatchers: list[Process] = []
        self._given = dict(env or {})
        self._counts = (workers, threads, dispatchers, beats)
        self._worker_options = tuple(worker_options)
        self._seed = seed
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def _start(self) -> None:
        self._opened.enter_context(self.oracle)
        if self.postgres is not None:
            self._opened.enter_context(self.postgres)
        database_url = None if self.postgres is None else self.postgres.url
        self.stack = Stack(self.directory, database_url, self._environment(), broker=self.valkey)
        self._opened.enter_context(self.stack)
        self.database = Database(database_url or f"sqlite:///{self.directory / 'stack.sqlite3'}")
        self._connect_accounts()
        workers, threads, dispatchers, beats = self._counts
        self._threads = threads
        for _ in range(workers):
            self.start_worker()
        for _ in range(dispatchers):
            self.start_dispatcher()
        for number in range(beats):
            schedule = str(self.directory / f"beat{number}")
            command = [sys.executable, "-m", "celery", "-A", "worker", "beat", "-s", schedule]
            self.stack.start_process(f"beat{number}", command)

    def _environment(self) -> dict[str, str]:
        settings = {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.hurried_settings",
            "CHAOS_CLOCK": str(self.clock),
            "BYO_EMAIL_ALLOWED_PORTS": ",".join(str(port) for port in self.oracle.ports),
            "SSL_CERT_FILE": str(self.authority.ca_file),
            "GOBII_LEASE": f"{LEASE_SECONDS}s",
            "GOBII_RETRY_SCHEDULE": "1s",
            "GOBII_RING_GRACE": "1s",
            "GOBII_HINT_LIFETIME": "2s",
            "GOBII_BREAKER_PAUSE": "1s",
            "GOBII_DISPATCH_EVERY": "200ms",
            "GOBII_DEADLINE_CONNECT": "3s",
            "GOBII_DEADLINE_STEP": "3s",
            "GOBII_DEADLINE_ENVELOPE": "3s",
            "GOBII_DEADLINE_BODY": "3s",
            "GOBII_DEADLINE_DOT": "6s",
            "GOBII_DOUBT_RESEND_AFTER": "5s",
        }
        if self.postgres is not None:
            settings["GOBII_DB_POOL"] = "8"
        return settings | self._given

    def _connect_accounts(self) -> None:
        paths = []
        for number, (sender, port) in enumerate(zip(self.senders, self.oracle.ports, strict=True)):
            smtp = {"host": "localhost", "port": port, "security": "starttls", "auth": "plain"}
            document = {
                "agent": f"Agent {number}",
                "address": sender,
                "smtp": smtp | {"username": sender, "password": PASSWORD},
                "limits": SINGLE if number % 2 else REUSING,
            }
            path = self.directory / f"account{number}.json"
            path.write_text(json.dumps(document))
            paths.append(str(path))
        self.stack.python(_APPLY, input=json.dumps(paths))

    def start_worker(self, *, wait: bool = True) -> Process:
        with self._lock:
            worker = self.stack.start_worker(self._threads, options=self._worker_options, wait=wait)
            self.workers.append(worker)
        return worker

    def start_dispatcher(self) -> Process:
        with self._lock:
            dispatcher = self.stack.start_dispatcher()
            self.dispatchers.append(dispatcher)
        return dispatcher

    def replace(self, worker: Process) -> None:
        """Starts another worker in the place of `worker`, which has ended."""
        self.workers.remove(worker)
        self.start_worker(wait=False)

    def ready_workers(self) -> list[Process]:
        return [one for one in self.workers if one.is_running and "worker.ready" in one.output()]

    def submit(self, mails: int, *, per_second: float, seed: int, big_share: float = 0.03) -> Process:
        """Starts the agent runtime; it ends when all `mails` have been accepted."""
        command = [
            sys.executable,
            "-m",
            "tests.chaos.submitter",
            str(self.submissions),
            "--mails",
            str(mails),
        ]
        command += ["--per-second", str(per_second), "--seed", str(seed), "--big-share", str(big_share)]
        return self.stack.start_process("submitter", [*command, *self.senders])

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(self.valkey.url, socket_timeout=5)

    def _caught(self, trap: Trap) -> None:
        groups = {worker.pid: worker for worker in self.workers}
        pid = process_behind(trap.peer, groups)
        if pid is not None and trap.name in self.on_trap:
            self.on_trap[trap.name](trap, groups[os.getpgid(pid)])

    @contextlib.contextmanager
    def trapping(self, rule: Rule, act: Callable[[Trap, Process], None]) -> Iterator[threading.Event]:
        """Springs `rule` once on some connection, with `act`; the event is set when that is done."""
        done = threading.Event()

        def caught(trap: Trap, worker: Process) -> None:
            act(trap, worker)
            done.set()

        self.on_trap[rule.name] = caught
        self.oracle.add_rule(rule)
        yield done

    def open_messages(self) -> dict[str, int]:
        """How many messages are neither settled nor in doubt, by status."""
        found = dict(self.database.rows(_OPEN))
        return {status: count for status, count in found.items() if status not in SETTLED | {"in_doubt"}}

    def leases(self) -> set[tuple[str, str]]:
        return {(_hex(pk), _hex(token)) for pk, token in self.database.rows(_HELD)}

    def submitted(self) -> list[dict[str, Any]]:
        if not self.submissions.exists():
            return []
        return [json.loads(line) for line in self.submissions.read_text().rpartition("\n")[0].splitlines()]

    def rows(self) -> Rows:
        messages = {
            _hex(pk): {"rfc_message_id": rfc, "status": status, "on_doubt": on_doubt, "subject": subject}
            for pk, rfc, status, on_doubt, subject in self.database.rows(_MESSAGES)
        }
        attempts = {
            _hex(pk): {
                "id": _hex(pk),
                "message_id": _hex(message),
                "number": number,
                "status": status,
                "marked_at": marked_at,
            }
            for pk, message, number, status, marked_at in self.database.rows(_ATTEMPTS)
        }
        recipients = [
            {"message_id": _hex(message), "address": address, "status": status}
            for message, address, status in self.database.rows(_RECIPIENTS)
        ]
        doubts = frozenset(_hex(pk) for (pk,) in self.database.rows(_DOUBTS))
        return Rows(messages, attempts, recipients, doubts)


def _hex(value: object) -> str:
    """One spelling of an id: SQLite has 32 digits, PostgreSQL a UUID, the wire 36 characters."""
    return str(value).replace("-", "")
