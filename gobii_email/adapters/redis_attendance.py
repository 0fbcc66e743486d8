"""Which processes of a kind were at work lately, in one sorted set of Redis: who, and when they last said so.

Nothing depends on it but the answer to an operator's question, so what cannot be written is left out.
"""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import cast

import redis

from gobii_email.adapters.celery_queue import PATIENCE, redis_client
from gobii_email.ports import AttendanceUnknown

KEY = "gobii:dispatchers"
REMEMBERED = timedelta(days=1)


class RedisAttendance:
    """`ports.Attendance`; whoever has not been noted for a day is forgotten."""

    def __init__(self, url: str, key: str = KEY) -> None:
        self._url = url
        self._key = key

    @cached_property
    def _redis(self) -> "redis.Redis":
        return redis_client(self._url, patience=PATIENCE, is_text=True)

    def note(self, name: str) -> None:
        now = time.time()
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(self._key, {name: now})
                pipe.zremrangebyscore(self._key, 0, now - REMEMBERED.total_seconds())
                pipe.execute()
        except (redis.RedisError, ValueError):  # ValueError: an address that makes no sense
            return

    def leave(self, name: str) -> None:
        try:
            self._redis.zrem(self._key, name)
        except (redis.RedisError, ValueError):
            return

    def seen(self) -> Mapping[str, datetime]:
        try:
            found = cast("list[tuple[str, float]]", self._redis.zrange(self._key, 0, -1, withscores=True))
        except (redis.RedisError, ValueError) as problem:
            raise AttendanceUnknown(type(problem).__name__) from None
        return {name: datetime.fromtimestamp(score, UTC) for name, score in found}
