"""Mail as a poll stores it, and what the tests of receiving share."""

from typing import Any

from django.utils import timezone

from gobii_email.models import PersistentAgentCommsEndpoint, ReceivedMail
from gobii_email.services.receive import receive

ANN = "ann@person.example"


def mail(text: str = "Good morning", *, body: bytes = b"", **fields: str) -> bytes:
    """A mail of Ann's to the agent; `Message_ID="<x@y>"` sets that field, "" leaves it out."""
    written = {
        "From": f"Ann Person <{ANN}>",
        "To": "agent@sender.example",
        "Subject": "Hello",
        "Message-ID": "<one@person.example>",
        "Date": "Mon, 02 Nov 2026 10:00:00 +0000",
    } | {name.replace("_", "-"): value for name, value in fields.items()}
    header = "".join(f"{name}: {value}\r\n" for name, value in written.items() if value)
    return header.encode() + b"\r\n" + (body or text.encode())


def stored(
    endpoint: PersistentAgentCommsEndpoint, raw: bytes, *, uid: int = 1, **values: Any
) -> ReceivedMail:
    """As a poll leaves it."""
    facts = {"folder": "INBOX", "uid_validity": 7, "size": len(raw), "stored_at": timezone.now(), **values}
    return ReceivedMail.objects.create(endpoint=endpoint, uid=uid, raw=raw, **facts)


def received(endpoint: PersistentAgentCommsEndpoint, raw: bytes, **values: Any) -> ReceivedMail:
    """What became of it."""
    row = stored(endpoint, raw, **values)
    receive(row.pk)
    return ReceivedMail.objects.select_related("message").get(pk=row.pk)
