"""How mail goes as a whole: what waits, what became of a day's mail, and what needs a person.

A day is told by when its mail was submitted, so that what still waits counts with what was sent. Failures
that the recipients or the mail itself are the reason of do not use up the error budget.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import CharField, Count, Exists, Func, IntegerField, OuterRef, Q, Value
from django.db.models.functions import Cast, Concat

from gobii_email.domain.classification import AccountState, Scope
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus
from gobii_email.models import AgentEmailAccount, MailHost, OutboundMessageAttempt
from gobii_email.services.browse import Whose
from gobii_email.services.switches import switches, told
from gobii_email.services.take_stock import waiting

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)
OBJECTIVE = 0.995
"""The share of mail that is to be accepted, of what recipients and content did not keep from it."""
MOST_NEEDS = 10

_SENT = {MessageStatus.SENT, MessageStatus.DELIVERED, MessageStatus.PARTIALLY_SENT}
_WAITING = {MessageStatus.QUEUED, MessageStatus.SENDING, MessageStatus.PENDING_APPROVAL}
_SENDERS_OWN = (Scope.RECIPIENT, Scope.MESSAGE)


@dataclass(frozen=True, slots=True)
class Hour:
    """What became of the mail that was submitted in the hour from `start`."""

    start: datetime
    sent: int = 0
    failed: int = 0
    waiting: int = 0
    in_doubt: int = 0
    cancelled: int = 0

    @property
    def total(self) -> int:
        return self.sent + self.failed + self.waiting + self.in_doubt + self.cancelled


@dataclass(frozen=True, slots=True)
class Overview:
    """The last day by hours, oldest first, and what waits now."""

    waiting: int
    oldest_waiting_since: datetime | None
    hours: Sequence[Hour]
    avoidable_failures: int

    @property
    def sent(self) -> int:
        return sum(hour.sent for hour in self.hours)

    @property
    def failed(self) -> int:
        return sum(hour.failed for hour in self.hours)

    @property
    def failed_share(self) -> float | None:
        """Of what has ended; None when nothing has."""
        ended = self.sent + self.failed
        return self.failed / ended if ended else None

    @property
    def budget_left(self) -> float | None:
        """The share of the day's error budget that is left, below 0 when it is overdrawn."""
        ended = self.sent + self.avoidable_failures
        return 1 - self.avoidable_failures / (ended * (1 - OBJECTIVE)) if ended else None


def overview(whose: Whose, now: datetime) -> Overview:
    """In three statements; each reads an index, and the rows of the day at most."""
    found = waiting(whose.attempts(), now)
    hours = _hours(whose, now)
    has_failed = any(hour.failed for hour in hours)
    avoidable = _avoidable_failures(whose, now) if has_failed else 0
    return Overview(found.queued, found.oldest, hours, avoidable)


class _HourOf(Func):
    """The hour of a moment, in hours since 1970, by the database alone."""

    template = "floor(date_part('epoch', %(expressions)s) / 3600)::integer"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        # Django's own truncation would call back into Python for each row.
        template = "(CAST(strftime('%%%%s', %(expressions)s) AS INTEGER) / 3600)"
        return self.as_sql(compiler, connection, template=template, **context)


def _hours(whose: Whose, now: datetime) -> Sequence[Hour]:
    first = now.replace(minute=0, second=0, microsecond=0) - DAY + HOUR
    rows = whose.messages().filter(timestamp__gte=first).order_by()
    counted = rows.values("latest_status", hour=_HourOf("timestamp")).annotate(count=Count("pk"))
    found: dict[int, dict[str, int]] = {}
    for row in counted:
        of_hour = found.setdefault(row["hour"], {})
        kind = _kind(MessageStatus(row["latest_status"]))
        of_hour[kind] = of_hour.get(kind, 0) + row["count"]
    starts = [first + n * HOUR for n in range(24)]
    return [Hour(start, **found.get(int(start.timestamp()) // 3600, {})) for start in starts]


def _kind(status: MessageStatus) -> str:
    if status in _SENT:
        return "sent"
    return "waiting" if status in _WAITING else str(status)


def _avoidable_failures(whose: Whose, now: datetime) -> int:
    failed = whose.messages().filter(timestamp__gt=now - DAY, latest_status=MessageStatus.FAILED)
    theirs = OutboundMessageAttempt.objects.filter(message=OuterRef("pk"), scope__in=_SENDERS_OWN)
    return failed.order_by().exclude(Exists(theirs)).count()


# What needs a person


@dataclass(frozen=True, slots=True)
class Need:
    """One thing to look at: `what` is a sentence; `account_id` or `message_id` says where to go."""

    kind: str
    who: str
    what: str
    until: datetime | None = None
    account_id: UUID | None = None
    message_id: UUID | None = None


def needs(whose: Whose, now: datetime) -> list[Need]:
    """The most pressing things, a bounded number of each kind, in three statements."""
    mail = [*_doubts(whose), *_accounts_in_need(whose, now), *_hosts_left_alone(whose, now)]
    return [*_switched_off(), *mail] if whose.agent_ids is None else mail


def _switched_off() -> Iterator[Need]:
    """What operators have stopped: for those who see everybody's mail."""
    found = switches()
    if not found.is_byo_email_enabled:
        yield Need("suspended", "Own mailboxes", "Switched off for everybody (email_rollout).")
    for one in found.suspensions[:MOST_NEEDS]:
        yield Need("suspended", one.subject or "Everything", told(one), one.ends_at)


def _doubts(whose: Whose) -> Iterator[Need]:
    rows = whose.attempts().filter(status=AttemptStatus.IN_DOUBT).select_related("message")
    rows = rows.only("error_message", "message__subject", "message__from_address")
    for attempt in rows.order_by("-queued_at")[:MOST_NEEDS]:
        about = attempt.message.subject or "a message without subject"
        what = f"It may or may not have been sent: {attempt.error_message}"
        yield Need("in_doubt", about, what, message_id=attempt.message_id)


def _accounts_in_need(whose: Whose, now: datetime) -> Iterator[Need]:
    is_held = ~Q(state=AccountState.ACTIVE) & (Q(state_until__isnull=True) | Q(state_until__gt=now))
    has_failed = ~Q(smtp_error="") | ~Q(imap_error="")
    is_unfinished = Q(is_outbound_enabled=False, smtp_tested_fingerprint="")
    rows = whose.accounts().filter(is_held | has_failed | is_unfinished).select_related("mailbox")
    for account in rows.order_by("-updated_at")[:MOST_NEEDS]:
        yield _need_of(account, now)


def _need_of(account: AgentEmailAccount, now: datetime) -> Need:
    address, pk = account.endpoint.address, account.pk
    state = account.state_at(now)
    if state is not AccountState.ACTIVE:
        label = AgentEmailAccount.State(state).label
        what = f"{label}: {account.state_reason}" if account.state_reason else str(label)
        return Need("held", address, what, account.state_until, account_id=pk)
    mailbox = getattr(account, "mailbox", None)
    if mailbox is not None and mailbox.hold_code and account.is_inbound_enabled:
        return Need("unread", address, f"Its mail is not read: {mailbox.hold_reason}", account_id=pk)
    if problem := account.smtp_error or account.imap_error:
        return Need("failing", address, problem, account_id=pk)
    return Need("unfinished", address, "It is not connected yet: test it, then enable it.", account_id=pk)


def _hosts_left_alone(whose: Whose, now: datetime) -> Iterator[Need]:
    rows = MailHost.objects.filter(backoff_until__gt=now)
    if whose.agent_ids is not None:
        port = Cast("smtp_port", CharField())
        own = whose.accounts().order_by().select_related(None)
        names = own.annotate(server=Concat("smtp_host", Value(":"), port)).values("server")
        rows = rows.filter(name__in=names)
    for host in rows.order_by("-backoff_until")[:MOST_NEEDS]:
        yield Need(
            "backoff", host.name, f"The server asked to be left alone: {host.reason}", host.backoff_until
        )
