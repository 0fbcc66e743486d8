"""Taking in mail that a host project got by other means than a mailbox of ours, such as a webhook.

The same way as mail from a mailbox: stored first, then understood; the same rules say what it is.
"""

import hashlib

from django.utils import timezone

from gobii_email.domain.inbound_mail import header_block, read_fields
from gobii_email.models import PersistentAgentCommsEndpoint, PersistentAgentMessage, ReceivedMail
from gobii_email.services.admission import Fetch, Verdict, wanted
from gobii_email.services.receive import receive


def ingest_inbound_message(
    *, endpoint: PersistentAgentCommsEndpoint, raw: bytes, source: str = "api"
) -> PersistentAgentMessage | None:
    """The message that `raw`, a whole mail as received, becomes for the agent of `endpoint`.

    None where it becomes none: its row among the received mail, in folder `source`, says why. The same bytes
    given again answer the same message. Raises ValueError where no agent owns the endpoint.
    """
    if not endpoint.is_own_email:
        raise ValueError(f"no agent owns {endpoint.address}: mail is taken in for agents' own endpoints")
    header = header_block(raw)
    verdict = wanted(endpoint, read_fields(header), len(raw))
    mail, _ = ReceivedMail.objects.get_or_create(
        endpoint=endpoint,
        folder=source[:255],
        uid_validity=0,  # which no mailbox has
        uid=int.from_bytes(hashlib.sha256(raw).digest()[:8]) >> 1,
        defaults=_stored(verdict, raw, header),
    )
    receive(mail.pk)
    return PersistentAgentMessage.objects.filter(received_mails=mail.pk).first()


def _stored(verdict: Verdict, raw: bytes, header: bytes) -> dict[str, object]:
    now = timezone.now()
    facts: dict[str, object] = {
        "size": len(raw),
        "stored_at": now,
        "internal_at": now,
        "from_address": verdict.sender,
    }
    if verdict.fetch is Fetch.SKIP:
        return facts | {"state": ReceivedMail.State.SKIPPED, "reason": verdict.reason, "read_at": now}
    return facts | {"raw": header if verdict.fetch is Fetch.HEADER else raw}
