"""Agents, their addresses, and whom they may write to."""

import uuid
from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Lower

from gobii_email.domain.addresses import parse_mailbox


class CommsChannel(models.TextChoices):
    EMAIL = "email", "Email"
    SMS = "sms", "SMS"
    SLACK = "slack", "Slack"
    DISCORD = "discord", "Discord"
    WEB = "web", "Web Chat"
    OTHER = "other", "Other"


class PersistentAgent(models.Model):
    """Somebody who writes mail. `whitelist_policy` decides to whom."""

    class WhitelistPolicy(models.TextChoices):
        UNRESTRICTED = "unrestricted", "Anybody"
        DEFAULT = "default", "The owner only"
        MANUAL = "manual", "The owner and allowed contacts"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=255)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="persistent_agents",
    )
    whitelist_policy = models.CharField(
        max_length=16, choices=WhitelistPolicy.choices, default=WhitelistPolicy.UNRESTRICTED
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "agent"
        ordering = ["name", "id"]

    def __str__(self) -> str:
        return self.name

    def is_recipient_whitelisted(self, channel: str, address: str) -> bool:
        """Whether this agent may write to `address` (also in its `Name <address>` form)."""
        return self._is_whitelisted(channel, address, allow_outbound=True)

    def is_sender_whitelisted(self, channel: str, address: str) -> bool:
        """Whether mail from `address` may reach this agent."""
        return self._is_whitelisted(channel, address, allow_inbound=True)

    def _is_whitelisted(self, channel: str, address: str, **direction: bool) -> bool:
        if self.whitelist_policy == self.WhitelistPolicy.UNRESTRICTED:
            return True
        bare = parse_mailbox(address)[1].lower()
        if self.user is not None and channel == CommsChannel.EMAIL and self.user.email.lower() == bare:
            return True
        if self.whitelist_policy == self.WhitelistPolicy.DEFAULT:
            return False
        return self.allowlist.filter(
            channel=channel, address__iexact=bare, is_active=True, **direction
        ).exists()


def _normalised(values: dict[str, Any]) -> dict[str, Any]:
    if isinstance(values.get("address"), str):
        values["address"] = values["address"].strip().lower()
    return values


class EndpointManager(models.Manager["PersistentAgentCommsEndpoint"]):
    """Finds and makes endpoints by their stored, lower-cased address."""

    def create(self, **values: Any) -> "PersistentAgentCommsEndpoint":
        return super().create(**_normalised(values))

    def get_or_create(  # type: ignore[override]
        self, defaults: dict[str, Any] | None = None, **values: Any
    ) -> tuple["PersistentAgentCommsEndpoint", bool]:
        return super().get_or_create(defaults=_normalised(defaults or {}), **_normalised(values))


class PersistentAgentCommsEndpoint(models.Model):
    """One address on one channel: an agent's own (`owner_agent` set) or an outside contact's.

    An address may stand once among the agents' own endpoints and once among the outside ones, so that
    connecting a mailbox never takes over the history of a contact.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner_agent = models.ForeignKey(
        PersistentAgent, null=True, blank=True, on_delete=models.CASCADE, related_name="comms_endpoints"
    )
    channel = models.CharField(max_length=32, choices=CommsChannel.choices)
    address = models.CharField(max_length=512)
    is_primary = models.BooleanField(default=False)

    objects = EndpointManager()

    class Meta:
        verbose_name = "endpoint"
        ordering = ["address"]
        constraints = [
            models.UniqueConstraint(
                Lower("address"),
                "channel",
                condition=Q(owner_agent__isnull=False),
                name="endpoint_owned_unique",
            ),
            models.UniqueConstraint(
                Lower("address"),
                "channel",
                condition=Q(owner_agent__isnull=True),
                name="endpoint_outside_unique",
            ),
        ]

    def __str__(self) -> str:
        return self.address

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.address = self.address.strip().lower()
        super().save(*args, **kwargs)

    @property
    def is_own_email(self) -> bool:
        """Whether an account may belong to it: an agent's own e-mail endpoint."""
        return self.channel == CommsChannel.EMAIL and self.owner_agent_id is not None

    @property
    def display_name(self) -> str:
        """The name that From shows: the endpoint's own, else its agent's."""
        meta = getattr(self, "email_meta", None)
        if meta is not None and meta.display_name:
            return meta.display_name
        return self.owner_agent.name if self.owner_agent else ""


class PersistentAgentEmailEndpoint(models.Model):
    """What only an e-mail endpoint has."""

    endpoint = models.OneToOneField(
        PersistentAgentCommsEndpoint, primary_key=True, on_delete=models.CASCADE, related_name="email_meta"
    )
    display_name = models.CharField(max_length=256, blank=True)
    verified = models.BooleanField(default=False)

    class Meta:
        verbose_name = "e-mail details"
        verbose_name_plural = "e-mail details"

    def __str__(self) -> str:
        return self.display_name or self.endpoint.address


class CommsAllowlistEntry(models.Model):
    """One contact that an agent with the manual policy may exchange mail with."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    agent = models.ForeignKey(PersistentAgent, on_delete=models.CASCADE, related_name="allowlist")
    channel = models.CharField(max_length=32, choices=CommsChannel.choices, default=CommsChannel.EMAIL)
    address = models.CharField(max_length=512)
    is_active = models.BooleanField(default=True)
    verified = models.BooleanField(default=False)
    allow_inbound = models.BooleanField(default=True)
    allow_outbound = models.BooleanField(default=True)
    can_configure = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = "allowed contact"
        constraints = [models.UniqueConstraint("agent", "channel", Lower("address"), name="allowlist_unique")]

    def __str__(self) -> str:
        return self.address

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.address = self.address.strip().lower()
        super().save(*args, **kwargs)
