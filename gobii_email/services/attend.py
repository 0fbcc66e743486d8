"""Telling operators which dispatchers and watchers are at work, and what code each process runs.

These say every few seconds that they are there; a worker answers when it is asked. What a process runs
is noted when it starts, so that one which was not restarted after an update is found.
"""

import os
import platform
import socket
import time
from datetime import datetime, timedelta
from pathlib import Path

import celery
import django

import gobii_email
from gobii_email import wiring
from gobii_email.ports import Attendance

EVERY = timedelta(seconds=10)
LATELY = timedelta(seconds=60)
"""Who was noted within this is at work; longer than a dispatcher pauses after a failed round."""


def _newest_migration() -> str:
    names = Path(gobii_email.__file__).parent.joinpath("migrations").glob("0*.py")
    return max((path.stem.partition("_")[0] for path in names), default="none")


VERSIONS = (
    f"Python {platform.python_version()}, Django {django.__version__}, Celery {celery.__version__},"
    f" migration {_newest_migration()}"
)
"""What this process runs, as it was when it started."""


class Attending:
    """This process at work as a dispatcher; `with Attending() as here: here.note()` in each round.

    As something else with another `book`.
    """

    def __init__(self, book: Attendance | None = None) -> None:
        self._book = book or wiring.attendance()
        self._name = f"{socket.gethostname()}:{os.getpid()} {VERSIONS}"
        self._next = 0.0

    def __enter__(self) -> "Attending":
        return self

    def __exit__(self, *_: object) -> None:
        self._book.leave(self._name)

    def note(self) -> None:
        """Says so, at most every ten seconds."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY.total_seconds()
            self._book.note(self._name)


def dispatchers() -> dict[str, tuple[str, datetime]]:
    """By host and process id: what each runs, and when its last good round was. Raises AttendanceUnknown."""
    return _seen(wiring.attendance())


def watchers() -> dict[str, tuple[str, datetime]]:
    """As `dispatchers`, of those that watch mailboxes."""
    return _seen(wiring.watchers())


def ticks() -> dict[str, tuple[str, datetime]]:
    """As `dispatchers`, of workers that carried out what beat asked for."""
    return _seen(wiring.ticks())


def note_tick() -> None:
    """Beat has ticked, and a worker took it up: this one."""
    wiring.ticks().note(f"{socket.gethostname()}:{os.getpid()} {VERSIONS}")


def _seen(book: Attendance) -> dict[str, tuple[str, datetime]]:
    found = {}
    for name, at in book.seen().items():
        place, _, versions = name.partition(" ")
        found[place] = (versions, at)
    return found
