"""A mailbox opened with tokens, at a Dovecot that asks their issuer and a Postfix that asks the Dovecot.

By both mechanisms, for sending and for reading, with tokens that are good, withdrawn or invented.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gobii_email.models import AgentEmailAccount
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.diagnose import test_imap, test_smtp
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.oauth_server import LocalOAuthProvider
from gobii_email.testing.postfix import RealPostfix
from gobii_email.testing.processes import ServerUnavailable

pytestmark = pytest.mark.django_db

ADDRESS = "otto@mail.example"
ALLOWED = "https://mail.google.com/"


@dataclass
class Plant:
    issuer: LocalOAuthProvider
    postfix: RealPostfix
    dovecot: RealDovecot


@pytest.fixture(scope="module", params=["XOAUTH2", "OAUTHBEARER"])
def plant(request: pytest.FixtureRequest, authority: ThrowAwayAuthority) -> Iterator[Plant]:
    """Servers that take tokens by one mechanism, and the provider that they ask about them."""
    person = {"email": ADDRESS, "email_verified": True}
    with LocalOAuthProvider(person=person) as issuer:
        url = f"{issuer.url}/introspect"
        try:
            dovecot = RealDovecot(
                authority.good_certificate(),
                {ADDRESS: "unused"},
                mechanisms=["plain", request.param.lower()],
                introspects_at=url,
            )
            with (
                dovecot,
                RealPostfix(authority, {ADDRESS: "unused"}, dovecot_port=dovecot.ports["sasl"]) as postfix,
            ):
                yield Plant(issuer, postfix, dovecot)
        except ServerUnavailable as problem:
            pytest.skip(f"TOKENS ARE NOT TESTED AT REAL SERVERS HERE: {problem}")


@pytest.fixture
def mechanism(plant: Plant) -> str:
    return plant.dovecot._mechanisms[-1].upper()


@pytest.fixture
def account(plant: Plant, settings: Any) -> AgentEmailAccount:
    """Its access token is over; the one to renew it with is good."""
    settings.BYO_EMAIL_ALLOWED_PORTS = {*plant.postfix.ports.values(), *plant.dovecot.ports.values()}
    for name, value in plant.issuer.settings("google").items():
        setattr(settings, name, value)
    return apply_account(
        {
            "agent": "Otto",
            "address": ADDRESS,
            "smtp": _server(plant.postfix.ports["starttls"], "starttls"),
            "imap": _server(plant.dovecot.ports["implicit"], "ssl"),
            "oauth": {
                "provider": "google",
                "access_token": "ya29.over-S3cret",
                "refresh_token": plant.issuer.grant(ALLOWED),
                "expires_at": "2020-01-01T00:00:00Z",
            },
        }
    )


def _server(port: int, security: str) -> dict[str, object]:
    return {"host": "localhost", "port": port, "security": security, "auth": "oauth2", "username": ADDRESS}


def test_a_renewed_token_opens_the_mailbox_for_sending_and_reading(
    account: AgentEmailAccount, mechanism: str
) -> None:
    for test in (test_smtp(account), test_imap(account)):
        assert test.ok, test
        (step,) = [step for step in test.steps if step.id == "auth"]
        assert step.facts["mechanism"] == mechanism
    account.refresh_from_db()
    enabled = enable(account, outbound=True, inbound=True)
    assert enabled.is_outbound_enabled and enabled.is_inbound_enabled


@pytest.mark.parametrize("test", [test_smtp, test_imap], ids=["sending", "reading"])
def test_a_withdrawn_token_is_renewed_and_then_taken(
    account: AgentEmailAccount, plant: Plant, test: Any
) -> None:
    assert test(account).ok
    plant.issuer.expire()
    account = AgentEmailAccount.objects.get(pk=account.pk)
    assert test(account).ok
    assert len(plant.issuer.asked("/token")) >= 2


@pytest.mark.parametrize("test", [test_smtp, test_imap], ids=["sending", "reading"])
def test_a_token_that_nobody_issued_is_told_at_the_sign_in_with_what_to_do(
    account: AgentEmailAccount, test: Any
) -> None:
    apply_account(
        {
            "address": ADDRESS,
            "oauth": {"access_token": "ya29.invented-S3cret", "expires_at": "2099-01-01T00:00:00Z"},
        }
    )
    credential = AgentEmailAccount.objects.get(pk=account.pk).oauth_credential
    credential.refresh_token_encrypted = None
    credential.save()

    told = test(AgentEmailAccount.objects.get(pk=account.pk))

    (failed,) = [step for step in told.steps if step.status == "fail"]
    assert failed.id == "auth", told
    assert "Connect the account again" in failed.advice and "password" not in failed.advice
    assert "S3cret" not in str(told.as_document())
