"""Choosing the transport, from what the rows and the settings say at this moment.

The table itself is in domain/selection; this reads the facts for it, and adds what passes by itself: a
hold of the account, a server that asked to be left alone.
"""

import uuid
from datetime import datetime, timedelta

from gobii_email.conf import config
from gobii_email.domain.classification import AccountState
from gobii_email.domain.selection import (
    AccountFacts,
    Circumstances,
    Hold,
    Selection,
    account_obstacle,
    select_transport,
)
from gobii_email.models import AgentEmailAccount, PersistentAgentCommsEndpoint
from gobii_email.models.attempts import Origin
from gobii_email.services.switches import switches

LOOK_AGAIN_AFTER = timedelta(minutes=5)
"""A setting or an account may change without telling us; held mail looks again after this."""


def has_usable_account(endpoint: PersistentAgentCommsEndpoint) -> bool:
    """Whether mail of `endpoint` would leave through its own account now."""
    account = getattr(endpoint, "agentemailaccount", None)
    facts = _circumstances(account, endpoint.owner_agent_id, endpoint.address, had_account=False)
    return account_obstacle(facts) is None


def transport_for(
    account: AgentEmailAccount | None, agent_id: uuid.UUID | None, address: str, *, had_account: bool
) -> Selection:
    """The transport for mail from `address`, or why it has to wait, or that there is none."""
    return select_transport(_circumstances(account, agent_id, address, had_account=had_account))


def _circumstances(
    account: AgentEmailAccount | None, agent_id: uuid.UUID | None, address: str, *, had_account: bool
) -> Circumstances:
    settings, switched = config(), switches()
    facts = None
    if account is not None:
        facts = AccountFacts(account.is_outbound_enabled, is_tested=account.is_smtp_tested)
    return Circumstances(
        account=facts,
        had_account=had_account,
        byo_email_enabled=switched.is_byo_email_enabled,
        is_in_rollout=switched.includes(agent_id, address),
        is_proprietary=settings.proprietary_mode,
        has_postmark_token=bool(settings.postmark_server_token),
        simulates=settings.simulates,
    )


def obstacle_of_the_moment(account: AgentEmailAccount, origin: Origin, now: datetime) -> Hold | None:
    """What keeps a usable account from sending just now: its own hold, or its server's."""
    state = account.state_at(now)
    if state is not AccountState.ACTIVE:
        reason = account.state_reason or f"The mailbox is {state}."
        return Hold(str(state), reason, account.state_until)
    if origin.host_backoff_until is not None and origin.host_backoff_until > now:
        reason = f"{account.smtp_host} asked to be left alone: {origin.host_backoff_reason}"
        return Hold("host_backoff", reason, origin.host_backoff_until)
    return None
