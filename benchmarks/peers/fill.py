"""Queues mails with one of the peers: `python -m benchmarks.peers.fill NAME`, the facts as JSON on input."""

import json
import os
import sys
from typing import Any

import psycopg

_TABLE = """
DROP TABLE IF EXISTS hand_mail;
CREATE TABLE hand_mail (
    id bigint PRIMARY KEY, sender text, recipient text, mime bytea, state text,
    started_at timestamptz, sent_at timestamptz
);
"""


def own_mime(facts: dict[str, Any], number: int) -> bytes:
    """The same bytes for every mail but its Message-ID."""
    return facts["mime"].replace("MESSAGE-ID", f"<{number}.{facts['run']}@peer.example>", 1).encode("latin-1")


def hand(facts: dict[str, Any]) -> None:
    from benchmarks.peers.celery_task import app, send

    senders, count = facts["senders"], facts["count"]
    with psycopg.connect(os.environ["PEER_DATABASE_URL"]) as database:
        database.execute(_TABLE)
        with database.cursor().copy("COPY hand_mail (id, sender, recipient, mime, state) FROM STDIN") as copy:
            for n in range(count):
                mime = own_mime(facts, n)
                copy.write_row((n, senders[n % len(senders)], f"to{n}@rcpt.example", mime, "queued"))
    with app.producer_pool.acquire(block=True) as producer:
        for n in range(count):
            send.apply_async([n], producer=producer)


def _setup() -> None:
    import django

    os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.peers.settings"
    django.setup()


def post_office(facts: dict[str, Any]) -> None:
    _setup()
    from post_office import mail

    user = facts["senders"][0]
    for start in range(0, facts["count"], 500):
        numbers = range(start, min(start + 500, facts["count"]))
        mail.send_many(
            [
                {
                    "sender": user,
                    "recipients": [f"to{n}@rcpt.example"],
                    "subject": f"Report {n}",
                    "message": facts["text"],
                    "headers": {"Message-ID": f"<{n}.{facts['run']}@peer.example>"},
                }
                for n in numbers
            ]
        )


def mailer(facts: dict[str, Any]) -> None:
    _setup()
    from mailer import send_mail

    for n in range(facts["count"]):
        send_mail(f"Report {n}", facts["text"], facts["senders"][0], [f"to{n}@rcpt.example"])


def celery_email(facts: dict[str, Any]) -> None:
    from benchmarks.peers.celery_email import app

    app.set_default()
    from django.core.mail import EmailMessage, get_connection

    backend = get_connection("djcelery_email.backends.CeleryEmailBackend")
    user, text = facts["senders"][0], facts["text"]
    backend.send_messages(
        [EmailMessage(f"Report {n}", text, user, [f"to{n}@rcpt.example"]) for n in range(facts["count"])]
    )


if __name__ == "__main__":
    programs = {"hand": hand, "post_office": post_office, "mailer": mailer, "celery_email": celery_email}
    programs[sys.argv[1]](json.load(sys.stdin))
