"""Leases in a real Valkey: one owner a key, until it ends, is given back or is forgotten."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import redis

from gobii_email.adapters.redis_leases import PREFIX, RedisLeases
from gobii_email.ports import LeasesUnavailable
from gobii_email.testing.stack import eventually
from gobii_email.testing.valkey import EmbeddedValkey

LONG = timedelta(seconds=60)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's answers are waited for."""
    monkeypatch.setattr("gobii_email.adapters.redis_leases.PATIENCE", timedelta(seconds=60))


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture
def leases(valkey: EmbeddedValkey) -> RedisLeases:
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    return RedisLeases(valkey.url)


def test_what_one_has_nobody_else_gets_until_it_is_given_back(leases: RedisLeases) -> None:
    assert leases.take(["a", "b"], "one", LONG) == {"a", "b"}
    assert leases.take(["a", "b", "c"], "two", LONG) == {"c"}
    leases.release(["a", "c"], "one")
    assert leases.taken(["a", "b", "c"]) == {"b", "c"}
    assert leases.take(["a", "b", "c"], "two", LONG) == {"a", "c"}


def test_taking_again_lengthens_the_lease(leases: RedisLeases, valkey: EmbeddedValkey) -> None:
    leases.take(["a"], "one", timedelta(seconds=1))
    assert leases.take(["a"], "one", LONG) == {"a"}
    with redis.Redis.from_url(valkey.url) as client:
        assert client.pttl(PREFIX + "a") > 50_000


def test_a_lease_ends_by_itself(leases: RedisLeases) -> None:
    leases.take(["a"], "one", timedelta(milliseconds=50))
    assert eventually(lambda: leases.take(["a"], "two", LONG)) == {"a"}
    assert leases.take(["a"], "one", LONG) == set()


def test_no_more_are_taken_than_there_is_room_for_however_many_there_are(leases: RedisLeases) -> None:
    keys = [f"key-{number}" for number in range(2500)]
    leases.take(keys[:10], "one", LONG)
    assert leases.take(keys, "two", LONG, most=1200) == set(keys[10:1210])
    assert leases.take(keys, "two", LONG, most=0) == set()
    assert leases.take(keys, "three", LONG) == set(keys[1210:])
    assert leases.taken(keys) == set(keys)
    leases.release(keys, "three")
    assert leases.taken(keys) == set(keys[:1210])


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense"])
def test_without_redis_nobody_gets_anything_and_giving_back_disturbs_nobody(url: str) -> None:
    leases = RedisLeases(url)
    leases.release(["a"], "one")
    with pytest.raises(LeasesUnavailable):
        leases.take(["a"], "one", LONG)
    with pytest.raises(LeasesUnavailable):
        leases.taken(["a"])
