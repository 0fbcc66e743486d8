"""Beat as it is run here: it shows that it ticks, for whoever restarts processes that hang.

The file is touched by the rounds themselves, one at least every `beat_max_loop_interval`. A broker that goes
away ends no round; one that is not there when beat starts is waited for in the first.
"""

from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler

from gobii_email.conf import config
from worker.heartbeat import touch


class Scheduler(PersistentScheduler):
    """Celery's own; after each round it touches GOBII_HEARTBEAT_FILE, where that is set."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        pause: float = super().tick(*args, **kwargs)
        if config().heartbeat_file:
            touch(Path(config().heartbeat_file))
        return pause
