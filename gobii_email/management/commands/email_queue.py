"""`email_queue`: how much waits, for how long, and why.

A few statements whatever the queue's length; what becomes of a single message is told by `email_status`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import (
    Count,
    IntegerField,
    Max,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
)
from django.db.models.functions import Coalesce
from django.utils import timezone

from gobii_email.domain.classification import AccountState
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus
from gobii_email.management.message_argument import printable
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgentMessage,
)
from gobii_email.services import allow, take_stock
from gobii_email.services.switches import switches, told
from gobii_email.services.tell import clock_time

Row = dict[str, Any]
MOST_ROWS = 10_000


class Command(EmailCommand):
    help = "Shows how much mail waits, for how long, and what holds it up."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--limit", type=int, default=50, help="rows of each kind to show at most (50)")

    def handle(self, *args: Any, limit: int, **options: Any) -> None:
        now = timezone.now()
        document = queue_document(now, min(max(limit, 1), MOST_ROWS))
        self.answer(document, self.is_json, "\n".join(_lines(document, now)))


def queue_document(now: datetime, limit: int) -> Row:
    """Counts, the oldest that waits, and what holds mail up, in nine statements."""
    return {
        "messages": _counts(),
        "waiting": _waiting(now),
        "causes": _causes(now),
        "accounts": _held_accounts(now, limit),
        "lanes": _waiting_lanes(now, limit),
        "held": _held_mail(now, limit),
        "hosts": _hosts_in_backoff(now, limit),
        "switched": _switched(),
    }


def _waiting(now: datetime) -> Row:
    """Ready is what a free worker would take: due, and its sender's lane waits for nothing."""
    found = take_stock.waiting(OutboundMessageAttempt.objects.all(), now)
    return {
        "attempts": found.queued,
        "ready": found.ready,
        "oldest_queued_at": found.oldest,
        "oldest_seconds": int(found.oldest_seconds(now)) if found.oldest else None,
    }


def _counts() -> Row:
    """Messages by status, those that were ever submitted."""
    rows = (
        PersistentAgentMessage.objects.filter(submitted_at__isnull=False).order_by().values("latest_status")
    )
    found = {row["latest_status"]: row["count"] for row in rows.annotate(count=Count("pk"))}
    return {str(status): found.get(status, 0) for status in MessageStatus}


# How many accounts do not send freely, by cause

_OF_LANES = ("rate_limit", "limiter_away")


def _causes(now: datetime) -> Row:
    """An account may be counted under several."""
    states = [state for state in AccountState if state is not AccountState.ACTIVE]
    counts = AgentEmailAccount.objects.aggregate(
        **{str(state): Count("pk", filter=Q(state=state) & take_stock.is_in_force(now)) for state in states},
        host_backoff=Count("pk", filter=Q(take_stock.is_host_left_alone(now))),
    )
    lanes = take_stock.lanes_waiting(now)
    return {
        **counts,
        "learned": allow.slowed_down(now),
        **{code: lanes.get(code, 0) for code in _OF_LANES},
    }


def _lanes(now: datetime) -> QuerySet[Lane]:
    return Lane.objects.filter(look_at__gt=now).exclude(code="")


# What is held up, row by row


def _queued_of(endpoint: str) -> Coalesce:
    """How many attempts wait; counted only for the rows that are shown."""
    queued = OutboundMessageAttempt.objects.filter(
        from_endpoint=OuterRef(endpoint), status=AttemptStatus.QUEUED
    )
    counted = queued.order_by().values("from_endpoint").annotate(count=Count("pk")).values("count")
    return Coalesce(Subquery(counted), 0, output_field=IntegerField())


def _held_accounts(now: datetime, limit: int) -> list[Row]:
    held = AgentEmailAccount.objects.exclude(state=AccountState.ACTIVE).filter(take_stock.is_in_force(now))
    rows = held.order_by("endpoint__address").annotate(waiting=_queued_of("endpoint"))
    found = rows.values_list("endpoint__address", "state", "state_reason", "state_until", "waiting")
    return [_row("state", *values) for values in found[:limit]]


def _waiting_lanes(now: datetime, limit: int) -> list[Row]:
    """Senders that wait for a limit or a server; the soonest first. Held accounts have their own rows."""
    rows = _lanes(now).exclude(code__in=list(AccountState)).order_by("look_at")
    rows = rows.annotate(waiting=_queued_of("endpoint"))
    found = rows.values_list("endpoint__address", "code", "reason", "look_at", "waiting")
    return [_row("code", *values) for values in found[:limit]]


def _held_mail(now: datetime, limit: int) -> list[Row]:
    """Queued attempts that wait each for itself, as where the account is gone; by sender and reason."""
    held = OutboundMessageAttempt.objects.filter(status=AttemptStatus.QUEUED, due_at__gt=now)
    groups = held.exclude(held_code="").order_by().values("message__from_address", "held_code", "held_reason")
    rows = groups.annotate(until=Max("due_at"), waiting=Count("pk")).order_by("-waiting")
    found = rows.values_list("message__from_address", "held_code", "held_reason", "until", "waiting")
    return [_row("code", *values) for values in found[:limit]]


def _row(cause: str, address: str, code: str, reason: str, until: datetime | None, waiting: int) -> Row:
    return {"address": address, cause: code, "reason": reason, "until": until, "waiting": waiting}


def _hosts_in_backoff(now: datetime, limit: int) -> list[Row]:
    rows = MailHost.objects.filter(backoff_until__gt=now).order_by("-backoff_until")[:limit]
    return [
        {"host": row.name, "until": row.backoff_until, "failures": row.failures, "reason": row.reason}
        for row in rows
    ]


def _switched() -> Row:
    """What operators have switched, as it is in force in this process."""
    found = switches()
    stopped = [{"number": one.pk, "until": one.ends_at, "text": told(one)} for one in found.suspensions]
    return {
        "own_mailboxes": found.is_byo_email_enabled,
        "rollout": found.rollout.text,
        "suspensions": stopped,
    }


def _lines(document: Row, now: datetime) -> Iterator[str]:
    switched = document["switched"]
    if not switched["own_mailboxes"]:
        yield "own mailboxes are switched off"
    elif switched["rollout"] != "100%":
        yield f"own mailboxes are served for {switched['rollout']}"
    for row in switched["suspensions"]:
        yield f"{printable(row['text'])} {_until(row['until'], now).capitalize()}."
    waiting = document["waiting"]
    yield _counted(document["messages"]) or "no messages"
    yield f"{waiting['attempts']} waiting, {waiting['ready']} of them ready to be sent now"
    if waiting["oldest_queued_at"]:
        yield f"oldest waiting since {clock_time(waiting['oldest_queued_at'], now)}"
    if any(document["causes"].values()):
        yield f"accounts that do not send freely: {_counted(document['causes'])}"
    for row in document["accounts"]:
        yield f"account {_held(row, row['state'], now)}"
    for row in document["lanes"]:
        yield f"account {_held(row, row['code'], now)}"
    for row in document["held"]:
        yield f"mail of {_held(row, row['code'], now)}"
    for row in document["hosts"]:
        who = f"host {printable(row['host'])}"
        yield f"{who}: left alone {_until(row['until'], now)}. {printable(row['reason'])}"


def _counted(counts: Row) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts.items() if count)


def _held(row: Row, code: str, now: datetime) -> str:
    who = f"{printable(row['address'])}: {code} {_until(row['until'], now)}"
    return f"{who}, {row['waiting']} waiting. {printable(row['reason'])}"


def _until(moment: datetime | None, now: datetime) -> str:
    return f"until {clock_time(moment, now)}" if moment else "until somebody acts"
