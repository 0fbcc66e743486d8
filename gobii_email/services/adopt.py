"""What a verified sign-in to a mailbox changes: its tokens, its way to sign in, its servers, its hold.

Raises rather than store half of it. That the sign-in is the owner's own was made sure of in authorize.
"""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.db import transaction
from django.utils import timezone

from gobii_email.domain.account_document import InvalidAccount
from gobii_email.domain.classification import AccountState
from gobii_email.domain.oauth_tokens import OAuthService, Tokens, granted, is_personal
from gobii_email.domain.providers import providers
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential
from gobii_email.services import hold
from gobii_email.services.accounts import SIDES, edit_account, save_account, takes_tokens
from gobii_email.services.poll_schedule import poll_now

logger = logging.getLogger(__name__)


class AuthorizationRefused(Exception):
    """No sign-in came about: one sentence with the reason and what to do. Nothing was changed.

    `why` is a short word for logs. `spares_grant` says that what the provider granted is needed elsewhere.
    """

    def __init__(self, why: str, text: str, *, spares_grant: bool = False) -> None:
        super().__init__(text)
        self.why = why
        self.spares_grant = spares_grant


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A verified sign-in to the mailbox `address`."""

    service: OAuthService
    address: str
    tokens: Tokens
    claims: Mapping[str, Any]

    @property
    def allows(self) -> dict[str, bool]:
        """Whether sending ("smtp") and receiving ("imap") were allowed."""
        scopes = granted(self.service, self.tokens.scope)
        return {"smtp": self.service.sends in scopes, "imap": self.service.receives in scopes}


def adopt(account_id: uuid.UUID, signed_in: SignedIn) -> AgentEmailAccount:
    service = signed_in.service
    if not any(signed_in.allows.values()):
        text = f"Neither sending nor receiving was allowed. Begin again, and tick {service.name}'s boxes."
        raise AuthorizationRefused("no_scope", text)
    with transaction.atomic():
        accounts = AgentEmailAccount.objects.select_for_update(of=("self",)).select_related("endpoint")
        account = accounts.filter(pk=account_id).first()
        if account is None:
            raise AuthorizationRefused("account_gone", "The mailbox was removed meanwhile. Add it again.")
        account.oauth_credential = _credential(account, signed_in)
        _use_sign_in(account, signed_in)
        _end_hold(account)
        poll_now(account)
    logger.info("oauth.connected", extra={"account_id": str(account.pk), "provider": service.key})
    return account


def _credential(account: AgentEmailAccount, signed_in: SignedIn) -> AgentEmailOAuthCredential:
    stored = AgentEmailOAuthCredential.objects.select_for_update().filter(account=account).first()
    credential = stored or AgentEmailOAuthCredential(account=account)
    if credential.provider != signed_in.service.key:
        # What another provider issued is of no use, and bound to its name.
        credential.provider, credential.refresh_token_encrypted = signed_in.service.key, None
    if signed_in.tokens.refresh_token is None and credential.refresh_token_encrypted is None:
        text = f"{signed_in.service.name} gave no lasting access. Remove this app at {{}} and sign in again."
        raise AuthorizationRefused("no_refresh_token", text.format(signed_in.service.consents_at))
    credential.take_over(signed_in.tokens, timezone.now())
    credential.metadata = {
        "mailbox": signed_in.address,
        "subject": str(signed_in.claims.get("sub", "")),
        "tenant": str(signed_in.claims.get("tid", "")),
    }
    credential.save()
    return credential


def _use_sign_in(account: AgentEmailAccount, signed_in: SignedIn) -> None:
    """Switches the sides over that the sign-in is good for, and fills in servers that nobody named."""
    changes: dict[str, object] = {}
    for side in fitting_sides(account, signed_in.service):
        if signed_in.allows[side]:
            changes |= {f"{side}_auth": account.AuthMode.OAUTH2, f"{side}_username": signed_in.address}
            changes |= {} if getattr(account, f"{side}_host") else _server(side, signed_in)
        elif getattr(account, f"{side}_auth") == account.AuthMode.OAUTH2:
            changes[SIDES[side]] = False
    try:
        save_account(account, edit_account(account, changes, has_new_token=True))
    except InvalidAccount as problem:
        text = f"The mailbox's settings do not fit a sign-in: {problem}"
        raise AuthorizationRefused("settings", text) from None


def _server(side: str, signed_in: SignedIn) -> dict[str, object]:
    ids = signed_in.service.mail_providers
    wanted = ids[-1] if is_personal(signed_in.claims) else ids[0]
    known = next(provider for provider in providers() if provider.id == wanted)
    found = known.smtp if side == "smtp" else known.imap
    assert found is not None
    return {f"{side}_host": found.host, f"{side}_port": found.port, f"{side}_security": found.security}


def _end_hold(account: AgentEmailAccount) -> None:
    if account.state == AccountState.AUTH_NEEDED:
        account.smtp_error = account.imap_error = account.connection_error = ""
        account.save(update_fields=["smtp_error", "imap_error", "connection_error"])
        hold.resume(account)


def fitting_sides(account: AgentEmailAccount, service: OAuthService) -> list[str]:
    """Of smtp and imap, those whose server may be shown the service's tokens; at least one.

    Raises AuthorizationRefused where there is none, or where a token would go to any other host.
    """
    fitting = [side for side in SIDES if takes_tokens(getattr(account, f"{side}_host"), service)]
    unfit = [side for side in SIDES if side not in fitting]
    if not fitting or any(getattr(account, f"{side}_auth") == account.AuthMode.OAUTH2 for side in unfit):
        hosts = " and ".join(dict.fromkeys(getattr(account, f"{side}_host") for side in unfit))
        text = (
            f"{hosts} is not a mail server of {service.name}, so a sign-in with {service.name} is of no use "
            f"there. Leave the servers empty, or set those of {service.name}."
        )
        raise AuthorizationRefused("servers", text)
    return fitting
