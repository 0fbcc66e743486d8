"""Mailboxes that are read: who waits for a person, and whether anybody reads those that are due."""

from datetime import timedelta

from django.db.models import Min
from django.utils import timezone

from gobii_email.management.examinations.row import OK, WARN, Row, named
from gobii_email.models import Mailbox
from gobii_email.ports import INBOUND_QUEUE
from gobii_email.services.switches import switches
from gobii_email.services.tell import clock_time

OVERDUE = timedelta(minutes=2)


def polls() -> Row:
    """Which mailboxes are held, and since when the longest overdue one waits."""
    now = timezone.now()
    read = Mailbox.objects.filter(account__is_inbound_enabled=True)
    text = f"mailboxes that are read: {read.count()}"
    if not switches().is_byo_email_enabled:
        return Row("polls", OK, f"{text}; own mailboxes are switched off, so none is")
    late = read.filter(hold_code="", due_at__lte=now - OVERDUE)
    if since := late.aggregate(since=Min("due_at"))["since"]:
        text = f"{text}, {late.count()} overdue, the longest since {clock_time(since, now)}"
        hint = f"Start more workers for {INBOUND_QUEUE}, and see the row of the dispatcher."
        return Row("polls", WARN, text, hint)
    held = read.exclude(hold_code="").order_by("account__endpoint__address")
    if names := list(held.values_list("account__endpoint__address", flat=True)):
        text = f"{text}, {len(names)} held until somebody acts ({named(names)})"
        hint = "See why on the mailbox's page; then `email_account test ADDRESS --imap`, or `email_poll`."
        return Row("polls", WARN, text, hint)
    return Row("polls", OK, text)
