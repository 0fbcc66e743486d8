"""What the demonstration prints: lines of at most 80 columns, in colour on a terminal that wants it."""

import os
import sys
import textwrap
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

WIDTH = 80
_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32"}


class Screen:
    """Prints to `stream`, each line at once."""

    def __init__(self, stream: TextIO = sys.stdout, environment: Mapping[str, str] = os.environ) -> None:
        self._stream = stream
        self._has_colour = (
            stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        )

    def line(self, text: str = "", colour: str = "") -> None:
        print(self._coloured(text, colour), file=self._stream, flush=True)

    def heading(self, text: str) -> None:
        self.line()
        self.line(text, "bold")

    def fact(self, name: str, text: str) -> None:
        """`  name       text`, wrapped under itself."""
        self._wrapped(f"  {name:<10}  ", text)

    def moment(self, at: datetime, text: str) -> None:
        """One entry of a timeline."""
        self._wrapped(f"  {at.astimezone(UTC):%H:%M:%S.%f}"[:-5] + "  ", text)

    def note(self, text: str) -> None:
        """What the demonstration itself does, among the entries of a timeline."""
        self.moment(datetime.now(UTC), f"» {text}")

    def _wrapped(self, label: str, text: str) -> None:
        lines = textwrap.wrap(text, WIDTH - len(label), break_long_words=True, break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            start = self._coloured(label, "dim") if number == 0 else " " * len(label)
            self.line(start + line)

    def _coloured(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and self._has_colour else text
