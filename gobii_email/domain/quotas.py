"""How much an account may send: its limits, and what its server's answers taught about them.

Pure. A limit that is not set is its provider's, and for an unknown provider a cautious one (Nylas, "improving
email delivery", and facts of our own). What was learned is only ever below that, and grows back by itself.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection")
MOST = 1_000_000_000
"""A limit above this is a mistake; who wants none says this."""
LONGEST_POOL_TTL = 3600
"""Seconds: no server keeps a silent connection longer."""


SPANS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` (>= 1) recipients in any `span`; `name` is minute, hour or day."""

    name: str
    span: timedelta
    limit: int


Left = tuple[timedelta, int]
"""How much longer so many recipients count in a window."""


def time_of_last(cost: int, windows: Sequence[tuple[Window, Sequence[Left]]]) -> timedelta:
    """How long until the last of `cost` recipients may go, each as soon as all `windows` have room for it.

    `windows` come with what they hold, soonest free first. Large costs go in lumps of a sixtieth of the
    smallest limit: the answer may then be late by a sixtieth of a span, never early. Repetition is skipped.
    """
    filled = [_Filling(window, spent) for window, spent in windows]
    if not filled:
        return timedelta(0)
    lump = max(1, min(one.window.limit for one in filled) // 60)
    now, before = timedelta(0), None
    while True:
        now = max(now, *(one.time_of(min(cost, lump), now) for one in filled))
        room = min(cost, *(one.room(now) for one in filled))
        cost -= room
        if cost == 0:
            return now
        for one in filled:
            one.add(now, room)
        if before is None or now - before.at >= _LONGEST:
            seen = _Turn(now, cost, [one.relative_to(now) for one in filled])
            if before is not None and seen.held == before.held:
                times = (cost - 1) // (before.cost - cost)
                skipped = times * (now - before.at)
                cost -= times * (before.cost - cost)
                return skipped + now + time_of_last(cost, [(o.window, o.relative_to(now)) for o in filled])
            before = seen


_LONGEST = max(SPANS.values())


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was left to send at a moment, and what all windows held then."""

    at: timedelta
    cost: int
    held: list[list[Left]]


class _Filling:
    """One window as time passes: what it holds, and until when."""

    def __init__(self, window: Window, spent: Sequence[Left]) -> None:
        self.window = window
        self._held = deque(spent)
        self._used = sum(cost for _, cost in spent)

    def time_of(self, cost: int, now: timedelta) -> timedelta:
        """When there is room for `cost`, at most the limit."""
        excess = self._used + cost - self.window.limit
        for until, held in self._held:
            if excess <= 0:
                break
            excess -= held
            now = max(now, until)
        return now

    def room(self, now: timedelta) -> int:
        while self._held and self._held[0][0] <= now:
            self._used -= self._held.popleft()[1]
        return self.window.limit - self._used

    def add(self, now: timedelta, cost: int) -> None:
        self._held.append((now + self.window.span, cost))
        self._used += cost

    def relative_to(self, now: timedelta) -> list[Left]:
        return [(until - now, cost) for until, cost in self._held]
