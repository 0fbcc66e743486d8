"""Which transport a message takes: one pure function over one table, first row that matches.

Knows nothing of how a transport works. A message submitted for an account is never switched to
another transport: where the account cannot be used, the answer is `Hold`.
"""

from dataclasses import dataclass
from datetime import datetime

from gobii_email.domain.lifecycle import Provider


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What selection needs to know of the account that belongs to the sender's endpoint."""

    is_outbound_enabled: bool
    is_tested: bool  # successfully, in its present settings


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Everything the choice depends on. `had_account`: a usable account existed at submission."""

    account: AccountFacts | None
    had_account: bool
    byo_email_enabled: bool
    is_in_rollout: bool
    is_proprietary: bool
    has_postmark_token: bool
    simulates: bool


@dataclass(frozen=True, slots=True)
class Use:
    provider: Provider


@dataclass(frozen=True, slots=True)
class Hold:
    """Wait, with a stable `code` and a `reason` that a person can act on; `until` where that is known."""

    code: str
    reason: str
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class NoTransport:
    reason: str


Selection = Use | Hold | NoTransport

NO_TRANSPORT = NoTransport(
    "No transport can take this mail: connect a mailbox for the sender, or set SIMULATE_EMAIL_DELIVERY=true "
    "to simulate, or GOBII_PROPRIETARY_MODE=true with POSTMARK_SERVER_TOKEN to use Postmark."
)


def select_transport(facts: Circumstances) -> Selection:
    """The first row of the selection table that matches."""
    obstacle = account_obstacle(facts)
    if obstacle is None:
        return Use(Provider.SMTP)
    if facts.had_account:
        return obstacle
    if facts.is_proprietary and facts.has_postmark_token:
        return Use(Provider.POSTMARK)
    if facts.simulates:
        return Use(Provider.SIMULATION)
    return NO_TRANSPORT


def account_obstacle(facts: Circumstances) -> Hold | None:
    """Why the sender's own account cannot be used, or None when it can."""
    if facts.account is None:
        reason = "The sender's mailbox was removed; connect it again, or `email_retry --default-transport`."
        return Hold("account_missing", reason)
    if not facts.byo_email_enabled:
        return Hold("byo_email_off", "Sending through own mailboxes is switched off (BYO_EMAIL_ENABLED).")
    if not facts.is_in_rollout:
        return Hold("not_in_rollout", "The sender is not included in the rollout (BYO_EMAIL_ROLLOUT).")
    if not facts.account.is_outbound_enabled:
        return Hold("account_disabled", "Sending is switched off for the mailbox; enable it again.")
    if not facts.account.is_tested:
        return Hold("account_untested", "The mailbox's settings were changed; test them and enable it again.")
    return None
