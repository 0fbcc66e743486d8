"""How mailboxes were connected: what tests found, and sign-ins with a provider that are under way.

What a test means for its account is decided in services/diagnose, who may finish a sign-in in
services/authorize.
"""

from datetime import datetime, timedelta
from typing import Self

from django.conf import settings
from django.db import models

from gobii_email.models.accounts import AgentEmailAccount

LONGEST = timedelta(minutes=3)
"""A test that has not ended by then was interrupted."""
INTERRUPTED, TEST_AGAIN = "The test was interrupted before it ended.", "Test again."


class ConnectionTest(models.Model):
    """What one test of an account found, step by step, for the settings it had then.

    `steps` is a list of the objects that `domain.diagnosis.Step` describes, redacted. `asked_by` is a user's
    name, or "" for a command.
    """

    class Protocol(models.TextChoices):
        SMTP = "smtp", "SMTP"
        IMAP = "imap", "IMAP"

    account = models.ForeignKey(
        AgentEmailAccount, on_delete=models.CASCADE, related_name="tests", db_index=False
    )
    protocol = models.CharField(max_length=8, choices=Protocol.choices)
    fingerprint = models.CharField(max_length=64, editable=False)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True, blank=True)
    is_ok = models.BooleanField(default=False)
    text = models.TextField(blank=True)
    advice = models.TextField(blank=True)
    steps = models.JSONField(default=list, blank=True)
    asked_by = models.CharField(max_length=150, blank=True)

    class Meta:
        verbose_name = "connection test"
        ordering = ["-started_at"]
        indexes = [
            models.Index(fields=["account", "-started_at"], name="test_newest_idx"),
            models.Index(fields=["asked_by", "-started_at"], name="test_asked_by_idx"),
        ]

    def __str__(self) -> str:
        return f"{self.protocol} test of {self.account_id}"

    def as_of(self, now: datetime) -> Self:
        """Itself, told as interrupted where it should have ended by `now`: then its process died."""
        if self.finished_at is None and now - self.started_at >= LONGEST:
            self.finished_at = self.started_at + LONGEST
            self.text, self.advice = INTERRUPTED, TEST_AGAIN
        return self

    @property
    def was_interrupted(self) -> bool:
        return self.finished_at is not None and self.text == INTERRUPTED


class OAuthRequest(models.Model):
    """A sign-in that somebody was sent to a provider for; good once, for ten minutes.

    Only the hash of its state is kept; the verifier of PKCE is encrypted.
    """

    state_sha256 = models.CharField(max_length=64, primary_key=True)
    account = models.ForeignKey(AgentEmailAccount, on_delete=models.CASCADE, related_name="oauth_requests")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, null=True, on_delete=models.CASCADE, related_name="+")
    provider = models.CharField(max_length=64)
    redirect_uri = models.CharField(max_length=512)
    nonce = models.CharField(max_length=64)
    verifier_encrypted = models.BinaryField()
    expires_at = models.DateTimeField(db_index=True)
    used_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        verbose_name = "sign-in under way"

    def __str__(self) -> str:
        return f"{self.provider} for {self.account_id}"
