"""Keeping an attempt while it is being sent, and letting go of it when the worker dies.

A lease is renewed by one thread a process, in one statement for all attempts in flight, so that a dead
worker is noticed within one lease however long a server may take. What follows is left to rescue.
"""

import logging
import os
import threading
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import Error, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone

from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus, Provider
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.ports import LeaseLost

logger = logging.getLogger(__name__)


def release_connection() -> None:
    """Gives a pooled database connection back, so that none is borrowed while a socket is waited on."""
    if connection.settings_dict.get("OPTIONS", {}).get("pool") and not connection.in_atomic_block:
        connection.close()


class Lease:
    """One attempt held by this worker; tells the row how far the dialogue has come (`ports.Progress`)."""

    def __init__(
        self,
        attempt: OutboundMessageAttempt,
        provider: Provider,
        length: timedelta,
        *,
        longest: timedelta,
        clock: Callable[[], datetime] = timezone.now,
    ) -> None:
        self.attempt = attempt
        self.provider = provider
        self.length = length
        self.clock = clock
        self.ends_for_good_at = clock() + longest
        self.stage: Stage | None = None

    def reached(self, stage: Stage) -> None:
        """Notes the stage; before the first one the message becomes `sending`, which rescue goes by."""
        is_first, self.stage = self.stage is None, stage
        if is_first and not self._announce():
            raise LeaseLost

    def _announce(self) -> bool:
        # The attempt is locked first: else a withdrawal that is being committed would go unseen.
        mine = self._row().select_for_update().values("message_id")
        message = PersistentAgentMessage.objects.filter(pk__in=mine)
        return _is_written(lambda: message.update(latest_status=MessageStatus.SENDING))

    def mark(self) -> None:
        """Commits, on its own, that the server may from now on have the message."""
        now = self.clock()
        values = {
            "due_at": now + self.length,
            "stage": Stage.DOT,
            "provider": self.provider,
            "marked_at": now,
        }
        if not _is_written(lambda: self._row().update(**values)):
            raise LeaseLost

    def _row(self) -> QuerySet[OutboundMessageAttempt]:
        return OutboundMessageAttempt.objects.held_by(self.attempt.pk, self.attempt.lease_token)


def _is_written(write: Callable[[], int]) -> bool:
    """Whether a row was written and committed. A database that is away counts as no: then nothing is sent."""
    try:
        with transaction.atomic():
            return bool(write())
    except Error:
        logger.exception("lease.write.failed")
        return False
    finally:
        release_connection()


class LeaseKeeper:
    """Renews the leases of this process until each is let go, in a thread that starts when first needed."""

    def __init__(self) -> None:
        self._leases: dict[uuid.UUID | None, Lease] = {}
        self._changed = threading.Condition()
        self._process = 0

    def keep(self, lease: Lease) -> None:
        with self._changed:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._leases.clear()
                threading.Thread(target=self._run, name="lease-keeper", daemon=True).start()
            self._leases[lease.attempt.lease_token] = lease
            self._changed.notify()

    def let_go(self, lease: Lease) -> None:
        with self._changed:
            self._leases.pop(lease.attempt.lease_token, None)

    def renew(self) -> int:
        """Renews all leases kept now, in one statement a length; answers how many rows were renewed."""
        now = timezone.now()
        with self._changed:
            leases = [lease for lease in self._leases.values() if lease.ends_for_good_at > now]
        renewed = 0
        for length in {lease.length for lease in leases}:
            attempts = [lease.attempt for lease in leases if lease.length == length]
            rows = OutboundMessageAttempt.objects.filter(
                pk__in=[attempt.pk for attempt in attempts],
                lease_token__in=[attempt.lease_token for attempt in attempts],
                status=AttemptStatus.SENDING,
            )
            renewed += rows.update(due_at=now + length)
        return renewed

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._leases:
                    self._changed.wait()
                pause = min(lease.length for lease in self._leases.values()).total_seconds() / 3
            threading.Event().wait(pause)
            self._renew_if_possible()

    def _renew_if_possible(self) -> None:
        try:
            try:
                self.renew()
            finally:
                connection.close()
        except Exception:
            # Whatever it was: without this thread every slow send would be taken for dead.
            logger.warning("lease.renewal.failed", exc_info=True)


keeper = LeaseKeeper()
