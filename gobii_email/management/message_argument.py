"""Commands about one message: how it is named, how it is shown, and who acts on it."""

import getpass
import uuid
from typing import Any

from django.core.management.base import CommandParser

from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import PersistentAgentMessage
from gobii_email.services.status import DeliveryStatus, delivery_status


def printable(text: object) -> str:
    """`text` on one line without control characters, which a server's reply could use against a terminal."""
    return "".join(character if character.isprintable() else " " for character in str(text)).strip()


def as_sentence(status: DeliveryStatus) -> str:
    """`ID status`, and why it waits or what went wrong."""
    last = status.attempts[-1].error_message if status.attempts else ""
    if status.status == MessageStatus.PARTIALLY_SENT:
        missed = ("refused", "bounced")
        last = "Not to " + ", ".join(row.address for row in status.recipients if row.status in missed) + "."
    return " ".join(
        part for part in (status.message_id, status.status, printable(status.waiting_for or last)) if part
    )


def operator() -> str:
    """Who runs the command, for the timeline; "" where the machine knows no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


class MessageCommand(EmailCommand):
    """A command whose first argument names a message, by its id or by its RFC Message-ID."""

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("message_id", metavar="MESSAGE_ID", help="the message's id, or its <Message-ID>")

    def message(self, name: str) -> PersistentAgentMessage:
        """The message called `name`; ends the command when there is none."""
        found = PersistentAgentMessage.objects.filter(**_named(name)).first()
        if found is None:
            self.fail(
                f"There is no message {name[:320]!a}.",
                field="message_id",
                remedy="Give the id that email_send printed, or a <Message-ID>.",
            )
        return found

    def answer_status(self, message: PersistentAgentMessage, text: str, **more: object) -> None:
        """Says `text`, and where the message stands now."""
        message.refresh_from_db()
        status = delivery_status(message)
        document = {
            "message_id": status.message_id,
            "status": status.status,
            "waiting_for": status.waiting_for,
        }
        self.answer(document | {"text": text} | more, self.is_json, f"{text}\n{as_sentence(status)}")


def _named(name: str) -> dict[str, Any]:
    try:
        return {"pk": uuid.UUID(name)}
    except ValueError:
        return {"rfc_message_id": name if name.startswith("<") else f"<{name}>"}
