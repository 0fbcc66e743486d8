"""Connecting a mailbox by signing in with its provider: the way there and back.

A sign-in belongs to one user, account and provider, and is good once, for ten minutes. Whose mailbox was
signed in to is taken from the verified id token alone, and has to be the account's own address. What it
changes is decided in adopt; how the tokens are kept fresh afterwards is told in renew.
"""

import hashlib
import logging
import secrets
from datetime import timedelta
from typing import Any

from django.contrib.auth.base_user import AbstractBaseUser
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import is_private_way
from gobii_email.domain.oauth_tokens import Denied, OAuthService, Tokens, mailboxes_of, service_named
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretContext, SecretsEncryption, SecretUnreadable
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, OAuthRequest
from gobii_email.ports import SignInRequest, TokenIssuer, UnverifiedIdentity
from gobii_email.services.adopt import AuthorizationRefused, SignedIn, adopt, fitting_sides
from gobii_email.services.record import release_connection

__all__ = ["AuthorizationRefused", "begin", "configured_providers", "deny", "finish"]

logger = logging.getLogger(__name__)

GOOD_FOR = timedelta(minutes=10)
KEPT_FOR = timedelta(days=1)
"""How long a sign-in is remembered after its end, so that a second use of it is told from a forged one."""

User = AbstractBaseUser | None


def configured_providers() -> tuple[str, ...]:
    """The services that people can sign in with here: "google", "microsoft"."""
    return tuple(wiring.token_issuers())


# The way to the provider and back


def begin(account: AgentEmailAccount, provider: str, user: User, redirect_uri: str) -> str:
    """Where to send `user` to sign in to the mailbox of `account`. Raises AuthorizationRefused.

    The provider sends them back to `redirect_uri`, exactly as it is registered there: https, or http on the
    loopback address.
    """
    issuer = _issuer(provider)
    _require_safe(redirect_uri)
    fitting_sides(account, issuer.service)
    request = SignInRequest(
        address=account.endpoint.address,
        redirect_uri=redirect_uri,
        state=Secret(secrets.token_urlsafe(32)),
        nonce=secrets.token_urlsafe(32),
        verifier=Secret(secrets.token_urlsafe(64)),
    )
    now = timezone.now()
    OAuthRequest.objects.filter(expires_at__lt=now - KEPT_FOR).delete()
    OAuthRequest.objects.create(
        state_sha256=_digest(request.state.reveal()),
        account=account,
        user_id=_id_of(user),
        provider=issuer.service.key,
        redirect_uri=redirect_uri,
        nonce=request.nonce,
        verifier_encrypted=SecretsEncryption.from_settings().encrypt(
            request.verifier, _context(account.pk, issuer.service.key)
        ),
        expires_at=now + GOOD_FOR,
    )
    return issuer.authorize_url(request)


def finish(
    state: str,
    code: str,
    user: User,
    *,
    provider: str | None = None,
    account: AgentEmailAccount | None = None,
) -> AgentEmailAccount:
    """Connects the account that the sign-in was begun for, with what `code` is exchanged for.

    `provider` and `account` are compared with those it was begun for, where the caller knows them. Raises
    AuthorizationRefused; the tokens of a sign-in that is refused are revoked and never stored. Directions
    stay as they are where the settings do: others are to be tested before they are switched on.
    """
    row = _used(state, user, provider, account)
    try:
        return _finished(row, Secret(code))
    except AuthorizationRefused as refusal:
        logger.warning(
            "oauth.refused",
            extra={
                "account_id": str(row.account_id),
                "provider": row.provider,
                "why": refusal.why,
            },
        )
        raise
    finally:
        release_connection()


def deny(state: str, error: str, user: User) -> str:
    """Ends a sign-in that the provider answered with `error`; says in a sentence what that means.

    Raises AuthorizationRefused for a sign-in that is not this user's, or over.
    """
    row = _used(state, user, None, None)
    name = _name(row.provider)
    if error == "access_denied":
        return f"{name} was not allowed to give access, so nothing was connected. Sign in again to allow it."
    return f"{name} did not complete the sign-in, so nothing was connected. Try again in a few minutes."


def _finished(row: OAuthRequest, code: Secret) -> AgentEmailAccount:
    issuer = _issuer(row.provider)
    request = _request_of(row)
    release_connection()
    answer = issuer.exchange(code, request)
    if isinstance(answer, Denied):
        raise AuthorizationRefused(answer.error, _without_code(issuer.service, answer))
    try:
        signed_in = _signed_in(issuer, answer, request)
        return adopt(row.account_id, signed_in)
    except AuthorizationRefused as refusal:
        release_connection()
        if not refusal.spares_grant:
            issuer.revoke(answer.refresh_token or answer.access_token)
        raise


# Whose sign-in it is


def _used(state: str, user: User, provider: str | None, account: AgentEmailAccount | None) -> OAuthRequest:
    """The sign-in of `state`, used up by this call. Raises AuthorizationRefused, and then it is as before."""
    now = timezone.now()
    rows = OAuthRequest.objects.filter(state_sha256=_digest(state))
    row = rows.select_related("account__endpoint").first()
    if row is None:
        raise AuthorizationRefused(
            "unknown_state", "This sign-in is not known here. Begin again from the mailbox's page."
        )
    if row.user_id != _id_of(user):
        raise AuthorizationRefused("other_user", "This sign-in was begun by another user. Begin it yourself.")
    if account is not None and account.pk != row.account_id:
        raise AuthorizationRefused(
            "other_account", "This sign-in was begun for another mailbox. Begin again there."
        )
    if provider is not None and provider != row.provider:
        text = f"This sign-in was begun with {_name(row.provider)}. Begin again with the other provider."
        raise AuthorizationRefused("other_provider", text)
    if row.expires_at <= now:
        raise AuthorizationRefused("expired", "This sign-in took longer than ten minutes. Begin again.")
    if not rows.filter(used_at__isnull=True).update(used_at=now):
        raise AuthorizationRefused(
            "replayed", "This sign-in has been used already. Begin again if it did not succeed."
        )
    return row


def _request_of(row: OAuthRequest) -> SignInRequest:
    try:
        verifier = read_verifier(row)
    except SecretUnreadable:
        text = "This sign-in was begun with another encryption key. Begin again."
        raise AuthorizationRefused("verifier", text) from None
    return SignInRequest(row.account.endpoint.address, row.redirect_uri, Secret(""), row.nonce, verifier)


def _signed_in(issuer: TokenIssuer, tokens: Tokens, request: SignInRequest) -> SignedIn:
    """Raises AuthorizationRefused unless it is the very mailbox that the sign-in was begun for."""
    service = issuer.service
    if tokens.id_token is None:
        raise AuthorizationRefused(
            "no_identity", f"{service.name} did not say whose mailbox it is. Try again later."
        )
    try:
        claims = issuer.claims(tokens.id_token, request.nonce, tokens.access_token)
    except UnverifiedIdentity as problem:
        text = f"What {service.name} said of the mailbox could not be verified. Begin again."
        raise AuthorizationRefused(f"identity_{problem.error}", text) from None
    mailboxes = mailboxes_of(service, claims)
    if request.address.lower() not in mailboxes:
        raise _other_mailbox(service, request.address, mailboxes)
    return SignedIn(service, request.address, tokens, claims)


def _other_mailbox(service: OAuthService, wanted: str, mailboxes: tuple[str, ...]) -> AuthorizationRefused:
    who = f"You signed in to {mailboxes[0]}" if mailboxes else f"{service.name} vouches for no address"
    text = (
        f"{who}, and this mailbox is {wanted}. Sign in to {wanted}, or connect the other address by itself."
    )
    # Revoking one token ends the whole grant, also that of an account which is rightly connected.
    others = AgentEmailOAuthCredential.objects.filter(account__endpoint__address__in=mailboxes)
    return AuthorizationRefused("other_mailbox", text, spares_grant=others.exists())


def _without_code(service: OAuthService, answer: Denied) -> str:
    if answer.error == "invalid_grant":
        return f"{service.name} did not accept the sign-in: it is too old, or was used already. Begin again."
    return f"{answer.text} Nothing was connected."


# Small change


def _issuer(provider: str) -> TokenIssuer:
    issuer = wiring.token_issuers().get(provider)
    if issuer is None:
        name = provider.upper() if service_named(provider) else "GOOGLE_ or MICROSOFT"
        raise AuthorizationRefused(
            "not_configured",
            f"Signing in with {_name(provider)} is not set up here: an operator sets {name}_CLIENT_ID and "
            f"{name}_CLIENT_SECRET.",
        )
    return issuer


def _name(provider: str) -> str:
    service = service_named(provider)
    return service.name if service else "this provider"


def _require_safe(redirect_uri: str) -> None:
    if not is_private_way(redirect_uri) or len(redirect_uri) > 512:
        text = "People can be sent back to an https address alone: an operator has to set PUBLIC_URL to one."
        raise AuthorizationRefused("redirect_uri", text)


def _id_of(user: User) -> Any:
    return None if user is None else user.pk


def _digest(state: str) -> str:
    return hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()


def read_verifier(row: OAuthRequest) -> Secret:
    """The verifier of a sign-in under way. Raises SecretUnreadable."""
    context = _context(row.account_id, row.provider)
    return SecretsEncryption.from_settings().decrypt(row.verifier_encrypted, context)


def write_verifier(row: OAuthRequest, verifier: Secret) -> None:
    """Encrypts `verifier` for `row`, which is not saved."""
    context = _context(row.account_id, row.provider)
    row.verifier_encrypted = SecretsEncryption.from_settings().encrypt(verifier, context)


def _context(account_id: object, provider: str) -> SecretContext:
    return SecretContext(account_id=str(account_id), field="pkce_verifier", server_host=provider)
