"""Handing one message to its transport, whatever that is, under one span.

The frozen bytes go out as they are, behind a header that names the attempt. No transaction is open and no
pooled connection is borrowed while a server is waited for.
"""

from collections.abc import Sequence
from datetime import timedelta

from gobii_email import telemetry, wiring
from gobii_email.conf import config
from gobii_email.domain.composition import with_attempt_header
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Outcome
from gobii_email.models.queue import Work, load_mime
from gobii_email.ports import Envelope, Progress, Sender, SmtpServer
from gobii_email.services.record import release_connection

BYTES_PER_SECOND = 64_000


def longest_send(size: int) -> timedelta:
    """The sum of all deadlines for a message of `size` bytes: after this, no lease is renewed any more."""
    limits = config()
    # Banner, EHLO, TLS, AUTH, and RSET on a connection that is used again.
    steps = limits.deadline_connect + 5 * limits.deadline_step + limits.deadline_envelope
    upload = limits.deadline_body + timedelta(seconds=size / BYTES_PER_SECOND)
    return steps + upload + limits.deadline_dot + limits.lease


def send_by_account(
    work: Work, addresses: Sequence[str], server: SmtpServer, sender: Sender, progress: Progress
) -> Outcome:
    """Through the account's own server, to `addresses` of the attempt."""
    mime = _mime_of(work)
    with telemetry.smtp_send(
        server,
        attempt_id=str(work.id),
        sender=work.from_address,
        to_count=work.to_count,
        cc_count=work.cc_count,
        traceparent=work.traceparent,
    ) as span:
        outcome = sender.send(
            _envelope(work, addresses), with_attempt_header(b"", str(work.id)), mime, progress
        )
        span.ended(outcome)
    return outcome


def send_without_account(work: Work, provider: Provider, progress: Progress) -> Outcome:
    """Through the installation's own transport."""
    mime = with_attempt_header(_mime_of(work), str(work.id))
    return wiring.transport(provider).send(_envelope(work, work.addresses), mime, progress)


def _envelope(work: Work, addresses: Sequence[str]) -> Envelope:
    return Envelope(work.from_address, addresses, envelope_id=str(work.id))


def _mime_of(work: Work) -> bytes:
    if work.mime is not None:
        return bytes(work.mime)
    try:
        return load_mime(work.message_id)
    finally:
        release_connection()
