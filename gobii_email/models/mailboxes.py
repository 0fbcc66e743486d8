"""Mailboxes as they are read: when next and by whom, every mail that was found there, and sent copies.

The raw bytes of a mail are stored before anybody understands them. What is polled when is decided in
services/poll, what a mail means in services/receive and bounce, what a sent copy proves in reconcile.
"""

import uuid

from django.db import models
from django.db.models import Q

from gobii_email.models.accounts import AgentEmailAccount
from gobii_email.models.agents import PersistentAgentCommsEndpoint
from gobii_email.models.attempts import OutboundMessageAttempt
from gobii_email.models.messages import PersistentAgentMessage


class Mailbox(models.Model):
    """What changes with every visit to an account's mailbox; up to where it was read stands in the account.

    `due_at` says when it is to be polled, null while receiving is off; `look_at` when a dispatcher hands it
    out next, which is later than `due_at` while a hint is under way. A poll holds `lease_token` until
    `lease_until`. `hold_code` waits for a person; `failures` in a row lengthen the backoff. `sent_look_at` is
    when its Sent folder is visited next, `sent_seen_until` up to which acceptance its copies were looked for.
    """

    account = models.OneToOneField(
        AgentEmailAccount, primary_key=True, on_delete=models.CASCADE, related_name="mailbox"
    )
    due_at = models.DateTimeField(null=True)
    look_at = models.DateTimeField(null=True)
    lease_token = models.UUIDField(null=True, editable=False)
    lease_until = models.DateTimeField(null=True, editable=False)
    failures = models.PositiveSmallIntegerField(default=0)
    hold_code = models.CharField(max_length=32, blank=True)
    hold_reason = models.TextField(blank=True)
    baseline_at = models.DateTimeField(
        null=True, help_text="mail that came before is nobody's business, or was dealt with"
    )
    rescan_until = models.BigIntegerField(
        null=True, help_text="UIDs up to this one are new names for mail that may be known"
    )
    unfetched = models.JSONField(
        default=dict, db_default={}, help_text="how often each UID was not handed out to us"
    )
    sent_folder = models.CharField(max_length=255, blank=True)
    sent_look_at = models.DateTimeField(null=True)
    sent_seen_until = models.DateTimeField(null=True)
    watch_problem = models.TextField(
        blank=True,
        default="",
        db_default="",
        help_text="why nobody waits for news there (IDLE); it is polled",
    )

    class Meta:
        verbose_name = "mailbox"
        verbose_name_plural = "mailboxes"
        indexes = [
            models.Index(
                fields=["look_at"],
                condition=Q(look_at__isnull=False, hold_code=""),
                name="mailbox_look_idx",
            ),
            models.Index(
                fields=["sent_look_at"], condition=Q(sent_look_at__isnull=False), name="mailbox_sent_idx"
            ),
        ]

    def __str__(self) -> str:
        return f"mailbox of {self.account_id}"


class ReceivedMail(models.Model):
    """One mail as it lay in a mailbox, and what became of it.

    `raw` is null where it was never downloaded (SKIPPED, or too large) or is not kept any more. `message` is
    what it became, `about` the attempt it speaks of. `readings` counts how often somebody began to read it:
    a mail that ends its reader every time goes to quarantine.
    """

    class State(models.TextChoices):
        STORED = "stored", "Stored, not read yet"
        RECEIVED = "received", "Received"
        REPORT = "report", "A report about sent mail"
        SKIPPED = "skipped", "Not taken in"
        QUARANTINED = "quarantined", "In quarantine"

    class Authentication(models.TextChoices):
        PASSED = "pass", "Passed"
        FAILED = "fail", "Failed"
        UNKNOWN = "none", "Not known"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint,
        null=True,
        on_delete=models.SET_NULL,
        related_name="received_mails",
        db_index=False,  # received_once begins with it
    )
    folder = models.CharField(max_length=255)
    uid_validity = models.BigIntegerField()
    uid = models.BigIntegerField()
    size = models.PositiveIntegerField(default=0, help_text="bytes, as the server says")
    internal_at = models.DateTimeField(null=True, help_text="when the server got it")
    rfc_message_id = models.CharField(max_length=320, blank=True)
    from_address = models.CharField(max_length=320, blank=True)
    raw = models.BinaryField(null=True)

    state = models.CharField(max_length=16, choices=State.choices, default=State.STORED)
    reason = models.TextField(blank=True)
    kind = models.CharField(max_length=16, blank=True, help_text="as domain.returned_mail.Kind")
    is_automated = models.BooleanField(default=False)
    authentication = models.CharField(
        max_length=8, choices=Authentication.choices, default=Authentication.UNKNOWN
    )
    message = models.ForeignKey(
        PersistentAgentMessage, null=True, on_delete=models.SET_NULL, related_name="received_mails"
    )
    about = models.ForeignKey(
        OutboundMessageAttempt, null=True, on_delete=models.SET_NULL, related_name="received_mails"
    )
    readings = models.PositiveSmallIntegerField(default=0)
    stored_at = models.DateTimeField()
    read_at = models.DateTimeField(null=True)
    announced_at = models.DateTimeField(null=True, help_text="when the agent runtime was told")

    class Meta:
        verbose_name = "received mail"
        ordering = ["-stored_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["endpoint", "folder", "uid_validity", "uid"], name="received_once"
            )
        ]
        indexes = [
            models.Index(fields=["endpoint", "rfc_message_id"], name="received_rfc_id_idx"),
            models.Index(fields=["-stored_at"], name="received_newest_idx"),
            models.Index(fields=["stored_at"], condition=Q(state="stored"), name="received_unread_idx"),
            models.Index(fields=["stored_at"], condition=Q(raw__isnull=False), name="received_raw_idx"),
            models.Index(
                fields=["read_at"],
                condition=Q(state="received", announced_at__isnull=True),
                name="received_unannounced_idx",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.folder} {self.uid} of {self.endpoint_id}"


class Suppression(models.Model):
    """Somebody whom one sender does not write to any more, until it is lifted."""

    class Cause(models.TextChoices):
        BOUNCED = "bounced", "Bounced for good"
        COMPLAINED = "complained", "Complained"
        BY_HAND = "by_hand", "Entered by a person"

    endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint,
        on_delete=models.CASCADE,
        related_name="suppressions",
        db_index=False,  # suppression_in_force begins with it
        help_text="the sender",
    )
    address = models.CharField(max_length=320, help_text="in lower case")
    cause = models.CharField(max_length=16, choices=Cause.choices)
    reason = models.TextField(help_text="a sentence, such as the server's words")
    enhanced_status = models.CharField(max_length=16, blank=True)
    message = models.ForeignKey(
        PersistentAgentMessage, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    created_at = models.DateTimeField()
    lifted_at = models.DateTimeField(null=True, blank=True)
    lifted_by = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = "suppressed address"
        verbose_name_plural = "suppressed addresses"
        ordering = ["-created_at"]
        constraints = [
            models.UniqueConstraint(
                fields=["endpoint", "address"],
                condition=Q(lifted_at__isnull=True),
                name="suppression_in_force",
            )
        ]

    def __str__(self) -> str:
        return self.address


class SentCopy(models.Model):
    """Whether and how soon the copy of an attempt's mail turned up in its account's Sent folder.

    Ordinary accepted mail teaches how the provider files; the copy of a doubtful one is evidence. `look_at`
    says when to look next, null once that is over; `looks` counts those that could see the folder.
    """

    class State(models.TextChoices):
        AWAITED = "awaited", "Looked for"
        FOUND = "found", "Found"
        ABSENT = "absent", "Not there"
        APPENDED = "appended", "Filed by us"
        UNKNOWN = "unknown", "Could not be looked for"

    attempt = models.OneToOneField(
        OutboundMessageAttempt, primary_key=True, on_delete=models.CASCADE, related_name="sent_copy"
    )
    endpoint = models.ForeignKey(
        PersistentAgentCommsEndpoint,
        null=True,
        on_delete=models.SET_NULL,
        related_name="sent_copies",
        db_index=False,  # sent_copy_habit_idx begins with it
    )
    since = models.DateTimeField(help_text="when the server took it, or may have")
    state = models.CharField(max_length=16, choices=State.choices, default=State.AWAITED)
    is_doubtful = models.BooleanField(default=False)
    look_at = models.DateTimeField(null=True)
    looks = models.PositiveSmallIntegerField(default=0)
    found_at = models.DateTimeField(null=True)
    lag_seconds = models.FloatField(null=True, help_text="from `since` to the copy's INTERNALDATE")
    folder = models.CharField(max_length=255, blank=True)
    uid_validity = models.BigIntegerField(null=True)
    uid = models.BigIntegerField(null=True)
    reason = models.TextField(blank=True)

    class Meta:
        verbose_name = "sent copy"
        verbose_name_plural = "sent copies"
        indexes = [
            models.Index(fields=["endpoint", "-since"], name="sent_copy_habit_idx"),
            models.Index(fields=["look_at"], condition=Q(look_at__isnull=False), name="sent_copy_look_idx"),
        ]

    def __str__(self) -> str:
        return f"copy of {self.attempt_id}"
