"""Running a command in this process, and an agent with something to say."""

import io
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.core.management import CommandError, call_command
from django.utils import timezone

from gobii_email.domain.lifecycle import AttemptStatus, MessageStatus
from gobii_email.models import (
    CommsChannel,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services.deliver import deliver

SENDER = "ada@agents.example.org"


@dataclass(frozen=True, slots=True)
class Answer:
    code: int
    out: str
    error: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


def run(name: str, *arguments: object) -> Answer:
    """What the shell would see of `manage.py name arguments`."""
    out, error = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command(name, *map(str, arguments), stdout=out, stderr=error)
    except CommandError as problem:
        code = problem.returncode
        error.write(str(problem))
    except SystemExit as end:
        code = int(end.code or 0)
    return Answer(code, out.getvalue(), error.getvalue())


def an_endpoint(address: str = SENDER) -> PersistentAgentCommsEndpoint:
    agent = PersistentAgent.objects.create(name="Ada")
    return PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel=CommsChannel.EMAIL, address=address
    )


def deliver_all() -> None:
    """Does what workers would, with the simulation: delivers every attempt that waits."""
    for attempt in OutboundMessageAttempt.objects.filter(status=AttemptStatus.QUEUED):
        deliver(str(attempt.pk), owner="test")


def into_doubt(message: PersistentAgentMessage) -> OutboundMessageAttempt:
    """Leaves the message's attempt as a worker that died after the mark would, once rescued."""
    attempt = OutboundMessageAttempt.objects.get(message=message)
    attempt.status, attempt.marked_at, attempt.due_at = AttemptStatus.IN_DOUBT, timezone.now(), None
    attempt.error_message = "The worker was lost."
    attempt.save()
    message.latest_status = MessageStatus.IN_DOUBT
    message.save(update_fields=["latest_status"])
    return attempt


def ago(**span: float) -> Any:
    return timezone.now() - timedelta(**span)
