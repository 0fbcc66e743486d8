"""What the app tells others, and what it listens to.

`recipient_bounced` is sent after the change was committed, with `message_id`, `attempt_id`, `address` and
`reply`, and `recipient_complained` with the first three; a receiver that fails disturbs nobody. Anymail's
tracking events are passed on to services/track. `email_received` is sent when a message has come, at least
once, with `message_id`, `endpoint_id`, `is_automated` and `from_address`.
"""

from datetime import datetime
from typing import Any

from anymail.signals import EventType, tracking
from django.dispatch import Signal

recipient_bounced = Signal()
recipient_complained = Signal()
email_received = Signal()

_ANYMAILS_WORDS = {
    EventType.DELIVERED: "delivered",
    EventType.BOUNCED: "bounced",
    EventType.REJECTED: "bounced",
    EventType.FAILED: "bounced",
    EventType.COMPLAINED: "complained",
}


def connect() -> None:
    """Starts listening. To be called when the app is ready."""
    from gobii_email.models import guards

    guards.connect()
    tracking.connect(on_tracking, dispatch_uid="gobii_email.tracking")


def on_tracking(sender: object, event: Any, esp_name: str, **_: object) -> None:
    """One normalised event of a mail provider; those that change nothing for us are left out."""
    from gobii_email.services.track import Sighting, What, track

    word = _ANYMAILS_WORDS.get(event.event_type)
    if esp_name != "Postmark" or word is None:
        return
    metadata = event.metadata if isinstance(event.metadata, dict) else {}
    track(
        Sighting(
            what=What(word),
            recipient=_text(event.recipient),
            attempt_id=_text(metadata.get("attempt_id")),
            provider_message_id=_text(event.message_id),
            said=_text(event.mta_response) or _text(event.description),
            event_id=_text(event.event_id),
            reported_at=event.timestamp if isinstance(event.timestamp, datetime) else None,
        )
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
