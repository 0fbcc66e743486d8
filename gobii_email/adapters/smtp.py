"""Hands messages over by SMTP submission, to servers that belong to somebody else.

The MailTransport of accounts with a server of their own: checks what it was given, and turns one
dialogue into one value. Everything a server or network does is in that value; exceptions are our
own mistakes.
"""

import contextlib
import re
from collections.abc import Sequence

from gobii_email.adapters.dialer import Deadline, DialPolicy
from gobii_email.adapters.smtp_dialogue import Deadlines, Dialogue, Nobody, queue_id
from gobii_email.adapters.smtp_login import build_xoauth2_string
from gobii_email.adapters.smtp_probe import probe
from gobii_email.domain.outcomes import Outcome
from gobii_email.ports import Envelope, Probe, Progress, Reuse, Sender, SmtpServer

__all__ = ["Deadlines", "SmtpTransport", "build_xoauth2_string", "queue_id", "wire_form"]

# A constant, because the machine's own name is nobody's business (RFC 5321 section 4.1.3).
NEUTRAL_EHLO_NAME = "[127.0.0.1]"

_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")
_UNFIT_FOR_A_PATH = re.compile(r"[\x00-\x20\x7f<>]")


class SmtpTransport:
    """A MailTransport that opens one connection for each message, and tests connections likewise."""

    def __init__(
        self,
        policy: DialPolicy,
        deadlines: Deadlines = Deadlines(),
        local_hostname: str = NEUTRAL_EHLO_NAME,
    ) -> None:
        self._policy = policy
        self._deadlines = deadlines
        self._local_hostname = local_hostname

    def open(self, server: SmtpServer, reuse: Reuse) -> Sender:
        """A sender for one account's turn; dials nothing yet."""
        return SmtpSender(self, server)

    def send(self, server: SmtpServer, envelope: Envelope, message: bytes, progress: Progress) -> Outcome:
        """Hands `message` over; the server has never seen its end before `progress.mark()` returned.

        `mark()` also stands for entering stage DOT. Raises ValueError, before anything is dialled,
        for a message with bare line ends or an envelope that is none: those are mistakes of ours.
        """
        wire = wire_form(message)
        _require_paths([envelope.sender] if envelope.sender else [])
        _require_paths(envelope.recipients)
        if not envelope.recipients:
            raise ValueError("an envelope needs at least one recipient")
        dialogue = Dialogue(server, self._policy, self._deadlines, self._local_hostname, progress)
        with contextlib.closing(dialogue):
            return dialogue.ending_of(lambda: dialogue.hand_over(envelope, wire))

    def probe(self, server: SmtpServer, sender: str, *, recipient: str | None = None) -> Probe:
        """Tests everything up to, and without, a message; `recipient` adds a RCPT TO.

        Bounded by `Deadlines.probe` as a whole. Raises ValueError for addresses that are none.
        """
        _require_paths([sender] if recipient is None else [sender, recipient])
        overall = Deadline(self._deadlines.probe)
        dialogue = Dialogue(
            server, self._policy, self._deadlines, self._local_hostname, Nobody(), within=overall
        )
        with contextlib.closing(dialogue):
            return probe(dialogue, sender, recipient)


class SmtpSender:
    """A Sender that opens one connection for each message."""

    def __init__(self, transport: SmtpTransport, server: SmtpServer) -> None:
        self._transport = transport
        self._server = server

    def send(self, envelope: Envelope, header: bytes, message: bytes, progress: Progress) -> Outcome:
        return self._transport.send(self._server, envelope, header + message, progress)

    def close(self) -> None: ...


def wire_form(message: bytes) -> bytes:
    """`message` ending in CRLF. Raises ValueError for a bare CR or LF (RFC 5321 section 2.3.8)."""
    if found := _BARE_LINE_END.search(message):
        raise ValueError(f"the message has a bare CR or LF at byte {found.start()}")
    return message if message.endswith(b"\r\n") else message + b"\r\n"


def _require_paths(addresses: Sequence[str]) -> None:
    for address in addresses:
        address.encode()
        if not address or _UNFIT_FOR_A_PATH.search(address):
            raise ValueError(f"{address!r} cannot stand in an envelope")
