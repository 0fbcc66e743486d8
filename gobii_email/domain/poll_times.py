"""When a mailbox is polled next: after its interval, or after a backoff that grows with failures in a row.

Pure: `draw` is a random number from 0 to 1, so that mailboxes which were connected together drift apart.
"""

from datetime import timedelta

SHORTEST = timedelta(seconds=30)
FIRST_BACKOFF = timedelta(minutes=2)
LONGEST_BACKOFF = timedelta(minutes=60)
JITTER = 0.1


def interval(seconds: int, draw: float) -> timedelta:
    """`seconds`, give or take a tenth, and never less than 30."""
    return max(varied(timedelta(seconds=seconds), draw), SHORTEST)


def backoff(failures: int, draw: float) -> timedelta:
    """After `failures` (>= 1) in a row: 2, 4, 8, 16, 32, 60, 60, ... minutes, give or take a tenth."""
    return varied(min(FIRST_BACKOFF * 2 ** min(failures - 1, 10), LONGEST_BACKOFF), draw)


def varied(span: timedelta, draw: float) -> timedelta:
    return span * (1 - JITTER + 2 * JITTER * draw)
