"""`celery -A worker`: the app, with Django set up before its settings are read."""

import os

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "gobii_email.settings")
django.setup()

app = Celery("gobii_email", set_as_current=True)
app.config_from_object("celeryconfig")
app.conf.include = ["worker.tasks", "worker.hooks"]
