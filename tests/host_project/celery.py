"""The host's own Celery app, the current one of its processes."""

from celery import Celery

app = Celery("shop", set_as_current=True)
app.config_from_object("django.conf:settings", namespace="SHOP")
