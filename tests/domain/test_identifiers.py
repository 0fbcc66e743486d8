"""Identifiers of rows."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.identifiers import new_id

# From 1980 to the year 3000, in milliseconds.
MOMENTS = st.integers(315_532_800_000, 32_503_680_000_000).map(
    lambda milliseconds: datetime.fromtimestamp(milliseconds / 1000, tz=UTC)
)


@given(MOMENTS)
def test_it_is_of_version_7_and_says_when_it_was_made(now: datetime) -> None:
    made = new_id(now)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert made.int >> 80 == int(now.timestamp() * 1000)


@given(MOMENTS, st.integers(min_value=1, max_value=10**6))
def test_later_ones_are_greater(now: datetime, milliseconds: int) -> None:
    assert new_id(now).bytes < new_id(now + timedelta(milliseconds=milliseconds + 1)).bytes


def test_no_two_are_equal() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert len({new_id(now) for _ in range(10_000)}) == 10_000
