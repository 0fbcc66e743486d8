"""What is changed in the service's own modules once they are loaded, in every process under test.

Spans that no setting shortens are shortened here, and one safety is taken out where `CHAOS_BREAK` says so,
which is how the proof shows that it can fail.
"""

import os
from datetime import timedelta

from django.apps import AppConfig


class ChaosConfig(AppConfig):
    name = "tests.chaos"

    def ready(self) -> None:
        from gobii_email.services import hold

        hold.FIRST_HOST_BACKOFF = timedelta(seconds=1)
        hold.LONGEST_HOST_BACKOFF = timedelta(seconds=2)
        if broken := os.environ.get("CHAOS_BREAK"):
            from tests.chaos import breakage

            getattr(breakage, broken)()
