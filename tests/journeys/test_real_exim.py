"""Mailboxes on an Exim, as hosting companies run it: connected by commands, tested, enabled, used.

Each thing that can be wrong with a server or a login is found at its step. What was entered as a secret is
then searched for in everything that commands, processes, Redis, the database and the pages hold.
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gobii_email.services.accounts import apply_account
from gobii_email.services.diagnose import test_smtp
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.exim import RealExim
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.stack import Stack, eventually
from tests.journeys.test_canary import READ_ADMIN, database_content, forms, redis_content

PASSWORD, WRONG = "kanárí-S3cret-Žluť-7391", "wrong-S3cret-8842"
TOKEN, STALE = "ya29.S3cret-token_of-toms/mailbox+1", "ya29.S3cret-of-yesterday"
ANNA, OTTO, TOM = "anna@mail.example", "otto@mail.example", "tom@mail.example"
FAULTY = "faulty@mail.example"

READ_CONSOLE = """
from django.contrib.auth.models import User
from django.test import Client
from gobii_email.models import AgentEmailAccount, PersistentAgentMessage
client = Client(HTTP_HOST="127.0.0.1")
client.force_login(User.objects.create_superuser("reader"))
pages = ["/console/", "/console/messages/", "/console/accounts/"]
pages += [f"/console/accounts/{account.pk}/" for account in AgentEmailAccount.objects.all()]
pages += [f"/console/messages/{message.pk}/" for message in PersistentAgentMessage.objects.all()]
for page in pages:
    answer = client.get(page, follow=True)
    print(page, answer.status_code)
    print(answer.content.decode())
"""


def document(exim: RealExim, address: str, door: str, security: str, auth: str, **others: Any) -> Any:
    server = {"host": "localhost", "port": exim.ports[door], "security": security, "auth": auth}
    return {"agent": address, "address": address, **others, "smtp": server | others.get("smtp", {})}


@dataclass
class Plant:
    """The service beside an Exim, and all that its commands have said."""

    stack: Stack
    exim: RealExim
    said: list[str] = field(default_factory=list)

    def apply(self, address: str, door: str, security: str, auth: str, **others: Any) -> None:
        given = json.dumps(document(self.exim, address, door, security, auth, **others))
        answer = self._command("apply", "-", input=given)
        assert answer.returncode == 0, answer.stderr

    def test(self, address: str) -> dict[str, Any]:
        answer = self._command("test", address, "--json")
        tested: dict[str, Any] = json.loads(answer.stdout)
        assert answer.returncode == (0 if tested["ok"] else 1)
        return tested

    def enable(self, address: str) -> "subprocess.CompletedProcess[str]":
        return self._command("enable", address, "--outbound")

    def send(self, address: str) -> dict[str, Any]:
        words = [
            "--to",
            "bob@mail.example",
            "--subject",
            "Grüße",
            "--body",
            "Hello",
            "--wait",
            "120",
            "--json",
        ]
        answer = self.stack.manage("email_send", "--from", address, *words)
        self.said += [answer.stdout, answer.stderr]
        assert answer.returncode == 0, answer.stdout + answer.stderr
        message: dict[str, Any] = json.loads(answer.stdout)
        return message

    def _command(self, *arguments: str, input: str | None = None) -> "subprocess.CompletedProcess[str]":
        answer = self.stack.manage("email_account", *arguments, input=input)
        self.said += [answer.stdout, answer.stderr]
        return answer


@pytest.fixture(scope="module")
def exim(authority: ThrowAwayAuthority) -> Iterator[RealExim]:
    users = dict.fromkeys((ANNA, OTTO, FAULTY), PASSWORD)
    try:
        with RealExim(authority, users, {TOM: TOKEN}, mailboxes=["bob@mail.example"]) as server:
            yield server
    except ServerUnavailable as problem:
        pytest.skip(f"REAL EXIM IS NOT TESTED HERE: {problem}")


@pytest.fixture(scope="module")
def plant(
    exim: RealExim, authority: ThrowAwayAuthority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Plant]:
    env = {
        "SSL_CERT_FILE": str(authority.ca_file),
        "BYO_EMAIL_ALLOWED_PORTS": ",".join(map(str, exim.ports.values())),
    }
    with Stack(tmp_path_factory.mktemp("exim"), env=env) as stack:
        stack.start_worker()
        stack.start_dispatcher()
        yield Plant(stack, exim)


def login(password: str = PASSWORD) -> dict[str, str]:
    return {"password": password}


def oauth(token: str = TOKEN) -> dict[str, str]:
    return {"provider": "google", "access_token": token, "expires_at": "2099-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("address", "door", "security", "auth", "secret", "logged_in"),
    [
        (ANNA, "starttls", "starttls", "plain", {"smtp": login()}, "A=plain"),
        (OTTO, "implicit", "ssl", "login", {"smtp": login()}, "A=login"),
        (TOM, "starttls", "starttls", "oauth2", {"oauth": oauth()}, "A=xoauth2"),
    ],
    ids=["STARTTLS and PLAIN", "TLS and LOGIN", "XOAUTH2"],
)
def test_a_mailbox_is_connected_tested_enabled_and_used(
    plant: Plant, address: str, door: str, security: str, auth: str, secret: dict[str, Any], logged_in: str
) -> None:
    plant.apply(address, door, security, auth, **secret)
    tested = plant.test(address)
    assert tested["ok"], tested
    enabled = plant.enable(address)
    assert enabled.returncode == 0, enabled.stderr

    message = plant.send(address)

    assert message["status"] == "sent"
    wanted = f"Message-ID: {message['rfc_message_id']}".encode()
    (mail,) = eventually(lambda: [mail for mail in plant.exim.mailbox("bob@mail.example") if wanted in mail])
    queue_id = message["attempts"][0]["provider_message_id"]
    assert f"id {queue_id}".encode() in mail
    assert f"{queue_id} <= {address}" in plant.exim.log and f"{logged_in}:{address}" in plant.exim.log


@pytest.mark.parametrize(
    ("auth", "secret", "advice"),
    [
        ("plain", {"smtp": login(WRONG)}, "user name or password"),
        ("oauth2", {"oauth": oauth(STALE)}, "Connect the account again"),
    ],
    ids=["password", "token"],
)
def test_what_failed_its_test_cannot_be_enabled(
    plant: Plant, auth: str, secret: dict[str, Any], advice: str
) -> None:
    plant.apply(FAULTY, "starttls", "starttls", auth, **secret)
    tested = plant.test(FAULTY)
    assert not tested["ok"] and advice in tested["advice"]
    answer = plant.enable(FAULTY)
    assert answer.returncode == 1 and "it has to succeed" in answer.stderr


def test_no_secret_is_left_anywhere(plant: Plant) -> None:
    """Comes after those that used the secrets in real processes."""
    assert "faulty@mail.example" in "".join(plant.said)
    places = {
        "commands": "".join(plant.said).encode(),
        "redis": redis_content(plant.stack.valkey.url),
        "database": database_content(plant.stack.directory / "stack.sqlite3"),
        "admin": plant.stack.python(READ_ADMIN).encode(),
        "console": plant.stack.python(READ_CONSOLE).encode(),
        **{process.name: process.log.read_bytes() for process in plant.stack.processes},
    }
    assert all(places.values()), "a place that was searched is empty"
    assert b"/ 404\n" not in places["console"]
    found = {
        (name, secret[:6])
        for name, content in places.items()
        for secret in (PASSWORD, WRONG, TOKEN, STALE)
        if any(form in content for form in forms(secret))
    }
    assert found == set()


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("door", "security", "auth", "secret", "step", "advice"),
    [
        ("starttls", "starttls", "plain", {"smtp": login(WRONG)}, "auth", "user name or password"),
        ("implicit", "ssl", "login", {"smtp": login(WRONG)}, "auth", "user name or password"),
        ("starttls", "starttls", "oauth2", {"oauth": oauth(STALE)}, "auth", "Connect the account again"),
        ("expired", "starttls", "plain", {"smtp": login()}, "tls", "must renew it"),
        ("wrong_host", "starttls", "plain", {"smtp": login()}, "tls", "one of the names"),
        ("self_signed", "starttls", "plain", {"smtp": login()}, "tls", "SSL_CERT_FILE"),
        ("clear", "starttls", "plain", {"smtp": login()}, "starttls", "SSL on port 465"),
        ("starttls", "ssl", "plain", {"smtp": login()}, "tls", "set security to STARTTLS"),
        ("implicit", "starttls", "plain", {"smtp": login()}, "banner", "set security to SSL/TLS"),
        ("starttls", "none", "none", {}, "rcpt", "sign-in"),
        (
            "starttls",
            "starttls",
            "plain",
            {"smtp": login() | {"username": ANNA}},
            "mail",
            "does not let this login send with this From address",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_what_is_wrong_is_told_at_its_step(
    exim: RealExim,
    settings: Any,
    door: str,
    security: str,
    auth: str,
    secret: dict[str, Any],
    step: str,
    advice: str,
) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = set(exim.ports.values())
    account = apply_account(document(exim, FAULTY, door, security, auth, **secret))

    tested = test_smtp(account)

    assert not tested.ok
    (failed,) = [taken for taken in tested.steps if taken.status == "fail"]
    assert failed.id == step, tested
    assert advice in failed.advice and advice in tested.advice, tested
    assert "S3cret" not in str(tested.as_document())
