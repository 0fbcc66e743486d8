"""Whose doing it was that an attempt or a visit to a mailbox failed.

The error budgets count what we and the providers do wrong; a revoked password or a mistyped recipient uses
none of them. Who is to act on a failure is another question, which `readings` answers.
"""

from enum import StrEnum

from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome
from gobii_email.domain.readings import AccountState, Reading, Scope, Verdict


class Blame(StrEnum):
    NOBODY = "none"
    SYSTEM = "system"
    PROVIDER = "provider"
    USER = "user"
    RECIPIENT = "recipient"


_OF_CAUSES = {
    # What we are, and what we stand on.
    Cause.LEASE_LOST: Blame.SYSTEM,
    Cause.WORKER_LOST: Blame.SYSTEM,
    Cause.SUSPENDED: Blame.SYSTEM,
    Cause.SECRET_UNREADABLE: Blame.SYSTEM,
    # What the mailbox's owner chose.
    Cause.ADDRESS_NOT_ALLOWED: Blame.USER,
    Cause.PORT_NOT_ALLOWED: Blame.USER,
    Cause.HOST_UNKNOWN: Blame.USER,
    Cause.STARTTLS_NOT_OFFERED: Blame.USER,
    Cause.AUTH_NOT_OFFERED: Blame.USER,
    Cause.AUTH_WITHOUT_TLS: Blame.USER,
    Cause.MESSAGE_TOO_LARGE: Blame.USER,
    Cause.SMTPUTF8_REQUIRED: Blame.RECIPIENT,
}
"""Everything else is the network or the server at its other end."""

_OF_STATES = {
    # Said by the provider of its own accord, about a pace that its customer pays for.
    AccountState.LIMITED: Blame.PROVIDER,
    AccountState.QUOTA: Blame.USER,
    AccountState.AUTH_NEEDED: Blame.USER,
    AccountState.CONFIG_NEEDED: Blame.USER,
    AccountState.BLOCKED: Blame.USER,
    AccountState.PAUSED: Blame.USER,
}


def blame_of(outcome: Outcome, reading: Reading) -> Blame:
    """Of one attempt: `reading` is how its `outcome` was understood."""
    match outcome:
        case Accepted():
            return Blame.NOBODY
        case Lost(cause=cause):
            return _OF_CAUSES.get(cause, Blame.PROVIDER)
    if reading.hold is not None:
        return _OF_STATES[reading.hold]
    match reading.scope:
        case Scope.RECIPIENT:
            return Blame.RECIPIENT
        case Scope.ACCOUNT | Scope.MESSAGE if reading.verdict is Verdict.PERMANENT:
            return Blame.USER
    return Blame.PROVIDER


def blame_of_wait(code: str) -> Blame:
    """Of mail whose life ended while it waited for `code`; "" where nothing held it, and nobody took it."""
    if code in set(AccountState) - {AccountState.ACTIVE}:
        return _OF_STATES[AccountState(code)]
    return _OF_WAITS.get(code, Blame.SYSTEM)


_OF_WAITS = {
    "account_missing": Blame.USER,
    "account_disabled": Blame.USER,
    "account_untested": Blame.USER,
    "rate_limit": Blame.USER,
    "host_backoff": Blame.PROVIDER,
    "token_unavailable": Blame.PROVIDER,
}
"""The others are switches and parts of this installation."""


def blame_of_mailbox(failure: MailboxFailure) -> Blame:
    """Of a visit to a mailbox that came to nothing."""
    if failure.hold is not None and failure.error != Cause.SECRET_UNREADABLE:
        return _OF_STATES[failure.hold]
    if failure.error in set(Cause):
        return _OF_CAUSES.get(Cause(failure.error), Blame.PROVIDER)
    # Short words are a server's; what begins with a capital is the name of an exception of ours.
    return Blame.SYSTEM if failure.error[:1].isupper() else Blame.PROVIDER
