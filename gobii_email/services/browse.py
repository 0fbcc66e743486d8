"""Looking through mail and mailboxes: whose may be seen, filtered, a page at a time.

Pages are cut by key and nothing is ever counted in full, so a page costs the same whatever lies before and
behind it. How a single message stands is told by `status`.
"""

import base64
import binascii
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Count, Exists, IntegerField, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce

from gobii_email import wiring
from gobii_email.domain.addresses import normalise
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    OutboundMessageRecipient,
    PersistentAgent,
    PersistentAgentMessage,
)
from gobii_email.ports import Limiter, LimiterUnavailable, LimitScope, Usage
from gobii_email.services import allow

PAGE = 50
SEARCHED = 30_000
"""Among everybody's mail so many of the newest are looked at for what no index answers, such as failures."""
WAITING = "waiting"
"""A filter of its own: queued or being sent."""
SENT, RECEIVED = "sent", "received"

_OPEN = {
    WAITING: (AttemptStatus.QUEUED, AttemptStatus.SENDING),
    MessageStatus.SENDING: (AttemptStatus.SENDING,),
    MessageStatus.IN_DOUBT: (AttemptStatus.IN_DOUBT,),
}
"""Statuses of messages that an attempt with an index of its own tells as well."""


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose mail may be seen: that of the agents with these ids, or everybody's (None)."""

    agent_ids: tuple[uuid.UUID, ...] | None

    @classmethod
    def everybodys(cls) -> "Whose":
        return cls(None)

    @classmethod
    def of_user(cls, user: Any) -> "Whose":
        return cls(tuple(PersistentAgent.objects.filter(user=user).order_by().values_list("pk", flat=True)))

    def among(self, path: str) -> Q:
        """The condition that the agent at `path` is one of them."""
        return Q() if self.agent_ids is None else Q(**{f"{path}__in": self.agent_ids})

    def agents(self) -> QuerySet[PersistentAgent]:
        return PersistentAgent.objects.filter(self.among("pk"))

    def accounts(self) -> QuerySet[AgentEmailAccount]:
        rows = AgentEmailAccount.objects.select_related("endpoint__owner_agent")
        return rows.filter(self.among("endpoint__owner_agent"))

    def messages(self) -> QuerySet[PersistentAgentMessage]:
        """Those that were written here; what was received is in `correspondence` as well."""
        return self.correspondence().filter(is_outbound=True)

    def correspondence(self) -> QuerySet[PersistentAgentMessage]:
        return PersistentAgentMessage.objects.filter(self.among("owner_agent"))

    def attempts(self) -> QuerySet[OutboundMessageAttempt]:
        return OutboundMessageAttempt.objects.filter(self.among("from_endpoint__owner_agent"))


# Messages


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which messages; what is empty asks for nothing. `account` is an endpoint's id, `agent` an agent's.

    `direction` is SENT or RECEIVED. Only what was sent has a status, recipients and a transport to ask for.
    """

    direction: str = ""
    status: str = ""
    account: uuid.UUID | None = None
    agent: uuid.UUID | None = None
    recipient: str = ""
    transport: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows, newest first; `older` is where the next page begins, "" on the last one.

    `searched_back_to` is how far was looked, where that was not to the end: there may be more before it.
    """

    rows: Sequence[PersistentAgentMessage]
    older: str
    searched_back_to: datetime | None = None


_LISTED = (
    "timestamp", "is_outbound", "from_address", "to_endpoint__address", "subject", "latest_status",
    "latest_error_message",
)  # fmt: skip


def messages(whose: Whose, wanted: Wanted, start: str = "", size: int = PAGE) -> Page:
    """A page of what is `wanted`, in three statements. Raises ValueError where no page begins at `start`."""
    older = _older_than(*_read(start)) if start else Q()
    edge = _edge(older) if whose.agent_ids is None and _is_searched(wanted) else None
    rows = whose.correspondence().filter(older, _condition(wanted), Q(timestamp__gte=edge) if edge else Q())
    latest = OutboundMessageAttempt.objects.filter(message=OuterRef("pk")).order_by("-number")
    rows = rows.annotate(provider=Subquery(latest.values("provider")[:1]))
    rows = rows.select_related("to_endpoint").only(*_LISTED)
    found = list(rows.prefetch_related("recipients").order_by("-timestamp", "-pk")[: size + 1])
    if len(found) > size:
        return Page(found[:size], _written(found[size - 1].timestamp, found[size - 1].pk))
    return Page(found, _written(edge, uuid.UUID(int=0)) if edge else "", edge)


def _is_searched(wanted: Wanted) -> bool:
    """Whether rows have to be looked at one by one to tell."""
    is_rare = bool(wanted.status) and wanted.status not in _OPEN
    return bool(wanted.transport or wanted.direction) or is_rare


def _edge(older: Q) -> datetime | None:
    """How far back the newest `SEARCHED` reach; None where there are no more. Reads an index alone."""
    times = PersistentAgentMessage.objects.filter(older).order_by("-timestamp")
    return times.values_list("timestamp", flat=True)[SEARCHED : SEARCHED + 1].first()


def _condition(wanted: Wanted) -> Q:
    condition = _status(wanted.status)
    if wanted.direction:
        condition &= Q(is_outbound=wanted.direction == SENT)
    if wanted.account:
        received = Q(to_endpoint=wanted.account, is_outbound=False)
        condition &= Q(from_endpoint=wanted.account) | received
    if wanted.agent:
        condition &= Q(owner_agent=wanted.agent)
    if wanted.recipient:
        named = OutboundMessageRecipient.objects.filter(address=normalise(wanted.recipient))
        condition &= Q(pk__in=named.values("message"))
    if wanted.transport:
        condition &= Q(_attempted(provider=wanted.transport))
    if wanted.since:
        condition &= Q(timestamp__gte=wanted.since)
    if wanted.until:
        condition &= Q(timestamp__lt=wanted.until)
    return condition


def _status(status: str) -> Q:
    if status in _OPEN:
        open_attempts = OutboundMessageAttempt.objects.filter(status__in=_OPEN[status])
        return Q(pk__in=open_attempts.values("message"))
    return Q(latest_status=status, is_outbound=True) if status else Q()


def _attempted(**facts: object) -> Exists:
    return Exists(OutboundMessageAttempt.objects.filter(message=OuterRef("pk"), **facts))


def _older_than(timestamp: datetime, pk: uuid.UUID) -> Q:
    # The first part alone lets the index find the place.
    return Q(timestamp__lte=timestamp) & (Q(timestamp__lt=timestamp) | Q(pk__lt=pk))


def _written(timestamp: datetime, pk: uuid.UUID) -> str:
    text = f"{timestamp.isoformat()} {pk.hex}"
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read(start: str) -> tuple[datetime, uuid.UUID]:
    try:
        text = base64.urlsafe_b64decode(start + "=" * (-len(start) % 4)).decode()
        timestamp, _, pk = text.partition(" ")
        moment = datetime.fromisoformat(timestamp)
        if moment.tzinfo is None:
            raise ValueError("without a time zone")
        return moment, uuid.UUID(pk)
    except (ValueError, binascii.Error):
        raise ValueError("no page begins there") from None


# Accounts


def accounts(whose: Whose, start: str = "", size: int = PAGE) -> tuple[Sequence[AgentEmailAccount], str]:
    """A page of accounts by address, each with how many attempts wait, and after which the next begins."""
    waiting = OutboundMessageAttempt.objects.filter(from_endpoint=OuterRef("pk"), status=AttemptStatus.QUEUED)
    counted = waiting.order_by().values("from_endpoint").annotate(count=Count("pk")).values("count")
    rows = whose.accounts().annotate(waiting=Coalesce(Subquery(counted), 0, output_field=IntegerField()))
    if start:
        rows = rows.filter(endpoint__address__gt=start)
    found = list(rows.order_by("endpoint__address")[: size + 1])
    return found[:size], found[size - 1].endpoint.address if len(found) > size else ""


def waiting(account: AgentEmailAccount) -> int:
    """How many attempts of `account` wait."""
    return OutboundMessageAttempt.objects.filter(
        from_endpoint=account.pk, status=AttemptStatus.QUEUED
    ).count()


@dataclass(frozen=True, slots=True)
class Used:
    """How much of one limit is used up; `used` is None where the counters know nothing of it yet."""

    window: str
    limit: int
    used: int | None

    @property
    def is_nearly_out(self) -> bool:
        return self.used is not None and self.used >= 0.9 * self.limit


def limits_used(accounts: Iterable[AgentEmailAccount], now: datetime) -> dict[uuid.UUID, list[Used]]:
    """The limits of each account in force, and how much of them is used. Asks the counters, not the rows."""
    limiter: Limiter | None = wiring.limiter()
    found = {}
    for account in accounts:
        own = allow.scopes_of(account, now)[0]
        usage, limiter = _usage(limiter, own)
        found[account.pk] = [
            Used(window.name, window.limit, None if usage is None else usage.used.get(window.name, 0))
            for window in own.windows
        ]
    return found


def _usage(limiter: Limiter | None, scope: LimitScope) -> tuple[Usage | None, Limiter | None]:
    """What is counted, and whom to ask next: nobody, once the counters did not answer in their time."""
    if limiter is None:
        return None, None
    try:
        return limiter.usage(scope), limiter
    except LimiterUnavailable:
        return None, None
