"""Django settings for the peers that are Django apps; everything that varies comes from the environment."""

import os
from urllib.parse import urlsplit

_database = urlsplit(os.environ["PEER_DATABASE_URL"])

SECRET_KEY = "of no consequence"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _database.path.removeprefix("/"),
        "USER": _database.username,
        "PASSWORD": _database.password,
        "HOST": _database.hostname,
        "PORT": _database.port,
        "CONN_MAX_AGE": None,
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "post_office",
    "mailer",
    "djcelery_email",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

EMAIL_HOST = "localhost"
EMAIL_PORT = int(os.environ["PEER_SMTP_PORT"])
EMAIL_HOST_USER = os.environ["PEER_SMTP_USER"]
EMAIL_HOST_PASSWORD = os.environ["PEER_SMTP_PASSWORD"]
EMAIL_USE_TLS = True
EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
CELERY_EMAIL_BACKEND = EMAIL_BACKEND
MAILER_LOCK_PATH = os.environ["PEER_LOCK"]
