"""One IMAP connection that cannot be held up, flooded or talked into a secret.

Puts imaplib's commands over a vetted socket, with a total deadline and a budget of bytes for each, literals
included. The library never dials, never logs, and every refusal comes out in the server's own words. Which
commands to give is left to the dialogue.
"""

import imaplib
import ssl
from collections.abc import Callable
from typing import Any

from imapclient import IMAPClient

from gobii_email.adapters.dialer import Deadline
from gobii_email.adapters.wire import Wire
from gobii_email.domain.imap_replies import Refusal, refusal_from
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.redaction import MASK, without_credentials
from gobii_email.domain.smtp_replies import safe_text

MAX_LINE_BYTES = 64 * 1024
BUDGET_BYTES = 256 * 1024
"""What the answer to one command may hold, where its caller asks for nothing else."""

OnLine = Callable[[str], None]
OnWait = Callable[[], None]


def unnoticed() -> None:
    """Nobody wants to know that the network is waited for."""


class Declined(Exception):
    """The server said NO, BAD or BYE."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


class ImapSession(Wire, imaplib.IMAP4):  # type: ignore[misc]
    """imaplib's dialogue over a Wire; `begin` each step.

    `on_line` hears what is said, redacted; while it `is_signing_in`, nothing of what is said is told.
    `on_wait` is called before each wait for the network, and every few seconds of it; it may raise.
    """

    def __init__(
        self,
        host: str,
        port: int,
        deadline: Deadline,
        on_line: OnLine | None = None,
        on_wait: OnWait = unnoticed,
    ) -> None:
        Wire.__init__(self, host, deadline, on_wait)
        self.is_signing_in = False
        self._budget = BUDGET_BYTES
        self._longest_line = MAX_LINE_BYTES
        self._on_line = on_line
        self._is_greeted = False
        imaplib.IMAP4.__init__(self, host, port)

    def begin(
        self,
        doing: str,
        deadline: Deadline,
        budget: int = BUDGET_BYTES,
        longest_line: int = MAX_LINE_BYTES,
    ) -> None:
        self.doing = doing
        self.deadline = deadline
        self._budget = budget
        self._longest_line = longest_line

    def wait_unnoticed(self) -> None:
        """From now on `on_wait` hears nothing more."""
        self._on_wait = unnoticed

    def greet(self) -> None:
        """Reads the greeting; the state is AUTH after PREAUTH. Raises Declined for BYE."""
        self._is_greeted = True
        try:
            super()._connect()  # type: ignore[misc]
        except imaplib.IMAP4.error:
            self._check_bye()
            self._break(Cause.PROTOCOL_ERROR, "What {host} sent during {doing} is not IMAP.")

    def ask_for_capabilities(self) -> tuple[str, ...]:
        """In upper case; what the server said of them before counts no more."""
        self.untagged_responses.clear()
        super()._get_capabilities()  # type: ignore[misc]
        return self.capabilities

    def capabilities_told(self) -> tuple[str, ...]:
        """Those that the server names unasked when we sign in (RFC 9051 section 7.1); () when none."""
        said = self.untagged_responses.pop("CAPABILITY", [b""])[-1]
        return tuple(said.decode("ascii").upper().split()) if isinstance(said, bytes) else ()

    def forget_what_was_said_in_clear(self) -> None:
        self.untagged_responses.clear()
        self.capabilities = ()

    # What imaplib calls

    def open(self, host: str = "", port: int = 0, timeout: float | None = None) -> None:
        """The socket is dialled elsewhere, and set as `sock`."""
        self.host, self.port = host, port
        self.sock = None

    def _connect(self) -> None:
        """Left to `greet`, which has a deadline of its own."""

    def _get_capabilities(self) -> None:
        # Asked for by a step of its own; imaplib only looks whether this word is among them.
        self.capabilities = ("IMAP4REV1",)

    def readline(self) -> bytes:
        line = self._read_line(min(self._budget, self._longest_line))
        self._budget -= len(line)
        self._tell("<", MASK if self.is_signing_in and line[:1] == b"+" else line.rstrip(b"\r\n"))
        return line

    def read(self, size: int) -> bytes:
        if size > self._budget:
            self._too_large()
        self._budget -= size
        return self._read_exactly(size)

    def send(self, data: Any) -> None:
        words = bytes(data).split(b" ", 2)
        if not self.is_signing_in:
            self._tell(">", bytes(data).rstrip(b"\r\n"))
        elif bytes(data).strip():
            self._tell(">", b" ".join([*words[:2], MASK.encode()]) if len(words) > 1 else MASK)
        super().send(data)

    def shutdown(self) -> None:
        if self.sock is not None:
            self.sock.close()

    def _command_complete(self, name: str, tag: bytes) -> tuple[str, list[Any]]:
        status, data = self._get_tagged_response(tag, expect_bye=name == "LOGOUT")
        if status != "OK":
            raise Declined(refusal_from(name, status, self.masked(_flat(data[-1]))))
        return status, data

    def _check_bye(self) -> None:
        bye = self.untagged_responses.get("BYE")
        if bye:
            raise Declined(refusal_from(self.doing, "BYE", self.masked(_flat(bye[-1]))))

    def _log(self, line: str) -> None:
        """Nothing is kept: a login would be in it."""

    @property
    def debug(self) -> int:
        return 0

    @debug.setter
    def debug(self, level: int) -> None:
        """Stays 0: at any other level the libraries write down what is said."""

    def _tell(self, direction: str, line: str | bytes) -> None:
        if self._on_line is None:
            return
        text = self.masked(line).decode("utf-8", "backslashreplace") if isinstance(line, bytes) else line
        stroke = "~" if isinstance(self.sock, ssl.SSLSocket) else "-"
        arrow = f"{stroke}>" if direction == ">" else f"<{stroke}"
        self._on_line(f"{arrow} {without_credentials(safe_text(text))}")


def _flat(said: object) -> bytes:
    """What follows a status, also where a server makes a literal of it."""
    if isinstance(said, tuple):
        return b" ".join(map(bytes, said))
    return said if isinstance(said, bytes) else b""


class ImapClient(IMAPClient):  # type: ignore[misc]
    """imapclient's commands over a session that is connected and signed in already."""

    def __init__(self, session: ImapSession) -> None:
        self._session = session
        super().__init__(session.peer_name, session.port, ssl=False)
        self.normalise_times = False  # moments have the zone that the server names

    def _create_IMAP4(self) -> ImapSession:
        return self._session

    def _set_read_timeout(self) -> None:
        """Deadlines are the session's."""
