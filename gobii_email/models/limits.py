"""What bounds sending beside an account: limits above accounts, and servers left alone for a while.

Which limit is in force for an account is decided in services/allow, how long a server is left alone in
services/hold.
"""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from gobii_email.domain.quotas import MOST

LIMIT = [MinValueValidator(1), MaxValueValidator(MOST)]


def in_bounds(*limits: str) -> Q:
    """Each of `limits` is empty or from 1 to MOST."""
    condition = Q()
    for name in limits:
        condition &= Q(**{f"{name}__isnull": True}) | Q(**{f"{name}__gte": 1, f"{name}__lte": MOST})
    return condition


class MailHost(models.Model):
    """A server that asked to be left alone for a while; shared by all accounts that use it.

    `name` is `host:port`, as `AgentEmailAccount.smtp_server_name` gives it.
    """

    name = models.CharField(primary_key=True, max_length=264)
    backoff_until = models.DateTimeField(null=True, blank=True)
    failures = models.PositiveIntegerField(default=0)
    reason = models.TextField(blank=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "mail host"

    def __str__(self) -> str:
        return self.name


class SendingLimit(models.Model):
    """A limit above the accounts: of all that use one server, or that send from one domain (a tenant)."""

    class Kind(models.TextChoices):
        HOST = "host", "Server (host:port)"
        DOMAIN = "domain", "Domain of the senders"

    kind = models.CharField(max_length=8, choices=Kind.choices)
    name = models.CharField(max_length=264, help_text="`smtp.example.com:587`, or `example.com`")
    per_minute = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    per_hour = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    per_day = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    max_connections = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)

    class Meta:
        verbose_name = "sending limit"
        ordering = ["kind", "name"]
        constraints = [
            models.UniqueConstraint(fields=["kind", "name"], name="sending_limit_once"),
            models.CheckConstraint(
                condition=in_bounds("per_minute", "per_hour", "per_day", "max_connections"),
                name="sending_limit_bounds",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {self.name}"

    def clean(self) -> None:
        host, _, port = self.name.strip().rpartition(":")
        is_server = bool(host) and port.isdigit()
        if self.kind == self.Kind.HOST and not is_server:
            raise ValidationError({"name": "A server is named with its port, such as smtp.example.com:587."})
        if self.kind == self.Kind.DOMAIN and ("@" in self.name or ":" in self.name):
            raise ValidationError({"name": "Give the domain alone, such as example.com."})

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.name = self.name.strip().lower()
        super().save(*args, **kwargs)
