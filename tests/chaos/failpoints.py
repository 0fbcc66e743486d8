"""Dying at places that only code can name: included by a worker under test, which then kills itself, once.

`FAILPOINT` names the place, `FAILPOINT_FLAG` a file that says it has happened already. Every other place is
seen by the server at the other end, which needs nothing of this.
"""

import os
import signal
from pathlib import Path
from typing import Any

WHERE = os.environ.get("FAILPOINT", "")
FLAG = Path(os.environ.get("FAILPOINT_FLAG", "/nonexistent"))
PLACES = ("claimed", "before_mark", "marked", "before_settlement")


def die_at(place: str) -> None:
    """kill -9 to this very process when `place` is the failpoint and nobody has died at it yet."""
    if place == WHERE and not FLAG.exists():
        FLAG.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def install() -> None:
    from gobii_email.domain.smtp_replies import Stage
    from gobii_email.services.lease import Lease
    from gobii_email.services.turn import Turn

    reached, mark, settle = Lease.reached, Lease.mark, Turn.settle

    def dying_reached(self: Lease, stage: Stage) -> None:
        if stage is Stage.CONNECT:
            die_at("claimed")
        reached(self, stage)

    def dying_mark(self: Lease) -> None:
        die_at("before_mark")
        mark(self)
        die_at("marked")

    def dying_settle(self: Turn, *arguments: Any, **named: Any) -> None:
        die_at("before_settlement")
        settle(self, *arguments, **named)

    Lease.reached, Lease.mark = dying_reached, dying_mark  # type: ignore[method-assign]
    Turn.settle = dying_settle  # type: ignore[method-assign]


if WHERE:
    install()
