"""A turn with one account's server: message after message, on as few connections as allowed.

Knows when a connection may carry another message, and that a stale one is replaced in silence.
What waits between turns is left to the pool.
"""

import contextlib
import re
from collections.abc import Callable, Sequence

from gobii_email import metrics
from gobii_email.adapters.smtp_dialogue import Dialogue
from gobii_email.adapters.smtp_pool import SmtpPool
from gobii_email.adapters.smtp_submission import Stale, Submission
from gobii_email.adapters.smtp_text import Text
from gobii_email.domain.outcomes import Lost, Outcome
from gobii_email.ports import Envelope, Progress, Reuse, SmtpServer

_UNFIT_FOR_A_PATH = re.compile(r"[\x00-\x20\x7f<>]")


class SmtpSender:
    """A Sender whose connections are made by `connect`, and wait in `pool` between turns."""

    def __init__(
        self, server: SmtpServer, reuse: Reuse, pool: SmtpPool, connect: Callable[[], Dialogue]
    ) -> None:
        self._server = server
        self._reuse = reuse
        self._pool = pool
        self._connect = connect
        self._held: Dialogue | None = None

    def send(self, envelope: Envelope, header: bytes, message: bytes, progress: Progress) -> Outcome:
        require_envelope(envelope)
        text = Text(header, message)
        used = self._at_hand()
        if used is not None:
            metrics.POOL_EVENTS.inc("reused")
            with contextlib.suppress(Stale):
                return self._hand_over(used, envelope, text, progress)
            metrics.POOL_EVENTS.inc("stale")
        metrics.POOL_EVENTS.inc("opened")
        return self._hand_over(self._connect(), envelope, text, progress)

    def close(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            self._pool.put(held, self._reuse)

    def _at_hand(self) -> Dialogue | None:
        held, self._held = self._held, None
        if held is None:
            return self._pool.take(self._server, self._reuse)
        if held.is_worn_out(self._reuse.messages):
            held.close()
            return None
        return held

    def _hand_over(self, dialogue: Dialogue, envelope: Envelope, text: Text, progress: Progress) -> Outcome:
        try:
            outcome = Submission(dialogue, envelope, text, progress).run()
        except BaseException:
            dialogue.drop()
            raise
        if isinstance(outcome, Lost) or dialogue.is_worn_out(self._reuse.messages):
            dialogue.close()
        else:
            dialogue.attend_to_nobody()
            self._held = dialogue
        return outcome


def require_envelope(envelope: Envelope) -> None:
    """Raises ValueError for what no server could be told, or would take for a command."""
    require_paths([envelope.sender] if envelope.sender else [])
    require_paths(envelope.recipients)
    if not envelope.recipients:
        raise ValueError("an envelope needs at least one recipient")


def require_paths(addresses: Sequence[str]) -> None:
    """Raises ValueError for an address that cannot stand between angle brackets."""
    for address in addresses:
        address.encode()
        if not address or _UNFIT_FOR_A_PATH.search(address):
            raise ValueError(f"{address!r} cannot stand in an envelope")
