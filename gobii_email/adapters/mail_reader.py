"""Reading mail in a process of its own, because a mail may be made to crash or stall whoever reads it.

A few processes are kept and used again, each for so many mails; one that died, took too long or too much
memory is replaced, and that is the answer for the mail it was reading (`GaveUp`), not an exception. They get
neither our environment nor our settings, and answer in JSON and bytes.
"""

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import gobii_email
from gobii_email.adapters.mail_reader_child import receive_from, send_to
from gobii_email.domain.mail_reading import MailReading, from_document
from gobii_email.domain.received_content import FileLimits
from gobii_email.ports import GaveUp

MAILS_OF_A_PROCESS = 500
MOST_PROCESSES = 3
PATIENCE = 3
"""So many times its processor time a reading may take in all: the machine may have other work."""
_START = timedelta(seconds=30)
_MOST_ANSWERED = 256 * 1024 * 1024
_PROGRAM = "gobii_email.adapters.mail_reader_child"


class BoundedMailReader:
    """`ports.MailReader`. Threads may share it: more than `MOST_PROCESSES` of them take turns.

    A mail gets `processor_time` (full seconds) and `memory_bytes` of address space.
    """

    def __init__(self, limits: FileLimits, *, processor_time: timedelta, memory_bytes: int) -> None:
        self._limits = limits
        self._seconds = max(1, round(processor_time.total_seconds()))
        self._memory_bytes = memory_bytes
        self._places = threading.BoundedSemaphore(MOST_PROCESSES)
        self._idle: list[_Child] = []

    def read(self, raw: bytes, own_addresses: Sequence[str] = ()) -> MailReading | GaveUp:
        asked = {
            "max_bytes": self._limits.max_bytes,
            "max_files": self._limits.max_files,
            "refused_endings": self._limits.refused_endings,
            "own_addresses": list(own_addresses),
            "memory_bytes": self._memory_bytes,
            "seconds": self._seconds,
        }
        with self._child() as child:
            return child.read(asked, raw, timedelta(seconds=PATIENCE * self._seconds))

    def _waiting(self) -> "_Child | None":
        """One that waits and is alive: what ended it meanwhile is not the fault of the next mail."""
        while self._idle:
            # Another thread may take the last one between the question and the act.
            with contextlib.suppress(IndexError):
                child = self._idle.pop()
                if child.is_alive:
                    return child
                child.end()
        return None

    def close(self) -> None:
        """Ends the processes that wait."""
        while self._idle:
            self._idle.pop().end()

    @contextlib.contextmanager
    def _child(self) -> "Iterator[_Child]":
        with self._places:
            child = self._waiting() or _Child()
            try:
                yield child
            finally:
                if child.is_usable:
                    self._idle.append(child)
                else:
                    child.end()


class _Child:
    """One process, and how many mails it has read."""

    def __init__(self) -> None:
        self._mails = 0
        self._has_failed = False
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for the worker, which ends them itself
        )
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def is_usable(self) -> bool:
        return not self._has_failed and self._mails < MAILS_OF_A_PROCESS

    def read(self, asked: dict[str, Any], raw: bytes, deadline: timedelta) -> MailReading | GaveUp:
        self._mails += 1
        self._has_failed = True  # until there is an answer
        found = self._started() or self._answer(asked, raw, deadline)
        self._has_failed = isinstance(found, GaveUp)
        return found

    def end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # What could not be written to a process that has died is nobody's any more.
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.kill()
        self._process.wait()

    def _started(self) -> GaveUp | None:
        if not self._is_ready:
            with self._killed_after(_START) as is_late:
                try:
                    receive_from(self._output, _MOST_ANSWERED)
                except (EOFError, ValueError):
                    return GaveUp(
                        "it could not be started in time" if is_late() else "it could not be started"
                    )
            self._is_ready = True
        return None

    def _answer(self, asked: dict[str, Any], raw: bytes, deadline: timedelta) -> MailReading | GaveUp:
        with self._killed_after(deadline) as is_late:
            try:
                send_to(self._input, asked, raw)
                document, files = receive_from(self._output, _MOST_ANSWERED)
            except (OSError, EOFError, ValueError):
                return GaveUp(self._cause(is_late()))
        if "gave_up" in document:
            return GaveUp(f"it ran into {document['gave_up']}")
        try:
            return from_document(document, _cut(files, document["sizes"]))
        except (KeyError, TypeError, ValueError) as problem:
            return GaveUp(f"its answer made no sense ({type(problem).__name__})")

    def _cause(self, is_late: bool) -> str:
        if is_late:
            return "it took too long"
        self._process.kill()
        return f"its process ended with {_ending(self._process.wait())}"

    @contextlib.contextmanager
    def _killed_after(self, span: timedelta) -> "Iterator[Any]":
        """Ends the process when `span` is over, which ends every wait for it; the value tells whether."""
        has_rung = threading.Event()

        def ring() -> None:
            has_rung.set()
            self._process.kill()

        timer = threading.Timer(span.total_seconds(), ring)
        timer.daemon = True
        timer.start()
        try:
            yield has_rung.is_set
        finally:
            timer.cancel()

    @property
    def _input(self) -> Any:
        return self._process.stdin

    @property
    def _output(self) -> Any:
        return self._process.stdout


def _environment() -> dict[str, str]:
    """Where to find this package, and nothing that is secret."""
    here = str(Path(gobii_email.__file__).resolve().parent.parent)
    return {"PYTHONPATH": here, "PATH": os.defpath, "PYTHONHASHSEED": "random"}


def _cut(joined: bytes, sizes: Sequence[int]) -> list[bytes]:
    found, start = [], 0
    for size in sizes:
        found.append(joined[start : start + size])
        start += size
    if start != len(joined):
        raise ValueError("sizes that do not fit")
    return found


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
