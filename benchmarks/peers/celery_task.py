"""The least that a careful person would write by hand: claim, send with smtplib, settle.

No lease, no mark, no limits, no retries, no story of what happened: a floor to compare with. Settings are
those of the service's own workers. `PEER_REUSE=1` keeps connections, by account.
"""

import os
import smtplib
import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from celery import Celery

app = Celery("hand", broker=os.environ["PEER_BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"ack_emulation": False},
    broker_connection_retry_on_startup=True,
    worker_send_task_events=os.environ.get("GOBII_TASK_EVENTS", "1") == "1",
    task_default_queue="hand",
)

PORT = int(os.environ["PEER_SMTP_PORT"])
PASSWORD = os.environ["PEER_SMTP_PASSWORD"]
IS_REUSED = os.environ.get("PEER_REUSE") == "1"
CONTEXT = ssl.create_default_context()

_of_thread = threading.local()
_idle: dict[str, list[smtplib.SMTP]] = defaultdict(list)


def database() -> psycopg.Connection:
    if not hasattr(_of_thread, "database"):
        _of_thread.database = psycopg.connect(os.environ["PEER_DATABASE_URL"], autocommit=True)
    return _of_thread.database


def log_in(user: str) -> smtplib.SMTP:
    client = smtplib.SMTP("localhost", PORT, local_hostname="client.example", timeout=60)
    client.starttls(context=CONTEXT)
    client.login(user, PASSWORD)
    return client


@contextmanager
def connected(user: str) -> Iterator[smtplib.SMTP]:
    try:
        client = _idle[user].pop()
    except IndexError:
        client = log_in(user)
    yield client
    if IS_REUSED:
        _idle[user].append(client)
    else:
        client.quit()


@app.task(name="hand.send")
def send(mail_id: int) -> None:
    claimed = database().execute(
        "UPDATE hand_mail SET state = 'sending', started_at = now() WHERE id = %s AND state = 'queued'"
        " RETURNING sender, recipient, mime",
        [mail_id],
    )
    row = claimed.fetchone()
    if row is None:
        return
    sender, recipient, mime = row
    with connected(sender) as client:
        client.sendmail(sender, [recipient], mime)
    database().execute("UPDATE hand_mail SET state = 'sent', sent_at = now() WHERE id = %s", [mail_id])
