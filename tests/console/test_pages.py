"""Every page: well-formed and labelled, small, strict about what it loads, and without a secret."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    ConnectionTest,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from tests.conftest import PASSWORD
from tests.console.conftest import Owner, paths
from tests.console.lint import problems

pytestmark = pytest.mark.django_db
NAMES = [
    *("overview", "messages", "message", "text", "html", "headers", "raw"),
    *("accounts", "account", "delete", "simulation"),
]
MOST_BYTES = 150_000
MOST_QUERIES = 12


@pytest.fixture
def full(ada: Owner, doubtful: PersistentAgentMessage, tested: ConnectionTest) -> Owner:
    """Ada with something of everything."""
    for number in range(3):
        ada.message(f"Number {number}", to=["a@outside.example", "b@outside.example", "c@outside.example"])
    statuses = [MessageStatus.SENT, MessageStatus.FAILED]
    for status, message in zip(
        statuses, PersistentAgentMessage.objects.exclude(pk=doubtful.pk), strict=False
    ):
        PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status=status)
    OutboundMessageAttempt.objects.filter(message=doubtful).update(
        stage_ms={"connect": 12, "tls": 30, "dot": 5}, started_at=timezone.now(), tls="TLSv1.3"
    )
    AgentEmailAccount.objects.update(
        smtp_error="It answered 421.", state="limited", state_reason="Too fast.",
        state_until=timezone.now() + timedelta(hours=1),
    )  # fmt: skip
    return ada


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_used_by_everybody(name: str, full: Owner, doubtful: PersistentAgentMessage) -> None:
    response = full.client.get(paths(full, doubtful)[name])
    assert response.status_code == 200
    assert problems(response.content.decode()) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_page_can_be_used_by_everybody(name: str, ada: Owner) -> None:
    message = ada.message()
    addresses = paths(ada, message)
    if name not in {"message", "text", "html", "headers", "raw"}:
        PersistentAgentMessage.objects.all().delete()
    assert problems(ada.client.get(addresses[name]).content.decode()) == []


@pytest.mark.parametrize("name", ["login", "add"])
def test_a_form_alone_can_be_used_by_everybody(name: str, ada: Owner) -> None:
    client = Client() if name == "login" else ada.client
    assert problems(client.get(reverse(f"console:{name}")).content.decode()) == []


def test_a_refusal_can_be_used_by_everybody(ada: Owner, bob: Owner) -> None:
    response = ada.client.get(reverse("console:account", args=[bob.account.pk]))
    assert response.status_code == 404
    assert problems(response.content.decode()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_nothing_but_our_own_files(
    name: str, full: Owner, doubtful: PersistentAgentMessage
) -> None:
    policy = full.client.get(paths(full, doubtful)[name]).headers["Content-Security-Policy"]
    assert_strict(policy)


@pytest.mark.parametrize("path", ["/console/login/", "/admin/login/", "/console/no/such/page/"])
def test_pages_outside_a_session_are_as_strict(path: str, db: None) -> None:
    assert_strict(Client().get(path).headers["Content-Security-Policy"])


def assert_strict(policy: str) -> None:
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy


@pytest.mark.parametrize("name", NAMES)
def test_a_page_with_all_it_loads_is_small(name: str, full: Owner, doubtful: PersistentAgentMessage) -> None:
    for number in range(60):
        full.message(f"A subject of usual length, number {number}")
    html = full.client.get(paths(full, doubtful)[name]).content
    loaded = re.findall(r'(?:src|href)="/?static/([^"]+)"', html.decode())
    assert "console/console.css" in loaded
    size = len(html) + sum(Path(str(finders.find(file))).stat().st_size for file in set(loaded))
    assert size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("who", ["owner", "staff"])
def test_a_page_asks_a_few_questions_whatever_there_is(
    name: str, who: str, full: Owner, doubtful: PersistentAgentMessage, staff: Client
) -> None:
    client = full.client if who == "owner" else staff
    address = paths(full, doubtful)[name]
    client.get(address)  # content types are looked up once a process
    before = queries(client, address)
    for number in range(20):
        full.message(f"One more {number}", to=["x@outside.example", "y@outside.example"])
        endpoint = PersistentAgentCommsEndpoint.objects.create(
            owner_agent=full.agent, channel="email", address=f"more-{number}@sender.example"
        )
        AgentEmailAccount.objects.create(endpoint=endpoint, smtp_error="It answered 421.")
    after = queries(client, address)
    assert len(after) == len(before) <= MOST_QUERIES, "\n".join(after)


def queries(client: Client, address: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(address).status_code == 200
    return [
        query["sql"]
        for query in captured
        if not query["sql"].startswith(("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_page_shows_a_secret(
    name: str, full: Owner, doubtful: PersistentAgentMessage, staff: Client
) -> None:
    account = full.account
    account.set_imap_password("imap-" + PASSWORD)
    account.save()
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    credential.set_access_token("ya29.access-Canary")
    credential.set_refresh_token("1//refresh-Canary")
    credential.save()
    for client in (full.client, staff):
        page = client.get(paths(full, doubtful)[name]).content.decode()
        for secret in (PASSWORD, "Canary", bytes(account.smtp_password_encrypted or b"").hex()[:24]):
            assert secret not in page


def test_what_others_wrote_is_shown_as_text(ada: Owner) -> None:
    message = ada.message("<script>alert(1)</script>", body="<p>Hello</p>")
    OutboundMessageAttempt.objects.filter(message=message).update(
        error_message="550 <img src=x onerror=alert(1)>", status="failed", due_at=None
    )
    PersistentAgentMessage.objects.filter(pk=message.pk).update(
        latest_status="failed", latest_error_message="550 <img src=x onerror=alert(1)>"
    )
    for path in paths(ada, message).values():
        page = ada.client.get(path).content.decode()
        assert "<script>alert" not in page and "<img src=x" not in page


@pytest.fixture
def html_of(ada: Owner) -> Any:
    def read(body: str, **values: Any) -> tuple[str, str]:
        message = ada.message(body=body, **values)
        response = ada.client.get(reverse("console:message_html", args=[message.pk]))
        return response.content.decode(), response.headers["Content-Security-Policy"]

    return read


def test_a_mails_html_can_do_nothing(html_of: Any) -> None:
    html, policy = html_of(
        "<p style='color:red'>Hi</p><script>x</script>"
        "<form action='https://evil.example'><input name=a></form>"
        "<iframe src='https://evil.example'></iframe><img src='https://track.example/p.gif' alt='Logo'>"
        "<a href='javascript:x'>a</a><p style=\"background:url('https://track.example/q')\">b</p>"
        "<meta http-equiv=refresh content='0;url=https://evil.example'><base href='https://evil.example'>"
    )
    assert policy.startswith("sandbox; default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "frame-ancestors 'self'" in policy
    body = html.partition("<body>")[2]
    assert "Hi" in body and 'alt="Logo"' in body
    for bad in ("<script", "<form", "<iframe", "<meta", "<base", 'src="http', "track.example", "style="):
        assert bad not in body


def test_the_frame_of_a_mail_may_only_stand_on_our_own_page(ada: Owner) -> None:
    message = ada.message()
    response = ada.client.get(reverse("console:message_html", args=[message.pk]))
    assert response.headers["X-Frame-Options"] == "SAMEORIGIN"
    page = ada.client.get(reverse("console:message", args=[message.pk]) + "?show=html").content.decode()
    assert f'sandbox="" src="{reverse("console:message_html", args=[message.pk])}"' in page
