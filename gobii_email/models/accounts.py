"""An agent's own mailbox: how to reach it, whether it was tested, and how it is doing.

Secrets are stored encrypted and bound to this account, their field and their server's host; how they are
used is left to the transports. Whether mail may go out now is decided in selection.
"""

import hashlib
from datetime import datetime

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from gobii_email.domain.classification import AccountState
from gobii_email.domain.quotas import LIMITS, LONGEST_POOL_TTL
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretContext, SecretsEncryption, SecretUnreadable
from gobii_email.models.agents import PersistentAgentCommsEndpoint
from gobii_email.models.limits import LIMIT, in_bounds
from gobii_email.ports import Auth, ImapServer, Security, SmtpServer

PORT = [MinValueValidator(1), MaxValueValidator(65535)]


def port_in_range(field: str) -> Q:
    return Q(**{f"{field}__isnull": True}) | Q(**{f"{field}__gte": 1, f"{field}__lte": 65535})


class AgentEmailAccount(models.Model):
    """The mailbox behind an agent-owned e-mail endpoint. One a endpoint; outside endpoints have none."""

    class SmtpSecurity(models.TextChoices):
        SSL = "ssl", "SSL/TLS"
        STARTTLS = "starttls", "STARTTLS"
        NONE = "none", "None (allowed private networks only)"

    class AuthMode(models.TextChoices):
        PLAIN = "plain", "PLAIN"
        LOGIN = "login", "LOGIN"
        OAUTH2 = "oauth2", "OAuth 2.0"
        NONE = "none", "None"

    ImapSecurity = SmtpSecurity

    class ImapAuthMode(models.TextChoices):
        LOGIN = "login", "LOGIN"
        OAUTH2 = "oauth2", "OAuth 2.0"
        NONE = "none", "None"

    class ConnectionMode(models.TextChoices):
        CUSTOM = "custom", "Custom SMTP/IMAP"
        OAUTH2 = "oauth2", "OAuth 2.0"

    class State(models.TextChoices):
        ACTIVE = AccountState.ACTIVE.value, "Active"
        LIMITED = AccountState.LIMITED.value, "Limited by the server"
        QUOTA = AccountState.QUOTA.value, "Quota used up"
        AUTH_NEEDED = AccountState.AUTH_NEEDED.value, "Sign-in needed"
        CONFIG_NEEDED = AccountState.CONFIG_NEEDED.value, "Settings need attention"
        BLOCKED = AccountState.BLOCKED.value, "Blocked by the provider"
        PAUSED = AccountState.PAUSED.value, "Paused"

    endpoint = models.OneToOneField(
        PersistentAgentCommsEndpoint,
        primary_key=True,
        on_delete=models.CASCADE,
        related_name="agentemailaccount",
    )
    connection_mode = models.CharField(
        max_length=16, choices=ConnectionMode.choices, default=ConnectionMode.CUSTOM
    )

    smtp_host = models.CharField(max_length=255, blank=True)
    smtp_port = models.PositiveIntegerField(null=True, blank=True, validators=PORT)
    smtp_security = models.CharField(
        max_length=16, choices=SmtpSecurity.choices, default=SmtpSecurity.STARTTLS
    )
    smtp_auth = models.CharField(max_length=16, choices=AuthMode.choices, default=AuthMode.LOGIN)
    smtp_username = models.CharField(max_length=255, blank=True)
    smtp_password_encrypted = models.BinaryField(null=True, blank=True)
    is_outbound_enabled = models.BooleanField(default=False)

    imap_host = models.CharField(max_length=255, blank=True)
    imap_port = models.PositiveIntegerField(null=True, blank=True, validators=PORT)
    imap_security = models.CharField(max_length=16, choices=ImapSecurity.choices, default=ImapSecurity.SSL)
    imap_auth = models.CharField(max_length=16, choices=ImapAuthMode.choices, default=ImapAuthMode.LOGIN)
    imap_username = models.CharField(max_length=255, blank=True)
    imap_password_encrypted = models.BinaryField(null=True, blank=True)
    imap_folder = models.CharField(max_length=128, default="INBOX")
    is_inbound_enabled = models.BooleanField(default=False)
    imap_idle_enabled = models.BooleanField(default=False)
    poll_interval_sec = models.PositiveIntegerField(default=120, validators=[MinValueValidator(30)])
    last_polled_at = models.DateTimeField(null=True, blank=True)
    last_seen_uid = models.CharField(max_length=64, blank=True)
    backoff_until = models.DateTimeField(null=True, blank=True)
    copies_to_sent = models.BooleanField(
        default=False,
        db_default=False,
        help_text="file a copy of sent mail over IMAP where the server does not do so itself",
    )

    # Limits of this account; empty means the provider's or the installation's default.
    per_minute = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    per_hour = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    per_day = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    max_connections = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    messages_per_connection = models.PositiveIntegerField(null=True, blank=True, validators=LIMIT)
    pool_ttl = models.PositiveIntegerField(
        null=True, blank=True, help_text="seconds", validators=[MaxValueValidator(LONGEST_POOL_TTL)]
    )

    # What the server's answers taught; never above the limits, and growing back to them by itself.
    learned_per_minute = models.PositiveIntegerField(null=True, blank=True, editable=False)
    learned_connections = models.PositiveIntegerField(null=True, blank=True, editable=False)
    learned_at = models.DateTimeField(null=True, blank=True, editable=False)
    learned_reason = models.TextField(blank=True, editable=False)

    connection_last_ok_at = models.DateTimeField(null=True, blank=True)
    connection_error = models.TextField(blank=True)
    smtp_last_ok_at = models.DateTimeField(null=True, blank=True)
    smtp_error = models.TextField(blank=True)
    smtp_tested_fingerprint = models.CharField(max_length=64, blank=True, editable=False)
    imap_last_ok_at = models.DateTimeField(null=True, blank=True)
    imap_error = models.TextField(blank=True)
    imap_tested_fingerprint = models.CharField(max_length=64, blank=True, editable=False)

    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    state_reason = models.TextField(blank=True)
    state_until = models.DateTimeField(null=True, blank=True)

    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "agent e-mail account"
        ordering = ["-updated_at"]
        indexes = [
            models.Index(fields=["is_outbound_enabled"], name="agent_email_outbound_idx"),
            models.Index(
                fields=["endpoint"],
                condition=Q(is_inbound_enabled=True, imap_idle_enabled=True),
                name="account_watched_idx",
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=port_in_range("smtp_port"), name="account_smtp_port"),
            models.CheckConstraint(condition=port_in_range("imap_port"), name="account_imap_port"),
            models.CheckConstraint(
                condition=Q(smtp_security__in=["ssl", "starttls", "none"])
                & Q(imap_security__in=["ssl", "starttls", "none"])
                & Q(smtp_auth__in=["plain", "login", "oauth2", "none"])
                & Q(imap_auth__in=["login", "oauth2", "none"]),
                name="account_known_modes",
            ),
            models.CheckConstraint(
                condition=Q(is_outbound_enabled=False)
                | (
                    ~Q(smtp_host="")
                    & Q(smtp_port__isnull=False)
                    & ~Q(smtp_tested_fingerprint="")
                    & (Q(smtp_auth="none") | ~Q(smtp_username=""))
                    & (Q(smtp_auth__in=["none", "oauth2"]) | Q(smtp_password_encrypted__isnull=False))
                ),
                name="account_outbound_complete",
            ),
            models.CheckConstraint(
                condition=Q(is_inbound_enabled=False)
                | (~Q(imap_host="") & Q(imap_port__isnull=False) & ~Q(imap_tested_fingerprint="")),
                name="account_inbound_complete",
            ),
            models.CheckConstraint(condition=Q(poll_interval_sec__gte=30), name="account_poll_interval"),
            models.CheckConstraint(condition=in_bounds(*LIMITS), name="account_limits"),
        ]

    def __str__(self) -> str:
        return self.endpoint.address

    # Secrets

    def _context(self, field: str, host: str) -> SecretContext:
        return SecretContext(account_id=str(self.endpoint_id), field=field, server_host=host)

    def set_smtp_password(self, password: str | Secret) -> None:
        """Encrypts `password` for this account and its present host. Raises ValueError when empty."""
        context = self._context("smtp_password", self.smtp_host)
        self.smtp_password_encrypted = SecretsEncryption.from_settings().encrypt(password, context)

    def get_smtp_password(self) -> Secret | None:
        """The password, None when none is stored. Raises SecretUnreadable, never answers an empty one."""
        if self.smtp_password_encrypted is None:
            return None
        context = self._context("smtp_password", self.smtp_host)
        return SecretsEncryption.from_settings().decrypt(self.smtp_password_encrypted, context)

    def set_imap_password(self, password: str | Secret) -> None:
        context = self._context("imap_password", self.imap_host)
        self.imap_password_encrypted = SecretsEncryption.from_settings().encrypt(password, context)

    def get_imap_password(self) -> Secret | None:
        if self.imap_password_encrypted is None:
            return None
        context = self._context("imap_password", self.imap_host)
        return SecretsEncryption.from_settings().decrypt(self.imap_password_encrypted, context)

    def smtp_server(self) -> SmtpServer:
        """Where and how to submit, with the secret still opaque. Raises SecretUnreadable."""
        return SmtpServer(
            host=self.smtp_host,
            port=self.smtp_port or 0,
            security=Security(self.smtp_security),
            auth=Auth(self.smtp_auth),
            username=self.smtp_username,
            secret=self._smtp_secret(),
        )

    @property
    def smtp_server_name(self) -> str:
        return f"{self.smtp_host}:{self.smtp_port}"

    def _smtp_secret(self) -> Secret | None:
        match self.smtp_auth:
            case self.AuthMode.NONE:
                return None
            case self.AuthMode.OAUTH2:
                return self._token()
            case _:
                return self.get_smtp_password()

    def _token(self) -> Secret | None:
        if not hasattr(self, "oauth_credential"):
            raise SecretUnreadable("The mailbox is not connected by OAuth any more; connect it again.")
        return self.oauth_credential.get_access_token()

    def imap_server(self) -> ImapServer:
        """Where and how to read, with the secret still opaque. Raises SecretUnreadable."""
        return ImapServer(
            host=self.imap_host,
            port=self.imap_port or 0,
            security=Security(self.imap_security),
            auth=Auth(self.imap_auth),
            username=self.imap_username,
            secret=self._imap_secret(),
            folder=self.imap_folder,
        )

    def _imap_secret(self) -> Secret | None:
        if self.imap_auth == self.ImapAuthMode.NONE:
            return None
        return self._token() if self.imap_auth == self.ImapAuthMode.OAUTH2 else self.get_imap_password()

    # What was tested is what is used

    def smtp_fingerprint(self) -> str:
        """Changes with any setting that a successful test vouches for."""
        return _fingerprint(
            self.smtp_host,
            self.smtp_port,
            self.smtp_security,
            self.smtp_auth,
            self.smtp_username,
            b"" if self.smtp_auth == self.AuthMode.OAUTH2 else self.smtp_password_encrypted,
        )

    def imap_fingerprint(self) -> str:
        return _fingerprint(
            self.imap_host,
            self.imap_port,
            self.imap_security,
            self.imap_auth,
            self.imap_username,
            self.imap_folder,
            b"" if self.imap_auth == self.ImapAuthMode.OAUTH2 else self.imap_password_encrypted,
        )

    @property
    def is_smtp_tested(self) -> bool:
        """Whether the last successful test was of the present settings."""
        return self.smtp_tested_fingerprint != "" and self.smtp_tested_fingerprint == self.smtp_fingerprint()

    @property
    def is_imap_tested(self) -> bool:
        return self.imap_tested_fingerprint != "" and self.imap_tested_fingerprint == self.imap_fingerprint()

    def state_at(self, now: datetime) -> AccountState:
        """The state in force: a hold with an end is over once that has passed."""
        if self.state_until is not None and self.state_until <= now:
            return AccountState.ACTIVE
        return AccountState(self.state)

    # Rules

    def clean(self) -> None:
        errors = self._endpoint_errors() | self._outbound_errors() | self._inbound_errors()
        if self.copies_to_sent and not self.imap_host:
            errors["copies_to_sent"] = "Filing copies needs the settings for receiving (IMAP); fill them in."
        if errors:
            raise ValidationError(errors)

    def _endpoint_errors(self) -> dict[str, str]:
        endpoint = PersistentAgentCommsEndpoint.objects.filter(pk=self.endpoint_id).first()
        if endpoint is None or not endpoint.is_own_email:
            return {
                "endpoint": "An account belongs to an e-mail endpoint that an agent owns; choose such a one."
            }
        return {}

    def _outbound_errors(self) -> dict[str, str]:
        if not self.is_outbound_enabled:
            return {}
        errors = {}
        if not self.smtp_host:
            errors["smtp_host"] = "Sending needs the host name of the SMTP server."
        if not self.smtp_port:
            errors["smtp_port"] = "Sending needs the port of the SMTP server, usually 465 or 587."
        if self.smtp_auth != self.AuthMode.NONE and not self.smtp_username:
            errors["smtp_username"] = "Signing in needs a user name, usually the address itself."
        if (
            self.smtp_auth in {self.AuthMode.PLAIN, self.AuthMode.LOGIN}
            and self.smtp_password_encrypted is None
        ):
            errors["smtp_auth"] = "Signing in needs a password; enter it."
        if self.smtp_auth == self.AuthMode.OAUTH2 and not hasattr(self, "oauth_credential"):
            errors["smtp_auth"] = "OAuth needs a connected account; connect it first."
        if not errors and not self.is_smtp_tested:
            errors["is_outbound_enabled"] = (
                "Run Test SMTP (email_account test) with the present settings first; it has to succeed."
            )
        return errors

    def _inbound_errors(self) -> dict[str, str]:
        if not self.is_inbound_enabled:
            return {}
        errors = {}
        if not self.imap_host:
            errors["imap_host"] = "Receiving needs the host name of the IMAP server."
        if not self.imap_port:
            errors["imap_port"] = "Receiving needs the port of the IMAP server, usually 993."
        if not errors and not self.is_imap_tested:
            errors["is_inbound_enabled"] = "Run Test IMAP with the present settings first; it has to succeed."
        return errors


def _fingerprint(*values: object) -> str:
    digest = hashlib.sha256()
    for value in values:
        if value is None:
            part = b""
        elif isinstance(value, (bytes, bytearray, memoryview)):
            part = bytes(value)
        else:
            part = str(value).encode()
        digest.update(len(part).to_bytes(4) + part)
    return digest.hexdigest()
