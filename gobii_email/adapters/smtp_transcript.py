"""What was said on one connection, for people: `->` and `<-` in clear, `~>` and `<~` encrypted.

A session that repeats each line to a listener. Secrets never reach it: what follows AUTH is masked before
it is told, and so is whatever the server echoes.
"""

import ssl
from collections.abc import Callable
from functools import partial
from typing import Any

from gobii_email.adapters.smtp_session import SmtpSession
from gobii_email.domain.redaction import MASK, without_credentials
from gobii_email.domain.smtp_replies import safe_text

OnLine = Callable[[str], None]


class RecordedSession(SmtpSession):
    """A session for tests of a connection; those that send record nothing."""

    def __init__(self, *arguments: Any, on_line: OnLine, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._on_line = on_line
        self._is_asked_for_a_secret = False

    @classmethod
    def heard_by(cls, on_line: OnLine) -> Callable[..., SmtpSession]:
        return partial(cls, on_line=on_line)

    def send(self, s: bytes | bytearray | memoryview | str) -> None:  # type: ignore[override]
        data = s if isinstance(s, str) else bytes(s).decode("utf-8", "backslashreplace")
        for line in data.splitlines():
            self._tell(">", self._without_secret(line))
        super().send(s)

    def getreply(self) -> tuple[int, bytes]:
        code, text = super().getreply()
        self._is_asked_for_a_secret = code == 334
        lines = [MASK] if code == 334 else self.masked(text).decode("utf-8", "backslashreplace").split("\n")
        for number, line in enumerate(lines, 1):
            sign = " " if number == len(lines) else "-"
            self._tell("<", f"{code}{sign}{line}")
        return code, text

    def _without_secret(self, line: str) -> str:
        if self._is_asked_for_a_secret:
            return MASK
        if line[:5].upper() == "AUTH ":
            return " ".join([*line.split(" ")[:2], *([MASK] if line.count(" ") > 1 else [])])
        return line

    def _tell(self, direction: str, line: str) -> None:
        stroke = "~" if isinstance(self.sock, ssl.SSLSocket) else "-"
        arrow = f"{stroke}>" if direction == ">" else f"<{stroke}"
        self._on_line(f"{arrow} {without_credentials(safe_text(line))}")
