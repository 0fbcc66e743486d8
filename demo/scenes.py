"""The mails of the demonstration: what each one is, what the server does to it, how it must end.

Data and a few lines of an agent's code each; imported once Django is set up. Who watches, and who judges,
is left to show.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from gobii_email.api import EmailAttachmentPayload, deliver_agent_email, send_agent_email
from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.models import CommsChannel, PersistentAgentCommsEndpoint, PersistentAgentMessage
from gobii_email.testing.smtp_server import Faults

LOGO = EmailAttachmentPayload(
    filename="logo.png",
    content=base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    ),
    content_type="image/png",
    content_id="logo",
    disposition="inline",
)
REPORT = EmailAttachmentPayload(
    filename="figures März.csv",
    content="month,visits\r\nMärz,1024\r\n".encode(),
    content_type="text/csv; charset=utf-8",
)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who takes part: Ada has a mailbox of her own, Sim has none, Grace wrote the letter."""

    ada: PersistentAgentCommsEndpoint
    sim: PersistentAgentCommsEndpoint
    letter: PersistentAgentMessage


@dataclass(frozen=True, slots=True)
class Scene:
    """One mail. `recipients` are those who get it, on the wire; `hidden` those in Bcc.

    `faults` are the server's while the scene lasts. With `kills_worker` the worker that has the mail is
    killed while the server keeps it waiting at RCPT.
    """

    title: str
    send: Callable[[Cast], PersistentAgentMessage]
    status: MessageStatus
    recipients: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    files: tuple[EmailAttachmentPayload, ...] = ()
    attempts: int = 1
    copies: int = 1
    faults: Faults = field(default_factory=Faults)
    kills_worker: bool = False


def send_markdown(cast: Cast) -> PersistentAgentMessage:
    """As an agent runtime does that keeps its messages itself."""
    message = PersistentAgentMessage.objects.create(
        from_endpoint=cast.ada,
        to_endpoint=outside("grace@example.org"),
        owner_agent=cast.ada.owner_agent,
        subject="Weekly report – all is well",
        body="# This week\n\n| day | visits |\n|---|---|\n| Monday | 512 |\n| Tuesday | 1024 |\n\n"
        "* the [dashboard](https://example.org/dashboard) is **up**\n* nothing else\n",
    )
    message.cc_endpoints.add(outside("alan@example.org"))
    message.bcc_endpoints.add(outside("archive@example.org"))
    deliver_agent_email(message)
    return message


def send_html(cast: Cast) -> PersistentAgentMessage:
    return send_agent_email(
        from_endpoint=cast.ada,
        to="grace@example.org",
        subject="Figures for March",
        body='<h1>Figures</h1><p>As promised:</p><p><img src="cid:logo" alt="our logo"></p>',
        attachments=[LOGO, REPORT],
    )


def send_reply(cast: Cast) -> PersistentAgentMessage:
    return send_agent_email(
        from_endpoint=cast.ada,
        to="grace@example.org",
        subject="Re: Can you help?",
        body="Yes, gladly.\n\nAda",
        in_reply_to=cast.letter,
    )


def plain(subject: str, *to: str) -> Callable[[Cast], PersistentAgentMessage]:
    """A short mail from Ada."""
    return lambda cast: send_agent_email(from_endpoint=cast.ada, to=to, subject=subject, body="Hello!")


def send_simulated(cast: Cast) -> PersistentAgentMessage:
    return send_agent_email(
        from_endpoint=cast.sim, to="grace@example.org", subject="From nobody's mailbox", body="Hello!"
    )


SCENES = (
    Scene(
        "A Markdown mail with Cc and Bcc",
        send_markdown,
        MessageStatus.SENT,
        recipients=("grace@example.org", "alan@example.org", "archive@example.org"),
        hidden=("archive@example.org",),
    ),
    Scene(
        "HTML, inline image, attachment",
        send_html,
        MessageStatus.SENT,
        recipients=("grace@example.org",),
        files=(LOGO, REPORT),
    ),
    Scene("A reply that threads", send_reply, MessageStatus.SENT, recipients=("grace@example.org",)),
    Scene(
        "Refused twice with 451",
        plain("Please be patient", "shy@example.org"),
        MessageStatus.SENT,
        recipients=("shy@example.org",),
        attempts=3,
        faults=Faults(
            recipients={"shy@example.org": ["451 4.7.1 Greylisted: please come back in a moment"] * 2}
        ),
    ),
    Scene(
        "One recipient of three refused",
        plain("To all of you", "grace@example.org", "nobody@example.org", "alan@example.org"),
        MessageStatus.PARTIALLY_SENT,
        recipients=("grace@example.org", "alan@example.org"),
        faults=Faults(always={"nobody@example.org": "550 5.1.1 There is no such mailbox here"}),
    ),
    Scene(
        "Refused for good",
        plain("You have won!!!", "grace@example.org"),
        MessageStatus.FAILED,
        copies=0,
        faults=Faults(replies={"DOT": "554 5.7.1 Refused: this looks like spam"}),
    ),
    Scene(
        "Its worker is killed before DATA",
        plain("Against all odds", "grace@example.org"),
        MessageStatus.SENT,
        recipients=("grace@example.org",),
        attempts=2,
        faults=Faults(delays={"RCPT": timedelta(minutes=1)}, times={"RCPT": 1}),
        kills_worker=True,
    ),
    Scene("An agent without an account", send_simulated, MessageStatus.DELIVERED, copies=0),
)


def outside(address: str) -> PersistentAgentCommsEndpoint:
    endpoint, _ = PersistentAgentCommsEndpoint.objects.get_or_create(
        channel=CommsChannel.EMAIL, address=address, owner_agent=None
    )
    return endpoint
