"""`email_cancel`: withdraws a message that no server has yet."""

from typing import Any

from gobii_email import api
from gobii_email.management.message_argument import MessageCommand


class Command(MessageCommand):
    help = "Withdraws a message that has not been handed to a server yet; exit code 1 when it was too late."

    def handle(self, *args: Any, message_id: str, **options: Any) -> None:
        message = self.message(message_id)
        done = api.cancel_agent_email(message)
        if not done:
            self.fail(done.text, message_id=str(message.pk), status=done.status)
        self.answer_status(message, done.text)
