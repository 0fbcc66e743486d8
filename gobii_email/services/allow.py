"""What an account may send: its limits in force, what it has used, and what its server's answers taught.

Limits are read from the rows with every turn, so a change holds at the next look. The counters are the
limiter's; what they are restored from is here, because the database alone remembers what was sent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

from django.db.models import Func, IntegerField, Max, Q, Sum
from django.db.models.functions import TruncMinute, TruncSecond
from django.db.models.signals import post_delete, post_save

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.classification import AccountState, Reaction, Reading, Scope
from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.providers import provider_of_host
from gobii_email.domain.quotas import (
    LEARNS_EVERY,
    LONGEST_LESSON,
    SPANS,
    About,
    Learned,
    Limits,
    OwnLimits,
    in_force,
    learn,
    limits_of,
    windows,
)
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt, SendingLimit
from gobii_email.ports import Forgotten, LimiterUnavailable, LimitScope, Spent, Usage

SHARED_LIMITS_HOLD_FOR = timedelta(seconds=10)
"""For so long a worker may go by limits of servers and domains that were changed elsewhere."""

_CONNECTION_LIMIT = "connection-limit"
_SLOW_STATES = {AccountState.LIMITED, AccountState.QUOTA}


class _Recipients(Func):
    """How many recipients an attempt is for."""

    function = "jsonb_array_length"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **kwargs: Any) -> Any:
        return self.as_sql(compiler, connection, function="json_array_length", **kwargs)


_COST = Sum(_Recipients("addresses"))


# Limits


def limits_in_force(account: AgentEmailAccount, now: datetime) -> Limits:
    """The limits of `account` at `now`; no transaction may have more recipients than a limit above it."""
    limits = in_force(configured_limits(account), learned_of(account), now)
    shared = [window.limit for scope in _shared_scopes(account, now) for window in scope.windows]
    return replace(limits, recipients_per_message=min([limits.most_recipients, *shared]))


def configured_limits(account: AgentEmailAccount) -> Limits:
    """The limits of `account` whatever was learned, each with its source."""
    own = OwnLimits(
        per_minute=account.per_minute,
        per_hour=account.per_hour,
        per_day=account.per_day,
        connections=account.max_connections,
        messages_per_connection=account.messages_per_connection,
        pool_ttl=None if account.pool_ttl is None else timedelta(seconds=account.pool_ttl),
    )
    default = config().messages_per_connection
    return limits_of(own, provider_of_host(account.smtp_host), messages_per_connection_default=default)


def learned_of(account: AgentEmailAccount) -> Learned | None:
    if account.learned_at is None:
        return None
    return Learned(
        account.learned_per_minute, account.learned_connections, account.learned_at, account.learned_reason
    )


def slowed_down(now: datetime) -> int:
    """How many accounts go slower than their limits, because of what they learned."""
    lately = AgentEmailAccount.objects.filter(learned_at__gt=now - LONGEST_LESSON)
    return sum(
        in_force(limits, learned_of(account), now) != limits
        for account in lately
        for limits in [configured_limits(account)]
    )


def scopes_of(account: AgentEmailAccount, now: datetime) -> list[LimitScope]:
    """What limits mail of `account`: its own scope, then those of its server and of its address's domain."""
    limits = limits_in_force(account, now)
    key = f"account:{account.endpoint_id}"
    own = LimitScope(key, "the account's", limits.windows(), limits.connections)
    return [own, *_shared_scopes(account, now)]


def _shared_scopes(account: AgentEmailAccount, now: datetime) -> list[LimitScope]:
    rows = _shared_limits.at(now)
    domain = account.endpoint.address.rpartition("@")[2].lower()
    wanted = ((SendingLimit.Kind.HOST, account.smtp_server_name), (SendingLimit.Kind.DOMAIN, domain))
    return [_scope_of(rows[key]) for kind, name in wanted if (key := (str(kind), name)) in rows]


def _scope_of(row: SendingLimit) -> LimitScope:
    """Its key has the row's own id: one that was removed and made anew is restored, not found outdated."""
    name = row.name.rpartition(":")[0] if row.kind == SendingLimit.Kind.HOST else row.name
    found = windows(per_minute=row.per_minute, per_hour=row.per_hour, per_day=row.per_day)
    return LimitScope(f"{row.kind}:{row.name}#{row.pk}", f"{name}'s", found, row.max_connections)


class _SharedLimits:
    """All limits above the accounts, by kind and name; read anew every ten seconds, in one statement."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.forget()

    def forget(self, **_: object) -> None:
        self._read_at: datetime | None = None
        self._rows: dict[tuple[str, str], SendingLimit] = {}

    def at(self, now: datetime) -> dict[tuple[str, str], SendingLimit]:
        with self._lock:
            if self._read_at is None or not timedelta(0) <= now - self._read_at < SHARED_LIMITS_HOLD_FOR:
                self._rows = {(row.kind, row.name): row for row in SendingLimit.objects.all()}
                self._read_at = now
            return self._rows


_shared_limits = _SharedLimits()
forget_shared_limits = _shared_limits.forget
post_save.connect(forget_shared_limits, sender=SendingLimit, dispatch_uid="gobii_email.allow.saved")
post_delete.connect(forget_shared_limits, sender=SendingLimit, dispatch_uid="gobii_email.allow.deleted")


# Restoring


def restore(scopes: Sequence[LimitScope], forgotten: Forgotten, now: datetime) -> None:
    """Tells the limiter what the database knows of the last day of the `forgotten` scopes.

    What is being sent now counts as spent now, and whoever sends it as at work until its lease ends: it may
    be known under another name, and then takes a connection twice for that long.
    """
    for scope in scopes:
        if scope.key in forgotten.keys:
            attempts = _attempts_of(scope)
            sending = _sending(attempts)
            spent = [*_spent(attempts, now), *(Spent(cost) for _, _, cost in sending)]
            lanes = [(token, until - now) for token, until, _ in sending if until > now]
            wiring.limiter().restore(scope, spent, lanes=lanes)


Attempts = Any  # a QuerySet of attempts


def _attempts_of(scope: LimitScope) -> Attempts:
    kind, _, name = scope.key.partition(":")
    name = name.rpartition("#")[0] or name
    match kind:
        case SendingLimit.Kind.HOST:
            host, _, port = name.rpartition(":")
            account = "from_endpoint__agentemailaccount__smtp_"
            wanted = Q(**{f"{account}host": host, f"{account}port": int(port)})
        case SendingLimit.Kind.DOMAIN:
            wanted = Q(from_endpoint__address__iendswith=f"@{name}")
        case _:
            wanted = Q(from_endpoint_id=name)
    return OutboundMessageAttempt.objects.filter(wanted).order_by()


def _spent(attempts: Attempts, now: datetime) -> Iterable[Spent]:
    """By minutes, and the last one by seconds; each with the latest time of its part, so never too short."""
    sent = attempts.filter(provider=Provider.SMTP)
    doubtful = attempts.filter(status=AttemptStatus.IN_DOUBT, sent_at__isnull=True)
    for rows, field in ((sent, "sent_at"), (doubtful, "marked_at")):
        for since, until, part in (
            (now - SPANS["day"], now - SPANS["minute"], TruncMinute),
            (now - SPANS["minute"], None, TruncSecond),
        ):
            within = rows.filter(**{f"{field}__gt": since})
            within = within if until is None else within.filter(**{f"{field}__lte": until})
            parts = within.values(part=part(field)).annotate(latest=Max(field), cost=_COST)
            for latest, cost in parts.values_list("latest", "cost"):
                yield Spent(cost, max(now - latest, timedelta(0)))


def _sending(attempts: Attempts) -> list[tuple[str, datetime, int]]:
    """Those at work: lease, its end, and the recipients it has in hand."""
    rows = attempts.filter(status=AttemptStatus.SENDING).values("lease_token")
    found = rows.annotate(until=Max("due_at"), cost=_COST).values_list("lease_token", "until", "cost")
    return [(str(token), until, cost) for token, until, cost in found if until is not None]


# Learning


def learn_from(account: AgentEmailAccount, reading: Reading, said: str, now: datetime) -> str | None:
    """Slows `account` down where its server asks for that; answers the sentence for the timeline.

    Answers that come within a minute are about one pace, and only the first of them counts.
    """
    if not _asks_to_slow_down(reading):
        return None
    limits, before = configured_limits(account), learned_of(account)
    present = in_force(limits, before, now)
    is_crowd = reading.category == _CONNECTION_LIMIT and present.connections > 1
    about = About.CONNECTIONS if is_crowd else About.RATE
    observed = 0 if is_crowd or present.per_minute else _sent_last_minute(account, now)
    learned = learn(limits, before, now=now, observed_per_minute=observed, about=about, reason=said)
    if not _is_written(account, learned, now):
        return None
    pace = (
        f"{learned.connections} at a time"
        if is_crowd
        else f"{learned.per_minute} recipients a minute at most"
    )
    return f"The mailbox is slowed down to {pace}, and will be let grow back: its server asked for it."


def _asks_to_slow_down(reading: Reading) -> bool:
    """A recipient who gets too much mail says nothing of the sender's pace."""
    is_slow = reading.reaction is Reaction.SLOW_DOWN or reading.hold in _SLOW_STATES
    return is_slow and reading.scope is not Scope.RECIPIENT


def _sent_last_minute(account: AgentEmailAccount, now: datetime) -> int:
    rows = OutboundMessageAttempt.objects.order_by().filter(
        from_endpoint_id=account.endpoint_id, sent_at__gt=now - SPANS["minute"]
    )
    return rows.aggregate(cost=_COST)["cost"] or 0


def _is_written(account: AgentEmailAccount, learned: Learned, now: datetime) -> bool:
    values = {
        "learned_per_minute": learned.per_minute,
        "learned_connections": learned.connections,
        "learned_at": learned.at,
        "learned_reason": learned.reason,
    }
    is_due = Q(learned_at__isnull=True) | Q(learned_at__lte=now - LEARNS_EVERY)
    if not AgentEmailAccount.objects.filter(is_due, pk=account.pk).update(**values):
        return False
    for name, value in values.items():
        setattr(account, name, value)
    return True


# Telling


@dataclass(frozen=True, slots=True)
class Quota:
    """What one account may send and has sent.

    `scopes` come each with its usage, None where the counters do not answer: then `problem` says why.
    `queued` recipients wait already; `out_at` is when they and the further messages asked for, of one
    recipient each, would all be out if nothing but the limits held them up; None when that is not known.
    """

    limits: Limits
    learned: Learned | None
    scopes: Sequence[tuple[LimitScope, Usage | None]]
    queued: int
    out_at: datetime | None = None
    problem: str = ""


def quota(account: AgentEmailAccount, messages: int, now: datetime) -> Quota:
    """The quota of `account`, and when `messages` more (0: just what waits) would be out."""
    scopes = scopes_of(account, now)
    limits = in_force(configured_limits(account), learned_of(account), now)
    lesson = learned_of(account) if limits != configured_limits(account) else None
    queued = _queued(account)
    try:
        usages = [_usage(scope, now) for scope in scopes]
        out_at = wiring.limiter().slots(scopes, queued + messages) if queued + messages else now
    except LimiterUnavailable:
        problem = "The counters in Redis do not answer, and nothing is sent until they do."
        return Quota(limits, lesson, [(scope, None) for scope in scopes], queued, problem=problem)
    return Quota(limits, lesson, list(zip(scopes, usages, strict=True)), queued, out_at)


def _usage(scope: LimitScope, now: datetime) -> Usage | None:
    usage = wiring.limiter().usage(scope)
    if usage is None:
        restore([scope], Forgotten((scope.key,)), now)
        usage = wiring.limiter().usage(scope)
    return usage


def _queued(account: AgentEmailAccount) -> int:
    rows = OutboundMessageAttempt.objects.order_by().filter(
        from_endpoint_id=account.endpoint_id, status=AttemptStatus.QUEUED
    )
    return rows.aggregate(cost=_COST)["cost"] or 0
