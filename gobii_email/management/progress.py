"""How far a long command is: a bar on a terminal, a line every ten seconds elsewhere, on standard error."""

import time
from collections.abc import Callable
from typing import TextIO

WIDTH = 30
REDRAW_SECONDS = 0.1
LINE_SECONDS = 10.0


class Progress:
    """`with Progress("queued", 1000, stderr) as progress: progress.at(200)`; `total` may be unknown (0)."""

    def __init__(
        self, label: str, total: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label, self._total, self._stream, self._clock = label, total, stream, clock
        self._is_terminal = stream.isatty()
        self._started = self._shown = clock()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def at(self, done: int) -> None:
        """Shows that `done` are done, if it is time to."""
        now = self._clock()
        if now - self._shown < (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS):
            return
        self._shown = now
        text = self._text(done, now - self._started)
        self._stream.write(f"\r\033[K{text}" if self._is_terminal else f"{text}\n")
        self._stream.flush()

    def _text(self, done: int, seconds: float) -> str:
        rate = done / seconds if seconds > 0 else 0.0
        if not self._total:
            return f"{self._label} {done:,}, {rate:,.0f} a second"
        filled = WIDTH * done // self._total
        bar = "█" * filled + "░" * (WIDTH - filled)
        left = f", {(self._total - done) / rate:,.0f} s left" if rate else ""
        return f"{self._label} {bar} {done:,} of {self._total:,}{left}"
