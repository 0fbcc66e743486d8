"""Understanding one stored mail: a report about sent mail, a message for the agent, or neither, with why.

Idempotent and fenced by the row's state: a mail is read by somebody again until one transaction has written
what it is. What may be fetched at all is decided in admission.
"""

import uuid

from gobii_email.models import ReceivedMail
from gobii_email.services.admission import Fetch, Verdict, wanted

__all__ = ["Fetch", "Verdict", "receive", "wanted"]


def receive(mail_id: uuid.UUID) -> ReceivedMail.State:
    """Reads the mail if nobody has, and answers what it is now."""
    return ReceivedMail.State(ReceivedMail.objects.values_list("state", flat=True).get(pk=mail_id))
