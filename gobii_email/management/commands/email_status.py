"""`email_status`: everything known of a message, and with `--follow` what happens to it, as it happens."""

import time
from collections.abc import Iterator
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from gobii_email.management.message_argument import MessageCommand, printable
from gobii_email.models import OutboundMessageEvent, PersistentAgentMessage
from gobii_email.services.status import DeliveryStatus, delivery_status, is_over
from gobii_email.services.tell import clock_time

LOOK_EVERY_SECONDS = 0.5


class Command(MessageCommand):
    help = "Shows where a message stands: recipients, attempts, and the timeline."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--follow", action="store_true", help="print events as they happen, until it is over"
        )

    def handle(self, *args: Any, message_id: str, follow: bool, **options: Any) -> None:
        message = self.message(message_id)
        if follow:
            self._follow(message)
            message.refresh_from_db()
        status = delivery_status(message)
        self.answer(status.as_document(), self.is_json, as_text(status, with_timeline=not follow))

    def _follow(self, message: PersistentAgentMessage) -> None:
        for event in events_until_over(message):
            document = {"at": event.at, "event": event.event, "text": event.text}
            self.answer(document, self.is_json, event_line(event.at, event.text))
            self.stdout.flush()


def events_until_over(message: PersistentAgentMessage) -> Iterator[OutboundMessageEvent]:
    """The events of `message` in the order they were written, waiting for more until its status is final."""
    seen = 0
    while True:
        # The status first: what was told before it became final is then surely read.
        message.refresh_from_db(fields=["latest_status"])
        for event in OutboundMessageEvent.objects.filter(message=message, pk__gt=seen).order_by("pk"):
            seen = event.pk
            yield event
        if is_over(message.latest_status):
            return
        time.sleep(LOOK_EVERY_SECONDS)


def event_line(at: Any, text: str) -> str:
    return f"  {clock_time(at, timezone.now())}  {printable(text)}"


def as_text(status: DeliveryStatus, *, with_timeline: bool = True) -> str:
    """The status document for people."""
    lines = [
        f"{status.message_id}  {status.status if status.direction == 'outbound' else 'received'}",
        f"  subject     {printable(status.subject)}",
        f"  from        {printable(status.from_address)}",
        f"  Message-ID  {printable(status.rfc_message_id)}",
    ]
    if status.waiting_for:
        lines.append(f"  {printable(status.waiting_for)}")
    lines += ["", "recipients", *_recipient_lines(status)]
    if status.direction == "outbound":
        lines += ["", "attempts", *_attempt_lines(status)]
    if with_timeline:
        lines += ["", "timeline", *(event_line(entry.at, entry.text) for entry in status.timeline)]
    return "\n".join(lines)


def _recipient_lines(status: DeliveryStatus) -> Iterator[str]:
    width = max((len(row.address) for row in status.recipients), default=0)
    for row in status.recipients:
        said = " ".join(str(part) for part in (row.smtp_code, row.enhanced_status, row.reply) if part)
        who = f"{row.kind:<3}  {printable(row.address):<{width}}"
        yield f"  {who}  {row.status:<9}  {printable(said)}".rstrip()


def _attempt_lines(status: DeliveryStatus) -> Iterator[str]:
    for row in status.attempts:
        what = row.error_message or row.provider_message_id
        yield f"  {row.number:>3}  {row.status:<9}  {row.provider or '-':<19}  {printable(what)}".rstrip()
