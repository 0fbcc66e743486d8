"""`email_retry`: makes a message due now, or sends an ended one again to who did not get it."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.management.message_argument import MessageCommand, operator
from gobii_email.services import intervene


class Command(MessageCommand):
    help = "Makes a waiting message due now, or sends an ended one again to those who did not get it."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--default-transport",
            action="store_true",
            help="mail that waits for a mailbox that is gone may take the installation's own transport",
        )

    def handle(self, *args: Any, message_id: str, default_transport: bool, **options: Any) -> None:
        message = self.message(message_id)
        attempt = intervene.retry(message, by=operator(), use_default_transport=default_transport)
        self.answer_status(
            message,
            f"Attempt {attempt.number} is due now.",
            attempt_id=str(attempt.pk),
            number=attempt.number,
        )
