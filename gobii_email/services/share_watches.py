"""Which mailboxes this process watches: a share of all that ask for it, by leases that it renews.

A mailbox is ours a little shorter than others are told, so that no two watch it. Nothing here speaks to a
mail server; what is done about a mailbox that came, went or changed is left to watch.
"""

import os
import random
import socket
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.services import enlist
from gobii_email.services.enlist import Watchable

OURS_FOR = 0.9
"""The share of a lease for which a mailbox is watched without another word from Redis."""


@dataclass(slots=True)
class Watched:
    """A mailbox that is ours until `until`, monotonic; what watch knows of it besides.

    `problem` is what to show on the mailbox, None while nobody knows. One that `is_resting` cannot be
    watched: it is ours and takes no room.
    """

    wanted: Watchable
    signature: str
    until: float
    opened_at: float | None = None
    failures: int = 0
    is_resting: bool = False
    problem: str | None = None
    rung_at: float = float("-inf")


class Share:
    """`mine` are the mailboxes by the id of their account, `most` of them that can be watched.

    Methods that ask Redis raise LeasesUnavailable.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.mine: dict[str, Watched] = {}
        self.has_more = False
        self._wanted: dict[str, Watchable] = {}
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4()}"

    def expired(self) -> list[str]:
        """Forgets and answers those whose lease has run out."""
        now = time.monotonic()
        return self._without(key for key, watched in self.mine.items() if watched.until <= now)

    def renew(self) -> tuple[list[str], float]:
        """Forgets and answers those that somebody else has by now, and until when the others are ours."""
        kept, until = self._take(list(self.mine))
        lost = self._without(key for key in self.mine if key not in kept)
        for watched in self.mine.values():
            watched.until = until
        return lost, until

    def read(self) -> tuple[list[str], list[str]]:
        """Asks the database; answers those that are not wanted any more, and those that changed."""
        self._wanted = {wanted.account_id: wanted for wanted in enlist.watchable()}
        gone = self._without(key for key in self.mine if key not in self._wanted)
        wiring.leases().release([lease_of(key) for key in gone], self._owner)
        changed = []
        for key, watched in self.mine.items():
            watched.wanted = self._wanted[key]
            if watched.signature != watched.wanted.signature:
                changed.append(key)
                self.mine[key] = Watched(watched.wanted, watched.wanted.signature, watched.until)
        return gone, changed

    def take(self, most: int) -> list[str]:
        """Takes at most so many that nobody has, as far as there is room; then there may be more."""
        resting = sum(watched.is_resting for watched in self.mine.values())
        room = min(most, self._most - len(self.mine) + resting)
        free = [key for key in self._wanted if key not in self.mine]
        if room <= 0 or not free:
            self.has_more = False
            return []
        random.shuffle(free)
        taken, until = self._take(free, room)
        for key in taken:
            self.mine[key] = Watched(self._wanted[key], self._wanted[key].signature, until)
        self.has_more = len(taken) == room
        return taken

    @property
    def untried(self) -> int:
        """How many are ours that nobody has tried to open yet."""
        return sum(watched.problem is None and not watched.failures for watched in self.mine.values())

    def tell(self) -> None:
        """Shows on the mailboxes what is known of them now."""
        changed: defaultdict[str, list[str]] = defaultdict(list)
        for key, watched in self.mine.items():
            if watched.problem is not None and watched.problem != watched.wanted.problem:
                changed[watched.problem].append(key)
        for problem, keys in changed.items():
            enlist.tell(keys, problem)

    def release(self) -> None:
        """Gives all back; never raises."""
        wiring.leases().release([lease_of(key) for key in self.mine], self._owner)

    def _take(self, keys: list[str], most: int | None = None) -> tuple[list[str], float]:
        span = config().idle_lease
        until = time.monotonic() + span.total_seconds() * OURS_FOR
        taken = wiring.leases().take([lease_of(key) for key in keys], self._owner, span, most=most)
        return [key for key in keys if lease_of(key) in taken], until

    def _without(self, keys: Iterable[str]) -> list[str]:
        gone = list(keys)
        for key in gone:
            del self.mine[key]
        return gone


def lease_of(account_id: str) -> str:
    """The name under which a watcher has this mailbox (`ports.Leases`)."""
    return f"idle:{account_id}"
