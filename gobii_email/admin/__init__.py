"""The Django admin: agents and their endpoints, mailboxes, limits, and what became of each message."""

from gobii_email.admin.accounts import AccountAdmin, EndpointAdmin
from gobii_email.admin.agents import AgentAdmin
from gobii_email.admin.limits import SendingLimitAdmin
from gobii_email.admin.messages import AttemptAdmin, MessageAdmin

__all__ = [
    "AccountAdmin",
    "AgentAdmin",
    "AttemptAdmin",
    "EndpointAdmin",
    "MessageAdmin",
    "SendingLimitAdmin",
]
