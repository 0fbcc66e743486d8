"""Writing marks and acceptances of many turns in common commits.

A turn waits for the commit of its mark; its acceptance it leaves behind and goes on, and looks back for it
before the turn ends. Two threads of a worker write what has gathered while they wrote before, so a busy
worker commits seldom and an idle one at once. Without these threads the caller writes by itself.
"""

import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.models import queue as statements
from gobii_email.models.queue import Acceptance, Mark

logger = logging.getLogger(__name__)

AT_ONCE = 64
T = TypeVar("T", Mark, Acceptance)


class Entry(Generic[T]):
    """Something to be written, and whether it was."""

    __slots__ = ("_done", "is_written", "problem", "value")

    def __init__(self, value: T) -> None:
        self.value: T = value
        self.is_written = False
        self.problem: Exception | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def over(self, *, is_written: bool, problem: Exception | None = None) -> None:
        self.is_written, self.problem = is_written, problem
        self._done.release()

    @property
    def is_over(self) -> bool:
        """Whether `wait` answers at once."""
        return not self._done.locked()

    def wait(self) -> bool:
        """Whether the row was still ours, once that is known. Raises what kept it from being written."""
        with self._done:
            if self.problem is not None:
                raise self.problem
            return self.is_written


class Writer(Generic[T]):
    """Writes entries, those that gather together in one commit. Starts its thread when told to.

    `gathers_for` seconds it waits for others after the first, unless somebody is in a hurry.
    """

    def __init__(
        self, name: str, write: Callable[[Sequence[T]], set[uuid.UUID]], *, gathers_for: float = 0
    ) -> None:
        self._name = name
        self._write: Callable[[Sequence[T]], set[uuid.UUID]] = write
        self._gathers_for = gathers_for
        self._is_hurried = threading.Event()
        self._entries: queue.SimpleQueue[Entry[T]] = queue.SimpleQueue()
        self._process = 0

    def start(self) -> None:
        self._process = os.getpid()
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def put(self, value: T) -> Entry[T]:
        entry = Entry(value)
        if self._process == os.getpid():
            self._entries.put(entry)
        else:
            self._write_all([entry])
            release_connection()
        return entry

    def hurry(self) -> None:
        """Somebody waits for what was put until now."""
        self._is_hurried.set()

    def _run(self) -> None:
        while True:
            entries = [self._entries.get()]
            if self._gathers_for:
                self._is_hurried.wait(self._gathers_for)
                self._is_hurried.clear()
            while len(entries) < AT_ONCE and not self._entries.empty():
                entries.append(self._entries.get())
            self._write_all(entries)

    def _write_all(self, entries: Sequence[Entry[T]]) -> None:
        try:
            written = self._write([entry.value for entry in entries])
        except Exception as problem:
            if len(entries) > 1 and not isinstance(problem, (OperationalError, InterfaceError)):
                # One of them cannot be written; the others can.
                for entry in entries:
                    self._write_all([entry])
                return
            _forget_connection()
            for entry in entries:
                entry.over(is_written=False, problem=problem)
            return
        for entry in entries:
            entry.over(is_written=entry.value.id in written)


def _write_marks(marks: Sequence[Mark]) -> set[uuid.UUID]:
    # Not repeated: a mark that does not come in time means that nothing is sent.
    return statements.mark(marks, now=timezone.now())


def _write_acceptances(rows: Sequence[Acceptance]) -> set[uuid.UUID]:
    return persist(lambda: statements.write_acceptances(rows), within=config().lease)


marks: Writer[Mark] = Writer("marks", _write_marks)
acceptances: Writer[Acceptance] = Writer("acceptances", _write_acceptances, gathers_for=0.01)


def start_writers() -> None:
    """Starts the threads that write for this process. Each keeps a database connection of its own."""
    marks.start()
    acceptances.start()


R = TypeVar("R")


def persist(write: Callable[[], R], *, within: timedelta) -> R:
    """Repeats `write` while the database is away, until the lease is over; then rescue has the say."""
    give_up_at = time.monotonic() + within.total_seconds()
    pause = 0.05
    while True:
        try:
            return write()
        except (OperationalError, InterfaceError):
            if time.monotonic() + pause > give_up_at:
                logger.exception("attempt.settle.failed")
                raise
            _forget_connection()
            time.sleep(pause)
            pause = min(pause * 2, 5)


def _forget_connection() -> None:
    if not connection.in_atomic_block:
        connection.close()


def release_connection() -> None:
    """Gives a pooled database connection back, so that none is borrowed while a socket is waited on."""
    if connection.settings_dict.get("OPTIONS", {}).get("pool") and not connection.in_atomic_block:
        connection.close()
