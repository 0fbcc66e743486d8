"""`email_dispatcher`: the long-running process that hands out what is due and rescues what was lost.

Any number may run. Ends with the round it is in on SIGTERM or SIGINT; a second signal ends it at once.
Outlives the database and the broker, asking less and less often while they are away.
"""

import logging
import threading
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import DatabaseError, close_old_connections, connections

from gobii_email.conf import config
from gobii_email.management.metrics_port import show_metrics
from gobii_email.management.stop_signals import StopSignals
from gobii_email.management.terminal import EmailCommand
from gobii_email.services.attend import Attending
from gobii_email.services.dispatch import Round, dispatch_round, seconds_to_next_look

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 30.0


class Command(EmailCommand):
    help = (
        "Hands out due mail, rescues what lost workers left, and ends what expired; runs until it is stopped."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--once", action="store_true", help="one round, then say what it did")
        parser.add_argument("--heartbeat-file", type=Path, help="a file that every good round touches")

    def handle(self, *args: Any, once: bool, heartbeat_file: Path | None, **options: Any) -> None:
        if once:
            self._answer(dispatch_round())
            return
        stop = threading.Event()
        with StopSignals(stop):
            show_metrics()
            logger.info("dispatcher.started")
            run(stop, heartbeat_file)
            logger.info("dispatcher.stopped")

    def _answer(self, done: Round) -> None:
        facts = {
            "handed_out": done.handed_out,
            "rescued": done.rescued,
            "expired": done.expired,
            "resent": done.resent,
            "visits": done.visits,
            "polls": done.polls,
            "unread": done.unread,
        }
        self.answer(
            facts,
            self.is_json,
            ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in facts.items()),
        )


def run(stop: threading.Event, heartbeat_file: Path | None = None) -> None:
    """Rounds until `stop` is set: at once after one that did something, else after a pause."""
    idle = config().dispatch_every.total_seconds()
    failures = 0
    with Attending() as here:
        while not stop.is_set():
            done = _round(heartbeat_file)
            failures = 0 if done else failures + 1
            if done is None:
                stop.wait(min(idle * 2 ** min(failures, 10), LONGEST_PAUSE_SECONDS))
                continue
            here.note()
            if not done.did_anything:
                stop.wait(_pause(idle))


def _round(heartbeat_file: Path | None) -> Round | None:
    """One round, None when it failed. Whatever failed, mail must go on once it is over."""
    try:
        close_old_connections()
        done = dispatch_round()
        if heartbeat_file is not None:
            heartbeat_file.touch()
    except Exception as problem:
        logger.exception("dispatcher.round_failed", extra={"error": type(problem).__name__})
        connections.close_all()
        return None
    return done


def _pause(longest: float) -> float:
    """Until the next lane is due, so that a limit is used as soon as it may be."""
    try:
        return seconds_to_next_look(longest)
    except DatabaseError:
        return longest  # the next round says what is wrong
