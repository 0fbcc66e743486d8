"""Ending on Ctrl-C, SIGTERM or a closed terminal, never in the middle of starting or stopping a process.

The first signal raises `Interrupted` where that is safe; later ones change nothing.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody asked the demonstration to end. `signal` is how."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(signal.strsignal(number))


class Interruption:
    """Turns signals into `Interrupted`. One for the process; made in the main thread."""

    def __init__(self) -> None:
        self._is_held = False
        self._pending: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._arrived)

    @contextmanager
    def held(self) -> Iterator[None]:
        """A signal that comes meanwhile is raised afterwards."""
        was_held, self._is_held = self._is_held, True
        try:
            yield
        finally:
            self._is_held = was_held
        if self._pending is not None and not self._is_held:
            self._raise(self._pending)

    def is_over(self) -> None:
        """From here on nothing is interrupted."""
        self._is_held = True

    def _arrived(self, number: int, _frame: object) -> None:
        if self._is_held:
            self._pending = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> None:
        self.is_over()
        raise Interrupted(number)
