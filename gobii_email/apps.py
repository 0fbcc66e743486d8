"""The Django app."""

from django.apps import AppConfig


class GobiiEmailConfig(AppConfig):
    name = "gobii_email"
    verbose_name = "Agent e-mail"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from gobii_email import signals
        from gobii_email.checks import register_checks
        from gobii_email.deploy_checks import register_deploy_checks

        register_checks()
        register_deploy_checks()
        signals.connect()
