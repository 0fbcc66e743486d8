"""When which mailbox is polled: rows that follow the accounts' settings, and hints for those that are due.

A mailbox is handed out once a hint's lifetime, the longest overdue first, and no more of them than the
inbound workers' queue has room for: without workers it does not grow. Reading is left to poll.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Q
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.models import AgentEmailAccount, Mailbox
from gobii_email.ports import INBOUND_QUEUE, Call
from gobii_email.services.switches import switches

POLL_MAILBOX = "gobii_email.poll_mailbox"
BATCH = 200
"""Mailboxes handed out in one round."""
QUEUE = 1000
"""Hints that may wait in the workers' queue: a few seconds' work, so that the longest overdue stay first."""
HEALED_EVERY = timedelta(minutes=1)

PLACE = frozenset({"imap_host", "imap_username", "imap_folder"})
"""What names the folder that an account's `last_seen_uid` belongs to."""
_RELEVANT = PLACE | {
    "is_inbound_enabled",
    "poll_interval_sec",
    "imap_port",
    "imap_security",
    "imap_auth",
    "imap_password_encrypted",
}

_FREE = {"hold_code": "", "hold_reason": "", "failures": 0}


def reschedule(account: AgentEmailAccount, changed: Iterable[str]) -> None:
    """`schedule`, where any of the `changed` fields makes a difference to polls.

    A cursor into another folder is forgotten; mail since the last good poll is looked for in the new one.
    """
    if PLACE & set(changed) and account.last_seen_uid:
        account.last_seen_uid = ""
        AgentEmailAccount.objects.filter(pk=account.pk).update(last_seen_uid="")
    if _RELEVANT & set(changed):
        schedule(account)


def schedule(account: AgentEmailAccount) -> None:
    """Makes the mailbox due as the account's settings are now: at once where it is read, else never.

    A poll that is under way with the former settings is over; holds and backoffs have had their reason.
    """
    due_at = timezone.now() if account.is_inbound_enabled else None
    if due_at is None and not Mailbox.objects.filter(pk=account.pk).exists():
        return
    Mailbox.objects.update_or_create(
        account_id=account.pk,
        defaults={"due_at": due_at, "look_at": due_at, "lease_token": None, "lease_until": None, **_FREE},
    )
    _end_backoff(account)


def poll_now(account: AgentEmailAccount) -> bool:
    """Makes the mailbox due now, whatever it waited for, and rings for it on commit.

    False where receiving is switched off. A poll that is under way is followed by another one.
    """
    if not account.is_inbound_enabled:
        return False
    now = timezone.now()
    Mailbox.objects.update_or_create(
        account_id=account.pk, defaults={"due_at": now, "look_at": now + config().hint_lifetime, **_FREE}
    )
    _end_backoff(account)
    transaction.on_commit(lambda: _ring_or_look_again([account.pk]))
    return True


def poll_for_news(account_ids: Iterable[uuid.UUID]) -> int:
    """Makes mailboxes due now whose servers said that mail has come; answers how many of them.

    That ends no hold, no backoff and no failures: what any of them keeps waiting is polled after it.
    """
    now = timezone.now()
    is_free = Q(account__backoff_until__isnull=True) | Q(account__backoff_until__lte=now)
    rows = Mailbox.objects.filter(is_free, pk__in=list(account_ids), account__is_inbound_enabled=True)
    ids = list(rows.filter(hold_code="").values_list("pk", flat=True))
    Mailbox.objects.filter(pk__in=ids).update(due_at=now, look_at=now + config().hint_lifetime)
    transaction.on_commit(lambda: _ring_or_look_again(ids))
    return len(ids)


def _end_backoff(account: AgentEmailAccount) -> None:
    if account.backoff_until is not None:
        account.backoff_until = None
        AgentEmailAccount.objects.filter(pk=account.pk).update(backoff_until=None)


def hand_out_polls(now: datetime) -> int:
    """Rings for mailboxes that are due; answers for how many."""
    if not switches().is_byo_email_enabled:
        return 0
    _healing.do(now)
    due = Mailbox.objects.filter(look_at__lte=now, hold_code="")
    if not due.exists():
        return 0
    room = QUEUE - (wiring.doorbell().waiting(INBOUND_QUEUE) or 0)
    return _hand_out(now, min(room, BATCH)) if room > 0 else 0


def _hand_out(now: datetime, most: int) -> int:
    with transaction.atomic():
        due = Mailbox.objects.filter(look_at__lte=now, hold_code="").order_by("due_at")
        skips = connection.features.has_select_for_update_skip_locked
        ids = list(due.select_for_update(skip_locked=skips).values_list("pk", flat=True)[:most])
        Mailbox.objects.filter(pk__in=ids).update(look_at=now + config().hint_lifetime)
    _ring_or_look_again(ids)
    return len(ids)


def _ring_or_look_again(ids: Sequence[uuid.UUID]) -> None:
    if ids and not _ring(ids):
        # The broker is away: looks again when the breaker has closed, not when the hint would have expired.
        again = timezone.now() + config().breaker_pause
        Mailbox.objects.filter(pk__in=ids, lease_token__isnull=True).update(look_at=again)


def _ring(ids: Iterable[uuid.UUID]) -> bool:
    return wiring.doorbell().call([Call(POLL_MAILBOX, str(pk), INBOUND_QUEUE) for pk in ids])


class _Healing:
    """Looks once a minute for accounts that were changed past us, as by hand in the database."""

    def __init__(self) -> None:
        self._next: datetime | None = None

    def do(self, now: datetime) -> None:
        if self._next is None or now >= self._next:
            self._next = now + HEALED_EVERY
            heal(now)


_healing = _Healing()


def heal(now: datetime) -> int:
    """Makes rows for accounts that receive and have none, or none that is due; answers for how many."""
    receiving = AgentEmailAccount.objects.filter(is_inbound_enabled=True).order_by()
    is_idle = Q(mailbox__due_at__isnull=True, mailbox__lease_token__isnull=True)
    missing = receiving.filter(Q(mailbox__isnull=True) | is_idle)
    ids = list(missing.values_list("pk", flat=True)[:BATCH])
    rows = [Mailbox(account_id=pk, due_at=now, look_at=now) for pk in ids]
    Mailbox.objects.bulk_create(
        rows, update_conflicts=True, unique_fields=["account"], update_fields=["due_at", "look_at"]
    )
    return len(rows)
