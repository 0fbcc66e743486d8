"""A small real mail from a mailbox to itself: the last step of a test, for those who ask for it.

Goes through the transport that mail goes through, past the queue and its limits, and is looked for in the
mailbox's own inbox where reading is set up. Nothing is stored but the step.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.advice import advice_for
from gobii_email.domain.composition import MailParts, compose, new_message_id
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.findings import SMTP, of_loss, of_reply
from gobii_email.domain.outcomes import Accepted, Outcome, Refused
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import Envelope

LONGEST = timedelta(seconds=60)
"""How long it may take until the mail is in the inbox."""


class _Unfollowed:
    def reached(self, stage: Stage) -> None: ...

    def mark(self) -> None: ...


def mail_itself(account: AgentEmailAccount) -> Step:
    """The step `message`: sent, and found again with its round-trip time where the mailbox can be read."""
    began = time.monotonic()
    address = account.endpoint.address
    name = new_message_id(address)
    outcome = wiring.smtp_transport().send(
        account.smtp_server(),
        Envelope(address, [address], uuid.uuid4().hex),
        _mail(address, name),
        _Unfollowed(),
        span=LONGEST,
    )
    if isinstance(outcome, Accepted):
        found = _looked_for(account, name, began, outcome)
    else:
        found = _not_sent(account.smtp_host, outcome)
    return replace(found, milliseconds=round((time.monotonic() - began) * 1000))


def _mail(address: str, name: str) -> bytes:
    text = "This mail was sent by a test of this mailbox, to itself. It can be deleted.\n"
    return compose(
        MailParts(
            from_name="",
            from_address=address,
            to=(address,),
            cc=(),
            subject="Test of this mailbox",
            text=text,
            html="",
            message_id=name,
            date=timezone.now(),
            headers={"Auto-Submitted": "auto-generated"},
        )
    )


def _not_sent(host: str, outcome: Outcome) -> Step:
    if isinstance(outcome, Refused):
        text = f"The server answered {outcome.reply} (at {outcome.stage})."
        advice = of_reply(host, outcome.stage, outcome.reply).advice
        return Step("message", StepStatus.FAIL, text=text, advice=advice, raw=str(outcome.reply))
    assert not isinstance(outcome, Accepted)
    return Step("message", StepStatus.FAIL, text=outcome.text, advice=of_loss(SMTP, outcome).advice)


def _looked_for(account: AgentEmailAccount, name: str, began: float, sent: Accepted) -> Step:
    facts: Mapping[str, object] = {"message_id": name, "queue_id": sent.provider_message_id}
    step = Step("message", StepStatus.OK, facts=facts, raw=str(sent.reply))
    if not (account.imap_host and account.is_imap_tested):
        text = (
            "The server took the mail to itself. Reading is not set up and tested, so it was not looked for."
        )
        return replace(step, text=text)
    server = replace(account.imap_server(), folder="INBOX")
    left = LONGEST - timedelta(seconds=time.monotonic() - began)
    uid = wiring.imap_mailboxes().await_mail(server, name, left)
    if uid is None:
        text = f"The server took the mail to itself; it was not in INBOX within {LONGEST.seconds} seconds."
        return replace(step, status=StepStatus.WARN, text=text, advice=advice_for("self-mail-not-found"))
    seconds = round(time.monotonic() - began, 2)
    text = f"The mail to itself was found in INBOX after {seconds:.1f} seconds."
    return replace(step, text=text, facts={**facts, "uid": uid, "round_trip_seconds": seconds})
