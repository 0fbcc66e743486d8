"""Ending a process that runs until it is stopped: in order at the first signal, at once at the second."""

import signal
import threading
from typing import Any


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets `stop`, and gives the next one its usual effect."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._end)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        self._stop.set()
        self.__exit__()
