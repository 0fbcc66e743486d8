"""A small real mail from a mailbox to itself: the last step of a test, for those who ask for it.

Goes through the transport that mail goes through, past the queue and its limits, and is looked for in the
mailbox's own inbox where reading is set up. Nothing is stored but the step.
"""

import time
import uuid
from datetime import timedelta
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime

from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.findings import of_loss, of_reply
from gobii_email.domain.outcomes import Accepted, Refused
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import Envelope

LOOKED_FOR = timedelta(seconds=60)


class _Unfollowed:
    def reached(self, stage: Stage) -> None: ...

    def mark(self) -> None: ...


def mail_itself(account: AgentEmailAccount) -> Step:
    """The step `message`: sent, and found again with its round-trip time where the mailbox can be read."""
    began = time.monotonic()
    address = account.endpoint.address
    name = f"<{uuid.uuid4().hex}@{address.rpartition('@')[2]}>"
    server = account.smtp_server()
    outcome = wiring.smtp_transport().send(
        server, Envelope(address, [address], uuid.uuid4().hex), _mail(address, name), _Unfollowed()
    )
    spent = round((time.monotonic() - began) * 1000)
    if isinstance(outcome, Accepted):
        facts = {"message_id": name, "queue_id": outcome.provider_message_id}
        return Step("message", StepStatus.OK, spent, "Sent to itself.", facts, raw=str(outcome.reply))
    if isinstance(outcome, Refused):
        finding, text = of_reply(server.host, outcome.stage, outcome.reply), str(outcome.reply)
        text = f"The server answered {text} (at {outcome.stage})."
    else:
        finding, text = of_loss("smtp", outcome), outcome.text
    return Step("message", StepStatus.FAIL, spent, text, advice=finding.advice)


def _mail(address: str, name: str) -> bytes:
    mail = EmailMessage(policy=SMTP_POLICY.clone(cte_type="7bit"))
    mail["From"] = mail["To"] = address
    mail["Subject"] = "Test of this mailbox"
    mail["Date"] = format_datetime(timezone.now())
    mail["Message-ID"] = name
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content("This mail was sent by a test of this mailbox, to itself. It can be deleted.\n")
    return mail.as_bytes()
