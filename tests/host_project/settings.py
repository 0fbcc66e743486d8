"""The host's own settings: its own key, database, time zone and Celery; nothing comes from ours."""

import os
from pathlib import Path

VAR = Path(os.environ["HOST_VAR"])

SECRET_KEY = "the host's own"
ALLOWED_HOSTS = ["shop.example"]
ROOT_URLCONF = "tests.host_project.urls"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.admin",
    "gobii_email",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": VAR / "host.sqlite3",
        "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
STATIC_URL = "/assets/"
TIME_ZONE = "America/New_York"
USE_TZ = True

# What the app needs to know, as Django settings of the host.
REDIS_URL = os.environ["HOST_REDIS"]
CELERY_BROKER_URL = "memory://"  # the host's own Celery may read this; our hints must not
GOBII_ENCRYPTION_KEY = f"host:{'B' * 43}="
BYO_EMAIL_ALLOWED_NETWORKS = ["127.0.0.0/8", "::1/128"]
BYO_EMAIL_ALLOWED_PORTS = [int(os.environ["HOST_SMTP_PORT"])]

# The host's own Celery: another broker, another default queue, tasks that run where they are called.
SHOP_BROKER_URL = os.environ["HOST_BROKER"]
SHOP_TASK_DEFAULT_QUEUE = "shop.default"
SHOP_TASK_ALWAYS_EAGER = True
