"""The tokens that open a mailbox, and the lease of whoever renews them.

Tokens are stored encrypted and bound to their account, field and provider. When they are renewed, and what a
sign-in grants, is decided in services/renew and services/authorize.
"""

from datetime import datetime
from uuid import uuid4

from django.db import models
from django.db.models import Q

from gobii_email.domain.oauth_tokens import (
    OAuthService,
    Tokens,
    granted_text,
    may_receive,
    may_send,
    service_named,
)
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretContext, SecretsEncryption
from gobii_email.models.accounts import AgentEmailAccount


class AgentEmailOAuthCredential(models.Model):
    """The tokens that open a mailbox without its password.

    Whoever renews them holds `refresh_lease` until `refresh_blocked_until`. A moment there without a lease is
    a pause after a renewal that failed, for the reason in `refresh_error`.
    """

    account = models.OneToOneField(
        AgentEmailAccount, on_delete=models.CASCADE, related_name="oauth_credential"
    )
    provider = models.CharField(max_length=64)
    access_token_encrypted = models.BinaryField(null=True, blank=True)
    refresh_token_encrypted = models.BinaryField(null=True, blank=True)
    token_type = models.CharField(max_length=32, blank=True)
    scope = models.CharField(max_length=512, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    metadata = models.JSONField(default=dict, blank=True)
    refresh_lease = models.UUIDField(null=True, editable=False)
    refresh_blocked_until = models.DateTimeField(null=True, editable=False)
    refresh_error = models.TextField(blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "OAuth credential"

    def __str__(self) -> str:
        return f"{self.provider} for {self.account}"

    @property
    def service(self) -> OAuthService | None:
        return service_named(self.provider)

    @property
    def is_signed_in(self) -> bool:
        """Whether the owner signed in here; otherwise the tokens were given by a document."""
        return bool(self.metadata.get("mailbox"))

    @property
    def may_send(self) -> bool:
        """Whether sending was allowed at the sign-in, as far as its scopes are known."""
        return may_send(self.service, self.scope)

    @property
    def may_receive(self) -> bool:
        return may_receive(self.service, self.scope)

    # Renewal

    def take_refresh_lease(self, now: datetime, until: datetime) -> bool:
        """Whether the renewal is ours until `until`; then this object is as the row is now."""
        free = Q(refresh_blocked_until__isnull=True) | Q(refresh_blocked_until__lte=now)
        lease = uuid4()
        rows = type(self)._default_manager.filter(free, pk=self.pk)
        if not rows.update(refresh_lease=lease, refresh_blocked_until=until):
            return False
        self.refresh_from_db()
        return self.refresh_lease == lease

    def end_refresh(
        self, *, blocked_until: datetime | None = None, error: str = "", **values: object
    ) -> bool:
        """Gives the lease back; False when it was not ours any more, and nothing is written."""
        return self._write_under_lease(refresh_blocked_until=blocked_until, refresh_error=error, **values)

    def keep_tokens(self, tokens: Tokens, now: datetime) -> bool:
        """Writes renewed tokens and gives the lease back, in one statement; False as for `end_refresh`."""
        self._set(tokens, now)
        return self._write_under_lease(
            access_token_encrypted=self.access_token_encrypted,
            refresh_token_encrypted=self.refresh_token_encrypted,
            expires_at=self.expires_at,
            scope=self.scope,
            updated_at=now,
            refresh_blocked_until=None,
            refresh_error="",
        )

    def take_over(self, tokens: Tokens, now: datetime) -> None:
        """Sets what a sign-in granted, to be saved; a renewal under way elsewhere comes too late then."""
        self._set(tokens, now)
        if self.service is not None:
            self.scope = granted_text(self.service, tokens.scope)
        self.refresh_lease = self.refresh_blocked_until = None
        self.refresh_error = ""

    def _set(self, tokens: Tokens, now: datetime) -> None:
        """What the tokens leave out stays: the refresh token of before, and what was granted then."""
        self.set_access_token(tokens.access_token)
        if tokens.refresh_token is not None:
            self.set_refresh_token(tokens.refresh_token)
        self.expires_at = None if tokens.lasts is None else now + tokens.lasts
        self.token_type = "Bearer"  # noqa: S105
        if tokens.scope and self.service is not None:
            self.scope = granted_text(self.service, tokens.scope)

    def _write_under_lease(self, **values: object) -> bool:
        rows = type(self)._default_manager.filter(pk=self.pk, refresh_lease=self.refresh_lease)
        if self.refresh_lease is None or not rows.update(refresh_lease=None, **values):
            return False
        self.refresh_lease = None
        for name, value in values.items():
            setattr(self, name, value)
        return True

    # Secrets

    def _context(self, field: str) -> SecretContext:
        # Bound to the provider that issued the token, not to a mail server.
        return SecretContext(account_id=str(self.account_id), field=field, server_host=self.provider)

    def set_access_token(self, token: str | Secret) -> None:
        encryption = SecretsEncryption.from_settings()
        self.access_token_encrypted = encryption.encrypt(token, self._context("access_token"))

    def get_access_token(self) -> Secret | None:
        if self.access_token_encrypted is None:
            return None
        context = self._context("access_token")
        return SecretsEncryption.from_settings().decrypt(self.access_token_encrypted, context)

    def set_refresh_token(self, token: str | Secret) -> None:
        encryption = SecretsEncryption.from_settings()
        self.refresh_token_encrypted = encryption.encrypt(token, self._context("refresh_token"))

    def get_refresh_token(self) -> Secret | None:
        if self.refresh_token_encrypted is None:
            return None
        context = self._context("refresh_token")
        return SecretsEncryption.from_settings().decrypt(self.refresh_token_encrypted, context)
