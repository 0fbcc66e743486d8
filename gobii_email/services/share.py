"""Sharing one worker's threads between mail servers and between senders.

Kept in the process alone: it bounds threads, not sending. A turn whose server has its share of threads
already is parked, and taken up by whichever turn ends next; the dispatcher knows of it in any case.
"""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gobii_email.domain.fairness import SLOW_AFTER, HostShare, may_enter, widened

MOST_PARKED = 10_000
MOST_HOSTS = 10_000
NEW_AFTER = 1.0
LONGEST_YIELD = 0.05
_LATELY = 16


@dataclass(slots=True)
class _Host:
    share: HostShare = field(default_factory=HostShare)
    began: dict[str, float] = field(default_factory=dict)  # by turn: when its present mail was begun
    lanes: dict[str, str] = field(default_factory=dict)  # by turn
    leaving: set[str] = field(default_factory=set)  # turns that end for somebody who waits
    failures: int = 0  # connections in a row that failed
    pace: float = 0.0  # seconds that a mail takes lately


@dataclass(frozen=True, slots=True)
class Done:
    """A mail has ended after `seconds`; `parked` was a parked hint that has a place by it."""

    seconds: float
    parked: str | None = None


class _Parked:
    """Hints that wait for a place at their server, servers in turns and the lanes of each in order."""

    def __init__(self) -> None:
        self._hosts: OrderedDict[str, OrderedDict[str, str]] = OrderedDict()  # attempt id by lane
        self._count = 0

    def count(self, host: str) -> int:
        return len(self._hosts.get(host, ()))

    def put(self, host: str, lane: str, attempt_id: str) -> None:
        if self._count < MOST_PARKED:
            lanes = self._hosts.setdefault(host, OrderedDict())
            self._count += lane not in lanes
            lanes[lane] = attempt_id

    def take(self, has_place: Callable[[str], bool]) -> str | None:
        """The attempt id of the first one whose server has a place."""
        host = next(filter(has_place, self._hosts), None)
        if host is None:
            return None
        lanes = self._hosts.pop(host)
        _, attempt_id = lanes.popitem(last=False)
        self._count -= 1
        if lanes:
            self._hosts[host] = lanes  # behind the others
        return attempt_id


class Shares:
    """The servers that this worker's threads are at. `threads` is None until a worker says how many."""

    def __init__(self) -> None:
        self.threads: int | None = None
        self.waiting: Callable[[], int] = lambda: 0
        self.is_stopping = False
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._busy: dict[str, _Host] = {}
        self._parked = _Parked()
        self._helpers = _Parked()  # for a lane that has a turn already
        self._lock = threading.Lock()

    def enter(self, host: str, turn: str, *, lane: str = "", attempt_id: str = "") -> bool:
        """Takes a thread's place at `host` for `turn`; False when its hint, if any, was parked instead."""
        with self._lock:
            if not self._may_enter(host):
                if attempt_id:
                    parked = self._helpers if self._is_at_work(host, lane) else self._parked
                    parked.put(host, lane, attempt_id)
                return False
            entry = self._busy[host] = self._hosts.setdefault(host, _Host())
            entry.share.lanes += 1
            entry.lanes[turn] = lane
            entry.began[turn] = time.monotonic()
        return True

    def begin(self, host: str, turn: str) -> None:
        """The next mail of `turn` begins."""
        self._hosts[host].began[turn] = time.monotonic()

    def done(self, host: str, turn: str) -> Done:
        """A mail of `turn` has ended, however it did."""
        now = time.monotonic()
        entry = self._hosts[host]
        seconds = now - entry.began[turn]
        entry.began[turn] = now
        entry.pace += (seconds - entry.pace) / _LATELY if entry.pace else seconds
        if self.threads is None or entry.share.allowed == widened(entry.share, self.threads, seconds=seconds):
            return Done(seconds)
        with self._lock:
            before = entry.share.allowed
            entry.share.allowed = widened(entry.share, self.threads, seconds=seconds)
            return Done(seconds, self._next_parked() if entry.share.allowed > before else None)

    def pace(self, host: str) -> float:
        """Seconds that a mail takes at `host` lately; 0 where nobody knows."""
        return self._hosts[host].pace

    def well(self, host: str) -> None:
        self._hosts[host].failures = 0

    def unwell(self, host: str) -> int:
        """How many connections to `host` have failed in a row, this one included."""
        with self._lock:
            self._hosts[host].failures += 1
            return self._hosts[host].failures

    def leave(self, host: str, turn: str) -> None:
        with self._lock:
            entry = self._hosts[host]
            entry.share.lanes -= 1
            del entry.began[turn], entry.lanes[turn]
            entry.leaving.discard(turn)
            if not entry.began:
                del self._busy[host]
            self._forget_idle()

    def next_parked(self) -> str | None:
        """The attempt id of a parked hint whose server has a place now; it is parked no more."""
        with self._lock:
            return self._next_parked()

    def is_waited_for(self, host: str) -> bool:
        """Whether another lane would begin if a turn at `host` made room for it."""
        return self._parked.count(host) > 0 or self.waiting() > 0

    def makes_room(self, host: str, turn: str) -> bool:
        """Whether `turn` is to end for one that waits.

        As many turns do as there are who wait, and first those of lanes that have several.
        """
        if not self.is_waited_for(host):
            return False
        with self._lock:
            entry = self._busy[host]
            several = Counter(entry.lanes.values())
            comes_first = several[entry.lanes[turn]] > 1 or len(several) == len(entry.lanes)
            if comes_first and len(entry.leaving) < self._parked.count(host) + self.waiting():
                entry.leaving.add(turn)
            return turn in entry.leaving

    def _is_at_work(self, host: str, lane: str) -> bool:
        return host in self._busy and lane in self._busy[host].lanes.values()

    def _next_parked(self) -> str | None:
        return self._parked.take(self._may_enter) or self._helpers.take(self._may_enter)

    def _may_enter(self, host: str) -> bool:
        if self.threads is None:
            return True
        now = time.monotonic()
        present = self._seen(self._hosts.get(host, _Host()), now)
        others = (self._seen(entry, now) for name, entry in self._busy.items() if name != host)
        return may_enter(present, others, self.threads)

    def _seen(self, entry: _Host, now: float) -> HostShare:
        is_stuck = any(now - began > SLOW_AFTER for began in entry.began.values())
        return replace(entry.share, is_stuck=is_stuck)

    def _forget_idle(self) -> None:
        while len(self._hosts) > MOST_HOSTS:
            idle = next((name for name, entry in self._hosts.items() if not entry.began), None)
            if idle is None:
                return
            del self._hosts[idle]


class Newcomers:
    """Lets the first mail of a sender who was silent go before the next one of a long turn."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._newest_at = 0.0
        self._last: OrderedDict[str, float] = OrderedDict()

    @contextmanager
    def first_mail(self, lane: str) -> Iterator[None]:
        """Around the first mail of a turn."""
        is_new = self._note(lane)
        if is_new:
            with self._changed:
                self._count += 1
                self._newest_at = time.monotonic()
        try:
            yield
        finally:
            if is_new:
                with self._changed:
                    self._count -= 1
                    self._changed.notify_all()
            self._note(lane)

    def give_way(self, lane: str) -> None:
        """Before each further mail of a turn: waits a moment while a newcomer's first mail is under way."""
        self._note(lane)
        left = self._newest_at + LONGEST_YIELD - time.monotonic()
        if self._count and left > 0:
            with self._changed:
                self._changed.wait_for(lambda: not self._count, left)

    def _note(self, lane: str) -> bool:
        """Whether `lane` had been silent; from now on it has not."""
        now = time.monotonic()
        last = self._last.pop(lane, None)
        self._last[lane] = now
        while len(self._last) > MOST_PARKED:
            self._last.popitem(last=False)
        return last is None or now - last > NEW_AFTER


shares = Shares()
"""Of threads that send."""
poll_shares = Shares()
"""Of threads that read mailboxes; nothing is parked in it."""
newcomers = Newcomers()
