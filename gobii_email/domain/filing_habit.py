"""What an account's server does with sent mail: whether it files a copy itself, and how soon that is seen.

Learned from the account's own ordinary mail alone: what a provider says of itself is no proof. Says from
when on a missing copy proves that the server never took the mail, and when to look for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

ENOUGH = 3
"""Copies that have to have been seen before a habit is one."""
RECENT = 20
"""Mails among which no copy may be missing."""
FACTOR = 3
FIRST_LOOK = timedelta(seconds=30)
LAST_LOOK = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Observation:
    """Whether the copy of one ordinary mail was there by itself, and how long that took."""

    was_there: bool
    lag: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class Habit:
    """What the observations of one account, newest first, say together."""

    observations: Sequence[Observation] = ()

    @property
    def seen(self) -> int:
        """Copies that were there, among the most recent."""
        return sum(found.was_there for found in self.observations[:RECENT])

    @property
    def looked_for(self) -> int:
        return min(len(self.observations), RECENT)

    @property
    def files_itself(self) -> bool:
        """Whether a missing copy means anything."""
        return self.seen >= ENOUGH and self.seen == self.looked_for

    @property
    def lag(self) -> timedelta:
        """The 99th percentile of what was observed, which among so few is close to the longest."""
        lags = sorted(found.lag for found in self.observations if found.was_there)
        return lags[int(0.99 * (len(lags) - 1) + 0.5)] if lags else timedelta(0)

    @property
    def usual_lag(self) -> timedelta:
        lags = sorted(found.lag for found in self.observations if found.was_there)
        return lags[len(lags) // 2] if lags else timedelta(0)

    def proof_after(self, least: timedelta) -> timedelta:
        """How long after a doubt began a missing copy counts: three times the lag, `least` at least."""
        return max(least, FACTOR * self.lag)

    def sentence(self) -> str:
        """The habit in words, for people."""
        counts = f"{self.seen} of {self.looked_for} seen"
        if self.files_itself:
            return f"files sent mail itself, usually within {spoken(self.usual_lag)}; {counts}"
        if self.looked_for < ENOUGH:
            return f"not known yet whether it files sent mail itself; {counts}"
        return f"does not reliably file sent mail itself; {counts}"


def spoken(span: timedelta) -> str:
    """`2 s`, `5 min`, `3 h`: rounded up, so that it is not said too short."""
    seconds = max(1, -int(-span.total_seconds() // 1))
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{-(-seconds // size)} {unit}"
    return f"{seconds} s"


def next_look(age: timedelta) -> timedelta | None:
    """How long to wait after a look at `age` after the doubt began; None when that was the last.

    As long again as it has lasted: looks at 30 s, 1, 2, 4, 8 … minutes, thirteen in all in a day.
    """
    if age >= LAST_LOOK:
        return None
    return min(max(age, FIRST_LOOK), LAST_LOOK - age)
