"""Letting go of what is older than the settings keep: bodies first, then what is known of a message.

Only what is over is touched: no open attempt, no doubt, no mail that waits to be read. Works in short
transactions, passes over what others hold, and ends in time, so any number may run beside everything else.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, models, transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from gobii_email.conf import Config, config
from gobii_email.domain.lifecycle import OPEN, MessageStatus
from gobii_email.models import (
    ConnectionTest,
    FrozenMessage,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
    ReceivedMail,
)
from gobii_email.services import keep_files

logger = logging.getLogger(__name__)

BATCH = 200
LONGEST_SECONDS = 600.0

_Rows = models.QuerySet[Any]
_Ids = Sequence[Any]
_UNDER_WAY = [
    MessageStatus.QUEUED,
    MessageStatus.SENDING,
    MessageStatus.IN_DOUBT,
    MessageStatus.PENDING_APPROVAL,
]
_HTML_OF_BODY = "chat_body_html_v1"


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that is kept for a while: the rows of before a moment, and how some of them are let go."""

    name: str
    span: Callable[[Config], timedelta | None]
    due: Callable[[datetime], _Rows]
    let_go: Callable[[_Rows, _Ids], int]

    def cutoff(self, now: datetime) -> datetime | None:
        """What is older is let go; None where it is kept for ever."""
        span = self.span(config())
        return None if span is None else now - span


def prune(*, seconds: float = LONGEST_SECONDS) -> dict[str, int]:
    """One round over everything that a setting limits; how many rows of each kind were let go.

    Begins nothing new after `seconds`; what is left then is due in the next round.
    """
    now, began = timezone.now(), time.monotonic()
    limited = [(kind, cutoff) for kind in KINDS if (cutoff := kind.cutoff(now)) is not None]
    done = {
        # Each in its share of the time and what those before it left: a backlog of one starves no other.
        kind.name: sum(_rounds(kind, cutoff, began + seconds * number / len(limited)))
        for number, (kind, cutoff) in enumerate(limited, start=1)
    }
    if any(done.values()):
        text = ", ".join(f"{name} {count}" for name, count in done.items())
        logger.info("prune.done", extra={"text": text})
    return done


def what_is_due() -> dict[str, int]:
    """How many rows of each kind a round would let go. Counts them all."""
    now = timezone.now()
    found = {kind.name: kind.cutoff(now) for kind in KINDS}
    return {
        kind.name: kind.due(cutoff).order_by().count()
        for kind in KINDS
        if (cutoff := found[kind.name]) is not None
    }


def _rounds(kind: Kind, cutoff: datetime, end: float) -> Iterator[int]:
    """A batch after another. What stays although it was tried is not tried again in this round."""
    stayed: set[Any] = set()
    rows = kind.due(cutoff)
    while time.monotonic() < end:
        ids = list(rows.exclude(pk__in=stayed).values_list("pk", flat=True)[:BATCH])
        if not ids:
            return
        yield kind.let_go(rows, ids)
        stayed |= set(rows.order_by().filter(pk__in=ids).values_list("pk", flat=True))
        if len(stayed) > 10 * BATCH:
            logger.warning("prune.stuck", extra={"text": kind.name})
            return


# What is due


def _over(cutoff: datetime) -> _Rows:
    """Messages of before `cutoff` with which nothing happens any more: sent, received, or given up."""
    is_open = OutboundMessageAttempt.objects.filter(message=OuterRef("pk"), status__in=OPEN)
    is_over = Q(is_outbound=False) | (Q(submitted_at__isnull=False) & ~Q(latest_status__in=_UNDER_WAY))
    rows = PersistentAgentMessage.objects.filter(is_over, ~Exists(is_open), timestamp__lt=cutoff)
    return rows.order_by("timestamp", "pk")


def _with_body(cutoff: datetime) -> _Rows:
    return _over(cutoff).filter(emptied_at__isnull=True)


def _events(cutoff: datetime) -> _Rows:
    is_over = _over(cutoff).order_by().filter(pk=OuterRef("message"))
    return _before(OutboundMessageEvent, "at", cutoff).filter(Exists(is_over))


def _tests(cutoff: datetime) -> _Rows:
    return _before(ConnectionTest, "started_at", cutoff)


def _before(model: type[models.Model], moment: str, cutoff: datetime) -> _Rows:
    """Rows of before `cutoff`, of a table in whose order of ids time passes: no index on time is needed."""
    rows = model._default_manager.order_by("pk")
    first_kept = rows.filter(**{f"{moment}__gte": cutoff}).values_list("pk", flat=True).first()
    rows = rows.filter(**{f"{moment}__lt": cutoff})
    return rows if first_kept is None else rows.filter(pk__lt=first_kept)


def _read(cutoff: datetime) -> _Rows:
    """Received mail that was read, and of which the agent was told."""
    state = ReceivedMail.State
    is_under_way = Q(state=state.STORED) | Q(state=state.RECEIVED, announced_at__isnull=True)
    return ReceivedMail.objects.filter(~is_under_way, stored_at__lt=cutoff).order_by("stored_at", "pk")


def _raw(cutoff: datetime) -> _Rows:
    return _read(cutoff).filter(raw__isnull=False)


# Letting go


def _empty(rows: _Rows, ids: _Ids) -> int:
    ids = _without_files(ids)
    with transaction.atomic():
        ids = _locked(rows, ids)
        messages = PersistentAgentMessage.objects.filter(pk__in=ids)
        with_html = messages.filter(raw_payload__has_key=_HTML_OF_BODY)
        for message in with_html.only("raw_payload"):
            del message.raw_payload[_HTML_OF_BODY]
            message.save(update_fields=["raw_payload"])
        FrozenMessage.objects.filter(pk__in=ids).delete()
        PersistentAgentMessageAttachment.objects.filter(message__in=ids).update(file="")
        return messages.update(body="", emptied_at=timezone.now())


def _delete_messages(rows: _Rows, ids: _Ids) -> int:
    ids = _without_files(ids)
    with transaction.atomic():
        # Attempts before their messages, in the order in which everybody locks them.
        attempts = OutboundMessageAttempt.objects.filter(message__in=ids)
        free = set(_locked(attempts, list(attempts.order_by().values_list("pk", flat=True))))
        held = set(attempts.exclude(pk__in=free).order_by().values_list("message_id", flat=True))
        ids = _locked(rows, [pk for pk in ids if pk not in held])
        PersistentAgentMessage.objects.filter(pk__in=ids).delete()
        return len(ids)


def _without_files(ids: _Ids) -> list[Any]:
    """Those whose files are gone now: before the rows that name them, or a crash would leave them.

    A file that another message names as well stays, and goes with the last of them.
    """
    held = set()
    named = PersistentAgentMessageAttachment.objects.exclude(file="")
    files = list(named.filter(message__in=ids).values_list("message_id", "file"))
    others = named.filter(file__in={name for _, name in files}).exclude(message__in=ids)
    still_named = set(others.values_list("file", flat=True))
    for message_id, name in files:
        if name in still_named:
            continue
        try:
            keep_files.drop([name])
        except Exception as problem:  # whatever a storage raises, the other messages' turn comes
            logger.warning("prune.file_stays", extra={"error": type(problem).__name__})
            held.add(message_id)
    return [pk for pk in ids if pk not in held]


def _forget_raw(rows: _Rows, ids: _Ids) -> int:
    return rows.order_by().filter(pk__in=ids).update(raw=None)


def _delete(rows: _Rows, ids: _Ids) -> int:
    with transaction.atomic():
        return int(rows.model._default_manager.filter(pk__in=_locked(rows, ids)).delete()[0])


def _locked(rows: _Rows, ids: _Ids) -> list[Any]:
    """Those of `ids` that still are among `rows` and that nobody else holds, until the transaction ends."""
    skips = connection.features.has_select_for_update_skip_locked
    found = (
        rows.order_by("pk")
        .filter(pk__in=ids)
        .select_for_update(skip_locked=skips, of=("self",) if skips else ())
    )
    return list(found.values_list("pk", flat=True))


KINDS: Sequence[Kind] = (
    Kind("bodies", lambda found: found.keep_bodies, _with_body, _empty),
    Kind("received", lambda found: found.keep_received, _raw, _forget_raw),
    Kind("events", lambda found: found.keep_events, _events, _delete),
    Kind("messages", lambda found: found.keep_messages, _over, _delete_messages),
    Kind("received_rows", lambda found: found.keep_messages, _read, _delete),
    Kind("tests", lambda found: found.keep_tests, _tests, _delete),
)
