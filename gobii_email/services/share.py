"""Sharing one worker's threads between mail servers and between senders.

Kept in the process alone: it bounds threads, not sending. A turn whose server has its share of threads
already is parked, and taken up by whichever turn ends next; the dispatcher knows of it in any case.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gobii_email.domain.fairness import SLOW_AFTER, HostShare, may_enter, widened

MOST_PARKED = 10_000
MOST_HOSTS = 10_000
NEW_AFTER = 1.0
LONGEST_YIELD = 0.05


@dataclass(slots=True)
class _Host:
    share: HostShare = field(default_factory=HostShare)
    began: dict[str, float] = field(default_factory=dict)  # by turn: when its present mail was begun
    failures: int = 0  # connections in a row that failed


@dataclass(frozen=True, slots=True)
class Done:
    """A mail has ended after `seconds`; `parked` is a parked hint that has a place by it, and is parked no more."""

    seconds: float
    parked: str | None = None


class Shares:
    """The servers that this worker's threads are at. `threads` is None until a worker says how many."""

    def __init__(self) -> None:
        self.threads: int | None = None
        self.is_anybody_waiting: Callable[[], bool] = lambda: False
        self.is_stopping = False
        self._hosts: OrderedDict[str, _Host] = OrderedDict()
        self._busy: dict[str, _Host] = {}
        self._parked: OrderedDict[str, OrderedDict[str, str]] = OrderedDict()  # attempt id by host and lane
        self._lock = threading.Lock()

    def enter(self, host: str, turn: str, *, lane: str = "", attempt_id: str = "") -> bool:
        """Takes a thread's place at `host` for `turn`; False when its hint, if any, was parked instead."""
        with self._lock:
            if not self._may_enter(host):
                if attempt_id and sum(map(len, self._parked.values())) < MOST_PARKED:
                    self._parked.setdefault(host, OrderedDict())[lane] = attempt_id
                return False
            entry = self._busy[host] = self._hosts.setdefault(host, _Host())
            entry.share.lanes += 1
            entry.began[turn] = time.monotonic()
        return True

    def begin(self, host: str, turn: str) -> None:
        """The next mail of `turn` begins."""
        self._hosts[host].began[turn] = time.monotonic()

    def done(self, host: str, turn: str) -> Done:
        """A mail of `turn` has ended, however it did."""
        now = time.monotonic()
        with self._lock:
            entry = self._hosts[host]
            seconds = now - entry.began[turn]
            entry.began[turn] = now
            if self.threads is None:
                return Done(seconds)
            before = entry.share.allowed
            entry.share.allowed = widened(entry.share, self.threads, seconds=seconds)
            return Done(seconds, self._next_parked() if entry.share.allowed > before else None)

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
            del entry.began[turn]
            if not entry.began:
                del self._busy[host]
            self._forget_idle()

    def next_parked(self) -> str | None:
        """The attempt id of a parked hint whose server has a place now; it is parked no more."""
        if not self._parked:
            return None
        with self._lock:
            return self._next_parked()

    def _next_parked(self) -> str | None:
        host = next((host for host in self._parked if self._may_enter(host)), None)
        if host is None:
            return None
        lanes = self._parked.pop(host)
        _, attempt_id = lanes.popitem(last=False)
        if lanes:
            self._parked[host] = lanes  # behind the others
        return attempt_id

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
