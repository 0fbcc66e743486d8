"""A provider of sign-ins for tests, and what connects a mailbox with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gobii_email.models import AgentEmailAccount, PersistentAgentCommsEndpoint
from gobii_email.services import authorize
from gobii_email.testing.oauth_server import LocalOAuthProvider
from tests.conftest import AMPLE

ADDRESS = "agent@sender.example"
BACK = "https://mail.example/console/oauth/back"
TENANT = "11111111-2222-3333-4444-555555555555"
PERSONAL = "9188040d-6c67-4c5b-b112-36a304b66dad"
PEOPLE: dict[str, dict[str, Any]] = {
    "google": {"email": ADDRESS, "email_verified": True},
    "microsoft": {"preferred_username": ADDRESS, "tid": TENANT},
}


@contextmanager
def registered(settings: Any, service: str = "google", **values: Any) -> Iterator[LocalOAuthProvider]:
    """A provider that this installation is registered at as `service`, where ADDRESS would sign in."""
    if service == "microsoft":
        values.setdefault("issuer", "https://login.test/{tenantid}/v2.0")
    with LocalOAuthProvider(person=PEOPLE[service], **values) as provider:
        for name, value in provider.settings(service).items():
            setattr(settings, name, value)
        yield provider


def unconnected(endpoint: PersistentAgentCommsEndpoint, **values: Any) -> AgentEmailAccount:
    """An account that nobody has signed in to, with servers that nobody has named unless `values` do."""
    account = AgentEmailAccount(endpoint=endpoint, **AMPLE, **values)
    account.full_clean()
    account.save()
    return account


def sign_in(
    account: AgentEmailAccount, provider: LocalOAuthProvider, service: str = "google", user: Any = None
) -> AgentEmailAccount:
    """The whole way there and back."""
    back = provider.sign_in(authorize.begin(account, service, user, BACK))
    return authorize.finish(back["state"], back["code"], user)


def switch_on(account: AgentEmailAccount) -> None:
    """Sending is on, as after a test that succeeded."""
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.is_outbound_enabled = True
    account.full_clean()
    account.save()
