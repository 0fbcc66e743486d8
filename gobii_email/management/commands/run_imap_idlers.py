"""`run_imap_idlers`: waits for news of the mailboxes that ask for it, so that new mail is polled for at once.

Any number may run; they share the mailboxes. Takes leave of all servers on SIGTERM or SIGINT; a second signal
ends it at once. Without it mailboxes are polled as often as their interval says.
"""

import logging
import resource
import threading
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.management.metrics_port import show_metrics
from gobii_email.management.stop_signals import StopSignals
from gobii_email.management.terminal import EmailCommand
from gobii_email.services.attend import Attending
from gobii_email.services.watch import Watcher

logger = logging.getLogger(__name__)

OTHER_FILES = 256
"""Open files that are not connections to mailboxes: database, Redis, openings under way."""


class Command(EmailCommand):
    help = "Waits for news of the mailboxes that ask for it (IMAP IDLE); runs until it is stopped."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--heartbeat-file", type=Path, help="a file that every good round touches")

    def handle(self, *args: Any, heartbeat_file: Path | None, **options: Any) -> None:
        most = min(config().idle_max_connections, allow_files() - OTHER_FILES)
        stop = threading.Event()
        with StopSignals(stop), Attending(wiring.watchers()) as here:

            def on_round() -> None:
                here.note()
                if heartbeat_file is not None:
                    heartbeat_file.touch()

            show_metrics()
            logger.info("idle.started", extra={"concurrency": most})
            Watcher(most).run(stop, on_round)
            logger.info("idle.stopped")


def allow_files() -> int:
    """Lets this process have as many files open as it needs, or as the system allows; answers how many."""
    wanted = config().idle_max_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
