"""Every stored secret moved under the first key of the ring, beside whatever else is running.

Works through each encrypted column in the order of its rows; each write is conditional on the ciphertext that
was read, so a password that is changed meanwhile wins. What was tested stays tested. May be killed and begun
again at any moment: what is done is left alone.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretsEncryption, SecretUnreadable
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential
from gobii_email.models.connections import OAuthRequest
from gobii_email.services.authorize import read_verifier, write_verifier

BATCH = 100
MOST_NAMED = 20
DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class Column:
    """One encrypted column: how a row of it is read and written, and what vouches for its present bytes."""

    label: str
    model: type[models.Model]
    name: str
    read: Callable[[Any], Secret | None]
    write: Callable[[Any, Secret], None]
    side: str = ""

    def rows(self) -> models.QuerySet[Any]:
        """Those that hold a secret, in the order in which they are worked through."""
        return self.model._default_manager.filter(**{f"{self.name}__isnull": False}).order_by("pk")

    def fingerprint(self, row: Any) -> str:
        return str(getattr(row, f"{self.side}_fingerprint")())


_Account, _Credential = AgentEmailAccount, AgentEmailOAuthCredential

COLUMNS: Sequence[Column] = (
    Column(
        "SMTP passwords",
        _Account,
        "smtp_password_encrypted",
        _Account.get_smtp_password,
        _Account.set_smtp_password,
        "smtp",
    ),
    Column(
        "IMAP passwords",
        _Account,
        "imap_password_encrypted",
        _Account.get_imap_password,
        _Account.set_imap_password,
        "imap",
    ),
    Column(
        "access tokens",
        _Credential,
        "access_token_encrypted",
        _Credential.get_access_token,
        _Credential.set_access_token,
    ),
    Column(
        "refresh tokens",
        _Credential,
        "refresh_token_encrypted",
        _Credential.get_refresh_token,
        _Credential.set_refresh_token,
    ),
    Column("sign-ins under way", OAuthRequest, "verifier_encrypted", read_verifier, write_verifier),
)


@dataclass(slots=True)
class Unreadable:
    """Secrets that no key of the ring opens: how many, and whose the first of them are."""

    count: int = 0
    whose: list[str] = field(default_factory=list)

    def note(self, row: Any) -> None:
        self.count += 1
        if len(self.whose) < MOST_NAMED:
            self.whose.append(str(row if isinstance(row, AgentEmailAccount) else row.account))


@dataclass(slots=True)
class Inventory:
    """What is under which key: by label of the column, then by key id."""

    by_key: dict[str, Counter[str]] = field(default_factory=dict)
    unreadable: Unreadable = field(default_factory=Unreadable)

    @property
    def keys(self) -> Counter[str]:
        return sum(self.by_key.values(), Counter())


@dataclass(slots=True)
class Progress:
    """What has been done so far. `changed` were written by somebody else while they were at hand."""

    seen: int = 0
    done: int = 0
    changed: int = 0
    unreadable: Unreadable = field(default_factory=Unreadable)


def total() -> int:
    return sum(column.rows().order_by().count() for column in COLUMNS)


def take_stock(at: Callable[[int], None] = lambda done: None) -> Inventory:
    """Opens every secret there is. `at` is told how many have been looked at."""
    found, ring, seen = Inventory(), SecretsEncryption.from_settings(), 0
    for column in COLUMNS:
        counts = found.by_key[column.label] = Counter()
        for row in column.rows().iterator(chunk_size=BATCH):
            counts[_key_of(ring, getattr(row, column.name))] += 1
            if _opened(column, row) is None:
                found.unreadable.note(row)
            seen += 1
            at(seen)
    return found


def reencrypt() -> Iterator[Progress]:
    """Does a batch at a time and answers, after each, the same progress with what has come to it.

    A row that was changed while it was at hand is looked at once more.
    """
    progress = Progress()
    for column in COLUMNS:
        for rows in _batches(column):
            missed = _write(column, rows, progress)
            again = list(column.rows().filter(pk__in=missed)) if missed else []
            progress.changed += len(missed)
            _write(column, again, progress)
            progress.seen += len(rows)
            yield progress


def _batches(column: Column) -> Iterator[list[Any]]:
    rows = list(column.rows()[:BATCH])
    while rows:
        yield rows
        rows = list(column.rows().filter(pk__gt=rows[-1].pk)[:BATCH])


def _write(column: Column, rows: Sequence[Any], progress: Progress) -> list[Any]:
    """Writes what is not under the first key; answers the ids of the rows that had changed meanwhile."""
    ring = SecretsEncryption.from_settings()
    due = [row for row in rows if _key_of(ring, getattr(row, column.name)) != ring.primary_key_id]
    missed = []
    for row in due:
        made = _anew(column, row, progress)
        if made is None:
            continue
        was, values = made
        # Each by itself: several locks at once could meet another's in another order.
        if column.model._default_manager.filter(**was).update(**values):
            progress.done += 1
        else:
            missed.append(row.pk)
    return missed


def _anew(column: Column, row: Any, progress: Progress) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the row has to be like still, and what it becomes; None when its secret cannot be read."""
    secret = _opened(column, row)
    if secret is None:
        progress.unreadable.note(row)
        return None
    was: dict[str, Any] = {"pk": row.pk, column.name: getattr(row, column.name)}
    if not column.side:
        column.write(row, secret)
        return was, {column.name: getattr(row, column.name)}
    tested = f"{column.side}_tested_fingerprint"
    was[tested] = getattr(row, tested)
    is_tested = was[tested] == column.fingerprint(row)
    column.write(row, secret)
    becomes = {column.name: getattr(row, column.name)}
    # The test was of the secret, not of its ciphertext.
    return was, becomes | ({tested: column.fingerprint(row)} if is_tested else {})


def _opened(column: Column, row: Any) -> Secret | None:
    try:
        return column.read(row)
    except SecretUnreadable:
        return None


def _key_of(ring: SecretsEncryption, blob: bytes) -> str:
    try:
        return ring.key_id(blob)
    except SecretUnreadable:
        return DAMAGED
