"""Counts that processes share over a real Valkey, and what one process counts alone without it."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from gobii_email.adapters.redis_tallies import RedisTallies
from gobii_email.testing.stack import eventually
from gobii_email.testing.valkey import EmbeddedValkey

SPAN = timedelta(minutes=15)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's answers are waited for."""
    monkeypatch.setattr("gobii_email.adapters.redis_tallies.PATIENCE", timedelta(seconds=60))


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(params=["shared", "alone"])
def tallies(request: pytest.FixtureRequest, valkey: EmbeddedValkey) -> RedisTallies:
    return RedisTallies(valkey.url if request.param == "shared" else "redis://127.0.0.1:1/0")


def counts(tallies: RedisTallies, *keys: str, span: timedelta = SPAN) -> list[int]:
    return [one.count for one in tallies.add(keys, span)]


def test_each_key_is_counted_for_itself(tallies: RedisTallies) -> None:
    assert counts(tallies, "a", "b") == [1, 1]
    assert counts(tallies, "a") == [2]
    assert all(timedelta(minutes=14) < one.left <= SPAN for one in tallies.add(["b"], SPAN))


def test_what_is_taken_back_or_forgotten_does_not_count(tallies: RedisTallies) -> None:
    for _ in range(3):
        counts(tallies, "c", "d")
    tallies.take_back(["c", "never-counted"])
    tallies.forget(["d"])
    assert counts(tallies, "c", "d", "never-counted") == [3, 1, 1]


def test_a_count_ends_with_its_span_however_often_it_grows(tallies: RedisTallies) -> None:
    short = timedelta(milliseconds=1500)
    assert counts(tallies, "e", span=short) == [1]
    counts(tallies, "e", span=SPAN)
    eventually(lambda: counts(tallies, "e", span=short) == [1], every=0.2)


def test_processes_share_a_count(valkey: EmbeddedValkey) -> None:
    assert counts(RedisTallies(valkey.url), "f") == [1]
    assert counts(RedisTallies(valkey.url), "f") == [2]


def test_an_address_that_makes_no_sense_leaves_this_process_counting() -> None:
    tallies = RedisTallies("nonsense")
    assert counts(tallies, "a") == [1] and counts(tallies, "a") == [2]


def test_what_is_over_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.redis_tallies.MOST_KEYS", 3)
    tallies = RedisTallies("redis://127.0.0.1:1/0")
    for number in range(9):
        counts(tallies, f"k{number}", span=timedelta(0))
    assert len(tallies._own._counts) <= 3
