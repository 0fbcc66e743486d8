"""The Celery app that django-celery-email's task runs in; settings as in `celery_task`."""

import os

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.peers.settings")
django.setup()

app = Celery("celery_email", broker=os.environ["PEER_BROKER_URL"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"ack_emulation": False},
    broker_connection_retry_on_startup=True,
    worker_send_task_events=os.environ.get("GOBII_TASK_EVENTS", "1") == "1",
    task_default_queue="celery_email",
)
app.autodiscover_tasks(["djcelery_email"])
