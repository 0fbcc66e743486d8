"""Which mail of a mailbox is fetched, decided on its header alone: before a byte of its body is read.

Whom an agent listens to is asked of `PersistentAgent.is_sender_whitelisted`, by the one address that From
names. What looks like a report about sent mail is fetched whoever wrote it, since servers are on nobody's
list; it reaches the agent as a message only if its sender is.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from gobii_email.conf import config
from gobii_email.domain.inbound_mail import Fields
from gobii_email.domain.senders import answered_ids, may_be_report, message_id_of, sender_of
from gobii_email.models import (
    CommsChannel,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)


class Fetch(StrEnum):
    """How much of a mail is fetched, and so what is stored as `ReceivedMail.raw`."""

    WHOLE = "whole"
    """All of it: it is for the agent."""
    REPORT = "report"
    """All of it: it may say what became of a mail of ours."""
    HEADER = "header"
    """The header block alone, in state STORED: too large, and from somebody the agent listens to. An agent
    has to learn that a person wrote, or it waits for an answer that has come; `receive` makes a message
    of the header that says so."""
    SKIP = "skip"
    """Nothing: state SKIPPED with the reason."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to fetch, and in a sentence why not all of it. `sender` is the readable address in From, or ""."""

    fetch: Fetch
    reason: str = ""
    sender: str = ""

    @property
    def is_fetched(self) -> bool:
        """Whether the body is wanted."""
        return self.fetch in (Fetch.WHOLE, Fetch.REPORT)


OWN = "It was sent by this mailbox itself."
UNREADABLE = "Its From field does not name exactly one readable address."
NOT_ALLOWED = "Its sender is not among those whose mail may reach this agent."


def wanted(endpoint: PersistentAgentCommsEndpoint, header: Fields, size: int) -> Verdict:
    """What to fetch of a mail of `size` bytes in the mailbox of `endpoint`; never raises for its header.

    Asks the database once about Message-IDs, and once about the sender where the agent has a list.
    """
    sender, own_id = sender_of(header), message_id_of(header)
    answered = answered_ids(header)
    ours = own_message_ids(endpoint, (own_id, *answered))
    if sender == endpoint.address or own_id in ours:
        return Verdict(Fetch.SKIP, OWN, sender)
    is_too_large = size > config().max_received_bytes
    if is_listened_to(endpoint, sender):
        return (
            Verdict(Fetch.HEADER, too_large(size), sender)
            if is_too_large
            else Verdict(Fetch.WHOLE, "", sender)
        )
    if may_be_report(header) or not ours.isdisjoint(answered):
        return (
            Verdict(Fetch.SKIP, too_large(size), sender)
            if is_too_large
            else Verdict(Fetch.REPORT, "", sender)
        )
    return Verdict(Fetch.SKIP, NOT_ALLOWED if sender else UNREADABLE, sender)


def too_large(size: int) -> str:
    limit = config().max_received_bytes
    return f"It is too large to be fetched: {size:,} bytes, where {limit:,} are allowed."


def is_listened_to(endpoint: PersistentAgentCommsEndpoint, sender: str) -> bool:
    """Whether mail from the address `sender` may reach the agent of `endpoint`; nobody's may not."""
    agent = endpoint.owner_agent
    return bool(sender) and agent is not None and agent.is_sender_whitelisted(CommsChannel.EMAIL, sender)


def own_message_ids(endpoint: PersistentAgentCommsEndpoint, ids: Iterable[str]) -> set[str]:
    """Those of `ids`, in angle brackets, that name mail which was sent from `endpoint`."""
    asked = set(filter(None, ids))
    if not asked:
        return set()
    sent = PersistentAgentMessage.objects.filter(
        rfc_message_id__in=asked, from_endpoint=endpoint, is_outbound=True
    )
    return set(sent.order_by().values_list("rfc_message_id", flat=True)) | set(aliases(endpoint, asked))


def aliases(endpoint: PersistentAgentCommsEndpoint, ids: Iterable[str]) -> dict[str, uuid.UUID]:
    """Messages of `endpoint` by those of `ids` that a provider put in the place of ours.

    Some name it in their answer to the dot, and people's programs then answer that id.
    """
    bare = {text.strip("<>"): text for text in ids}
    attempts = OutboundMessageAttempt.objects.filter(
        provider_message_id__in=[*bare, *bare.values()], from_endpoint=endpoint
    )
    found = attempts.exclude(provider_message_id="").order_by("-number")
    return {
        bare[provider_id.strip("<>")]: message_id
        for provider_id, message_id in found.values_list("provider_message_id", "message_id")
    }
