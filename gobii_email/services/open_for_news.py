"""Opening one mailbox to wait for its news: the account as it is now, its token, its server.

Runs in a thread of its own, because a server may take its time; borrows no database connection meanwhile.
"""

import logging
from dataclasses import dataclass

from django.db import Error, connections

from gobii_email import wiring
from gobii_email.domain.mailbox_cursor import Cursor
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import ImapServer, NewsConnection, NotWatched
from gobii_email.services import measure
from gobii_email.services.enlist import read_account, signature_of
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection that waits, and `newest`, the `last_seen_uid` of whoever has read all that is there."""

    connection: NewsConnection
    signature: str
    newest: str


def open_for_news(account_id: str) -> Opened | NotWatched:
    """The open mailbox, or why there is none. Never raises: whoever waits for the answer is in a loop."""
    server: ImapServer | None = None
    try:
        server, signature = _settings(account_id)
        connection, folder = wiring.imap_idle().open(server)
    except NotWatched as why:
        if server is not None and why.category != "no_idle":
            measure.imap_failed(server.host, "idle", why.category, is_login=why.is_lasting)
        return why
    except Exception as problem:
        logger.exception(
            "idle.open_failed", extra={"account_id": account_id, "error": type(problem).__name__}
        )
        return NotWatched("The mailbox could not be opened.", "crashed")
    return Opened(connection, signature, str(Cursor((folder.uid_next or 0) - 1, folder.uid_validity)))


def _settings(account_id: str) -> tuple[ImapServer, str]:
    try:
        account = read_account(account_id)
        if account is None:
            raise NotWatched("Nobody asks for it any more.", "not_wanted")
        if account.imap_auth == AgentEmailAccount.ImapAuthMode.OAUTH2:
            access_token(account)
        return account.imap_server(), signature_of(account)
    except (SecretUnreadable, ReconnectNeeded) as why:
        raise NotWatched(str(why), "secret_unreadable", is_lasting=True) from None
    except TokenUnavailable as why:
        raise NotWatched(str(why), "token_unavailable") from None
    except Error:
        raise NotWatched("The database is away.", "database") from None
    finally:
        connections.close_all()
