"""The Django app."""

from django.apps import AppConfig


class GobiiEmailConfig(AppConfig):
    name = "gobii_email"
    verbose_name = "Agent e-mail"
    default_auto_field = "django.db.models.BigAutoField"
