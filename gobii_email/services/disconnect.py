"""Disconnecting a mailbox from a sign-in: its tokens are forgotten here, and void where possible."""

from dataclasses import dataclass

from django.db import transaction

from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, OAuthRequest
from gobii_email.services.accounts import SIDES, disable
from gobii_email.services.renew import revoke


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The tokens are gone here; `is_revoked` says whether they are void, `text` what is left to do."""

    is_revoked: bool
    text: str


def disconnect(account: AgentEmailAccount) -> Disconnected:
    """Forgets the account's tokens, switches off what used them, and revokes them at the provider.

    Its mail waits until the mailbox is connected again. A provider that does not answer, or has no such
    endpoint (Microsoft), leaves the grant to its owner to withdraw; the tokens are forgotten in any case.
    """
    with transaction.atomic():
        is_used = [getattr(account, f"{side}_auth") == account.AuthMode.OAUTH2 for side in SIDES]
        disable(account, outbound=is_used[0], inbound=is_used[1])
        OAuthRequest.objects.filter(account=account.pk).delete()
        credential = AgentEmailOAuthCredential.objects.filter(account=account.pk).first()
        if credential is None:
            return Disconnected(True, "The mailbox was not connected by a sign-in.")
        AgentEmailOAuthCredential.objects.filter(pk=credential.pk).delete()
    is_revoked = revoke(credential)
    return Disconnected(is_revoked, _farewell(credential, is_revoked=is_revoked))


def _farewell(credential: AgentEmailOAuthCredential, *, is_revoked: bool) -> str:
    if is_revoked:
        return "The mailbox is disconnected, and its access at the provider has been withdrawn."
    where = f" at {credential.service.consents_at}" if credential.service else ""
    return (
        "The mailbox is disconnected and its tokens are deleted here. Its owner can withdraw the access at "
        f"the provider as well{where}."
    )
