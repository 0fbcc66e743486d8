"""How many tests are run at once and one after another, so that a test is no way to scan a network.

From pages alone: who runs commands can connect without us. What a test does is in diagnose.
"""

import threading
import time
from datetime import datetime, timedelta
from typing import Any

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.models import AgentEmailAccount
from gobii_email.models.connections import LONGEST, ConnectionTest
from gobii_email.services.conclude import fingerprint
from gobii_email.services.tell import clock_time

KEPT = timedelta(days=30)
"""How long the tests of a mailbox are kept; the next one removes those that are older."""
AT_ONCE = 8
"""Tests in the background of one process."""

_entrance = threading.Lock()
_under_way: dict[object, float] = {}


class TooManyTests(Exception):
    """Somebody tests too often; the sentence says when the next test may begin."""


def take_place() -> object:
    """One of this process's places for tests; raises TooManyTests. A place that nobody gives back, because
    its transaction came to nothing, is free again after LONGEST.
    """
    with _entrance:
        oldest = time.monotonic() - LONGEST.total_seconds()
        for forgotten in [place for place, taken_at in _under_way.items() if taken_at < oldest]:
            _under_way.pop(forgotten, None)
        if len(_under_way) >= AT_ONCE:
            raise TooManyTests(f"{AT_ONCE} tests are under way here; begin this one in a minute.")
        place = object()
        _under_way[place] = time.monotonic()
        return place


def give_back(place: object) -> None:
    _under_way.pop(place, None)


def begun(
    account: AgentEmailAccount, protocol: str, asked_by: str, *, is_one_of_many: bool = False
) -> ConnectionTest:
    """The row of a test that begins now. Raises TooManyTests.

    Commands, which give no name, are not limited: who runs them can connect without us. Of many that one
    person begins in one act, each counts for its mailbox alone.
    """
    with transaction.atomic():
        found = AgentEmailAccount.objects.select_for_update().get(pk=account.pk)
        ConnectionTest.objects.filter(account=found, started_at__lt=timezone.now() - KEPT).delete()
        if asked_by:
            _require_room(found, "" if is_one_of_many else asked_by)
        return ConnectionTest.objects.create(
            account=found,
            protocol=protocol,
            fingerprint=fingerprint(found, protocol),
            started_at=timezone.now(),
            asked_by=asked_by,
        )


def _require_room(account: AgentEmailAccount, asked_by: str) -> None:
    now = timezone.now()
    settings = config()
    windows = (
        (timedelta(minutes=1), settings.tests_per_minute, "a minute"),
        (timedelta(hours=1), settings.tests_per_hour, "an hour"),
    )
    limited = [(Q(account=account), "a mailbox")]
    limited += [(Q(asked_by=asked_by), "one person")] if asked_by else []
    for span, most, name in windows:
        for whose, owner in limited:
            until = _full_until(ConnectionTest.objects.filter(whose), span, most, now)
            if until is not None:
                when = clock_time(until, now)
                raise TooManyTests(
                    f"At most {most} tests {name} are run for {owner}; the next may begin at {when}."
                )


def _full_until(tests: Any, span: timedelta, most: int, now: datetime) -> datetime | None:
    """When there is room again in the last `span` for one of at most `most`; None when there is now."""
    newest = tests.filter(started_at__gt=now - span).order_by("-started_at")
    times = list(newest.values_list("started_at", flat=True)[:most])
    return times[-1] + span if len(times) >= most else None
