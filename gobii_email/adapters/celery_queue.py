"""Waking workers through Celery: one hint an attempt, bounded in time, never an error for the caller.

Uses a producer of its own, never the host project's current app. A ring that is lost loses nothing: the
dispatcher finds what is due. After a failure one caller knocks again once a pause; the others do not wait.
"""

import logging
import queue
import threading
import time
from collections.abc import Sequence
from contextvars import copy_context
from datetime import timedelta

from celery import Celery
from opentelemetry.propagate import inject

logger = logging.getLogger(__name__)

DELIVER = "gobii_email.deliver"
SEND_QUEUE = "email.send"
PATIENCE = timedelta(seconds=1)


class CeleryDoorbell:
    """Rings `gobii_email.deliver` for attempts (`ports.Doorbell`).

    Publishes in a thread, because not everything in the way has a time limit of its own: a resolver has
    none, nor has the queue for one of the broker client's few connections.
    """

    def __init__(self, broker_url: str, *, hint_lifetime: timedelta, breaker_pause: timedelta) -> None:
        self._app = producer(broker_url)
        self._lifetime = hint_lifetime.total_seconds()
        self._pause = breaker_pause.total_seconds()
        self._lock = threading.Lock()
        self._silent_until: float | None = None  # None while all is well
        self._late: threading.Thread | None = None  # still publishing when its caller had left

    def ring(self, attempt_ids: Sequence[str]) -> bool:
        if not self._may_knock():
            return False
        problem = self._publish_in_time(list(attempt_ids))
        if problem is not None:
            logger.warning("broker.unreachable", extra={"error": type(problem).__name__})
        with self._lock:
            self._silent_until = None if problem is None else time.monotonic() + self._pause
        return problem is None

    def _may_knock(self) -> bool:
        """Always while all is well; after a failure one caller a pause, and none while a knock hangs."""
        now = time.monotonic()
        with self._lock:
            if self._silent_until is None:
                return True
            if now < self._silent_until or (self._late is not None and self._late.is_alive()):
                return False
            self._silent_until = now + self._pause
            return True

    def _publish_in_time(self, attempt_ids: list[str]) -> Exception | None:
        """What went wrong, if anything did; TimeoutError when it is not done in a second."""
        answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def publish() -> None:
            answer.put(self._publish(attempt_ids))

        thread = threading.Thread(target=copy_context().run, args=(publish,), name="doorbell", daemon=True)
        try:
            thread.start()
            return answer.get(timeout=PATIENCE.total_seconds())
        except queue.Empty:
            self._late = thread
            return TimeoutError("the broker took too long")
        except RuntimeError as no_more_threads:
            return no_more_threads

    def _publish(self, attempt_ids: list[str]) -> Exception | None:
        trace: dict[str, str] = {}
        inject(trace)  # the worker's spans join the submission's
        try:
            for attempt_id in attempt_ids:
                self._app.send_task(
                    DELIVER,
                    args=[attempt_id],
                    queue=SEND_QUEUE,
                    headers=trace,
                    expires=self._lifetime,
                    retry=False,
                    ignore_result=True,
                )
        except Exception as problem:
            # Whatever a broker client raises, the caller's mail is already safe in the database.
            return problem
        return None


def producer(broker_url: str) -> Celery:
    """A Celery app that only publishes, fails within about a second, and is nobody's current app."""
    app = Celery("gobii_email.producer", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_publish_retry=False,
        task_create_missing_queues=True,
        broker_connection_timeout=PATIENCE.total_seconds(),
        broker_transport_options=broker_options(broker_url, patience=PATIENCE.total_seconds())
        | {"max_retries": 0},
    )
    return app


def broker_options(broker_url: str, *, patience: float) -> dict[str, object]:
    """Transport options both sides must share; `patience` is the socket timeout in seconds.

    Without ack emulation and with one priority step a hint costs one Redis command. A frozen Redis would
    block a publisher for ever without the timeouts.
    """
    if not broker_url.startswith(("redis", "valkey")):
        return {}
    return {
        "ack_emulation": False,
        "priority_steps": [0],
        "socket_timeout": patience,
        "socket_connect_timeout": patience,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }
