"""Counting how attempts end, once their ending is committed, and nothing else of them.

What each count is called stands in `metrics`, whose doing a failure is in domain/blame. An ending that is
committed by a process that is killed in the next instant is not counted; the rows know it.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache

from gobii_email import metrics
from gobii_email.domain.blame import Blame, blame_of, blame_of_mailbox, blame_of_wait
from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.domain.outcomes import Accepted, Outcome
from gobii_email.domain.providers import provider_of_host
from gobii_email.domain.readings import AccountState, Reading
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt
from gobii_email.models.queue import Acceptance, Work

NONE = "none"


@lru_cache(maxsize=4096)
def provider_at(host: str) -> str:
    """Whose server `host` is, by the id of the table; "other" for one that nobody knows."""
    found = provider_of_host(host) if host else None
    return found.id if found else "other"


def provider_of(account: AgentEmailAccount | None, transport: str) -> str:
    return provider_at(account.smtp_host) if account is not None and transport == Provider.SMTP else NONE


@metrics.harmless
def accepted(written: Sequence[tuple[Work, Acceptance]], account: AgentEmailAccount | None) -> None:
    """Ordinary acceptances of one turn, written together with others."""
    if not written:
        return
    transport = written[0][1].provider
    provider = provider_of(account, transport)
    metrics.ATTEMPTS.inc(transport, provider, AttemptStatus.SENT, NONE, Blame.NOBODY, by=len(written))
    metrics.stages(row.stage_ms for _, row in written)
    waits = (row.at - work.not_before for work, row in written if work.not_before is not None)
    metrics.ACCEPT.observe_all((wait.total_seconds() for wait in waits), transport)


@metrics.harmless
def taken(works: Sequence[Work], now: datetime) -> None:
    """A worker has claimed them; how long that took says something where nothing had held them."""
    metrics.QUEUE_WAIT.observe_all(
        (now - work.not_before).total_seconds()
        for work in works
        if work.not_before is not None and not work.held_code
    )


@metrics.harmless
def ended(
    attempt: OutboundMessageAttempt, outcome: Outcome, reading: Reading, account: AgentEmailAccount | None
) -> None:
    """Any other ending that a server, a network or a lost worker brought."""
    transport = attempt.provider or NONE
    provider = provider_of(account, transport)
    blame = blame_of(outcome, reading)
    metrics.ATTEMPTS.inc(transport, provider, str(attempt.status), attempt.stage or NONE, blame)
    metrics.stages([outcome.facts.stage_ms])
    if isinstance(outcome, Accepted) and attempt.sent_at is not None:
        begun = attempt.message.submitted_at or attempt.queued_at
        metrics.ACCEPT.observe((attempt.sent_at - begun).total_seconds(), transport)
    if attempt.status == AttemptStatus.IN_DOUBT:
        metrics.DOUBTS.inc()
    elif attempt.successor is not None:
        metrics.RETRIES.inc()


@metrics.harmless
def polled(account: AgentEmailAccount, outcome: str, blame: Blame) -> None:
    """A visit to the account's mailbox has ended as `outcome`, a word of `poll`."""
    provider = provider_at(account.imap_host)
    metrics.POLLS.inc(provider, outcome, blame)
    if blame is not Blame.NOBODY:
        metrics.IMAP_FAILURES.inc(provider, "poll", blame)


@metrics.harmless
def imap_failed(host: str, purpose: str, error: str, *, is_login: bool) -> None:
    """A dialogue with an IMAP server that was no poll has failed; `is_login` where its owner has to act."""
    hold = AccountState.AUTH_NEEDED if is_login else None
    blame = blame_of_mailbox(MailboxFailure(error, "", hold=hold))
    metrics.IMAP_FAILURES.inc(provider_at(host), purpose, blame)


@metrics.harmless
def ended_unsent(attempt: OutboundMessageAttempt, waited_for: str) -> None:
    """Ended without a word to any server: expired while it waited for `waited_for`, or without a transport.

    What was withdrawn has not failed and is not counted.
    """
    if attempt.status == AttemptStatus.FAILED:
        transport = Provider.SMTP if attempt.message.had_account else NONE
        metrics.ATTEMPTS.inc(transport, "other", AttemptStatus.FAILED, NONE, blame_of_wait(waited_for))
