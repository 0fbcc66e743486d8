"""Changing only what has not changed since somebody looked: versions of a message and of an account.

A version is short and says nothing of what it stands for. It covers what the form it is put into shows,
so that health written by workers makes no form stale.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from django.db import transaction

from gobii_email.models import AgentEmailAccount, PersistentAgentMessage

SETTINGS = (
    *("smtp_host", "smtp_port", "smtp_security", "smtp_auth", "smtp_username", "smtp_password_encrypted"),
    *("imap_host", "imap_port", "imap_security", "imap_auth", "imap_username", "imap_password_encrypted"),
    *("imap_folder", "poll_interval_sec", "imap_idle_enabled", "per_minute", "per_hour", "per_day"),
    *("max_connections", "messages_per_connection", "pool_ttl"),
)
STATE = ("state", "state_reason", "state_until", "is_outbound_enabled", "is_inbound_enabled")


class ChangedMeanwhile(Exception):
    """It is not any more as it was when the form was shown."""


def account_version(account: AgentEmailAccount, fields: tuple[str, ...]) -> str:
    return _digest([_plain(getattr(account, field)) for field in fields])


def message_version(message: PersistentAgentMessage, attempts: int) -> str:
    return _digest([message.latest_status, attempts])


@contextmanager
def unchanged(account_id: UUID, fields: tuple[str, ...], version: str) -> Iterator[AgentEmailAccount]:
    """The account, locked in a transaction. Raises ChangedMeanwhile when it is not at `version`, or gone."""
    with transaction.atomic():
        rows = AgentEmailAccount.objects.select_for_update().filter(pk=account_id)
        account = rows.first()
        if account is None or account_version(account, fields) != version:
            raise ChangedMeanwhile
        yield account


def _plain(value: object) -> object:
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else value


def _digest(values: list[object]) -> str:
    return hashlib.sha256(repr([str(value) for value in values]).encode()).hexdigest()[:16]
