"""Which mailboxes somebody should wait for news of, and what a watcher has to know of each.

Read anew every few seconds, so only the columns that count. Who waits for which of them is left to watch.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Q, QuerySet
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.classification import AccountState
from gobii_email.models import AgentEmailAccount, Mailbox
from gobii_email.services.gate import obstacle_to_mailbox

_COLUMNS = (
    "endpoint__address",
    "endpoint__owner_agent_id",
    "smtp_host",
    "imap_host",
    "imap_port",
    "imap_security",
    "imap_auth",
    "imap_username",
    "imap_password_encrypted",
    "imap_folder",
    "imap_tested_fingerprint",
    "last_seen_uid",
    "backoff_until",
    "mailbox__watch_problem",
    "oauth_credential__access_token_encrypted",
)


@dataclass(frozen=True, slots=True)
class Watchable:
    """One mailbox that asks to be watched; `signature` changes with whatever a connection was opened by.

    `last_seen_uid` is up to where it was read, `problem` why it could not be watched when somebody tried.
    """

    account_id: str
    address: str
    host: str
    signature: str
    last_seen_uid: str
    backoff_until: datetime | None
    problem: str


def watchable() -> Iterator[Watchable]:
    """Every mailbox that asks for it and may be read: tested, not held, and not switched off by operators."""
    if not config().idle_enabled:
        return
    now = timezone.now()
    for account in _rows().only(*_COLUMNS).iterator(chunk_size=500):
        if account.is_imap_tested and not obstacle_to_mailbox(account, now):
            yield _watchable(account)


def read_account(account_id: str) -> AgentEmailAccount | None:
    """The account with all that it takes to open its mailbox; None once nobody should."""
    account = _rows().filter(pk=UUID(account_id)).first()
    return account if account is not None and account.is_imap_tested else None


def signature_of(account: AgentEmailAccount) -> str:
    """Of server, folder, user and password, or of the token in the password's place."""
    token = b""
    if account.imap_auth == AgentEmailAccount.ImapAuthMode.OAUTH2 and hasattr(account, "oauth_credential"):
        token = bytes(account.oauth_credential.access_token_encrypted or b"")
    return hashlib.sha256(account.imap_fingerprint().encode() + token).hexdigest()


def tell(account_ids: Iterable[str], problem: str) -> None:
    """Shows on these mailboxes why nobody waits for their news; "" when somebody does again."""
    Mailbox.objects.filter(pk__in=list(account_ids)).exclude(watch_problem=problem).update(
        watch_problem=problem
    )


def _rows() -> "QuerySet[AgentEmailAccount]":
    needs_sign_in = Q(
        imap_auth=AgentEmailAccount.ImapAuthMode.OAUTH2, state=AccountState.AUTH_NEEDED, state_until=None
    )
    rows = AgentEmailAccount.objects.filter(
        is_inbound_enabled=True, imap_idle_enabled=True, mailbox__hold_code=""
    )
    related = rows.select_related("endpoint", "mailbox", "oauth_credential")
    return related.exclude(needs_sign_in).order_by()


def _watchable(account: AgentEmailAccount) -> Watchable:
    return Watchable(
        account_id=str(account.pk),
        address=account.endpoint.address,
        host=account.imap_host,
        signature=signature_of(account),
        last_seen_uid=account.last_seen_uid,
        backoff_until=account.backoff_until,
        problem=account.mailbox.watch_problem,
    )
