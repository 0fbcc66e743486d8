"""Sends what is queued, for senders that have no daemon of their own; or says what they know of each mail.

`send` is the loop that cron or a supervisor would be; `outcomes` prints status by subject as JSON.
"""

import json
import smtplib
import sys
import time

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction


def send_post_office() -> None:
    call_command("send_queued_mail", processes=1, log_level=1)


def send_mailer() -> None:
    call_command("retry_deferred")
    call_command("send_mail")


def send_transaction() -> None:
    """SMTP in the transaction that records it: the plainest way, and a common one."""
    from django.core.mail import send_mail

    from tests.chaos.peers.models import Letter

    while True:
        with transaction.atomic():
            letter = Letter.objects.select_for_update(skip_locked=True).filter(status="queued").first()
            if letter is None:
                return
            try:
                send_mail(letter.subject, letter.body, "agent@sender.example", ["to@rcpt.example"])
                letter.status = "sent"
            except (smtplib.SMTPException, OSError):
                letter.status = "failed"
            letter.save()


def outcomes() -> dict[str, str]:
    """sent, failed or queued, by subject; empty for a sender that keeps no record."""
    found: dict[str, str] = {}
    if settings.PEER == "post_office":
        from post_office.models import Email

        names = {0: "sent", 1: "failed", 2: "queued", 3: "queued"}
        found = {mail.subject: names[mail.status] for mail in Email.objects.all()}
    if settings.PEER == "mailer":
        from mailer.models import RESULT_SUCCESS, Message, MessageLog

        found = {row.subject: "sent" for row in MessageLog.objects.filter(result=RESULT_SUCCESS)}
        found |= {row.subject: "queued" for row in Message.objects.all()}
    if settings.PEER == "transaction":
        from tests.chaos.peers.models import Letter

        found = dict(Letter.objects.values_list("subject", "status"))
    return found


def main() -> None:
    django.setup()
    if sys.argv[1] == "outcomes":
        print(json.dumps(outcomes()))
        return
    once = globals()[f"send_{settings.PEER}"]
    while True:
        try:
            once()
        except Exception as problem:
            # The next run of cron starts afresh, whatever ended this one.
            print(repr(problem), flush=True)
            connection.close()
        time.sleep(0.3)


if __name__ == "__main__":
    main()
