"""What is remembered: rows, constraints, queries."""

from gobii_email.models.accounts import AgentEmailAccount
from gobii_email.models.agents import (
    CommsAllowlistEntry,
    CommsChannel,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentEmailEndpoint,
)
from gobii_email.models.attempts import OutboundMessageAttempt, OutboundMessageEvent
from gobii_email.models.connections import ConnectionTest, OAuthRequest
from gobii_email.models.lanes import Lane
from gobii_email.models.limits import MailHost, SendingLimit
from gobii_email.models.mailboxes import Mailbox, ReceivedMail, SentCopy, Suppression
from gobii_email.models.messages import (
    FrozenMessage,
    OutboundMessageRecipient,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.models.oauth import AgentEmailOAuthCredential
from gobii_email.models.switches import RolloutChange, Suspension

__all__ = [
    "AgentEmailAccount",
    "AgentEmailOAuthCredential",
    "CommsAllowlistEntry",
    "CommsChannel",
    "ConnectionTest",
    "FrozenMessage",
    "Lane",
    "MailHost",
    "Mailbox",
    "OAuthRequest",
    "OutboundMessageAttempt",
    "OutboundMessageEvent",
    "OutboundMessageRecipient",
    "PersistentAgent",
    "PersistentAgentCommsEndpoint",
    "PersistentAgentEmailEndpoint",
    "PersistentAgentMessage",
    "PersistentAgentMessageAttachment",
    "ReceivedMail",
    "RolloutChange",
    "SendingLimit",
    "SentCopy",
    "Suppression",
    "Suspension",
]
