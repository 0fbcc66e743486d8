"""Messages, their recipients and what was frozen of them.

A message outlives its endpoints and accounts: it keeps the addresses as text beside the references.
"""

import uuid
from typing import Any

from django.db import models
from django.db.models import Q

from gobii_email.domain.lifecycle import MessageStatus, OnDoubt, RecipientStatus
from gobii_email.models.agents import PersistentAgent, PersistentAgentCommsEndpoint


def choices(*values: str) -> list[tuple[str, str]]:
    return [(str(value), str(value).replace("_", " ")) for value in values]


class PersistentAgentMessage(models.Model):
    """One message, written or received by an agent.

    A host project fills `from_endpoint`, `to_endpoint`, `body` and `subject` (or `raw_payload["subject"]`);
    the rest is filled when the message is submitted.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    timestamp = models.DateTimeField(auto_now_add=True)
    is_outbound = models.BooleanField(default=True)
    from_endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint, null=True, on_delete=models.SET_NULL, related_name="messages_sent"
    )
    to_endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint,
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="messages_received",
    )
    cc_endpoints = models.ManyToManyField(
        PersistentAgentCommsEndpoint, blank=True, related_name="cc_messages"
    )
    bcc_endpoints = models.ManyToManyField(
        PersistentAgentCommsEndpoint, blank=True, related_name="bcc_messages"
    )
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="replies"
    )
    owner_agent = models.ForeignKey(
        PersistentAgent, null=True, blank=True, on_delete=models.SET_NULL, related_name="messages"
    )
    from_address = models.CharField(max_length=512, blank=True)
    subject = models.TextField(blank=True)
    body = models.TextField()
    raw_payload = models.JSONField(default=dict, blank=True)
    rfc_message_id = models.CharField(max_length=320, blank=True)
    thread_root = models.UUIDField(
        null=True, blank=True, editable=False, help_text="the first message of its thread; null: itself"
    )
    is_automatic = models.BooleanField(
        default=False, db_default=False, help_text="an answer that no person looked at (RFC 3834)"
    )

    latest_status = models.CharField(
        max_length=32, choices=choices(*MessageStatus), default=MessageStatus.QUEUED
    )
    latest_sent_at = models.DateTimeField(null=True, blank=True)
    latest_delivered_at = models.DateTimeField(null=True, blank=True)
    latest_error_code = models.CharField(max_length=64, blank=True)
    latest_error_message = models.TextField(blank=True)

    submitted_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    on_doubt = models.CharField(max_length=8, choices=choices(*OnDoubt), default=OnDoubt.HOLD)
    had_account = models.BooleanField(default=False, help_text="a usable account existed at submission")
    idempotency_key = models.CharField(max_length=255, null=True, blank=True)
    content_hash = models.CharField(max_length=64, blank=True)
    traceparent = models.CharField(max_length=64, blank=True)
    emptied_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="since when its body and files are not kept any more"
    )

    class Meta:
        verbose_name = "message"
        ordering = ["-timestamp"]
        indexes = [
            models.Index(fields=["-timestamp"], name="message_newest_idx"),
            models.Index(fields=["rfc_message_id"], name="message_rfc_id_idx"),
            models.Index(
                fields=["timestamp"], condition=Q(emptied_at__isnull=True), name="message_with_body_idx"
            ),
            models.Index(
                fields=["from_endpoint", "-timestamp"],
                condition=Q(is_automatic=True),
                name="message_automatic_idx",
            ),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["from_endpoint", "idempotency_key"],
                condition=Q(idempotency_key__isnull=False),
                name="message_idempotency_key",
            )
        ]

    def __str__(self) -> str:
        return self.subject or str(self.id)


class FrozenMessage(models.Model):
    """The bytes of a message as decided at submission; no attempt changes them."""

    message = models.OneToOneField(
        PersistentAgentMessage, primary_key=True, on_delete=models.CASCADE, related_name="frozen"
    )
    mime = models.BinaryField()
    html = models.TextField()
    text = models.TextField()
    to_count = models.PositiveIntegerField(default=0)
    cc_count = models.PositiveIntegerField(default=0)
    size = models.PositiveIntegerField(help_text="bytes of `mime`")
    sha256 = models.CharField(max_length=64)

    class Meta:
        verbose_name = "frozen message"

    def __str__(self) -> str:
        return f"{self.size} bytes of {self.message_id}"


class PersistentAgentMessageAttachment(models.Model):
    """One file that goes with a message. Its bytes are in `file`, or already in the frozen message."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    message = models.ForeignKey(PersistentAgentMessage, on_delete=models.CASCADE, related_name="attachments")
    file = models.FileField(upload_to="attachments/%Y/%m/", blank=True, max_length=512)
    content_type = models.CharField(max_length=128, default="application/octet-stream")
    content_id = models.CharField(max_length=255, blank=True)
    file_size = models.PositiveIntegerField(default=0, help_text="bytes")
    filename = models.CharField(max_length=512)
    content_sha256 = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = "attachment"
        indexes = [
            # Retention asks who else names a file; what was attached when it was sent names none.
            models.Index(fields=["file"], name="attachment_file_idx", condition=~models.Q(file="")),
        ]

    def __str__(self) -> str:
        return self.filename


class RecipientQuerySet(models.QuerySet["OutboundMessageRecipient"]):
    def statuses(self) -> list[RecipientStatus]:
        return [RecipientStatus(value) for value in self.values_list("status", flat=True)]


class OutboundMessageRecipient(models.Model):
    """One person a message is for, with an outcome of their own."""

    class Kind(models.TextChoices):
        TO = "to", "To"
        CC = "cc", "Cc"
        BCC = "bcc", "Bcc"

    id = models.BigAutoField(primary_key=True)
    message = models.ForeignKey(
        PersistentAgentMessage,
        on_delete=models.CASCADE,
        related_name="recipients",
        db_index=False,  # recipient_once begins with it
    )
    attempt = models.ForeignKey(
        "OutboundMessageAttempt",
        null=True,
        on_delete=models.SET_NULL,
        related_name="recipients",
        help_text="the latest attempt that was for this recipient",
    )
    address = models.CharField(max_length=320)
    kind = models.CharField(max_length=4, choices=Kind.choices)
    status = models.CharField(
        max_length=16, choices=choices(*RecipientStatus), default=RecipientStatus.PENDING
    )
    smtp_code = models.PositiveSmallIntegerField(null=True, blank=True)
    enhanced_status = models.CharField(max_length=16, blank=True)
    reply = models.TextField(blank=True)

    objects = RecipientQuerySet.as_manager()

    class Meta:
        verbose_name = "recipient"
        ordering = ["id"]
        constraints = [models.UniqueConstraint(fields=["message", "address"], name="recipient_once")]
        indexes = [models.Index(fields=["address"], name="recipient_address_idx")]

    def __str__(self) -> str:
        return self.address


def subject_of(message: PersistentAgentMessage) -> str:
    """The subject as the agent gave it: the field, else the platform's `raw_payload["subject"]`."""
    payload: dict[str, Any] = message.raw_payload or {}
    return message.subject or str(payload.get("subject") or "")
