"""Waking workers through Celery: one hint a lane, bounded in time, never an error for the caller.

Uses a producer of its own, never the host project's current app. A ring that is lost loses nothing: the
dispatcher finds what is due. After a failure one caller knocks again once a pause; the others do not wait.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

import redis
from celery import Celery
from opentelemetry.propagate import inject
from redis.backoff import NoBackoff
from redis.retry import Retry

from gobii_email.ports import SEND_QUEUE, Call, Hint

logger = logging.getLogger(__name__)

DELIVER = "gobii_email.deliver"
PATIENCE = timedelta(seconds=1)
RUNG_FOR = timedelta(seconds=5)
"""A lane whose hint nobody took within this is rung again."""


@dataclass(frozen=True, slots=True)
class _Ring:
    """One task to be published."""

    task: str
    queue: str
    subject: str
    named: Mapping[str, str] = field(default_factory=dict)


_Wanted = Callable[[], Sequence[_Ring]]
"""Made in the publishing thread, because asking what is wanted may ask Redis."""


class CeleryDoorbell:
    """Rings `gobii_email.deliver` for lanes (`ports.Doorbell`).

    Publishes in a thread, because not everything in the way has a time limit of its own: a resolver has
    none, nor has the queue for one of the broker client's few connections. Which lanes have been rung is kept
    in Redis under `hint_key`; whoever takes up a lane deletes that before it looks for work, so that mail
    which comes later rings again.
    """

    def __init__(
        self, broker_url: str, redis_url: str, *, hint_lifetime: timedelta, breaker_pause: timedelta
    ) -> None:
        self._app = producer(broker_url)
        self._broker_url = broker_url
        self._redis_url = redis_url
        self._lifetime = hint_lifetime.total_seconds()
        self._pause = breaker_pause.total_seconds()
        self._lock = threading.Lock()
        self._silent_until: float | None = None  # None while all is well
        self._late: threading.Thread | None = None  # still publishing when its caller had left

    def ring(self, hints: Sequence[Hint], *, once: bool = False) -> bool:
        return self._knock(
            lambda: [_delivery(hint) for hint in (self._silent_ones(hints) if once else hints)]
        )

    def call(self, calls: Sequence[Call]) -> bool:
        return self._knock(lambda: [_Ring(call.task, call.queue, call.subject) for call in calls])

    def waiting(self, queue: str) -> int | None:
        # Others let what has expired go by themselves, and so cannot be filled with it.
        if not self._broker_url.startswith(("redis", "valkey")):
            return None
        try:
            return int(self._broker.llen(queue))
        except (redis.RedisError, ValueError):
            return None

    def _knock(self, wanted: _Wanted) -> bool:
        if not self._may_knock():
            return False
        problem = self._publish_in_time(wanted)
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

    def _publish_in_time(self, wanted: _Wanted) -> Exception | None:
        """What went wrong, if anything did; TimeoutError when it is not done in a second."""
        answer: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

        def publish() -> None:
            answer.put(self._publish(wanted))

        thread = threading.Thread(target=copy_context().run, args=(publish,), name="doorbell", daemon=True)
        try:
            thread.start()
            return answer.get(timeout=PATIENCE.total_seconds())
        except queue.Empty:
            self._late = thread
            return TimeoutError("the broker took too long")
        except RuntimeError as no_more_threads:
            return no_more_threads

    def _publish(self, wanted: _Wanted) -> Exception | None:
        trace: dict[str, str] = {}
        inject(trace)  # the worker's spans join the submission's
        try:
            for ring in wanted():
                self._app.send_task(
                    ring.task,
                    args=[ring.subject],
                    kwargs=dict(ring.named),
                    queue=ring.queue,
                    headers=trace,
                    expires=self._lifetime,
                    retry=False,
                    ignore_result=True,
                )
        except Exception as problem:
            # Whatever a broker client raises, the caller's mail is already safe in the database.
            return problem
        return None

    @cached_property
    def _broker(self) -> "redis.Redis":
        return redis_client(self._broker_url, patience=PATIENCE)

    @cached_property
    def _rung(self) -> "redis.Redis":
        return redis_client(self._redis_url, patience=PATIENCE)

    def _silent_ones(self, hints: Sequence[Hint]) -> list[Hint]:
        """The hints whose lane has none under way; all of them when Redis, as no broker, cannot tell."""
        try:
            with self._rung.pipeline(transaction=False) as pipe:
                for hint in hints:
                    pipe.set(hint_key(hint.lane), "", nx=True, px=RUNG_FOR)
                is_first = pipe.execute()
        except (redis.RedisError, ValueError):  # ValueError: an address that makes no sense
            return list(hints)
        return [hint for hint, first in zip(hints, is_first, strict=True) if first or not hint.lane]


def _delivery(hint: Hint) -> _Ring:
    return _Ring(DELIVER, SEND_QUEUE, hint.attempt_id, {"lane": hint.lane} if hint.lane else {})


def hint_key(lane: str) -> str:
    """The key that says a hint for `lane` is under way. The limiter's `enter` deletes it."""
    return f"gobii:hint:{lane}"


def redis_client(url: str, *, patience: timedelta, is_text: bool = False) -> "redis.Redis":
    """A client that never waits longer than `patience` for one answer, and never asks twice.

    Its connections are per process. Answers are bytes, or texts with `is_text`.
    """
    seconds = patience.total_seconds()
    return redis.Redis.from_url(
        url,
        decode_responses=is_text,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )


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
