"""Leases in Redis (`ports.Leases`): a key each, which holds its owner's name and ends by itself.

Every method is one round trip for up to a thousand keys. What Redis forgets is free again, so two may do for
a while what one should: whoever needs more than that takes a lease in a row of the database.
"""

from collections.abc import Iterator, Sequence, Set
from datetime import timedelta
from functools import cached_property
from typing import Any

import redis

from gobii_email.adapters.celery_queue import PATIENCE, redis_client
from gobii_email.ports import LeasesUnavailable

PREFIX = "gobii:lease:"
AT_ONCE = 1000

_TAKE = """
local taken = {}
for place, key in ipairs(KEYS) do
  if #taken >= tonumber(ARGV[3]) then break end
  local owner = redis.call('GET', key)
  if not owner or owner == ARGV[1] then
    redis.call('SET', key, ARGV[1], 'PX', ARGV[2])
    taken[#taken + 1] = place
  end
end
return taken
"""
_RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""


class RedisLeases:
    """Leases in the Redis at `url`, which is given a second to answer each call."""

    def __init__(self, url: str) -> None:
        self._url = url

    @cached_property
    def _redis(self) -> "redis.Redis":
        return redis_client(self._url, patience=PATIENCE, is_text=True)

    def take(self, keys: Sequence[str], owner: str, span: timedelta, *, most: int | None = None) -> Set[str]:
        room = len(keys) if most is None else most
        found: set[str] = set()
        for batch in _batches(keys):
            if len(found) >= room:
                break
            places = self._run(_TAKE, batch, owner, span // timedelta(milliseconds=1), room - len(found))
            found.update(batch[place - 1] for place in places)
        return found

    def taken(self, keys: Sequence[str]) -> Set[str]:
        found: set[str] = set()
        for batch in _batches(keys):
            try:
                owners = self._redis.mget([PREFIX + key for key in batch])
            except (redis.RedisError, ValueError) as problem:
                raise LeasesUnavailable(type(problem).__name__) from None
            found.update(key for key, owner in zip(batch, owners, strict=True) if owner is not None)
        return found

    def release(self, keys: Sequence[str], owner: str) -> None:
        for batch in _batches(keys):
            try:
                self._run(_RELEASE, batch, owner)
            except LeasesUnavailable:
                return

    def _run(self, script: str, keys: Sequence[str], *arguments: Any) -> Any:
        try:
            return self._redis.eval(script, len(keys), *(PREFIX + key for key in keys), *arguments)
        except (redis.RedisError, ValueError) as problem:  # ValueError: an address that makes no sense
            raise LeasesUnavailable(type(problem).__name__) from None


def _batches(keys: Sequence[str]) -> Iterator[Sequence[str]]:
    return (keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE))
