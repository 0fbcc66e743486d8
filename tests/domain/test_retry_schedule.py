"""The series of waits, its jitter, and its end."""

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.retry_schedule import RetrySchedule

NOW = datetime(2025, 1, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_the_waits_are_1_2_5_10_20_40_minutes_then_1_2_4_4_hours():
    waits = [RetrySchedule().delay(attempts) / MINUTE for attempts in range(1, 12)]
    assert waits == [1, 2, 5, 10, 20, 40, 60, 120, 240, 240, 240]


def test_the_first_span_scales_the_series_and_the_longest_caps_it():
    schedule = RetrySchedule(first=timedelta(seconds=1), longest=timedelta(seconds=30))
    assert [schedule.delay(n).total_seconds() for n in (1, 2, 3, 6, 50)] == [1, 2, 5, 30, 30]


def test_own_spans_replace_the_series_and_the_last_repeats():
    schedule = RetrySchedule(spans=(MINUTE, 3 * MINUTE))
    assert [schedule.delay(n) / MINUTE for n in (1, 2, 3, 99)] == [1, 3, 3, 3]


@given(attempts=st.integers(1, 40), luck=st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_a_tenth(attempts, luck):
    schedule = RetrySchedule()
    at = schedule.next_attempt_at(attempts, NOW, None, lambda: luck)
    assert 0.9 <= (at - NOW) / schedule.delay(attempts) <= 1.1


def test_jitter_spreads_both_ways():
    luck = random.Random(7).random
    waits = [(RetrySchedule().next_attempt_at(1, NOW, None, luck) - NOW) / MINUTE for _ in range(200)]
    assert min(waits) < 0.95 and max(waits) > 1.05


def test_what_would_come_too_late_is_given_up():
    schedule = RetrySchedule()
    assert schedule.next_attempt_at(1, NOW, NOW + 2 * MINUTE, lambda: 0.5) == NOW + MINUTE
    assert schedule.next_attempt_at(1, NOW, NOW + MINUTE, lambda: 0.5) is None
    assert schedule.next_attempt_at(1, NOW, NOW - MINUTE, lambda: 0.5) is None


def test_a_later_moment_asked_for_by_the_server_is_kept():
    at = RetrySchedule().next_attempt_at(1, NOW, None, lambda: 0.5, not_before=NOW + 15 * MINUTE)
    assert at == NOW + 15 * MINUTE
    assert RetrySchedule().next_attempt_at(1, NOW, None, lambda: 0.5, not_before=NOW) == NOW + MINUTE


@pytest.mark.parametrize(
    "wrong", [{"first": timedelta(0)}, {"spans": (MINUTE, -MINUTE)}, {"jitter": 1.0}, {"jitter": -0.1}]
)
def test_a_schedule_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match="retry schedule"):
        RetrySchedule(**wrong)
