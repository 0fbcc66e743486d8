"""The service's settings for processes under test: a clock that can be stepped, and impatient holds.

The wall clock of each process is the machine's plus the seconds in the file that `CHAOS_CLOCK` names; the
monotonic clock stays, as when an operator steps a machine's time. `CHAOS_BREAK` takes a safety out.
"""

import os
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone

from gobii_email.settings import *  # noqa: F403
from gobii_email.settings import INSTALLED_APPS

_real_now = timezone.now
_OFFSET = os.environ.get("CHAOS_CLOCK", "")


def stepped_now() -> datetime:
    """What `timezone.now` answers here. A missing or half-written file means no step."""
    try:
        return _real_now() + timedelta(seconds=float(Path(_OFFSET).read_text()))
    except (OSError, ValueError):
        return _real_now()


if _OFFSET:
    # Before any module of ours is imported, since some keep the function as a default.
    timezone.now = stepped_now

INSTALLED_APPS = [*INSTALLED_APPS, "tests.chaos"]
