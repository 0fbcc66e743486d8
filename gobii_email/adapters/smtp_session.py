"""One SMTP connection that cannot be held up, flooded or talked into a secret.

Puts smtplib's commands over a vetted socket, with a total deadline for each step and a budget for
each reply, and reads replies strictly (RFC 5321 section 4.2). Which commands to give, and what an
ending means, is left to the transport.
"""

import re
import smtplib
from collections.abc import Callable, Sequence

from gobii_email.adapters.dialer import Deadline
from gobii_email.adapters.wire import Wire
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.smtp_replies import Reply, reply_from

MAX_REPLY_BYTES = 64 * 1024
MAX_REPLY_LINES = 128

_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)


class Denied(Exception):
    """The server said no, in a well-formed reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class SmtpSession(Wire, smtplib.SMTP):  # type: ignore[misc]
    """smtplib's dialogue over a Wire.

    `owed` counts the replies to what was asked that have not been heard yet; a session that once was
    answered unasked `is_out_of_step`.
    """

    def __init__(
        self, host: str, *, local_hostname: str, deadline: Deadline, on_wait: Callable[[], None]
    ) -> None:
        smtplib.SMTP.__init__(self, local_hostname=local_hostname)
        Wire.__init__(self, host, deadline, on_wait)
        self.owed = 0
        self.is_out_of_step = False

    def getreply(self) -> tuple[int, bytes]:
        """The next complete reply; raises Broken for whatever is not one, or not in time."""
        texts: list[bytes] = []
        code = b""
        budget = MAX_REPLY_BYTES
        while True:
            line = self._read_line(budget)
            budget -= len(line)
            found = _REPLY_LINE.fullmatch(line.rstrip(b"\r\n"))
            if not found or (code and found.group(1) != code):
                self._break(Cause.PROTOCOL_ERROR, "What {host} sent during {doing} is not SMTP.")
            code, sign, text = found.groups(b"")
            texts.append(text.strip())
            if sign != b"-":
                return int(code), b"\n".join(texts)
            if len(texts) >= MAX_REPLY_LINES:
                self._too_large()

    def read_reply(self) -> Reply:
        code, text = self.getreply()
        return reply_from(code, self.masked(text))

    def raise_early_answer(self) -> None:
        """Raises when the server has already said something, or hung up, before it was its turn.

        Otherwise a reply sent in advance would pass for the answer to what is said next.
        """
        if not self._received:
            self._receive_what_is_there()
        if not self._received:
            return
        self.is_out_of_step = True
        reply = self.read_reply()
        if reply.code >= 400:
            raise Denied(reply)
        self._break(Cause.PROTOCOL_ERROR, "{host} answered before it was asked, during {doing}.")

    def command(self, name: str, arguments: str = "") -> Reply:
        """The reply to one command, whatever it is."""
        self.raise_early_answer()
        self.putcmd(name, arguments)
        return self.read_reply()

    def ask(self, commands: Sequence[str]) -> None:
        """Says `commands` in one go; each owes a reply, to be heard in the same order (RFC 2920)."""
        self.raise_early_answer()
        self.owed = len(commands)
        self.send("\r\n".join(commands) + "\r\n")

    def hear(self, *welcome: int) -> Reply | None:
        """The next reply that is owed; None when its code is `welcome`, whatever else it says."""
        code, text = self.getreply()
        self.owed -= 1
        return None if code in welcome else reply_from(code, self.masked(text))

    def introduce(self) -> Reply:
        """The reply to EHLO, or to HELO where EHLO is not known; the extensions are kept."""
        self.raise_early_answer()
        self.esmtp_features = {}
        code, text = self.docmd("EHLO", self.local_hostname)
        if code == 250:
            self.esmtp_features = _extensions(text)
        elif code in (500, 502):
            code, text = self.docmd("HELO", self.local_hostname)
        return reply_from(code, self.masked(text))


def _extensions(text: bytes) -> dict[str, str]:
    """The keywords in an answer to EHLO, in lower case, with their parameters (RFC 5321 section 4.1.1.1)."""
    found: dict[str, str] = {}
    for line in text.decode("latin-1").split("\n")[1:]:
        if line[:5].upper() == "AUTH=":
            # Said by old servers, beside the line that counts or in its place.
            line = f"AUTH {line[5:]}"
        keyword, _, parameters = line.partition(" ")
        keyword, parameters = keyword.lower(), parameters.strip()
        is_more = keyword == "auth" and keyword in found
        found[keyword] = f"{found[keyword]} {parameters}" if is_more else parameters
    return found
