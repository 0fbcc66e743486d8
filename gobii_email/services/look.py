"""Opening a mailbox where copies of sent mail are looked for, as its account allows.

Says why nobody may look, gets an access token where one is needed, and makes one kind of failure of all that
can go wrong on the way. What the copies mean is decided in reconcile, learn and file_sent.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime

from gobii_email import wiring
from gobii_email.domain.classification import AccountState
from gobii_email.domain.providers import Known, provider_of_host
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount, Mailbox
from gobii_email.ports import LookFailed, SentMail
from gobii_email.services.gate import obstacle_to_mailbox
from gobii_email.services.record import release_connection
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why nobody looks, in a sentence; `is_lasting` until somebody sets the mailbox up for reading."""

    reason: str
    is_lasting: bool = False


def obstacle(account: AgentEmailAccount | None, now: datetime) -> Obstacle | None:
    """What keeps us out of the mailbox now; None when it may be opened. Receiving need not be switched on."""
    if account is None:
        return Obstacle("the mailbox that it was sent from was removed", is_lasting=True)
    if not account.is_imap_tested:
        return Obstacle(
            "the mailbox has no settings for reading (IMAP) that were tested successfully", is_lasting=True
        )
    if why := obstacle_to_mailbox(account, now):
        return Obstacle(why)
    state = account.state_at(now)
    if state in {AccountState.PAUSED, AccountState.AUTH_NEEDED}:
        return Obstacle(
            f"the mailbox is {'paused' if state is AccountState.PAUSED else 'to be signed in to'}"
        )
    held = Mailbox.objects.filter(pk=account.pk).exclude(hold_code="").values_list("hold_reason", flat=True)
    reason = held.first()
    return None if reason is None else Obstacle(f"reading it is held: {reason}")


def files_for_sure(account: AgentEmailAccount) -> bool:
    """Whether the provider is known to file sent mail itself: enough to file nothing, and no proof."""
    provider = provider_of_host(account.smtp_host)
    return provider is not None and provider.files_sent is Known.YES


@contextmanager
def sent_mail_of(account: AgentEmailAccount) -> Iterator[SentMail]:
    """The account's sent mail, signed in; a refused access token is renewed once. Raises LookFailed."""
    with ExitStack() as stack:
        yield _opened(account, stack)


def _opened(account: AgentEmailAccount, stack: ExitStack) -> SentMail:
    is_by_token = account.imap_auth == AgentEmailAccount.ImapAuthMode.OAUTH2
    try:
        if is_by_token:
            access_token(account)
        server = account.imap_server()
        release_connection()
        try:
            return stack.enter_context(wiring.sent_folders().open(server))
        except LookFailed as failed:
            if not (is_by_token and failed.blames_login and server.secret is not None):
                raise
            if renewed_token(account, server.secret) is None:
                raise
        release_connection()
        return stack.enter_context(wiring.sent_folders().open(account.imap_server()))
    except (SecretUnreadable, ReconnectNeeded, TokenUnavailable) as problem:
        raise LookFailed(str(problem), "no-secret") from None
