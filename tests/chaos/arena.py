"""What any sender of mail is judged in: the server that remembers, a broker, a database, and its workers.

Knows which worker is behind a connection, so that the server can have it killed at a stage. What a worker is
and how mail is submitted is left to those who are judged.
"""

import contextlib
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from gobii_email.testing.oracle import Oracle, Rule, Trap, process_behind
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import Process, eventually
from gobii_email.testing.valkey import EmbeddedValkey

PASSWORD = "chaos-S3cret"


class Database:
    """Reads rows as they are, whichever database they are in."""

    def __init__(self, url: str) -> None:
        self._url = url

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Asked again while the database is away."""
        answer: list[list[tuple[Any, ...]]] = eventually(lambda: self._attempt(statement), seconds=120)
        return answer[0]

    def _attempt(self, statement: str) -> list[list[tuple[Any, ...]]]:
        """The rows in a list of one; an empty list while there is no answer."""
        parts = urlsplit(self._url)
        if parts.scheme == "sqlite":
            with contextlib.closing(sqlite3.connect(parts.path[1:], timeout=20)) as connection:
                return [connection.execute(statement).fetchall()]
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self._url) as connected:
            return [connected.execute(statement).fetchall()]  # type: ignore[arg-type]
        return []


class Arena(ABC):
    """Use as a context manager: `_open` starts what is judged once the servers run."""

    queue = ""
    """The list in Redis that carries hints or tasks."""

    def __init__(self, directory: Path, oracle: Oracle, postgres: EmbeddedPostgres | None) -> None:
        self.directory = directory
        self.oracle = oracle
        self.oracle.on_trap = self._caught
        self.postgres = postgres
        self.valkey = EmbeddedValkey(persistent=True)
        self.workers: list[Process] = []
        self.submissions = directory / "submissions.ndjson"
        self._acts: dict[str, Callable[[Trap, Process], None]] = {}
        self._lock = threading.Lock()
        self._opened = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._opened.enter_context(self.oracle)
            if self.postgres is not None:
                self._opened.enter_context(self.postgres)
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def start_worker(self, *, wait: bool = True) -> Process: ...

    @abstractmethod
    def submit(self, mails: int, *, per_second: float, seed: int) -> Process:
        """Starts the process that submits; it ends when all `mails` have been accepted."""

    def replace(self, worker: Process) -> None:
        """Starts another worker in the place of `worker`, which has ended."""
        self.workers.remove(worker)
        self.start_worker(wait=False)

    def redis(self) -> "redis.Redis":
        return redis.Redis.from_url(self.valkey.url, socket_timeout=5)

    def trap(self, rule: Rule, act: Callable[[Trap, Process], None]) -> threading.Event:
        """Adds `rule`, a trap with a name; the event is set once `act` has been done to a worker."""
        done = threading.Event()

        def caught(trap: Trap, worker: Process) -> None:
            act(trap, worker)
            done.set()

        self._acts[rule.name] = caught
        self.oracle.add_rule(rule)
        return done

    def _caught(self, trap: Trap) -> None:
        groups = {worker.pid: worker for worker in self.workers}
        pid = process_behind(trap.peer, groups)
        if pid is not None and trap.name in self._acts:
            self._acts[trap.name](trap, groups[os.getpgid(pid)])
