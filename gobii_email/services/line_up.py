"""The line of mailboxes that wait to be opened: by time, and with few places for each server.

A server that keeps everybody waiting at its door holds its own places, and nobody else's. `now` and `due` are
monotonic seconds; who opens what is left to watch.
"""

import heapq
import itertools
from collections import Counter, defaultdict, deque

PLACES = 32
"""Mailboxes that are opened at the same time, each by a thread of its own."""
PLACES_OF_A_HOST = 8


class Line:
    """Keys that wait, each once, and those whose turn it is until they are `done`."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, str]] = []
        self._tickets: dict[str, tuple[int, str]] = {}
        self._parked: defaultdict[str, deque[tuple[int, str]]] = defaultdict(deque)
        self._at_work: Counter[str] = Counter()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self, key: str, host: str, due: float) -> None:
        """Waits from now on, until `due` at least; a place that `key` had in the line is lost."""
        number = next(self._numbers)
        self._tickets[key] = (number, host)
        heapq.heappush(self._heap, (due, number, key))

    def leave(self, key: str) -> None:
        self._tickets.pop(key, None)

    def next(self, now: float) -> str | None:
        """Whose turn it is; None while nobody is due or there is no place."""
        while self._heap and self._heap[0][0] <= now and self._at_work.total() < PLACES:
            _, number, key = heapq.heappop(self._heap)
            ticket, host = self._tickets.get(key, (None, ""))
            if ticket != number:
                continue
            if self._at_work[host] >= PLACES_OF_A_HOST:
                self._parked[host].append((number, key))
                continue
            del self._tickets[key]
            self._at_work[host] += 1
            return key
        return None

    def done(self, host: str) -> None:
        """One at `host` has left its place; the first of those who were parked for it may try again."""
        self._at_work[host] -= 1
        parked = self._parked[host]
        while parked:
            number, key = parked.popleft()
            if self._tickets.get(key, (None, ""))[0] == number:
                heapq.heappush(self._heap, (0.0, number, key))
                return
        del self._parked[host]
