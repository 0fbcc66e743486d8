"""A file that shows that this worker takes tasks, for whoever restarts processes that hang.

Touched by a thread of its own, so that neither a broker that is away nor a server that is slow looks like a
worker that hangs: only one whose every thread has been at one task for longer than any task may take does.
"""

import logging
import threading
import time
from collections.abc import Collection
from pathlib import Path

from celery.worker import state

from gobii_email.conf import config
from gobii_email.services.send import longest_send
from gobii_email.services.turn import LONGEST_TURN

logger = logging.getLogger("gobii_email.worker")

EVERY_SECONDS = 10.0


def start_heartbeat(concurrency: int) -> None:
    """Touches GOBII_HEARTBEAT_FILE from now on; without that setting does nothing."""
    if config().heartbeat_file:
        threading.Thread(
            target=_beat, args=(Path(config().heartbeat_file), concurrency), name="heartbeat", daemon=True
        ).start()


def takes_tasks(began: Collection[float | None], concurrency: int, now: float, longest: float) -> bool:
    """Whether a thread is free, or will be; `began` is when each present task was, by the clock of `now`."""
    return len(began) < concurrency or any(at is None or now - at < longest for at in began)


def _beat(path: Path, concurrency: int) -> None:
    longest = LONGEST_TURN + longest_send(config().max_message_bytes).total_seconds()
    while True:
        began = [request.time_start for request in list(state.active_requests)]
        if takes_tasks(began, concurrency, time.monotonic(), longest):
            touch(path)
        time.sleep(EVERY_SECONDS)


def touch(path: Path) -> None:
    """Makes the file younger, or says in the log that it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as problem:
        logger.warning("heartbeat.failed", extra={"error": type(problem).__name__})
