"""What a worker process does when it starts and stops: logs, traces, and a refusal that saves a database.

Threads and solo run tasks in the process that starts; prefork runs them in children, where exporters
have threads of their own to start. Nothing here is needed for a mail to be sent.
"""

import logging
from typing import Any

from celery import signals
from django.conf import settings
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from gobii_email.conf import config
from gobii_email.logs import JsonFormatter
from worker import tracing

logger = logging.getLogger("gobii_email.worker")


@signals.setup_logging.connect
def log_as_json(loglevel: int | None = None, **_: Any) -> None:
    """Celery's own lines go out like ours; a connected receiver keeps Celery from adding handlers."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(loglevel or logging.WARNING)
    # The root's handler writes our lines as well.
    logging.getLogger("gobii_email").handlers.clear()


@signals.worker_init.connect
def start_worker(sender: Any = None, **_: Any) -> None:
    if _forks(sender):
        refuse_pool_in_forks()
    else:
        start_tracing()


@signals.worker_process_init.connect
def start_tracing(**_: Any) -> None:
    tracing.start_exporting()
    instrumentor = CeleryInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument()


@signals.worker_ready.connect
def say_ready(sender: Any = None, **_: Any) -> None:
    logger.info(
        "worker.ready",
        extra={
            "worker": sender.hostname,
            "pool": type(sender.pool).__module__.rpartition(".")[2],
            "concurrency": sender.pool.limit,
            "queues": ",".join(sorted(sender.app.amqp.queues.consume_from)),
            "task_events": config().task_events,
            "traces": ",".join(tracing.wanted_exporters()) or "none",
        },
    )


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def stop_tracing(**_: Any) -> None:
    tracing.flush()


def refuse_pool_in_forks() -> None:
    """Ends the start: children of a fork would share the sockets of the parent's database pool."""
    if settings.DATABASES["default"].get("OPTIONS", {}).get("pool"):
        raise SystemExit("GOBII_DB_POOL works with --pool threads only; unset it or leave prefork.")


def _forks(worker: Any) -> bool:
    return "prefork" in f"{getattr(worker, 'pool_cls', '')!r}"
