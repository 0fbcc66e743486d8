"""Which message of the same mailbox a received mail answers."""

import uuid
from collections.abc import Mapping, Sequence

from django.db.models import Q

from gobii_email.models import PersistentAgentCommsEndpoint, PersistentAgentMessage
from gobii_email.services.admission import aliases


def answered_by(endpoint: PersistentAgentCommsEndpoint, ids: Sequence[str]) -> PersistentAgentMessage | None:
    """The first of `ids`, in angle brackets, that names a message sent from or received at `endpoint`."""
    if not ids:
        return None
    found = _named(endpoint, ids)
    return next((found[text] for text in ids if text in found), None)


def root_of(message: PersistentAgentMessage | None) -> uuid.UUID | None:
    """The first message of the thread that `message` stands in; what it is without one, None."""
    return None if message is None else message.thread_root or message.pk


def _named(
    endpoint: PersistentAgentCommsEndpoint, ids: Sequence[str]
) -> Mapping[str, PersistentAgentMessage]:
    own = Q(from_endpoint=endpoint, is_outbound=True) | Q(to_endpoint=endpoint, is_outbound=False)
    rows = PersistentAgentMessage.objects.only("rfc_message_id", "thread_root").order_by("timestamp")
    others = aliases(endpoint, ids)
    by_key = rows.filter(own).in_bulk(list(others.values())) if others else {}
    found = {text: by_key[key] for text, key in others.items() if key in by_key}
    return found | {row.rfc_message_id: row for row in rows.filter(own, rfc_message_id__in=ids)}
