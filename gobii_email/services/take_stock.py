"""How everything stands now, in a few statements: what waits, what is in doubt, which accounts are held back.

The one source of the numbers that `email_queue`, the console and the gauges of `metrics` show. Who waits for
what, row by row, is left to `email_queue`; how often somebody may ask is bounded in `expose`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from django.db.models import (
    BooleanField,
    Case,
    CharField,
    Count,
    Exists,
    F,
    Min,
    OuterRef,
    Q,
    QuerySet,
    Value,
    When,
)
from django.db.models.functions import Cast, Concat

from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.domain.readings import AccountState
from gobii_email.models import AgentEmailAccount, Lane, Mailbox, MailHost, OutboundMessageAttempt
from gobii_email.ports import AttendanceUnknown
from gobii_email.services import attend
from gobii_email.services.measure import provider_at
from gobii_email.services.switches import switches

OVERDUE = timedelta(minutes=1)
HELD_BACK = frozenset({AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED, AccountState.BLOCKED})
"""States that many accounts of one provider enter together only where something is wrong with it, or us."""
HOST_BACKOFF, IMAP_BACKOFF = "host_backoff", "imap_backoff"
_IMAP_HELD = "imap_"


@dataclass(frozen=True, slots=True)
class Waiting:
    """Queued attempts; `ready` are those that a free worker would take now."""

    queued: int
    ready: int
    oldest: datetime | None
    ready_since: datetime | None

    def oldest_seconds(self, now: datetime) -> float:
        return _age(self.oldest, now)

    def ready_seconds(self, now: datetime) -> float:
        return _age(self.ready_since, now)


@dataclass(frozen=True, slots=True)
class Accounts:
    """Accounts that send or receive, by provider: (state or cause, provider) and how many.

    `held_back` counts an account once, and leaves out what people and allowances hold.
    """

    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    held_back: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Stock:
    """All of it, as it was at `at`. What Redis did not tell is None."""

    at: datetime
    waiting: Waiting
    under_way: Mapping[str, int]
    accounts: Accounts
    lanes: Mapping[str, int]
    overdue: int
    overdue_seconds: float
    suspensions: Mapping[str, int]
    is_enabled: bool
    rollout_percent: int | None
    dispatcher_seconds: float | None
    tick_seconds: float | None


def take_stock(now: datetime) -> Stock:
    """In six statements and two questions to Redis."""
    overdue, oldest_due = mailboxes_overdue(now)
    switched = switches()
    return Stock(
        at=now,
        waiting=waiting(OutboundMessageAttempt.objects.all(), now),
        under_way=under_way(),
        accounts=accounts(now),
        lanes=lanes_waiting(now),
        overdue=overdue,
        overdue_seconds=_age(oldest_due, now),
        suspensions=Counter(
            one.scope for one in switched.suspensions if one.ends_at is None or one.ends_at > now
        ),
        is_enabled=switched.is_byo_email_enabled,
        rollout_percent=switched.rollout.percent if switched.rollout.names is None else None,
        dispatcher_seconds=_seen(attend.dispatchers, now),
        tick_seconds=_seen(attend.ticks, now),
    )


def waiting(attempts: QuerySet[OutboundMessageAttempt], now: datetime) -> Waiting:
    """Of `attempts`, those that are queued."""
    lane = "from_endpoint__lane__"
    is_free = (
        Q(**{f"{lane}look_at__isnull": True}) | Q(**{f"{lane}look_at__lte": now}) | Q(**{f"{lane}code": ""})
    )
    is_due = Q(not_before__lte=now)
    is_ready = is_due & is_free & Q(due_at__lte=now)
    found = (
        attempts.filter(status=AttemptStatus.QUEUED)
        .order_by()
        .aggregate(
            queued=Count("pk"),
            ready=Count("pk", filter=is_ready),
            oldest=Min("queued_at", filter=is_due),
            ready_since=Min("due_at", filter=is_ready),
        )
    )
    return Waiting(**found)


def under_way() -> Mapping[str, int]:
    """Attempts that are being sent, and those in doubt."""
    statuses = [str(AttemptStatus.SENDING), str(AttemptStatus.IN_DOUBT)]
    rows = OutboundMessageAttempt.objects.filter(status__in=statuses).order_by().values_list("status")
    return dict.fromkeys(statuses, 0) | dict(rows.annotate(Count("pk")))


def lanes_waiting(now: datetime) -> Mapping[str, int]:
    """Senders whose mail waits as a whole, by code."""
    rows = Lane.objects.filter(look_at__gt=now).exclude(code="").order_by().values_list("code")
    return dict(rows.annotate(Count("pk")))


def mailboxes_overdue(now: datetime) -> tuple[int, datetime | None]:
    """How many mailboxes should have been polled more than a minute ago, and since when the first of them."""
    late = Mailbox.objects.filter(due_at__lt=now - OVERDUE, look_at__isnull=False, hold_code="")
    found = late.aggregate(count=Count("pk"), oldest=Min("due_at"))
    return found["count"], found["oldest"]


def is_in_force(now: datetime) -> Q:
    """That an account's state counts still."""
    return Q(state_until__isnull=True) | Q(state_until__gt=now)


def is_host_left_alone(now: datetime) -> Exists:
    host = Concat(OuterRef("smtp_host"), Value(":"), Cast(OuterRef("smtp_port"), CharField()))
    return Exists(MailHost.objects.filter(backoff_until__gt=now, name=host))


def accounts(now: datetime) -> Accounts:
    """In one statement, that groups them by server and by what holds them."""
    in_use = AgentEmailAccount.objects.filter(Q(is_outbound_enabled=True) | Q(is_inbound_enabled=True))
    rows = in_use.annotate(
        now_state=Case(When(is_in_force(now), then=F("state")), default=Value(str(AccountState.ACTIVE))),
        left_alone=_true_if(Q(is_outbound_enabled=True) & Q(is_host_left_alone(now))),
        imap=Case(
            When(is_inbound_enabled=False, then=Value("")),
            When(mailbox__hold_code__gt="", then=Concat(Value(_IMAP_HELD), F("mailbox__hold_code"))),
            When(backoff_until__gt=now, then=Value(IMAP_BACKOFF)),
            default=Value(""),
            output_field=CharField(),
        ),
    )
    found = Accounts()
    groups = rows.order_by().values_list("smtp_host", "imap_host", "now_state", "left_alone", "imap")
    for smtp_host, imap_host, state, left_alone, imap, count in groups.annotate(Count("pk")):
        provider = provider_at(smtp_host or imap_host)
        found.states[state, provider] += count
        causes = [imap] if imap else []
        causes += [state] if state != AccountState.ACTIVE else []
        causes += [HOST_BACKOFF] if left_alone else []
        for cause in causes:
            found.causes[cause, provider] += count
        if any(_holds_back(cause) for cause in causes):
            found.held_back[provider] += count
    return found


def _holds_back(cause: str) -> bool:
    if cause in (HOST_BACKOFF, IMAP_BACKOFF):
        return True
    return cause.removeprefix(_IMAP_HELD) in HELD_BACK


def _true_if(condition: Q) -> Case:
    return Case(When(condition, then=Value(True)), default=Value(False), output_field=BooleanField())


def _seen(who: Callable[[], Mapping[str, tuple[str, datetime]]], now: datetime) -> float | None:
    try:
        known = who()
    except AttendanceUnknown:
        return None
    return min((_age(at, now) for _, at in known.values()), default=None)


def _age(moment: datetime | None, now: datetime) -> float:
    return max((now - moment).total_seconds(), 0) if moment else 0
