"""Keeping an account's access token fresh: renewed ahead of its end, by one worker at a time.

The lease of a renewal is in the credential's row, not in Redis: the very statement that stores the rotated
tokens proves that it still was ours, a Redis that forgets cannot let two workers spend one refresh token, and
no transaction is open while the provider is waited for. What a sign-in is, is told in authorize.
"""

import logging
import time
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from gobii_email import metrics, telemetry, wiring
from gobii_email.domain.classification import AccountState
from gobii_email.domain.oauth_tokens import Denied, Reason, Tokens, is_due, is_still_good
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential
from gobii_email.ports import TokenIssuer
from gobii_email.services.record import persist, release_connection

logger = logging.getLogger(__name__)

LEASE = timedelta(seconds=60)
"""How long a renewal keeps others away; longer than its exchange and the write after it may take."""
PAUSE = timedelta(minutes=1)
"""After a renewal that the provider did not answer."""
LONGEST_WAIT = 25.0
"""Seconds to wait for the renewal of somebody else."""
_LOOK_EVERY = 0.1


class ReconnectNeeded(Exception):
    """The grant is over and the account is held for it: its owner has to sign in again."""


class TokenUnavailable(Exception):
    """There is no good access token just now; `until` is when it is worth asking again."""

    def __init__(self, text: str, until: datetime) -> None:
        super().__init__(text)
        self.until = until


def access_token(account: AgentEmailAccount, *, refused: Secret | None = None) -> Secret:
    """A token that is good for the next minutes, renewed where need be; no transaction may be open.

    `refused` is one that a server did not take: then another one is asked for, whatever the end of that one.
    The account's `oauth_credential` is up to date afterwards, so its servers carry the same token. Where
    there is nothing to renew with, the stored token is answered, however old: the server decides. Raises
    ReconnectNeeded, TokenUnavailable, and SecretUnreadable where no token is stored or it cannot be read.
    """
    give_up_at = time.monotonic() + LONGEST_WAIT
    while True:
        now = timezone.now()
        credential = _read(account)
        issuer = _issuer_of(credential)
        if issuer is None or not _must_renew(credential, refused, now):
            return _used(account, credential)
        if credential.take_refresh_lease(now, now + LEASE):
            if not _must_renew(credential, refused, now):
                credential.end_refresh()
            elif _renew(account, credential, issuer, is_good=_is_good(credential, refused, now)):
                return _used(account, credential)
        elif _is_good(credential, refused, now):
            return _used(account, credential)
        else:
            _wait_for_others(credential, give_up_at, now)


def renewed_token(account: AgentEmailAccount, refused: Secret) -> Secret | None:
    """Another token than the `refused` one; None where there is none to be had. Raises as access_token."""
    found = access_token(account, refused=refused)
    return None if found == refused else found


def _read(account: AgentEmailAccount) -> AgentEmailOAuthCredential:
    credential = AgentEmailOAuthCredential.objects.filter(account=account.pk).first()
    release_connection()
    if credential is None:
        raise SecretUnreadable("The mailbox is not connected by OAuth any more; connect it again.")
    return credential


def _issuer_of(credential: AgentEmailOAuthCredential) -> TokenIssuer | None:
    """Who can renew the token; None without a refresh token, or where this installation is not registered."""
    service = credential.service
    if service is None or credential.refresh_token_encrypted is None:
        return None
    return wiring.token_issuers().get(service.key)


def _must_renew(credential: AgentEmailOAuthCredential, refused: Secret | None, now: datetime) -> bool:
    token = credential.get_access_token()
    if token is None or (refused is not None and token == refused):
        return True
    return is_due(credential.expires_at, now)


def _is_good(credential: AgentEmailOAuthCredential, refused: Secret | None, now: datetime) -> bool:
    """Whether the stored token will do while it cannot be renewed."""
    has_token = credential.access_token_encrypted is not None
    return has_token and refused is None and is_still_good(credential.expires_at, now)


def _used(account: AgentEmailAccount, credential: AgentEmailOAuthCredential) -> Secret:
    """The token, for the account's servers as well: only now, because other threads may share the account."""
    token = credential.get_access_token()
    if token is None:
        raise SecretUnreadable("No access token is stored for the mailbox; connect it again.")
    account.oauth_credential = credential
    return token


def _wait_for_others(credential: AgentEmailOAuthCredential, give_up_at: float, now: datetime) -> None:
    """Gives whoever renews a little time; raises TokenUnavailable in a pause, or when it takes long."""
    until = credential.refresh_blocked_until or now
    if credential.refresh_lease is None and until > now:
        raise TokenUnavailable(credential.refresh_error, until)
    if time.monotonic() > give_up_at:
        raise TokenUnavailable("Another worker has been renewing the access token for long.", now + PAUSE)
    time.sleep(_LOOK_EVERY)


def _renew(
    account: AgentEmailAccount, credential: AgentEmailOAuthCredential, issuer: TokenIssuer, *, is_good: bool
) -> bool:
    """Asks the provider, and stores what it grants before anybody uses it. Raises as access_token.

    False where the account was connected anew or disconnected meanwhile: then the answer is dropped.
    """
    try:
        refresh_token = credential.get_refresh_token()
    except SecretUnreadable:
        credential.end_refresh()
        raise
    assert refresh_token is not None
    release_connection()
    with telemetry.oauth_refresh(issuer.service.key, str(account.pk)) as span:
        answer = issuer.refresh(refresh_token, credential.scope)
        span.ended(answer)
    outcome = "granted" if isinstance(answer, Tokens) else str(answer.reason)
    metrics.OAUTH_REFRESHES.inc(issuer.service.key, outcome)
    try:
        return persist(lambda: _written(account, credential, answer, is_good=is_good), within=LEASE)
    finally:
        release_connection()


def _written(
    account: AgentEmailAccount,
    credential: AgentEmailOAuthCredential,
    answer: Tokens | Denied,
    *,
    is_good: bool,
) -> bool:
    """Whether the renewal still was ours to end, and left a token to use."""
    now = timezone.now()
    if isinstance(answer, Tokens):
        return credential.keep_tokens(answer, now)
    if answer.reason is Reason.OWNER:
        return _ask_for_sign_in(account, credential, answer)
    until = now + PAUSE
    if is_good:
        return credential.end_refresh(blocked_until=until, error=answer.text)
    # Counts as over, so that no turn tries it at the server again.
    if credential.end_refresh(blocked_until=until, error=answer.text, expires_at=now):
        raise TokenUnavailable(answer.text, until)
    return False


def _ask_for_sign_in(
    account: AgentEmailAccount, credential: AgentEmailOAuthCredential, answer: Denied
) -> bool:
    with transaction.atomic():
        if not credential.end_refresh(error=answer.text):
            return False
        hold_for_sign_in(account, answer.text)
    logger.warning("oauth.reconnect_needed", extra={"account_id": str(account.pk), "error": answer.error})
    raise ReconnectNeeded(answer.text)


def revoke(credential: AgentEmailOAuthCredential) -> bool:
    """Whether the provider confirms that the tokens of `credential`, deleted here, are void. Never raises."""
    issuer = wiring.token_issuers().get(credential.service.key) if credential.service else None
    release_connection()
    try:
        token = credential.get_refresh_token() or credential.get_access_token()
    except SecretUnreadable:
        token = None
    is_revoked = issuer is not None and token is not None and issuer.revoke(token)
    logger.info(
        "oauth.disconnected",
        extra={
            "account_id": str(credential.account_id),
            "provider": credential.provider,
            "why": "revoked" if is_revoked else "not revoked",
        },
    )
    return is_revoked


def hold_for_sign_in(account: AgentEmailAccount, reason: str) -> None:
    """Keeps the account's mail waiting until its owner has signed in; what a person paused stays paused."""
    now = timezone.now()
    paused = Q(state=AccountState.PAUSED) & (Q(state_until__isnull=True) | Q(state_until__gt=now))
    AgentEmailAccount.objects.filter(pk=account.pk).exclude(paused).update(
        state=AccountState.AUTH_NEEDED,
        state_reason=reason,
        state_until=None,
        connection_error=reason,
        updated_at=now,
    )
