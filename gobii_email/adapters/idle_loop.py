"""Waits on thousands of IDLE connections in one thread.

Owns the sockets that are given to it, each by its key, until it has lost or dropped them. A connection goes
no further than the moment that was named for it, whatever became of whoever named it.
"""

import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterable

from gobii_email.ports import NewsConnection, NotWatched

TEND_EVERY = 1.0
LEASE_OVER = "lease_over"


class IdleLoop:
    """Call `start`, then `add`; `close` says goodbye to all.

    `on_news` and `on_lost` are called in the loop's own thread and have to be quick; neither is for what was
    dropped.
    """

    def __init__(self, on_news: Callable[[str], None], on_lost: Callable[[str, NotWatched], None]) -> None:
        self._on_news = on_news
        self._on_lost = on_lost
        self._selector = selectors.DefaultSelector()
        self._bell, self._woken = socket.socketpair()
        self._bell.setblocking(False)
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._connections: dict[str, NewsConnection] = {}
        self._until: dict[str, float] = {}
        self._is_ending = False
        self._thread = threading.Thread(target=self._run, name="idle", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, key: str, connection: NewsConnection, until: float) -> None:
        """Waits on `connection` until `until` at most, which is monotonic; ends a former one."""
        self._order(lambda: self._add(key, connection, until))

    def keep(self, keys: Iterable[str], until: float) -> None:
        """Moves the moment to which these are kept."""
        wanted = list(keys)
        self._order(lambda: self._until.update((key, until) for key in wanted if key in self._until))

    def drop(self, keys: Iterable[str]) -> None:
        """Takes leave of these servers."""
        wanted = list(keys)
        self._order(lambda: self._drop(wanted))

    def close(self, within: float = 5.0) -> None:
        """Takes leave of all, and returns when that is done, or after `within` seconds."""
        self._is_ending = True
        self._ring()
        self._thread.join(within)

    # In the loop's own thread from here on

    def _run(self) -> None:
        tended_at = time.monotonic()
        while not self._is_ending:
            for ready, _ in self._selector.select(TEND_EVERY):
                self._attend(ready.data)
            self._obey()
            if (now := time.monotonic()) - tended_at >= TEND_EVERY:
                tended_at = now
                self._tend_all(now)
        self._obey()
        self._drop(list(self._connections))
        self._selector.close()

    def _attend(self, key: str | None) -> None:
        if key is not None:
            self._try(key, lambda connection: self._receive(key, connection))
            return
        with contextlib.suppress(BlockingIOError):
            while self._woken.recv(4096):
                pass

    def _obey(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._orders.get_nowait()()

    def _tend_all(self, now: float) -> None:
        for key in [key for key, until in self._until.items() if until <= now]:
            self._drop([key])
            self._on_lost(key, NotWatched("Nobody could say that it is ours.", LEASE_OVER))
        for key in list(self._connections):
            self._try(key, lambda connection: connection.tend(now))

    def _add(self, key: str, connection: NewsConnection, until: float) -> None:
        self._drop([key])
        self._selector.register(connection, selectors.EVENT_READ, key)
        self._connections[key], self._until[key] = connection, until
        self._try(key, self._begin)

    def _begin(self, connection: NewsConnection) -> None:
        connection.begin(time.monotonic())

    def _receive(self, key: str, connection: NewsConnection) -> None:
        if connection.receive(time.monotonic()):
            self._on_news(key)

    def _drop(self, keys: Iterable[str]) -> None:
        for key in keys:
            if (connection := self._forget(key)) is not None:
                connection.leave()

    def _try(self, key: str, act: Callable[[NewsConnection], None]) -> None:
        if (connection := self._connections.get(key)) is None:
            return
        try:
            act(connection)
        except NotWatched as ended:
            self._forget(key)
            connection.close()
            self._on_lost(key, ended)

    def _forget(self, key: str) -> NewsConnection | None:
        self._until.pop(key, None)
        connection = self._connections.pop(key, None)
        if connection is not None:
            self._selector.unregister(connection)
        return connection

    # From other threads

    def _order(self, order: Callable[[], None]) -> None:
        self._orders.put(order)
        self._ring()

    def _ring(self) -> None:
        # Full: then it has been rung for already.
        with contextlib.suppress(OSError):
            self._bell.send(b"\0")
