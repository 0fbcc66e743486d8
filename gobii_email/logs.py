"""Log lines for machines: one JSON object a decision, with fixed event names and facts as fields.

Only the fields listed here are written, so that nothing gets into a log by accident; texts of exceptions
and of other libraries are redacted. A traceback names files, lines and functions, never variables.
"""

import json
import logging
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from opentelemetry import trace

from gobii_email.domain.redaction import without_credentials

FIELDS = (
    "attempt_id",
    "message_id",
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
    "handed_out",
    "rescued",
    "expired",
    "resent",
    "worker",
    "pool",
    "concurrency",
    "queues",
    "task_events",
    "traces",
)
_FRAMES = 12


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
