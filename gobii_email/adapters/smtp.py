"""Hands messages over by SMTP submission, to servers that belong to somebody else.

The transport of accounts with a server of their own: puts policy, deadlines and connections
together. Everything a server or network does is in the outcomes; exceptions are our own mistakes.
"""

import contextlib
from datetime import timedelta

from gobii_email.adapters.dialer import Deadline, DialPolicy, VettedAddresses
from gobii_email.adapters.probe import OnLine, OnStep, unfollowed
from gobii_email.adapters.sasl import build_xoauth2_string
from gobii_email.adapters.smtp_dialogue import Deadlines, Dialogue
from gobii_email.adapters.smtp_pool import SmtpPool
from gobii_email.adapters.smtp_probe import SmtpProbe
from gobii_email.adapters.smtp_sender import SmtpSender, require_paths
from gobii_email.adapters.smtp_submission import queue_id
from gobii_email.adapters.smtp_text import wire_form
from gobii_email.domain.outcomes import Outcome
from gobii_email.ports import Envelope, Probe, Progress, Reuse, Sender, SmtpServer

__all__ = ["Deadlines", "SmtpTransport", "build_xoauth2_string", "queue_id", "wire_form"]

# A constant, because the machine's own name is nobody's business (RFC 5321 section 4.1.3).
NEUTRAL_EHLO_NAME = "[127.0.0.1]"


class SmtpTransport:
    """An AccountTransport: opens senders, and tests connections; owns the connections that wait."""

    def __init__(
        self,
        policy: DialPolicy,
        deadlines: Deadlines = Deadlines(),
        local_hostname: str = NEUTRAL_EHLO_NAME,
    ) -> None:
        self._policy = policy
        self._deadlines = deadlines
        self._local_hostname = local_hostname
        self._pool = SmtpPool()
        self._known = VettedAddresses()

    def open(self, server: SmtpServer, reuse: Reuse) -> Sender:
        """A sender for one account's turn; dials nothing yet."""
        return SmtpSender(server, reuse, self._pool, lambda: self._connection(server))

    def close_all(self) -> None:
        """Closes the connections that wait for a next sender, as at shutdown."""
        self._pool.close_all()

    def send(
        self,
        server: SmtpServer,
        envelope: Envelope,
        message: bytes,
        progress: Progress,
        *,
        span: timedelta | None = None,
    ) -> Outcome:
        """Hands `message` over on a connection of its own, within `span`; raises as `Sender.send` does.

        The server has never seen the message's end before `progress.mark()` returned, which also
        stands for entering stage DOT.
        """
        within = None if span is None else Deadline(span)
        made = SmtpSender(server, Reuse(), self._pool, lambda: self._connection(server, within))
        with contextlib.closing(made) as sender:
            return sender.send(envelope, b"", message, progress)

    def probe(
        self,
        server: SmtpServer,
        sender: str,
        *,
        recipient: str | None = None,
        until: str = "",
        on_step: OnStep = unfollowed,
        on_line: OnLine | None = None,
    ) -> Probe:
        """Tests everything up to, and without, a message; `recipient` adds a RCPT TO.

        Stops after the step `until`. `on_line` hears the dialogue, redacted. Bounded by `Deadlines.probe`
        as a whole. Raises ValueError for addresses that are none.
        """
        require_paths([sender] if recipient is None else [sender, recipient])
        found = SmtpProbe(server, self._policy, self._deadlines, self._local_hostname, on_line)
        return found.walk(sender, recipient, until, on_step)

    def _connection(self, server: SmtpServer, within: Deadline | None = None) -> Dialogue:
        return Dialogue(
            server, self._policy, self._deadlines, self._local_hostname, within, self._known, resumes=True
        )
