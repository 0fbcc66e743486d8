"""How often something happened in a span of time, counted in Redis for all processes.

Where Redis does not answer, this process counts for itself: what the count protects is then guarded less
tightly, and never left open. Nothing is lost with the counts but the memory of some failures.
"""

import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cached_property
from typing import cast

import redis

from gobii_email.adapters.celery_queue import PATIENCE, redis_client
from gobii_email.ports import Tally

PREFIX = "gobii:tally:"
MOST_KEYS = 10_000
"""Of those that one process counts for itself; then it begins anew with those that are over left out."""
_TAKE_BACK = "if redis.call('exists', KEYS[1]) == 1 then return redis.call('decr', KEYS[1]) end"


class RedisTallies:
    """`ports.Tallies`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._own = _OwnTallies()

    @cached_property
    def _redis(self) -> "redis.Redis":
        return redis_client(self._url, patience=PATIENCE, is_text=True)

    def add(self, keys: Sequence[str], span: timedelta) -> Sequence[Tally]:
        try:
            with self._redis.pipeline() as pipe:
                for key in keys:
                    pipe.set(PREFIX + key, 0, ex=span, nx=True)
                    pipe.incr(PREFIX + key)
                    pipe.pttl(PREFIX + key)
                answers = cast("list[int]", pipe.execute())
        except (redis.RedisError, ValueError):  # ValueError: an address that makes no sense
            return [self._own.add(key, span) for key in keys]
        pairs = zip(answers[1::3], answers[2::3], strict=True)
        return [Tally(count, timedelta(milliseconds=max(left, 0))) for count, left in pairs]

    def take_back(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._own.take_back(key)
        try:
            for key in keys:
                self._redis.eval(_TAKE_BACK, 1, PREFIX + key)
        except (redis.RedisError, ValueError):
            return

    def forget(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._own.forget(key)
        try:
            self._redis.delete(*(PREFIX + key for key in keys))
        except (redis.RedisError, ValueError):
            return


class _OwnTallies:
    """The counts of this process alone: each with the moment at which it ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, float]] = {}

    def add(self, key: str, span: timedelta) -> Tally:
        now = time.monotonic()
        with self._lock:
            if len(self._counts) >= MOST_KEYS:
                self._counts = {name: kept for name, kept in self._counts.items() if kept[1] > now}
            count, ends_at = self._counts.get(key, (0, 0.0))
            if ends_at <= now:
                count, ends_at = 0, now + span.total_seconds()
            self._counts[key] = (count + 1, ends_at)
        return Tally(count + 1, timedelta(seconds=ends_at - now))

    def take_back(self, key: str) -> None:
        with self._lock:
            if key in self._counts:
                count, ends_at = self._counts[key]
                self._counts[key] = (max(count - 1, 0), ends_at)

    def forget(self, key: str) -> None:
        with self._lock:
            self._counts.pop(key, None)
