"""One visit to an account's mailbox: whether it may be made, what it found, and when the next one is due.

A visit has the mailbox to itself by a lease, holds neither a transaction nor a pooled connection while it
waits for the network, and goes to the back of the line after a while. What is taken over, and how, is left to
fetch; which mailbox is due, to poll_schedule.
"""

import logging
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils import timezone

from gobii_email import metrics, telemetry, wiring
from gobii_email.domain.blame import Blame, blame_of_mailbox
from gobii_email.domain.mailbox_failures import MailboxFailure, failure_of_loss
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.poll_times import backoff, interval
from gobii_email.domain.readings import AccountState
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import ImapServer, LeaseLost, MailboxUnreadable
from gobii_email.services.fetch import Fetching
from gobii_email.services.gate import obstacle_to_mailbox
from gobii_email.services.mailbox_lease import MailboxLease, take
from gobii_email.services.measure import polled
from gobii_email.services.poll_schedule import (
    hand_out_polls,
    heal,
    poll_for_news,
    poll_now,
    reschedule,
    schedule,
)
from gobii_email.services.record import release_connection
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token
from gobii_email.services.select import LOOK_AGAIN_AFTER
from gobii_email.services.share import poll_shares

__all__ = [
    "Visit",
    "hand_out_polls",
    "heal",
    "poll",
    "poll_for_news",
    "poll_now",
    "reschedule",
    "schedule",
    "visit",
]

logger = logging.getLogger(__name__)

NOT_DUE = "not due"
BUSY = "busy"
OFF = "off"
TAKEN_OVER = "taken over"
BASELINE = "baseline"
READ = "read"
HELD = "held"
WAITS_ITS_TURN = "waits its turn"
STANDS_BACK_FOR = timedelta(seconds=5)
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Visit:
    """How a visit ended: its `outcome` in a word, the mails that were new, and in a sentence what it met.

    `stored` are those of them that were fetched, `missing` those that the server has not handed out so far.
    """

    outcome: str
    text: str = ""
    found: int = 0
    stored: int = 0
    missing: int = 0
    has_more: bool = False
    due_at: datetime | None = None

    @property
    def is_ok(self) -> bool:
        return self.outcome in (READ, BASELINE)

    def __str__(self) -> str:
        if self.outcome != READ:
            return self.outcome
        return f"{self.found} new" + (", more left" if self.has_more else "")


def poll(account_id: str | uuid.UUID, *, owner: str, is_asked_for: bool = False) -> str:
    """Visits the mailbox; answers the short outcome, for the task. See `visit`."""
    return str(visit(account_id, owner=owner, is_asked_for=is_asked_for))


def visit(account_id: str | uuid.UUID, *, owner: str = "", is_asked_for: bool = False) -> Visit:
    """Reads what is new in the mailbox, if it is due and nobody is at it; no transaction may be open.

    `is_asked_for` by a person: whether it is due, held or in backoff does not matter then. Lost or doubled
    calls change nothing.
    """
    lease = take(uuid.UUID(str(account_id)), timezone.now(), is_asked_for=is_asked_for)
    if lease is None:
        return Visit(BUSY if is_asked_for else NOT_DUE)
    try:
        return _visit(lease)
    except LeaseLost:
        logger.info("mailbox.lease_lost", extra={"account_id": str(account_id), "worker": owner})
        return Visit(TAKEN_OVER, "The mailbox's settings were changed, or another worker has taken over.")


def _visit(lease: MailboxLease) -> Visit:
    rows = AgentEmailAccount.objects.select_related("endpoint__owner_agent", "oauth_credential", "mailbox")
    account = rows.get(pk=lease.account_id)
    if obstacle := obstacle_to_polls(account):
        return _leave_off(lease, account, obstacle)
    server = f"{account.imap_host}:{account.imap_port}"
    if not poll_shares.enter(server, lease.name):
        return _stand_back(lease)
    if lease.late is not None:
        metrics.POLL_LAG.observe(lease.late.total_seconds())
    try:
        return _read_or_fail(lease, account)
    finally:
        poll_shares.leave(server, lease.name)


def _stand_back(lease: MailboxLease) -> Visit:
    """Its server has its share of this worker's threads: others go first, and it stays overdue."""
    with lease.leaving(lease.was_due_at, timezone.now() + STANDS_BACK_FOR):
        pass
    release_connection()
    return Visit(WAITS_ITS_TURN)


def _read_or_fail(lease: MailboxLease, account: AgentEmailAccount) -> Visit:
    try:
        with _told_as_failures():
            return _read(lease, account)
    except MailboxUnreadable as problem:
        return _fail(lease, account, problem.failure)
    except LeaseLost:
        raise
    except Exception as problem:
        # A mistake of ours: it is logged where the task ends, and is not repeated at once either.
        _fail(lease, account, MailboxFailure(type(problem).__name__, "Reading the mailbox broke off."))
        raise


def obstacle_to_polls(account: AgentEmailAccount) -> str:
    """Why the mailbox is not read at all, whatever is due: a sentence, "" when it is."""
    if not account.is_inbound_enabled:
        return "Receiving is switched off for the mailbox; test IMAP, then enable it."
    why = obstacle_to_mailbox(account, timezone.now())
    return f"{why[0].upper()}{why[1:]}." if why else ""


def _leave_off(lease: MailboxLease, account: AgentEmailAccount, why: str) -> Visit:
    """A switch of the installation may change without telling us, so it is looked at again."""
    now = timezone.now()
    due_at = now if account.is_inbound_enabled else None
    with lease.leaving(due_at, due_at and now + LOOK_AGAIN_AFTER):
        pass
    return Visit(OFF, why)


# Reading


def _read(lease: MailboxLease, account: AgentEmailAccount) -> Visit:
    """With another access token where the first is refused, once."""
    is_by_token = account.imap_auth == AgentEmailAccount.ImapAuthMode.OAUTH2
    if is_by_token:
        access_token(account)
    server = account.imap_server()
    try:
        return _read_at(server, lease, account)
    except MailboxUnreadable as problem:
        if not (is_by_token and problem.failure.is_login and server.secret):
            raise
        if renewed_token(account, server.secret) is None:
            raise
    return _read_at(account.imap_server(), lease, account)


def _read_at(server: ImapServer, lease: MailboxLease, account: AgentEmailAccount) -> Visit:
    began_at = timezone.now()
    release_connection()
    host = f"{server.host}:{server.port}"

    def touch() -> None:
        """Before each wait: so long as the server goes on answering, it is not slow."""
        poll_shares.begin(host, lease.name)
        lease.touch()

    with (
        telemetry.imap_poll(server, str(account.pk)) as span,
        wiring.imap_mailboxes().open_folder(server, touch) as folder,
    ):
        poll_shares.done(host, lease.name)
        fetching = Fetching(account, folder, lease, one_by_one=account.mailbox.failures > 0)
        try:
            fetching.run()
        finally:
            span.found(fetching.found)
    return _succeed(lease, account, fetching, began_at)


@contextmanager
def _told_as_failures() -> Iterator[None]:
    """What keeps a secret from being had is a failure like those of the server."""
    try:
        yield
    except SecretUnreadable as problem:
        failure = failure_of_loss(Cause.SECRET_UNREADABLE, str(problem))
        raise MailboxUnreadable(failure, is_over=True) from None
    except ReconnectNeeded as problem:
        failure = MailboxFailure("reconnect_needed", str(problem), hold=AccountState.AUTH_NEEDED)
        raise MailboxUnreadable(failure, is_over=True) from None
    except TokenUnavailable as problem:
        raise MailboxUnreadable(
            failure_of_loss(Cause.TOKEN_UNAVAILABLE, str(problem)), is_over=True
        ) from None


# What follows


def _succeed(lease: MailboxLease, account: AgentEmailAccount, done: Fetching, began_at: datetime) -> Visit:
    now = timezone.now()
    due_at = now if done.has_more else now + interval(account.poll_interval_sec, random.random())  # noqa: S311
    facts: dict[str, object] = {"failures": 0, "hold_code": "", "hold_reason": ""}
    if done.is_complete:
        facts["baseline_at"] = began_at
    text = _missing_sentence(done.missing)
    with lease.leaving(due_at, due_at, **facts):
        AgentEmailAccount.objects.filter(pk=account.pk).update(
            last_polled_at=now, imap_last_ok_at=now, imap_error=text, backoff_until=None
        )
    release_connection()
    outcome = BASELINE if done.is_baseline else READ
    polled(account, outcome, Blame.NOBODY)
    return Visit(outcome, text, done.found, done.stored, done.missing, done.has_more, due_at)


def _missing_sentence(missing: int) -> str:
    if not missing:
        return ""
    return f"The server did not hand out {missing} of the mails; they are asked for again."


def _fail(lease: MailboxLease, account: AgentEmailAccount, failure: MailboxFailure) -> Visit:
    """Holds the mailbox, or leaves it alone for a time that grows with failures in a row."""
    now, failures = timezone.now(), account.mailbox.failures + 1
    facts: dict[str, object] = {"failures": min(failures, 1000)}
    until = now + backoff(failures, random.random())  # noqa: S311
    due_at = max(until, now + interval(account.poll_interval_sec, 0.5))
    is_held = failure.holds(failures)
    if is_held:
        facts |= {"hold_code": str(failure.hold), "hold_reason": failure.sentence}
    with lease.leaving(due_at, due_at, **facts):
        AgentEmailAccount.objects.filter(pk=account.pk).update(
            last_polled_at=now, imap_error=failure.sentence, backoff_until=None if is_held else until
        )
    if is_held:
        logger.warning("mailbox.held", extra={"account_id": str(account.pk), "state": str(failure.hold)})
    release_connection()
    polled(account, HELD if is_held else FAILED, blame_of_mailbox(failure))
    return Visit(HELD if is_held else FAILED, failure.sentence, due_at=None if is_held else due_at)
