"""`celery -A tests.chaos.peers.celery_app`: the worker of django-celery-email."""

import django
from celery import Celery

django.setup()
app = Celery("peers", set_as_current=True)
app.config_from_object("tests.chaos.peers.settings")
app.autodiscover_tasks(["djcelery_email"])
