"""Dying at an exact place: included by a worker under test, which then kills itself there, once.

`FAILPOINT` names the place, `FAILPOINT_FLAG` a file that says it has happened already.
"""

import os
import signal
from pathlib import Path
from typing import Any

from gobii_email.adapters.smtp_session import SmtpSession
from gobii_email.domain.smtp_replies import Stage
from gobii_email.services import deliver
from gobii_email.services.lease import Lease

WHERE = os.environ.get("FAILPOINT", "")
FLAG = Path(os.environ.get("FAILPOINT_FLAG", "/nonexistent"))


def die_at(place: str) -> None:
    """kill -9 to this very process when `place` is the failpoint and nobody has died at it yet."""
    if place == WHERE and not FLAG.exists():
        FLAG.touch()
        os.kill(os.getpid(), signal.SIGKILL)


_reached, _mark, _send, _settle = Lease.reached, Lease.mark, SmtpSession.send, deliver.settle


def reached(self: Lease, stage: Stage) -> None:
    if stage is Stage.CONNECT:
        die_at("before_connect")
    _reached(self, stage)
    die_at(f"before_{stage}")


def mark(self: Lease) -> None:
    die_at("between_body_and_mark")
    _mark(self)
    die_at("between_mark_and_dot")


def send(self: SmtpSession, data: Any) -> None:
    _send(self, data)
    if bytes(data if isinstance(data, (bytes, bytearray, memoryview)) else data.encode()) == b".\r\n":
        die_at("after_dot")


def settle(*arguments: Any, **named: Any) -> bool:
    die_at("after_250")
    return _settle(*arguments, **named)


Lease.reached, Lease.mark = reached, mark  # type: ignore[method-assign]
SmtpSession.send = send  # type: ignore[method-assign]
deliver.settle = settle
