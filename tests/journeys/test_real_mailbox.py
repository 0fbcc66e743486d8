"""A mailbox on servers as providers run them, Postfix to send and Dovecot to read: tested, enabled, used."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gobii_email.models import AgentEmailAccount
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.diagnose import test_imap, test_smtp
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.postfix import RealPostfix
from gobii_email.testing.processes import ServerUnavailable

pytestmark = pytest.mark.django_db

PASSWORD = "pässwörd €😀 with blanks"
PLAIN_PASSWORD = 'plain "S3cret" \\ with signs'
ANNA, OTTO = "anna@mail.example", "otto@mail.example"


@dataclass
class Provider:
    postfix: RealPostfix
    dovecot: RealDovecot


@pytest.fixture(scope="module")
def provider(authority: ThrowAwayAuthority) -> Iterator[Provider]:
    """Both servers over one set of mailboxes."""
    users = {ANNA: PASSWORD, OTTO: PLAIN_PASSWORD}
    try:
        with RealPostfix(authority, users) as postfix:
            mail = postfix.directory / "mailboxes"
            with RealDovecot(authority.good_certificate(), users, mail=mail) as dovecot:
                yield Provider(postfix, dovecot)
    except ServerUnavailable as problem:
        pytest.skip(f"REAL POSTFIX AND DOVECOT ARE NOT TESTED HERE: {problem}")


@pytest.fixture(autouse=True)
def opened(provider: Provider, settings: Any) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = {
        *provider.postfix.ports.values(),
        *provider.dovecot.ports.values(),
    }


def connect(provider: Provider, address: str = ANNA, **imap: Any) -> AgentEmailAccount:
    login = {"username": address, "password": PASSWORD if address == ANNA else PLAIN_PASSWORD}
    smtp = {"host": "localhost", "port": provider.postfix.ports["starttls"], "security": "starttls"}
    read = {"host": "localhost", "port": provider.dovecot.ports["implicit"], "security": "ssl"}
    document = {"agent": "Anna", "address": address, "smtp": smtp | login, "imap": read | login | imap}
    return apply_account(document)


@pytest.mark.parametrize(("door", "security"), [("implicit", "ssl"), ("starttls", "starttls")])
@pytest.mark.parametrize(("address", "mechanism"), [(ANNA, "PLAIN"), (OTTO, "LOGIN")])
def test_a_mailbox_is_read_by_each_door_and_with_any_password(
    provider: Provider, door: str, security: str, address: str, mechanism: str
) -> None:
    account = connect(provider, address, port=provider.dovecot.ports[door], security=security)
    test = test_imap(account)
    assert test.ok, test
    facts = {step.id: step.facts for step in test.steps}
    assert facts["auth"]["mechanism"] == mechanism and facts["select"]["uid_validity"]
    account.refresh_from_db()
    assert enable(account, inbound=True).is_inbound_enabled


def test_a_mail_to_oneself_makes_its_round_trip(provider: Provider) -> None:
    account = connect(provider)
    assert test_imap(account).ok
    account.refresh_from_db()
    test = test_smtp(account, sends_to_self=True)
    assert test.ok and test.steps[-1].id == "message", test
    assert test.steps[-1].facts["queue_id"] and test.steps[-1].facts["uid"]
    assert 0 < float(str(test.steps[-1].facts["round_trip_seconds"])) < 60


@pytest.mark.parametrize(
    ("wrong", "step", "advice"),
    [
        ({"password": "another"}, "auth", "user name or password"),
        ({"folder": "No such"}, "select", "INBOX is always there"),
        ({"port": "starttls", "security": "ssl"}, "tls", "set security to STARTTLS"),
        ({"port": "implicit", "security": "starttls"}, "greeting", "set security to SSL/TLS"),
    ],
    ids=["password", "folder", "TLS to a plain port", "plain to a TLS port"],
)
def test_wrong_settings_for_reading_end_at_their_step(
    provider: Provider, wrong: dict[str, Any], step: str, advice: str
) -> None:
    if "port" in wrong:
        wrong = {**wrong, "port": provider.dovecot.ports[wrong["port"]]}
    test = test_imap(connect(provider, **wrong))
    (failed,) = [taken for taken in test.steps if taken.status == "fail"]
    assert failed.id == step and advice in failed.advice and advice in test.advice


@pytest.mark.parametrize(
    ("door", "security", "step", "advice"),
    [
        ("expired", "starttls", "tls", "must renew it"),
        ("wrong_host", "starttls", "tls", "one of the names"),
        ("self_signed", "starttls", "tls", "SSL_CERT_FILE"),
        ("implicit", "starttls", "banner", "set security to SSL/TLS"),
        ("starttls", "ssl", "tls", "set security to STARTTLS"),
        ("plain", "starttls", "starttls", "SSL on port 465"),
    ],
)
def test_wrong_settings_for_sending_end_at_their_step(
    provider: Provider, door: str, security: str, step: str, advice: str
) -> None:
    connect(provider)
    changes = {"port": provider.postfix.ports[door], "security": security}
    login = {"username": ANNA, "password": PASSWORD}
    account = apply_account({"address": ANNA, "smtp": {"host": "localhost", **changes, **login}})
    test = test_smtp(account)
    (failed,) = [taken for taken in test.steps if taken.status == "fail"]
    assert failed.id == step and advice in test.advice, test
    assert "pässwörd" not in json.dumps(test.as_document(), ensure_ascii=False)


@pytest.mark.parametrize("certificate", ["expired", "wrong_host", "self_signed"])
def test_a_bad_certificate_of_a_real_mailbox_server_is_told(
    provider: Provider, authority: ThrowAwayAuthority, certificate: str, settings: Any
) -> None:
    made = getattr(authority, f"{certificate}_certificate")()
    with RealDovecot(made, {ANNA: PASSWORD}) as dovecot:
        settings.BYO_EMAIL_ALLOWED_PORTS = {*settings.BYO_EMAIL_ALLOWED_PORTS, *dovecot.ports.values()}
        test = test_imap(connect(provider, port=dovecot.ports["implicit"]))
    (failed,) = [taken for taken in test.steps if taken.status == "fail"]
    assert failed.id == "tls" and failed.facts["names"] and "certificate" in test.advice
