"""Ending an attempt whose worker let its lease run out, by how far it had come.

Before its connection it is queued again, but only once: what loses its worker there twice may be what ruins
it. Before the mark nothing was sent: it ends like a lost connection. After the mark nobody knows: it ends in
doubt, as every such loss does.
"""

import logging
from datetime import datetime

from gobii_email import metrics
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider, after
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import Lane, OutboundMessageAttempt
from gobii_email.services.follow import refresh_message
from gobii_email.services.settle import settle
from gobii_email.services.tell import event, tell

logger = logging.getLogger(__name__)

MOST_RELEASES = 1
BEFORE_THE_MARK = "The worker was lost before the message was handed to the server; nothing was sent."
AFTER_THE_MARK = (
    "The worker was lost after the message was handed to the server and before its answer was kept."
)


def rescue(attempt: OutboundMessageAttempt, now: datetime) -> None:
    """Ends or gives back `attempt`. To be called with its row locked."""
    is_marked = attempt.marked_at is not None
    metrics.LEASES_LOST.inc()
    logger.warning("attempt.rescued", extra={"attempt_id": str(attempt.pk), "is_marked": is_marked})
    if not is_marked and not attempt.stage and attempt.releases < MOST_RELEASES:
        _queue_again(attempt, now)
        return
    stage, text = (Stage.DOT, AFTER_THE_MARK) if is_marked else (Stage.CONNECT, BEFORE_THE_MARK)
    provider = Provider(attempt.provider) if attempt.provider else None
    settle(attempt, Lost(stage, Cause.WORKER_LOST, text, is_marked), provider=provider, now=now)


def _queue_again(attempt: OutboundMessageAttempt, now: datetime) -> None:
    OutboundMessageAttempt.objects.held_by(attempt.pk, attempt.lease_token).write(
        attempt,
        status=after(AttemptStatus.SENDING, Move.RELEASED),
        due_at=now,
        started_at=None,
        lease_token=None,
        releases=attempt.releases + 1,
    )
    refresh_message(attempt, now)
    Lane.objects.filter(pk=attempt.from_endpoint_id, code="").update(look_at=None)
    tell([event(attempt, "released", "Its worker was lost before it connected; queued again.", at=now)])
