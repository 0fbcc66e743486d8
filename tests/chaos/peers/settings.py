"""Django settings of the sender that `PEER` names, each as its documentation recommends for safety."""

import os
from datetime import timedelta
from urllib.parse import urlsplit

PEER = os.environ["PEER"]
_database = urlsplit(os.environ["DATABASE_URL"])

SECRET_KEY = "only for a comparison"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path[1:],
        "USER": _database.username,
        "PASSWORD": _database.password,
        "HOST": _database.hostname,
        "PORT": _database.port,
    }
}
_APPS = {
    "post_office": ["post_office"],
    "mailer": ["mailer"],
    "celery_early": ["djcelery_email"],
    "celery_late": ["djcelery_email"],
    "transaction": [],
}
_BACKENDS = {
    "post_office": "post_office.EmailBackend",
    "mailer": "mailer.backend.DbBackend",
    "celery_early": "djcelery_email.backends.CeleryEmailBackend",
    "celery_late": "djcelery_email.backends.CeleryEmailBackend",
}
_SMTP = "django.core.mail.backends.smtp.EmailBackend"
INSTALLED_APPS = ["django.contrib.contenttypes", "tests.chaos.peers", *_APPS[PEER]]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

EMAIL_BACKEND = _BACKENDS.get(PEER, _SMTP)
EMAIL_HOST, EMAIL_PORT = "127.0.0.1", int(os.environ["SMTP_PORT"])
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = "agent@sender.example", os.environ["SMTP_PASSWORD"]
EMAIL_TIMEOUT = 6

POST_OFFICE = {
    "BACKENDS": {"default": _SMTP},
    "MAX_RETRIES": 10_000,
    "RETRY_INTERVAL": timedelta(seconds=1),
    "MESSAGE_ID_ENABLED": True,
    "MESSAGE_ID_FQDN": "sender.example",
}

MAILER_EMAIL_BACKEND = _SMTP
# By default one SIGKILL leaves a lock file behind that stops all sending until somebody deletes it.
MAILER_USE_FILE_LOCK = False

CELERY_EMAIL_BACKEND = _SMTP
CELERY_EMAIL_TASK_CONFIG = {
    "ignore_result": True,
    "default_retry_delay": 1,
    "max_retries": None,
    "acks_late": PEER == "celery_late",
    "reject_on_worker_lost": PEER == "celery_late",
}
broker_url = os.environ["REDIS_URL"]
# An hour by default: what a killed worker held would come back only then.
broker_transport_options = {
    "visibility_timeout": 10,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
}
worker_prefetch_multiplier = 1
