"""`email_resolve`: ends by hand the doubt whether a server has a message."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.management.message_argument import MessageCommand, operator
from gobii_email.services import intervene

_DONE = {
    "sent": "Settled as sent.",
    "resend": "Settled as not sent; it is queued again under the same Message-ID.",
    "failed": "Settled as failed.",
}


class Command(MessageCommand):
    help = "Settles a message that is in doubt, when you know what became of it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--as",
            dest="how",
            required=True,
            choices=sorted(intervene.RESOLUTIONS),
            help="sent: the server has it; resend: it has not, send it again; failed: give it up",
        )

    def handle(self, *args: Any, message_id: str, how: str, **options: Any) -> None:
        message = self.message(message_id)
        intervene.resolve_by_hand(message, how, by=operator())
        self.answer_status(message, _DONE[how])
