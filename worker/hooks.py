"""What a worker process does when it starts and stops: logs, traces, and a refusal that saves a database.

Threads and solo run tasks in the process that starts; prefork runs them in children, where exporters
have threads of their own to start. Nothing here is needed for a mail to be sent.
"""

import logging
import sys
from typing import Any

from celery import signals
from celery.concurrency import get_implementation
from celery.worker import state
from celery.worker.control import inspect_command
from django.core.exceptions import ImproperlyConfigured
from opentelemetry.instrumentation.celery import CeleryInstrumentor

from gobii_email import tracing, wiring
from gobii_email.checks import refuse_pool_with
from gobii_email.conf import config
from gobii_email.logs import BackgroundHandler, JsonFormatter
from gobii_email.management.metrics_port import show_metrics
from gobii_email.services import attend
from gobii_email.services.account_turn import READ_AGAIN_AFTER
from gobii_email.services.recall import origins
from gobii_email.services.record import start_writers
from gobii_email.services.share import poll_shares, shares
from worker.heartbeat import start_heartbeat

logger = logging.getLogger("gobii_email.worker")


@signals.setup_logging.connect
def log_as_json(loglevel: int | None = None, **_: Any) -> None:
    """Celery's own lines go out like ours; a connected receiver keeps Celery from adding handlers."""
    has_threads = shares.threads is not None  # told by worker_init, which comes first
    handler = BackgroundHandler(sys.stderr) if has_threads else logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(loglevel or logging.WARNING)
    # The root's handler writes our lines as well.
    logging.getLogger("gobii_email").handlers.clear()


@signals.worker_init.connect
def start_worker(sender: Any = None, **_: Any) -> None:
    """Threads work in this process. A fork's children start their tracing by themselves, below."""
    pool = get_implementation(sender.pool_cls)
    try:
        refuse_pool_with(pool)
    except ImproperlyConfigured as problem:
        # Celery logs what its receivers raise and goes on, except for this.
        raise SystemExit(str(problem)) from None
    if "prefork" not in pool.__module__:
        start_tracing()
    if "thread" in pool.__module__:
        share_threads(sender.concurrency)


def share_threads(threads: int) -> None:
    """Lets turns write together, and keeps any one mail server from holding all threads."""
    start_writers()
    origins.seconds = READ_AGAIN_AFTER
    shares.threads = poll_shares.threads = threads

    def waiting() -> int:
        """Hints that wait in this process because all threads are at work; those at work are in both sets."""
        active = len(state.active_requests)
        return len(state.reserved_requests) - active if active >= threads else 0

    shares.waiting = waiting


@signals.worker_shutting_down.connect
def end_turns(**_: Any) -> None:
    """A turn ends after its present mail; what it had claimed beyond that goes back to the queue."""
    shares.is_stopping = True


@signals.worker_process_init.connect
def start_tracing(**_: Any) -> None:
    tracing.start_exporting()
    instrumentor = CeleryInstrumentor()
    if not instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.instrument()


@signals.worker_ready.connect
def say_ready(sender: Any = None, **_: Any) -> None:
    start_heartbeat(sender.pool.limit)
    show_metrics()
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


@inspect_command()
def email_versions(_: Any) -> str:
    """What this worker runs, for `email_doctor`."""
    return attend.VERSIONS


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def take_leave(**_: Any) -> None:
    wiring.smtp_transport().close_all()
    tracing.flush()
