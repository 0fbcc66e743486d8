"""How many of a worker's threads one mail server may hold, so that a slow one delays nobody else.

Pure. A server starts with a small share, which each quick answer widens by one thread and a slow one takes
back; servers that have not shown to be quick share half of the threads between them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

SLOW_AFTER = 5.0
"""Seconds one mail may take before its server counts as slow."""


@dataclass(slots=True)
class HostShare:
    """What one server holds: `lanes` at work, of `allowed`; `is_stuck` while one of them is overdue."""

    lanes: int = 0
    allowed: int = 0
    is_stuck: bool = False


def first_share(threads: int) -> int:
    return max(1, threads // 8)


def widened(share: HostShare, threads: int, *, seconds: float) -> int:
    """What the server may hold after one of its mails took `seconds`.

    An eighth is always left for others, and one thread where there are four or more.
    """
    first = first_share(threads)
    left = first if threads >= 4 else 0
    return first if seconds > SLOW_AFTER else min(threads - left, max(share.allowed, first) + 1)


def may_enter(share: HostShare, others: Iterable[HostShare], threads: int) -> bool:
    """Whether one more lane may go to the server of `share`, beside `others`."""
    first = first_share(threads)
    if not _is_doubtful(share, first):
        return share.lanes < share.allowed
    doubtful = share.lanes + sum(other.lanes for other in others if _is_doubtful(other, first))
    return share.lanes < first and doubtful < max(1, threads // 2)


def _is_doubtful(share: HostShare, first: int) -> bool:
    return share.is_stuck or share.allowed <= first
