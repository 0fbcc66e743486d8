"""`email_queue`: how much waits, for how long, and why.

A few statements whatever the queue's length; what becomes of a single message is told by `email_status`.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import CommandParser
from django.db.models import Count, Max, Min, Q
from django.utils import timezone

from gobii_email.domain.classification import AccountState
from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus
from gobii_email.management.message_argument import printable
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import AgentEmailAccount, MailHost, OutboundMessageAttempt, PersistentAgentMessage
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
    """Counts, the oldest that waits, and what is held, in five statements."""
    queued = OutboundMessageAttempt.objects.filter(status=AttemptStatus.QUEUED)
    waiting = queued.aggregate(
        queued=Count("pk"),
        due=Count("pk", filter=Q(not_before__lte=now, held_code="")),
        oldest=Min("queued_at", filter=Q(not_before__lte=now)),
    )
    return {
        "messages": _counts(),
        "waiting": {
            "attempts": waiting["queued"],
            "ready": waiting["due"],
            "oldest_queued_at": waiting["oldest"],
            "oldest_seconds": int((now - waiting["oldest"]).total_seconds()) if waiting["oldest"] else None,
        },
        "accounts": _held_accounts(now, limit),
        "held": _held_mail(limit),
        "hosts": _hosts_in_backoff(now, limit),
    }


def _counts() -> Row:
    """Messages by status, those that were ever submitted."""
    rows = (
        PersistentAgentMessage.objects.filter(submitted_at__isnull=False).order_by().values("latest_status")
    )
    found = {row["latest_status"]: row["count"] for row in rows.annotate(count=Count("pk"))}
    return {str(status): found.get(status, 0) for status in MessageStatus}


def _held_accounts(now: datetime, limit: int) -> list[Row]:
    held = AgentEmailAccount.objects.exclude(state=AccountState.ACTIVE)
    in_force = held.filter(Q(state_until__isnull=True) | Q(state_until__gt=now)).order_by("endpoint__address")
    waiting = Count("endpoint__attempts", filter=Q(endpoint__attempts__status=AttemptStatus.QUEUED))
    rows = in_force.annotate(waiting=waiting).values(
        "endpoint__address", "state", "state_reason", "state_until", "waiting"
    )
    return [
        {
            "address": row["endpoint__address"],
            "state": row["state"],
            "reason": row["state_reason"],
            "until": row["state_until"],
            "waiting": row["waiting"],
        }
        for row in rows[:limit]
    ]


def _held_mail(limit: int) -> list[Row]:
    """Queued attempts that were told to wait, by sender and reason; also where the account itself is well."""
    held = OutboundMessageAttempt.objects.filter(status=AttemptStatus.QUEUED).exclude(held_code="").order_by()
    groups = held.values("message__from_address", "held_code", "held_reason")
    rows = groups.annotate(waiting=Count("pk"), until=Max("due_at")).order_by("-waiting")
    return [
        {
            "address": row["message__from_address"],
            "code": row["held_code"],
            "reason": row["held_reason"],
            "until": row["until"],
            "waiting": row["waiting"],
        }
        for row in rows[:limit]
    ]


def _hosts_in_backoff(now: datetime, limit: int) -> list[Row]:
    rows = MailHost.objects.filter(backoff_until__gt=now).order_by("-backoff_until")[:limit]
    return [
        {"host": row.name, "until": row.backoff_until, "failures": row.failures, "reason": row.reason}
        for row in rows
    ]


def _lines(document: Row, now: datetime) -> Iterator[str]:
    waiting = document["waiting"]
    yield (
        "  ".join(f"{status} {count}" for status, count in document["messages"].items() if count)
        or "no messages"
    )
    yield f"{waiting['attempts']} waiting, {waiting['ready']} of them ready to be sent now"
    if waiting["oldest_queued_at"]:
        yield f"oldest waiting since {clock_time(waiting['oldest_queued_at'], now)}"
    for row in document["accounts"]:
        yield (
            f"account {printable(row['address'])}: {row['state']} {_until(row['until'], now)},"
            f" {row['waiting']} waiting. {printable(row['reason'])}"
        )
    for row in document["held"]:
        who = f"held {row['code']} {printable(row['address'])}"
        yield f"{who}: {row['waiting']} waiting. {printable(row['reason'])}"
    for row in document["hosts"]:
        who = f"host {printable(row['host'])}"
        yield f"{who}: left alone {_until(row['until'], now)}. {printable(row['reason'])}"


def _until(moment: datetime | None, now: datetime) -> str:
    return f"until {clock_time(moment, now)}" if moment else "until somebody acts"
