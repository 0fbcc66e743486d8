"""The tasks: named, with ids only, each a call of one service that answers its short outcome."""

import logging
from typing import Any

from celery import Task

from gobii_email.services import attend, visit
from gobii_email.services import deliver as delivery
from gobii_email.services import poll as polling
from gobii_email.services import prune as pruning
from gobii_email.services import receive as receiving
from worker.celery import app

logger = logging.getLogger("gobii_email.worker")


class TaskFailed(Exception):
    """What Celery, its events and its spans learn of a failure: never the words of a foreign exception."""


@app.task(name="gobii_email.deliver", bind=True, ignore_result=True)
def deliver(self: Task, attempt_id: str, lane: str = "", **_: Any) -> str:
    """Takes a turn for the lane that the attempt waits in. Lost or doubled calls change nothing."""
    try:
        outcome = delivery.deliver(attempt_id, owner=self.request.hostname or "", lane=lane)
    except Exception as problem:
        logger.exception("task.failed", extra={"attempt_id": attempt_id})
        raise TaskFailed(f"{type(problem).__name__}; the log says more, rescue looks after it") from None
    return f"{attempt_id} → {outcome}"


@app.task(name=receiving.RECEIVE, ignore_result=True)
def receive_mail(mail_id: str, **_: Any) -> str:
    """Reads a stored mail, or tells the agent of one. Lost or doubled calls change nothing."""
    try:
        outcome = receiving.receive(mail_id)
    except Exception as problem:
        logger.exception("task.failed", extra={"mail_id": mail_id})
        raise TaskFailed(f"{type(problem).__name__}; the log says more, it is read again") from None
    return f"{mail_id} → {outcome}"


@app.task(name="gobii_email.poll_mailbox", bind=True, ignore_result=True)
def poll_mailbox(self: Task, account_id: str, **_: Any) -> str:
    """Reads what is new in the account's mailbox, if that is due. Lost or doubled calls change nothing."""
    try:
        outcome = polling.poll(account_id, owner=self.request.hostname or "")
    except Exception as problem:
        logger.exception("task.failed", extra={"account_id": account_id})
        raise TaskFailed(f"{type(problem).__name__}; the log says more, it is polled again") from None
    return f"{account_id} → {outcome}"


@app.task(name=visit.VISIT_SENT, ignore_result=True)
def visit_sent(account_id: str, **_: Any) -> str:
    """Looks for copies of sent mail that are due. Lost or doubled calls change nothing."""
    try:
        outcome = visit.visit_sent(account_id)
    except Exception as problem:
        logger.exception("task.failed", extra={"account_id": account_id})
        raise TaskFailed(f"{type(problem).__name__}; the log says more, it is visited again") from None
    return f"{account_id} → {outcome}"


@app.task(name=visit.LOOK_FOR_COPY, ignore_result=True)
def look_for_copy(attempt_id: str, **_: Any) -> str:
    """Looks for the copy of one mail in doubt now. Lost or doubled calls change nothing."""
    try:
        outcome = visit.look_for_copy(attempt_id)
    except Exception as problem:
        logger.exception("task.failed", extra={"attempt_id": attempt_id})
        raise TaskFailed(f"{type(problem).__name__}; the log says more, it is looked for again") from None
    return f"{attempt_id} → {outcome}"


@app.task(name="gobii_email.note_tick", ignore_result=True)
def note_tick(**_: Any) -> None:
    """Says that beat ticks and that its tasks are taken up."""
    attend.note_tick()


@app.task(name="gobii_email.prune", ignore_result=True)
def prune(**_: Any) -> str:
    """Lets go of what is older than the settings keep. Doubled calls share the work."""
    try:
        done = pruning.prune()
    except Exception as problem:
        logger.exception("task.failed")
        raise TaskFailed(f"{type(problem).__name__}; the log says more, beat calls again") from None
    return ", ".join(f"{kind} {count}" for kind, count in done.items()) or "everything is kept"
