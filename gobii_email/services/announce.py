"""Telling the agent runtime that a message has come: a signal, and a task of the host's where one is named.

At least once: that it was told is written down only when the broker took the task, and until then it is told
again. Whoever listens asks by the message's id whether it has dealt with it.
"""

import uuid

from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.models import PersistentAgentMessage, ReceivedMail
from gobii_email.ports import Call
from gobii_email.signals import email_received


def announce(mail_id: uuid.UUID) -> bool:
    """Tells of the message that the mail became; whether everybody was told."""
    mail = ReceivedMail.objects.defer("raw").get(pk=mail_id)
    if mail.message_id is not None:
        email_received.send_robust(
            PersistentAgentMessage,
            message_id=mail.message_id,
            endpoint_id=mail.endpoint_id,
            is_automated=mail.is_automated,
            from_address=mail.from_address,
        )
        if not _is_task_taken(mail.message_id):
            return False
    ReceivedMail.objects.filter(pk=mail.pk).update(announced_at=timezone.now())
    return True


def _is_task_taken(message_id: uuid.UUID) -> bool:
    task = config().email_received_task
    if not task:
        return True
    return wiring.doorbell().call([Call(task, str(message_id), config().email_received_queue)])
