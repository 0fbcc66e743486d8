"""The Django admin: agents and their endpoints, mailboxes, limits, and what became of each message."""

from gobii_email.admin.accounts import EndpointAdmin
from gobii_email.admin.agents import AgentAdmin
from gobii_email.admin.connections import ConnectionTestAdmin, MailHostAdmin
from gobii_email.admin.limits import SendingLimitAdmin
from gobii_email.admin.mailboxes import AccountAdmin
from gobii_email.admin.messages import AttemptAdmin, MessageAdmin
from gobii_email.admin.received import ReceivedMailAdmin
from gobii_email.admin.suppressions import SuppressionAdmin
from gobii_email.admin.switched import RolloutChangeAdmin, SuspensionAdmin

__all__ = [
    "AccountAdmin",
    "AgentAdmin",
    "AttemptAdmin",
    "ConnectionTestAdmin",
    "EndpointAdmin",
    "MailHostAdmin",
    "MessageAdmin",
    "ReceivedMailAdmin",
    "RolloutChangeAdmin",
    "SendingLimitAdmin",
    "SuppressionAdmin",
    "SuspensionAdmin",
]
