"""Waking workers through Celery: one hint an attempt, bounded in time, never an error for the caller.

Uses a producer of its own, never the host project's current app. A ring that is lost loses nothing: the
dispatcher finds what is due. After a failure no ring is tried until the breaker closes again.
"""

import logging
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

from celery import Celery

logger = logging.getLogger(__name__)

DELIVER = "gobii_email.deliver"
SEND_QUEUE = "email.send"


class CeleryDoorbell:
    """Rings `gobii_email.deliver` for attempts (`ports.Doorbell`)."""

    def __init__(self, broker_url: str, *, hint_lifetime: timedelta, breaker_pause: timedelta) -> None:
        self._app = producer(broker_url)
        self._lifetime = hint_lifetime.total_seconds()
        self._pause = breaker_pause.total_seconds()
        self._silent_until = 0.0
        self._lock = threading.Lock()

    def ring(self, attempt_ids: Sequence[str]) -> bool:
        if time.monotonic() < self._silent_until:
            return False
        try:
            for attempt_id in attempt_ids:
                self._app.send_task(
                    DELIVER,
                    args=[attempt_id],
                    queue=SEND_QUEUE,
                    expires=self._lifetime,
                    retry=False,
                    ignore_result=True,
                )
        except Exception as problem:
            # Whatever a broker client raises, the caller's mail is already safe in the database.
            self._be_silent(problem)
            return False
        return True

    def _be_silent(self, problem: Exception) -> None:
        with self._lock:
            self._silent_until = time.monotonic() + self._pause
        logger.warning("broker.unreachable", extra={"error": type(problem).__name__})


def producer(broker_url: str) -> Celery:
    """A Celery app that only publishes, fails within about a second, and is nobody's current app."""
    app = Celery("gobii_email.producer", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_publish_retry=False,
        task_create_missing_queues=True,
        broker_connection_timeout=1,
        broker_transport_options=broker_options(broker_url, patience=1) | {"max_retries": 0},
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
