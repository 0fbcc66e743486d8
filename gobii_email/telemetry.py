"""The one list of spans and their attributes. None of them ever holds a secret or a recipient."""

from collections.abc import Iterator
from contextlib import contextmanager

from gobii_email.domain.outcomes import Outcome
from gobii_email.ports import SmtpServer


class SendSpan:
    """The span `email.smtp.send` of one attempt."""

    def ended(self, outcome: Outcome) -> None:
        """Notes how it ended; a failure becomes the span's error status and an event, redacted."""


@contextmanager
def smtp_send(
    server: SmtpServer, *, sender: str, to_count: int, cc_count: int, traceparent: str
) -> Iterator[SendSpan]:
    """Opens `email.smtp.send` in the trace that the submission carried."""
    yield SendSpan()
