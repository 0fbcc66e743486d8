"""Keeping attempts while their turn lasts, and letting go of them when the worker dies.

Leases are renewed by one thread a process, in one statement for everything in flight, so that a dead worker
is noticed within one lease however long a server may take. What follows then is left to rescue.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from django.db import Error, connection, transaction
from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import OutboundMessageAttempt
from gobii_email.models.queue import Mark, Work
from gobii_email.ports import LeaseLost, LimiterUnavailable, LimitScope
from gobii_email.services.gate import Gate
from gobii_email.services.record import marks

logger = logging.getLogger(__name__)


class Lease:
    """One attempt held by this worker; tells the row how far the dialogue has come (`ports.Progress`)."""

    def __init__(self, work: Work, provider: Provider, gate: Gate | None = None) -> None:
        self.work = work
        self.provider = provider
        self._gate = gate

    def reached(self, stage: Stage) -> None:
        """Notes that a connection is opened for it: from then on a lost worker uses up an attempt.

        Not waited for: if the note is lost with the worker, the attempt is just queued again. Raises NotNow
        where its mail was suspended before anything was said of it.
        """
        if self._gate is not None and stage in {Stage.CONNECT, Stage.MAIL}:
            self._gate.pass_through()
        if stage is Stage.CONNECT:
            marks.put(self._mark("connect"))

    def mark(self) -> None:
        """Commits that the server may from now on have the message. A database that is away counts as no."""
        try:
            is_ours = marks.put(self._mark("dot")).wait()
        except Error:
            logger.exception("lease.write.failed")
            is_ours = False
        if not is_ours:
            raise LeaseLost

    def _mark(self, stage: str) -> Mark:
        return Mark(self.work.id, self.work.token, str(self.provider), stage)


@dataclass
class Kept:
    """What one turn holds: claimed attempts, and its place at the limiter. Only the turn's thread changes it.

    After `longest` from the last `touch` nothing of it is renewed any more, whatever its thread may wait for.
    """

    name: str
    length: timedelta
    works: Sequence[Work] = ()
    scopes: Sequence[LimitScope] = ()
    ends_at: float = field(default=0.0)

    def touch(self, longest: timedelta) -> None:
        self.ends_at = time.monotonic() + longest.total_seconds()


class LeaseKeeper:
    """Renews what is kept in this process until it is let go, in a thread that starts when first needed."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}
        self._changed = threading.Condition()
        self._process = 0

    def keep(self, kept: Kept) -> None:
        with self._changed:
            if self._process != os.getpid():
                self._process = os.getpid()
                self._kept.clear()
                threading.Thread(target=self._run, name="lease-keeper", daemon=True).start()
            self._kept[kept.name] = kept
            if len(self._kept) == 1:
                self._changed.notify()

    def let_go(self, kept: Kept) -> None:
        with self._changed:
            self._kept.pop(kept.name, None)

    def renew(self) -> int:
        """Renews everything kept now, in one statement a length; answers how many attempts were renewed."""
        now = time.monotonic()
        with self._changed:
            present = [kept for kept in self._kept.values() if kept.ends_at > now]
        renewed = 0
        for length in {kept.length for kept in present}:
            alike = [kept for kept in present if kept.length == length]
            renewed += _renew_attempts([work for kept in alike for work in kept.works], length)
            _renew_places(alike, length)
        return renewed

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._kept:
                    self._changed.wait()
                pause = min(kept.length for kept in self._kept.values()).total_seconds() / 3
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


def _renew_attempts(works: Sequence[Work], length: timedelta) -> int:
    if not works:
        return 0
    rows = OutboundMessageAttempt.objects.filter(
        pk__in=[work.id for work in works],
        lease_token__in={work.token for work in works},
        status=AttemptStatus.SENDING,
    )
    with transaction.atomic():
        if connection.features.has_select_for_update_skip_locked:
            # A row that is being ended just now needs no renewal, and must not be waited for.
            mine = rows.select_for_update(skip_locked=True).values_list("pk", flat=True)
            rows = OutboundMessageAttempt.objects.filter(pk__in=list(mine))
        return rows.update(due_at=timezone.now() + length)


def _renew_places(kept: Sequence[Kept], length: timedelta) -> None:
    places = [(one.name, one.scopes) for one in kept if one.scopes]
    if places:
        try:
            wiring.limiter().renew(places, lease=length)
        except LimiterUnavailable:
            logger.warning("limiter.unreachable")


keeper = LeaseKeeper()
