"""Writing down what was decided, in a sentence, as events that are only ever added."""

from collections.abc import Iterable
from datetime import datetime

from django.utils import timezone

from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent


def event(
    attempt: OutboundMessageAttempt, name: str, text: str, *, at: datetime | None = None, **data: object
) -> OutboundMessageEvent:
    """An event of `attempt`, not yet written. `text` is for people; `data` for machines."""
    return OutboundMessageEvent(
        message_id=attempt.message_id,
        attempt_id=attempt.pk,
        at=at or timezone.now(),
        event=name,
        text=text,
        data=data,
    )


def tell(events: Iterable[OutboundMessageEvent]) -> None:
    """Writes the events in one statement."""
    OutboundMessageEvent.objects.bulk_create(events)


def clock_time(moment: datetime, now: datetime) -> str:
    """`14:03:20`, with the date before it when that is not today. UTC."""
    same_day = moment.date() == now.date()
    return moment.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S") + " UTC"
