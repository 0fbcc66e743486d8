"""The walk of one attempt: claim, select, admit, compose, send, classify, settle.

Short on purpose: pure steps alternate with effects, and the only slow one is `hand_over`, during which no
transaction is open and no pooled connection is borrowed. How an ending is written is left to settle.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import InterfaceError, OperationalError, connection
from django.utils import timezone

from gobii_email import telemetry, wiring
from gobii_email.conf import config
from gobii_email.domain.classification import AccountState
from gobii_email.domain.composition import with_attempt_header
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider
from gobii_email.domain.outcomes import Cause, Lost, Outcome
from gobii_email.domain.selection import Hold, NoTransport, Use
from gobii_email.domain.smtp_replies import Stage
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import OutboundMessageAttempt
from gobii_email.ports import Envelope, Wait
from gobii_email.services.end import end_unsent, postpone
from gobii_email.services.hold import account_of, wake_if_free
from gobii_email.services.lease import Lease, keeper, release_connection
from gobii_email.services.select import held_until, select
from gobii_email.services.settle import settle

logger = logging.getLogger(__name__)


def deliver(attempt_id: str, *, owner: str) -> str:
    """Sends one attempt if it is due; answers its short outcome, such as "sent" or "not due"."""
    attempt = claim(attempt_id, owner)
    if attempt is None:
        return "not due"
    now = timezone.now()
    if attempt.message.expires_at is not None and attempt.message.expires_at <= now:
        return end_unsent(
            attempt, Move.EXPIRED, "expired", "The message expired before it could be sent.", now
        )
    match select(attempt, now):
        case NoTransport(reason=reason):
            return end_unsent(attempt, Move.PERMANENT, "no_transport", reason, now)
        case Hold(code=code, reason=reason):
            return _hold_back(attempt, code, reason, now)
        case Use(provider=provider):
            pass
    wait = _asked_to_wait(attempt, provider, now)
    if wait is not None:
        return postpone(attempt, "limited", wait.reason, wait.until, now)
    lease = Lease(attempt, provider, config().lease, longest=longest_send(attempt))
    keeper.keep(lease)
    try:
        outcome = hand_over(attempt, provider, lease)
        persist(
            lambda: settle(attempt, outcome, provider=provider, now=timezone.now()), within=config().lease
        )
    finally:
        keeper.let_go(lease)
    return "lease lost" if attempt.status == AttemptStatus.SENDING else str(attempt.status)


def claim(attempt_id: str, owner: str) -> OutboundMessageAttempt | None:
    """Takes the attempt under a lease and loads what its delivery needs: two statements."""
    now = timezone.now()
    attempts = OutboundMessageAttempt.objects
    token = attempts.claim(attempt_id, owner=owner, now=now, lease_until=now + config().lease)
    attempt = None if token is None else attempts.for_delivery(attempt_id)
    release_connection()
    return attempt


def _hold_back(attempt: OutboundMessageAttempt, code: str, reason: str, now: datetime) -> str:
    outcome = postpone(attempt, code, reason, held_until(attempt, code, now), now)
    if code in set(AccountState):
        wake_if_free(attempt, now)
    return outcome


def _asked_to_wait(attempt: OutboundMessageAttempt, provider: Provider, now: datetime) -> Wait | None:
    if provider is not Provider.SMTP:
        return None
    return wiring.limiter().admit(str(attempt.from_endpoint_id), cost=len(attempt.addresses))


def longest_send(attempt: OutboundMessageAttempt) -> timedelta:
    """The sum of all deadlines: after this, no lease is renewed any more."""
    limits = config()
    upload = timedelta(seconds=attempt.message.frozen.size / 64_000)
    steps = limits.deadline_connect + 4 * limits.deadline_step + limits.deadline_envelope
    return steps + limits.deadline_body + upload + limits.deadline_dot + limits.lease


def hand_over(attempt: OutboundMessageAttempt, provider: Provider, lease: Lease) -> Outcome:
    """Gives the frozen bytes, with this attempt's own header, to the transport."""
    message = attempt.message
    envelope = Envelope(message.from_address, attempt.addresses, envelope_id=str(attempt.pk))
    mime = with_attempt_header(bytes(message.frozen.mime), str(attempt.pk))
    account = account_of(attempt)
    if provider is not Provider.SMTP or account is None:
        return wiring.transport(provider).send(envelope, mime, lease)
    try:
        server = account.smtp_server()
    except SecretUnreadable as problem:
        return Lost(Stage.AUTH, Cause.SECRET_UNREADABLE, str(problem))
    with telemetry.smtp_send(
        server,
        attempt_id=str(attempt.pk),
        sender=message.from_address,
        to_count=message.frozen.to_count,
        cc_count=message.frozen.cc_count,
        traceparent=message.traceparent,
    ) as span:
        outcome = wiring.smtp_transport().send(server, envelope, mime, lease)
        span.ended(outcome)
    return outcome


def persist(write: Callable[[], object], *, within: timedelta) -> None:
    """Repeats `write` while the database is away, until the lease is over; then rescue has the say."""
    give_up_at = time.monotonic() + within.total_seconds()
    pause = 0.05
    while True:
        try:
            write()
            return
        except (OperationalError, InterfaceError):
            if time.monotonic() + pause > give_up_at:
                logger.exception("attempt.settle.failed")
                raise
            if not connection.in_atomic_block:
                connection.close()
            time.sleep(pause)
            pause = min(pause * 2, 5)
