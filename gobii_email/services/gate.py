"""The last question before a server is told of a mail: whether an operator has switched its sending off.

Asked before a connection is opened and right before MAIL FROM, of switches that are at most a second old.
What is stopped here goes back to the queue and uses up no attempt.
"""

from collections.abc import Callable
from datetime import datetime

from django.db import Error
from django.utils import timezone

from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.selection import AccountFacts, Circumstances, Hold, account_obstacle
from gobii_email.models import AgentEmailAccount, Suspension
from gobii_email.models.queue import Work
from gobii_email.ports import NotNow
from gobii_email.services.record import release_connection
from gobii_email.services.switches import Subject, Switches, subject_of, switches

SUSPENDED = "suspended"


class Gate:
    """Open while `obstacle` finds nothing. Belongs to one turn."""

    def __init__(self, obstacle: Callable[[Switches, datetime], Hold | None]) -> None:
        self._obstacle = obstacle

    def obstacle(self) -> Hold | None:
        """What keeps mail from being sent now."""
        try:
            return self._obstacle(switches(), timezone.now())
        finally:
            release_connection()

    def pass_through(self) -> None:
        """Raises NotNow where it is shut, or nobody can tell."""
        try:
            found = self.obstacle()
        except Error:
            raise NotNow("The database does not say whether sending is suspended.") from None
        if found is not None:
            raise NotNow(found.reason)


def gate_of_account(account: AgentEmailAccount) -> Gate:
    """For mail through the account's own server: the rollout, and suspensions."""
    subject = subject_of(account)

    def obstacle(found: Switches, now: datetime) -> Hold | None:
        return _rollout_obstacle(found, subject) or suspension_obstacle(found, subject, now)

    return Gate(obstacle)


def gate_without_account(work: Work, provider: Provider) -> Gate:
    """For mail through the installation's own transport, which no rollout is about."""
    subject = Subject(work.from_address, work.owner_agent_id, transport=str(provider))
    return Gate(lambda found, now: suspension_obstacle(found, subject, now))


def suspension_obstacle(found: Switches, subject: Subject, now: datetime) -> Hold | None:
    suspension = found.suspension_of(subject, now)
    if suspension is None:
        return None
    text = f"Sending is suspended ({_whose(suspension)}): {suspension.reason}"
    return Hold(SUSPENDED, text, suspension.ends_at)


def obstacle_to_mailbox(account: AgentEmailAccount, now: datetime) -> str:
    """Why operators keep everybody out of the account's mailbox, "" when they do not."""
    found, subject = switches(), subject_of(account)
    if not found.is_byo_email_enabled:
        return "own mailboxes are switched off (BYO_EMAIL_ENABLED)"
    if not found.includes(subject.agent_id, subject.address):
        return "the mailbox is not included in the rollout (BYO_EMAIL_ROLLOUT)"
    suspension = found.suspension_of(subject, now)
    return "" if suspension is None else f"suspended ({_whose(suspension)}): {suspension.reason}"


def _whose(suspension: Suspension) -> str:
    return str(Suspension.Scope(suspension.scope).label.lower())


def _rollout_obstacle(found: Switches, subject: Subject) -> Hold | None:
    return account_obstacle(
        Circumstances(
            account=AccountFacts(is_outbound_enabled=True, is_tested=True),
            had_account=True,
            byo_email_enabled=found.is_byo_email_enabled,
            is_in_rollout=found.includes(subject.agent_id, subject.address),
            is_proprietary=False,
            has_postmark_token=False,
            simulates=False,
        )
    )
