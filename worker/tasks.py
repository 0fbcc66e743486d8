"""The tasks: named, with ids only, each a call of one service that answers its short outcome."""

from typing import Any

from celery import Task

from gobii_email.services import deliver as delivery
from worker.celery import app


@app.task(name="gobii_email.deliver", bind=True, ignore_result=True)
def deliver(self: Task, attempt_id: str, **_: Any) -> str:
    """Sends one attempt if it is due. Lost or doubled calls change nothing."""
    owner = f"{self.request.hostname}"
    return f"{attempt_id} → {delivery.deliver(attempt_id, owner=owner)}"
