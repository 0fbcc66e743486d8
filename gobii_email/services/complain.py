"""Somebody called a mail spam: told to the agent, and never written to again without a person's word."""

from datetime import datetime
from functools import partial

from django.db import transaction

from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent, OutboundMessageRecipient
from gobii_email.services.suppress import Cause, suppress
from gobii_email.services.tell import tell
from gobii_email.signals import recipient_complained

COMPLAINED = "complained"


def complained(
    recipient: OutboundMessageRecipient,
    attempt: OutboundMessageAttempt,
    told: OutboundMessageEvent,
    now: datetime,
) -> bool:
    """Writes the event `told` about a recipient of the locked `attempt`; False when they complained before.

    No status changes: the mail did arrive.
    """
    earlier = OutboundMessageEvent.objects.filter(message_id=attempt.message_id, event=COMPLAINED)
    if recipient.address in {one.data.get("recipient") for one in earlier}:
        return False
    tell([told])
    if attempt.from_endpoint_id is not None:
        suppress(
            attempt.from_endpoint_id,
            recipient.address,
            cause=Cause.COMPLAINED,
            reason="Reported a mail as spam.",
            message_id=attempt.message_id,
            now=now,
        )
    tell_others = partial(
        recipient_complained.send_robust,
        sender=OutboundMessageRecipient,
        message_id=str(recipient.message_id),
        attempt_id=str(attempt.pk),
        address=recipient.address,
    )
    transaction.on_commit(tell_others)
    return True
