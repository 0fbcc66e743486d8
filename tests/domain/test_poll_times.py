"""When a mailbox is polled next."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.poll_times import backoff, interval

DRAWS = st.floats(0, 1)


def test_a_backoff_doubles_up_to_an_hour() -> None:
    minutes = [backoff(failures, 0.5) / timedelta(minutes=1) for failures in range(1, 9)]
    assert minutes == [2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff(1000, 1.0) <= timedelta(minutes=66)


@given(st.integers(30, 86_400), DRAWS)
def test_an_interval_varies_by_a_tenth_and_is_never_below_half_a_minute(seconds: int, draw: float) -> None:
    found = interval(seconds, draw).total_seconds()
    assert 30 <= found <= max(30, seconds * 1.1 + 0.001)
    assert found >= seconds * 0.9 - 0.001


def test_mailboxes_that_were_connected_together_drift_apart() -> None:
    assert [interval(120, draw).total_seconds() for draw in (0, 0.5, 1)] == [108, 120, 132]
    assert [backoff(1, draw).total_seconds() for draw in (0, 1)] == [108, 132]
