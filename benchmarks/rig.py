"""The service under load: PostgreSQL, Valkey, real workers and dispatchers, and the sink they send to.

Uses only what operators use (management commands, `celery -A worker worker`, environment variables) and
`services.write` for submitting, so it outlives changes inside. Everything is ended by its own handle.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psycopg
import redis

from benchmarks.sink import PASSWORD, Sink
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import ROOT, Process, Stack

UNBOUND: Mapping[str, int] = {
    "per_minute": 1_000_000_000,
    "per_hour": 1_000_000_000,
    "per_day": 1_000_000_000,
    "max_connections": 4,
}
REUSED: Mapping[str, int] = {**UNBOUND, "messages_per_connection": 100, "pool_ttl": 10}
SINGLE: Mapping[str, int] = {**UNBOUND, "messages_per_connection": 1}

_APPLY = """
import json, sys, io, contextlib, tempfile
from django.core.management import call_command
for document in json.load(sys.stdin):
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()):
        json.dump(document, file)
        file.flush()
        call_command("email_account", "apply", file.name)
        if document.get("smtp"):
            call_command("email_account", "test", document["address"], "--smtp")
            call_command("email_account", "enable", document["address"], "--outbound")
"""
_SUBMIT = """
import json, sys
from gobii_email.services.write import NewMail, write
facts = json.load(sys.stdin)
senders, body, count = facts["senders"], facts["body"], facts["count"]
for start in range(0, count, 200):
    write([
        NewMail(senders[n % len(senders)], f"to{n}@rcpt.example", f"Report {n}", body)
        for n in range(start, min(start + 200, count))
    ])
"""
_SUBMIT_ONE_BY_ONE = """
import django, json, sys, time
django.setup()
from gobii_email.services.write import NewMail, write
for line in sys.stdin:
    facts = json.loads(line)
    started = time.monotonic()
    message, = write([NewMail(facts["sender"], "to@rcpt.example", "One mail", facts["body"])])
    print(json.dumps([started, time.monotonic(), message.rfc_message_id.strip('<>')]), flush=True)
"""
# Some three kilobytes on the wire: a paragraph of Markdown goes out as text and as a page of HTML.
BODY = "A paragraph of a report, *as agents write them*, that says little."


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes and servers had used up at one moment."""

    at: float
    mails: int
    processor: float
    dispatcher: float
    commits: int
    redis_trips: int
    redis: Counter[str]


def end_in_order() -> None:
    """From now on SIGTERM ends this program as Ctrl-C does, and with it all that it has started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class Rig:
    """`with Rig() as rig:`; without `postgres` the database is a SQLite file."""

    def __init__(self, env: Mapping[str, str] | None = None, *, postgres: bool = True) -> None:
        self._given = dict(env or {})
        self._on_postgres = postgres
        self._known: dict[str, list[str]] = {}
        self.workers: list[Process] = []
        self.dispatcher: Process | None = None

    def __enter__(self) -> Self:
        end_in_order()
        with ExitStack() as opened:
            self.directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="gobii-bench-")))
            self.postgres = opened.enter_context(EmbeddedPostgres(own=True)) if self._on_postgres else None
            self.sink = opened.enter_context(Sink(self.directory))
            env = {
                "BYO_EMAIL_ALLOWED_PORTS": f"{self.sink.port},{self.sink.tarpit_port}",
                "SSL_CERT_FILE": str(self.sink.authority.ca_file),
                # As the Procfile's worker line has it.
                "GOBII_DB_POOL": "16" if self.postgres else "0",
                **self._given,
            }
            url = self.postgres.url if self.postgres else None
            self.stack = opened.enter_context(Stack(self.directory, url, env))
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    # Accounts and mail

    def accounts(self, name: str, count: int, limits: Mapping[str, int], **smtp: object) -> list[str]:
        """Addresses of `count` tested, enabled accounts with `limits`; made once for each `name`."""
        if name not in self._known:
            addresses = [f"{name}{number}@sender{number}.example" for number in range(count)]
            self.apply([self._document(address, limits, smtp) for address in addresses])
            self._known[name] = addresses
        return self._known[name]

    def apply(self, documents: Sequence[Mapping[str, object]]) -> None:
        """`email_account apply` for each; test and enable where a document names a server."""
        self.stack.python(_APPLY, input=json.dumps(documents))

    def _document(
        self, address: str, limits: Mapping[str, int], smtp: Mapping[str, object]
    ) -> dict[str, object]:
        server = {
            "host": "localhost",
            "port": self.sink.port,
            "security": "starttls",
            "auth": "plain",
            "username": address,
            "password": PASSWORD,
        }
        return {"agent": address, "address": address, "smtp": server | smtp, "limits": dict(limits)}

    def submit(self, senders: Sequence[str], count: int, body: str = BODY) -> float:
        """Queues `count` mails, the senders in turn; seconds it took."""
        started = time.monotonic()
        facts = {"senders": list(senders), "count": count, "body": body}
        self.stack.python(_SUBMIT, input=json.dumps(facts))
        return time.monotonic() - started

    # Processes

    def start(self, workers: int = 1, threads: int = 32, *, profile: Path | None = None) -> None:
        """Workers and one dispatcher; with `profile` the first worker writes its samples there."""
        for number in range(workers):
            env = {"PGAPPNAME": "worker"}
            if profile is None or number:
                worker = self.stack.start_worker(threads, extra_env=env, options=("-l", "WARNING"))
            else:
                worker = self._start_sampled(threads, profile, env)
            self.workers.append(worker)
        self.dispatcher = self.stack.start_dispatcher({"PGAPPNAME": "dispatcher"})

    def _start_sampled(self, threads: int, profile: Path, env: Mapping[str, str]) -> Process:
        command = [sys.executable, "-m", "benchmarks.sampler", str(profile), "-A", "worker", "worker"]
        command += ["-Q", "email.send", "--pool", "threads", "-c", str(threads), "-n", "sampled@%h"]
        command += ["--without-gossip", "--without-mingle", "-l", "INFO"]
        worker = self.stack.start_process("sampled", command, env)
        worker.wait_for("worker.ready")
        return worker

    def stop(self) -> None:
        """Ends workers and dispatcher, so that the next run starts with new ones."""
        for process in filter(None, [self.dispatcher, *self.workers]):
            process.stop(5)
            self.stack.processes.remove(process)
        self.workers, self.dispatcher = [], None

    # Measuring

    def usage(self) -> Usage:
        return Usage(
            at=time.monotonic(),
            mails=self.sink.count(),
            processor=sum(processor_seconds(worker.pid) for worker in self.workers),
            dispatcher=processor_seconds(self.dispatcher.pid) if self.dispatcher else 0.0,
            commits=self.commits(),
            redis_trips=self.redis_trips(),
            redis=self.redis_calls(),
        )

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of `statement`, on a connection of its own."""
        assert self.postgres is not None
        with psycopg.connect(self.postgres.url, autocommit=True, application_name="benchmark") as connection:
            found = connection.execute(statement, values or None)
            return found.fetchall() if found.description else []

    def commits(self) -> int:
        return int(self.sql("SELECT sum(xact_commit) FROM pg_stat_database")[0][0])

    def redis_calls(self) -> Counter[str]:
        """Commands the broker was sent since it started, those of scripts included, by name."""
        with redis.Redis.from_url(self.stack.valkey.url) as client:
            stats = client.info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): facts["calls"] for name, facts in stats.items()})

    def redis_trips(self) -> int:
        """How often the broker has read from its clients: their round trips, whatever scripts do inside."""
        with redis.Redis.from_url(self.stack.valkey.url) as client:
            return int(client.info("stats")["total_reads_processed"])

    def redis_memory(self) -> tuple[int, int]:
        """Bytes in use now, and at the most so far."""
        with redis.Redis.from_url(self.stack.valkey.url) as client:
            facts = client.info("memory")
        return int(facts["used_memory"]), int(facts["used_memory_peak"])

    def log_statements(self, on: bool) -> None:
        """Writes every statement to the server's log, with the process' name and address in front."""
        self.sql("ALTER SYSTEM SET log_line_prefix = '[%a %p] '")
        self.sql(f"ALTER SYSTEM SET log_statement = '{'all' if on else 'none'}'")
        self.sql("SELECT pg_reload_conf()")
        time.sleep(0.3)

    def logged(self) -> str:
        assert self.postgres is not None
        return (self.postgres.directory / "server.log").read_text(errors="replace")

    def statuses(self) -> dict[str, int]:
        """How many messages there are by status, as `email_queue` would say."""
        rows = self.sql(
            "SELECT latest_status, count(*) FROM gobii_email_persistentagentmessage GROUP BY latest_status"
        )
        return {str(status): int(count) for status, count in rows}


@dataclass(frozen=True, slots=True)
class Submitted:
    """One mail: when submitting it began, when it was queued (monotonic seconds), and its Message-ID."""

    at: float
    queued_at: float
    message_id: str


class Submitter:
    """A process that stays and submits one mail at a time, so that no start of Python is measured."""

    def __init__(self, rig: Rig) -> None:
        # Nothing of this process' own is pooled: it is one caller on one connection.
        self._env = rig.stack.env | {"GOBII_DB_POOL": "0", "PGAPPNAME": "submitter"}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SUBMIT_ONE_BY_ONE],
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What it logs is not of interest, and must not fill a pipe.
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def send(self, sender: str, body: str = BODY) -> Submitted:
        self._process.stdin.write(json.dumps({"sender": sender, "body": body}) + "\n")
        self._process.stdin.flush()
        return Submitted(*json.loads(self._process.stdout.readline()))


def processor_seconds(pid: int) -> float:
    """What the process and its present children have used, user and system, as Linux counts it."""
    total = 0.0
    for found in (pid, *children(pid)):
        try:
            fields = Path(f"/proc/{found}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children(pid: int) -> list[int]:
    try:
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [grandchild for child in map(int, found) for grandchild in (child, *children(child))]


def resident_bytes(pid: int) -> tuple[int, int]:
    """Resident memory now, and at the most so far (VmRSS, VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
