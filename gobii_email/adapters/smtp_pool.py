"""Connections that wait for their account's next turn, within this process.

Knows how many may wait and how long; never lets two accounts share one. What is out of time is
closed when the pool is next used; a forked child begins without any.
"""

import os
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass

from gobii_email.adapters.smtp_dialogue import MAX_AGE_SECONDS, Dialogue
from gobii_email.ports import Reuse, SmtpServer

MAX_WAITING = 200


@dataclass(frozen=True, slots=True)
class _Waiting:
    key: str
    dialogue: Dialogue
    until: float


class SmtpPool:
    """Waiting connections by `Reuse.key`; safe to use from all threads.

    A key alone opens nothing: the server's settings, login and secret must be equal as well.
    """

    def __init__(self, max_waiting: int = MAX_WAITING) -> None:
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        _pools.add(self)

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, server: SmtpServer, reuse: Reuse) -> Dialogue | None:
        """The connection that came last of those that may carry one more message, if there is one."""
        with self._lock:
            expired = self._without_expired()
            found = next((one for one in reversed(self._waiting) if _fits(one, server, reuse)), None)
            if found is not None:
                self._waiting.remove(found)
        _close(expired)
        return None if found is None else found.dialogue

    def put(self, dialogue: Dialogue, reuse: Reuse) -> None:
        """Lets `dialogue` wait as long as `reuse` allows, or closes it."""
        idle = min(reuse.idle.total_seconds(), MAX_AGE_SECONDS - dialogue.age_seconds)
        if idle <= 0 or not reuse.key or dialogue.is_worn_out(reuse.messages):
            dialogue.close()
            return
        with self._lock:
            leaving = self._without_expired()
            self._waiting.append(_Waiting(reuse.key, dialogue, time.monotonic() + idle))
            leaving += self._without_surplus(reuse)
        _close(leaving)

    def close_all(self) -> None:
        """Takes leave of every server, as at shutdown."""
        with self._lock:
            leaving, self._waiting = self._waiting, list[_Waiting]()
        _close(leaving)

    def _without_expired(self) -> list[_Waiting]:
        now = time.monotonic()
        expired = [one for one in self._waiting if one.until <= now]
        if expired:
            self._waiting = [one for one in self._waiting if one.until > now]
        return expired

    def _without_surplus(self, reuse: Reuse) -> list[_Waiting]:
        """The oldest of this key, and of all, beyond what may wait; no longer waiting."""
        of_key = [one for one in self._waiting if one.key == reuse.key]
        surplus = of_key[: max(0, len(of_key) - reuse.connections)]
        surplus += self._waiting[: max(0, len(self._waiting) - len(surplus) - self._max_waiting)]
        self._waiting = [one for one in self._waiting if one not in surplus]
        return surplus

    def _forget(self) -> None:
        # The connections belong to the parent, so nothing is said; the lock may have been held.
        self._lock = threading.Lock()
        forgotten, self._waiting = self._waiting, list[_Waiting]()
        for one in forgotten:
            one.dialogue.drop()


def _fits(one: _Waiting, server: SmtpServer, reuse: Reuse) -> bool:
    return (
        one.key == reuse.key
        and one.dialogue.server == server
        and not one.dialogue.is_worn_out(reuse.messages)
    )


def _close(leaving: Iterable[_Waiting]) -> None:
    for one in leaving:
        one.dialogue.close()


_pools: "weakref.WeakSet[SmtpPool]" = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_pools):
        pool._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
