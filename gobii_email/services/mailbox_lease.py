"""Having a mailbox to oneself: one poll at a time, by a lease in its row that is extended while it works.

Every write of a poll is fenced by its token, so that whoever was taken for dead changes nothing any more.
A dispatcher hands the mailbox out again when the lease has run out.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Case, DateTimeField, F, Q, QuerySet, Value, When
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.models import Mailbox
from gobii_email.ports import LeaseLost
from gobii_email.services.record import release_connection

RENEWED_AFTER = 1 / 3
"""The share of a lease after which it is extended."""


class MailboxLease:
    """The poll of one mailbox, until `leave`. `touch` is cheap, and to be called before every wait.

    `late` is for how long the mailbox had been due; None where a person asked for the poll.
    """

    def __init__(
        self, account_id: uuid.UUID, token: uuid.UUID, was_due_at: datetime | None, late: timedelta | None
    ) -> None:
        self.account_id = account_id
        self._token = token
        self.name = str(token)
        self.was_due_at = was_due_at
        self.late = late
        self._renew_at = time.monotonic() + _span() * RENEWED_AFTER

    def touch(self) -> None:
        """Extends the lease when it is time. Raises LeaseLost."""
        if time.monotonic() >= self._renew_at:
            self._write()
            release_connection()

    @contextmanager
    def fenced(self, **values: object) -> Iterator[None]:
        """One transaction in which the mailbox still is ours, with `values` in its row. Raises LeaseLost."""
        with transaction.atomic():
            self._write(**values)
            yield

    @contextmanager
    def leaving(self, due_at: datetime | None, look_at: datetime | None, **values: object) -> Iterator[None]:
        """As `fenced`, and gives the mailbox back: due at `due_at`, and looked at no earlier than `look_at`.

        If somebody asked for a poll while this one was under way, it is due as they said.
        """
        is_as_before = Q(due_at=self.was_due_at) if self.was_due_at else Q(due_at__isnull=True)

        def unless_asked(value: datetime | None) -> Case:
            then = Value(value, output_field=DateTimeField())
            return Case(When(is_as_before, then=then), default=F("due_at"))

        with transaction.atomic():
            rows = self._rows().update(
                lease_token=None,
                lease_until=None,
                due_at=unless_asked(due_at),
                look_at=unless_asked(look_at),
                **values,
            )
            if not rows:
                raise LeaseLost
            yield

    def _write(self, **values: object) -> None:
        until = timezone.now() + timedelta(seconds=_span())
        if not self._rows().update(lease_until=until, look_at=until, **values):
            raise LeaseLost
        self._renew_at = time.monotonic() + _span() * RENEWED_AFTER

    def _rows(self) -> QuerySet[Mailbox]:
        return Mailbox.objects.filter(pk=self.account_id, lease_token=self._token)


def take(account_id: uuid.UUID, now: datetime, *, is_asked_for: bool) -> MailboxLease | None:
    """The mailbox, if nobody has it, and if it is due, or a person asked for it whatever it waits for."""
    mailbox = Mailbox.objects.filter(pk=account_id).only("due_at").first()
    if mailbox is None and is_asked_for:
        mailbox, _ = Mailbox.objects.get_or_create(account_id=account_id)
    if mailbox is None:
        return None
    rows = Mailbox.objects.filter(Q(lease_until__isnull=True) | Q(lease_until__lte=now), pk=account_id)
    if not is_asked_for:
        rows = rows.filter(hold_code="", due_at__lte=now)
    token, until = uuid.uuid4(), now + timedelta(seconds=_span())
    if not rows.update(lease_token=token, lease_until=until, look_at=until):
        return None
    late = None if mailbox.due_at is None or is_asked_for else now - mailbox.due_at
    return MailboxLease(account_id, token, mailbox.due_at, late)


def _span() -> float:
    return config().lease.total_seconds()
