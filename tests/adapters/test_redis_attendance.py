"""Who is at work, as a real Valkey remembers it, and what is left when there is none."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import redis

from gobii_email.adapters.redis_attendance import KEY, RedisAttendance
from gobii_email.ports import AttendanceUnknown
from gobii_email.testing.valkey import EmbeddedValkey


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's answers are waited for."""
    monkeypatch.setattr("gobii_email.adapters.redis_attendance.PATIENCE", timedelta(seconds=60))


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


def test_who_was_noted_is_seen_until_it_leaves(valkey: EmbeddedValkey) -> None:
    attendance = RedisAttendance(valkey.url)
    attendance.note("host:1")
    attendance.note("host:2")
    assert set(attendance.seen()) == {"host:1", "host:2"}
    assert abs(attendance.seen()["host:1"] - datetime.now(UTC)) < timedelta(minutes=1)
    attendance.leave("host:1")
    assert set(attendance.seen()) == {"host:2"}


def test_who_was_not_noted_for_a_day_is_forgotten(valkey: EmbeddedValkey) -> None:
    attendance = RedisAttendance(valkey.url)
    with redis.Redis.from_url(valkey.url) as client:
        client.zadd(KEY, {"old": time.time() - 90_000})
    attendance.note("new")
    assert "old" not in attendance.seen() and "new" in attendance.seen()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "nonsense"])
def test_without_redis_nobody_is_disturbed_and_nobody_can_tell(url: str) -> None:
    attendance = RedisAttendance(url)
    attendance.note("host:1")
    attendance.leave("host:1")
    with pytest.raises(AttendanceUnknown):
        attendance.seen()
