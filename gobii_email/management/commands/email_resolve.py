"""`email_resolve`: ends by hand the doubt whether a server has a message, or has its copy looked for."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.management.message_argument import MessageCommand, operator
from gobii_email.services import intervene
from gobii_email.services.act import ACTS, perform

_DONE = {
    "sent": "Settled as sent.",
    "resend": "Settled as not sent; it is queued again under the same Message-ID.",
    "failed": "Settled as failed.",
}


class Command(MessageCommand):
    help = "Settles a message that is in doubt, when you know what became of it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument(
            "--as",
            dest="how",
            choices=sorted(intervene.RESOLUTIONS),
            help="sent: the server has it; resend: it has not, send it again; failed: give it up",
        )
        what.add_argument(
            "--look", action="store_true", help="have a worker look for its copy in the mailbox's Sent now"
        )

    def handle(self, *args: Any, message_id: str, how: str | None, **options: Any) -> None:
        message = self.message(message_id)
        if how is None:
            self.answer_status(message, perform(ACTS["look"], message, by=operator()))
            return
        intervene.resolve_by_hand(message, how, by=operator())
        self.answer_status(message, _DONE[how])
