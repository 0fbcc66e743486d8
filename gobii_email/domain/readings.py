"""What can be concluded from a server's reply or from its silence: verdict, scope, reaction.

Only the words; classification decides which of them apply. A reading says how far a failure
reaches, so that a refused login never costs a message and a bad recipient never stops an account.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Verdict(StrEnum):
    ACCEPTED = "accepted"
    TEMPORARY = "temporary"
    PERMANENT = "permanent"
    IN_DOUBT = "in_doubt"  # the server may have the message; only evidence can tell


class Scope(StrEnum):
    """How far it reaches: what else would get the same answer now."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    ACCOUNT = "account"
    HOST = "host"


class Reaction(StrEnum):
    """What the answer asks of a sender."""

    RETRY = "retry"
    GIVE_UP = "give_up"
    HOLD_ACCOUNT = "hold_account"
    SLOW_DOWN = "slow_down"


class AccountState(StrEnum):
    ACTIVE = "active"
    LIMITED = "limited"  # the server asked for a slower pace; minutes
    QUOTA = "quota"  # an hour's or a day's allowance is used up; hours
    AUTH_NEEDED = "auth_needed"  # the owner must give a new password or sign in again
    CONFIG_NEEDED = "config_needed"  # the owner or an administrator must change a setting
    BLOCKED = "blocked"  # the provider has stopped the account
    PAUSED = "paused"  # a person of ours has stopped it


@dataclass(frozen=True, slots=True)
class Reading:
    """How one answer is understood.

    `hold`, when set, wins over verdict and reaction: the account enters that state and its mail waits,
    none of it fails. `hold_for` is how long; None with a hold means until a person acts.
    `reaction` is None where there is nothing to do: accepted, or in doubt.
    `category` is a short word for statistics, `advice` a sentence for the mailbox's owner, `source`
    where the rule comes from. `retry_after` is the server's own hint, or a rule's, for one retry.
    """

    verdict: Verdict
    scope: Scope
    reaction: Reaction | None
    category: str
    advice: str
    hold: AccountState | None = None
    hold_for: timedelta | None = None
    source: str = ""
    retry_after: timedelta | None = None
