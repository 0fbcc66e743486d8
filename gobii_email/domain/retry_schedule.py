"""How long to wait between attempts, and when to give up.

Pure: takes counts and moments, returns spans and moments. What is worth another attempt is decided
in classification. The series follows RFC 5321 section 4.5.4.1, shortened because agents wait.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

_MULTIPLES = (1, 2, 5, 10, 20, 40, 60, 120, 240)


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """By default 1, 2, 5, 10, 20, 40 min, 1, 2, 4, 4 … h, each varied by ±10 %.

    `first` scales the series and `longest` caps it; `spans`, when given, replaces it, and its last
    span repeats. `jitter` is the fraction by which a span is varied both ways, from 0 to below 1.
    Raises ValueError when a span is not positive, or `jitter` is out of range.
    """

    first: timedelta = timedelta(minutes=1)
    longest: timedelta = timedelta(hours=4)
    jitter: float = 0.1
    spans: tuple[timedelta, ...] = ()

    def __post_init__(self) -> None:
        if min(self.first, self.longest, *self.spans) <= timedelta(0):
            raise ValueError("every span of a retry schedule must be longer than zero")
        if not 0 <= self.jitter < 1:
            raise ValueError("the jitter of a retry schedule must be from 0 to below 1")

    def delay(self, attempts: int) -> timedelta:
        """Span before the next attempt, after `attempts` attempts (>= 1), without jitter."""
        series = self.spans or tuple(self.first * multiple for multiple in _MULTIPLES)
        return min(series[min(max(attempts, 1), len(series)) - 1], self.longest)

    def next_attempt_at(
        self,
        attempts: int,
        now: datetime,
        expires_at: datetime | None,
        random: Callable[[], float],
        *,
        not_before: datetime | None = None,
    ) -> datetime | None:
        """When to try again after `attempts` attempts; None when that would be at or after `expires_at`.

        `random` gives numbers from 0 to below 1. `not_before` is a later moment the server asked for.
        """
        varied = self.delay(attempts) * (1 + self.jitter * (2 * random() - 1))
        at = max(now + varied, not_before or now)
        return at if expires_at is None or at < expires_at else None
