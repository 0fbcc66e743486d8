"""Log lines for machines: one JSON object a decision, with fixed event names and facts as fields.

Only the fields listed here are written, so that nothing gets into a log by accident; texts of exceptions
and of other libraries are redacted. A traceback names files, lines and functions, never variables.
"""

import atexit
import json
import logging
import queue
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TextIO

from opentelemetry import trace

from gobii_email.domain.redaction import without_credentials

FIELDS = (
    "attempt_id",
    "message_id",
    "mail_id",
    "account_id",
    "number",
    "provider",
    "stage",
    "verdict",
    "scope",
    "state",
    "smtp_code",
    "enhanced_status",
    "http_status",
    "error",
    "text",
    "why",
    "is_marked",
    "found",
    "handed_out",
    "rescued",
    "expired",
    "resent",
    "worker",
    "pool",
    "concurrency",
    "queues",
    "client",
    "task_events",
    "traces",
)
_FRAMES = 12
GATHERS_FOR = 0.02
"""Seconds for which lines gather before they are written."""


class JsonFormatter(logging.Formatter):
    """`{"ts","level","event","logger", …fields, "exception"}` on one line, in UTC."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": without_credentials(record.getMessage()),
            "logger": record.name,
        }
        for name in FIELDS:
            value = record.__dict__.get(name)
            if value is not None:
                line[name] = (
                    value if isinstance(value, bool | int | float) else without_credentials(str(value))
                )
        line |= _trace()
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = _exception(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False)


class BackgroundHandler(logging.Handler):
    """Writes to `stream` in one thread, the lines of GATHERS_FOR at once; whoever says a line goes on.

    A lock around the writing would make every thread of a busy worker wait for the one that writes, and that
    one for its turn to go on; a write a line would make it take turns with them all the time. A process that
    ends writes all lines; one that is killed loses those of its last milliseconds.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.flush)

    def createLock(self) -> None:
        """None is needed: the queue takes lines from any number of threads."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        if is_wanted := bool(self.filter(record)):
            self.emit(record)
        return is_wanted

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put(self.format(record))
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Returns once everything said so far is written, after a second at the latest."""
        is_written = threading.Event()
        self._lines.put(is_written)
        is_written.wait(1)

    def _run(self) -> None:
        while True:
            found = [self._lines.get()]
            if isinstance(found[0], str):
                time.sleep(GATHERS_FOR)
            while not self._lines.empty():
                found.append(self._lines.get())
            self._write("".join(f"{line}\n" for line in found if isinstance(line, str)))
            for end in found:
                if isinstance(end, threading.Event):
                    end.set()

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            return  # nobody reads it any more; the mail goes on


def _trace() -> dict[str, str]:
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(context.trace_id),
        "span_id": trace.format_span_id(context.span_id),
    }


def _exception(problem: BaseException) -> dict[str, object]:
    return {
        "type": type(problem).__name__,
        "text": without_credentials(str(problem)),
        "trace": _places(problem.__traceback__),
    }


def _places(start: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(start)[-_FRAMES:]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
