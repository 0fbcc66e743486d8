"""Adding a mailbox: what is found is shown, what is stored is tested, and nobody takes another's."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connections
from django.test import Client
from django.urls import reverse

from gobii_email import wiring
from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount, ConnectionTest, PersistentAgent
from gobii_email.services import diagnose
from gobii_email.services.discover import discover
from gobii_email.testing.dns_server import StubDnsServer
from gobii_email.testing.oauth_server import LocalOAuthProvider
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import eventually
from tests.conftest import PASSWORD
from tests.console.conftest import Owner
from tests.console.lint import problems

pytestmark = pytest.mark.django_db
ADD = "/console/accounts/add/"
FOUND = ADD + "found/"


@pytest.fixture(autouse=True)
def dns(settings: Any) -> Iterator[StubDnsServer]:
    """A name server that knows nothing yet."""
    with StubDnsServer() as server:
        settings.GOBII_DNS_SERVERS = "{}:{}".format(*server.address)
        settings.BYO_EMAIL_ALLOWED_PORTS = "465,587,993,143"
        yield server


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The tests that were begun, by address and protocol; none is run."""
    tests: list[tuple[str, str]] = []

    def note(account: AgentEmailAccount, protocol: str, asked_by: str) -> None:
        tests.append((account.endpoint.address, protocol))

    monkeypatch.setattr(diagnose, "start_test", note)
    return tests


def who(owner: Owner, address: str, **others: str) -> dict[str, str]:
    return {"address": address, "agent": str(owner.agent.pk), "name": "", **others}


def typed(**others: str) -> dict[str, str]:
    servers = {"smtp_host": "smtp.shop.example", "smtp_port": "465", "smtp_security": "ssl"}
    return (
        servers | {"username": "ada", "password": PASSWORD, "imap_host": "", "imap_security": "ssl"} | others
    )


# Finding


def test_a_known_provider_is_shown_with_its_own_advice(ada: Owner) -> None:
    start = ada.client.get(ADD, who(ada, "ada@gmail.com"))
    page = ada.client.get(start.url).content.decode()
    assert "Gmail" in page and "app password" in page and "smtp.gmail.com" in page
    assert "known provider" in page and "help pages, then tick" not in page
    assert problems(page) == []


def test_what_a_domain_says_of_itself_has_to_be_confirmed(
    ada: Owner, dns: StubDnsServer, begun: list[tuple[str, str]]
) -> None:
    dns.records["_submissions._tcp.shop.example"] = {"SRV": ["0 0 465 smtp.shop.example."]}
    dns.records["smtp.shop.example"] = {"A": ["93.184.216.34"]}
    page = ada.client.get(FOUND, who(ada, "ada@shop.example")).content.decode()
    assert "unconfirmed" in page and 'value="smtp.shop.example"' in page
    assert problems(page) == []
    response = ada.client.post(FOUND, who(ada, "ada@shop.example") | typed())
    assert response.status_code == 422 and "then tick this" in response.content.decode()
    assert PASSWORD not in response.content.decode()
    assert problems(response.content.decode()) == []
    assert begun == []


def test_a_user_name_that_the_address_does_not_tell_is_left_to_be_typed(ada: Owner, monkeypatch: Any) -> None:
    found = discover("ada@gmail.com")
    monkeypatch.setattr("gobii_email.console.connecting.discover", lambda _: replace(found, username=""))
    page = ada.client.get(FOUND, who(ada, "ada@gmail.com")).content.decode()
    field = page.partition('name="username"')[2].partition(">")[0]
    assert "value=" not in field and "here it is not the address" in page
    assert problems(page) == []


def test_where_nothing_is_found_the_servers_are_typed(ada: Owner, begun: list[tuple[str, str]]) -> None:
    page = ada.client.get(FOUND, who(ada, "ada@shop.example")).content.decode()
    assert "No servers found" in page and problems(page) == []
    response = ada.client.post(FOUND, who(ada, "ada@shop.example") | typed(is_trusted="on"))
    account = AgentEmailAccount.objects.get(endpoint__address="ada@shop.example")
    assert response.url == reverse("console:account", args=[account.pk]) + "#tests"
    assert account.endpoint.owner_agent == ada.agent
    assert account.get_smtp_password() == Secret(PASSWORD) and not account.is_outbound_enabled
    assert begun == [("ada@shop.example", "smtp")]
    assert [entry.get_change_message() for entry in LogEntry.objects.all()] == ["Added."]


def test_receiving_is_set_up_with_the_same_sign_in(ada: Owner, begun: list[tuple[str, str]]) -> None:
    given = typed(is_trusted="on", imap_host="imap.shop.example", imap_port="993")
    ada.client.post(FOUND, who(ada, "ada@shop.example") | given)
    account = AgentEmailAccount.objects.get(endpoint__address="ada@shop.example")
    assert (account.imap_host, account.imap_username) == ("imap.shop.example", "ada")
    assert account.get_imap_password() == Secret(PASSWORD)
    assert [protocol for _, protocol in begun] == ["smtp", "imap"]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("", "required"),
        ("no address", "address"),
        ("a@b@c", "address"),
        ("ada@shop.example\r\nBcc: x@y.z", "address"),
    ],
    ids=["empty", "words", "two at-signs", "two lines"],
)
def test_what_is_no_address_is_said_beside_it(address: str, sentence: str, ada: Owner) -> None:
    response = ada.client.get(ADD, who(ada, address))
    assert response.status_code == 422 and sentence in response.content.decode()
    assert problems(response.content.decode()) == []


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("smtp_host", "ho st", "It is not a host name."),
        ("smtp_port", "25", "That port is not open for mail here."),
        ("password", "", "This field is required."),
    ],
)
def test_what_cannot_be_right_is_said_beside_its_field(
    field: str, value: str, sentence: str, ada: Owner, begun: list[tuple[str, str]]
) -> None:
    given = typed(is_trusted="on") | {field: value}
    response = ada.client.post(FOUND, who(ada, "ada@shop.example") | given)
    page = response.content.decode()
    assert response.status_code == 422
    assert sentence in page.partition(f'name="{field}"')[2].partition('class="field"')[0]
    assert PASSWORD not in page and problems(page) == []
    assert begun == [] and AgentEmailAccount.objects.count() == 1


# Whose


def test_a_mailbox_that_is_there_is_changed_on_its_own_page(ada: Owner) -> None:
    response = ada.client.get(ADD, who(ada, ada.account.endpoint.address.upper()))
    assert response.url == reverse("console:account", args=[ada.account.pk])


def test_a_mailbox_that_is_there_is_not_overwritten(ada: Owner, begun: list[tuple[str, str]]) -> None:
    response = ada.client.post(FOUND, who(ada, ada.account.endpoint.address) | typed(is_trusted="on"))
    assert response.status_code == 422
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).smtp_host == "localhost" and begun == []


def test_nobody_takes_anothers_mailbox(ada: Owner, bob: Owner, begun: list[tuple[str, str]]) -> None:
    response = ada.client.post(FOUND, who(ada, "bob@sender.example") | typed(is_trusted="on"))
    assert response.status_code == 422
    account = AgentEmailAccount.objects.get(pk=bob.account.pk)
    assert account.smtp_host == "localhost" and account.endpoint.owner_agent == bob.agent and begun == []


def test_nobody_adds_to_anothers_agent(ada: Owner, bob: Owner, begun: list[tuple[str, str]]) -> None:
    given = who(ada, "new@shop.example", agent=str(bob.agent.pk))
    assert ada.client.get(ADD, given).status_code == 422
    assert ada.client.post(FOUND, given | typed(is_trusted="on")).status_code == 422
    assert begun == []


def test_staff_need_the_right_to_add_to_anothers_agent(
    ada: Owner, bob: Owner, begun: list[tuple[str, str]]
) -> None:
    looker = User.objects.create_user("looker", is_staff=True)
    client = Client()
    client.force_login(looker)
    given = who(ada, "new@shop.example") | typed(is_trusted="on")
    assert client.post(FOUND, given).status_code == 403
    looker.user_permissions.add(Permission.objects.get(codename="add_agentemailaccount"))
    assert client.post(FOUND, given).status_code == 302
    assert begun == [("new@shop.example", "smtp")]


def test_a_new_agent_is_its_makers(ada: Owner, begun: list[tuple[str, str]]) -> None:
    given = who(ada, "new@shop.example", agent="", name="Robin")
    ada.client.post(FOUND, given | typed(is_trusted="on"))
    assert PersistentAgent.objects.get(name="Robin").user == ada.user
    assert ada.client.get(ADD, given | {"name": " "}).status_code == 422


def test_a_new_agent_is_not_left_behind_without_its_mailbox(ada: Owner) -> None:
    given = who(ada, "new@shop.example", agent="", name="Robin")
    response = ada.client.post(FOUND, given | typed(is_trusted="on", smtp_port="25"))
    assert response.status_code == 422 and not PersistentAgent.objects.filter(name="Robin").exists()


# The test


@pytest.mark.django_db(transaction=True)
def test_a_mailbox_is_tested_in_the_background_and_enabled(
    ada: Owner, smtp_server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = str(smtp_server.port)
    server = {"smtp_host": "localhost", "smtp_port": str(smtp_server.port), "smtp_security": "starttls"}
    given = typed(is_trusted="on", username="agent@sender.example", **server)
    page = ada.client.post(FOUND, who(ada, "agent@sender.example") | given)
    account = AgentEmailAccount.objects.get(endpoint__address="agent@sender.example")
    test = eventually(
        lambda: ConnectionTest.objects.filter(account=account, finished_at__isnull=False).first()
    )
    assert test.is_ok and test.asked_by == "ada"
    html = ada.client.get(page.url).content.decode()
    assert "The server accepts mail from this account." in html and "Enable sending" in html
    assert problems(html) == [] and PASSWORD not in html
    assert 'hx-trigger="every' not in html, "nothing is waited for any more"
    address = reverse("console:account_switch", args=[account.pk])
    version = html.partition('name="version" value="')[2].partition('"')[0]
    ada.client.post(address, {"direction": "outbound", "to": "on", "version": version})
    assert AgentEmailAccount.objects.get(pk=account.pk).is_outbound_enabled
    connections.close_all()


def test_a_test_under_way_is_asked_for_again_and_again(ada: Owner) -> None:
    from django.utils import timezone

    row = ConnectionTest.objects.create(account=ada.account, protocol="smtp", started_at=timezone.now())
    address = reverse("console:account", args=[ada.account.pk])
    assert 'id="tests" hx-get' in ada.client.get(address).content.decode()
    row.started_at -= diagnose.LONGEST
    row.save()
    page = ada.client.get(address).content.decode()
    assert 'id="tests" hx-get' not in page and "interrupted before it ended" in page


def test_a_mailbox_that_is_not_in_use_says_so_and_what_to_do(ada: Owner, tested: ConnectionTest) -> None:
    address = reverse("console:account", args=[ada.account.pk])
    assert "not in use" not in ada.client.get(address).content.decode()
    AgentEmailAccount.objects.update(is_outbound_enabled=False, smtp_tested_fingerprint="")
    page = ada.client.get(address).content.decode()
    assert "not in use" in page and "Test it, then enable it." in page
    assert 'href="#settings-title"' in page, "the latest test failed"
    assert problems(page) == []


def test_changed_servers_are_to_be_tested(ada: Owner) -> None:
    page = ada.client.get(reverse("console:account", args=[ada.account.pk]))
    values = {field.html_name: field.value() or "" for field in page.context["settings"]}
    values |= {"smtp_host": "mail.other.example", "smtp_port": "587", "smtp_password": PASSWORD}
    saved = ada.client.post(reverse("console:account_save", args=[ada.account.pk]), values, follow=True)
    said = [str(notice) for notice in saved.context["messages"]]
    assert saved.status_code == 200 and said[0].endswith("Test it now."), said


def test_where_nobody_can_sign_in_a_password_is_asked_for_in_so_many_words(ada: Owner) -> None:
    page = ada.client.get(FOUND, who(ada, "ada@gmail.com")).content.decode()
    assert "Signing in with Google is not set up here, so it takes a password." in page


def test_a_mail_to_itself_is_sent_where_it_was_asked_for(ada: Owner, monkeypatch: Any) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(diagnose, "start_test", lambda *_, sends_to_self: asked.append(sends_to_self))
    address = reverse("console:account_test", args=[ada.account.pk])
    ada.client.post(address, {"protocol": "smtp", "to_self": "on"})
    ada.client.post(address, {"protocol": "smtp"})
    assert asked == [True, False]
    page = ada.client.get(reverse("console:account", args=[ada.account.pk])).content.decode()
    assert page.count('name="to_self"') == 1 and problems(page) == []


def test_who_tests_too_often_is_told_when_the_next_may_be(ada: Owner, settings: Any) -> None:
    settings.GOBII_TESTS_PER_MINUTE = 0
    from django.utils import timezone

    ConnectionTest.objects.create(
        account=ada.account, protocol="smtp", started_at=timezone.now(), asked_by="ada"
    )
    settings.GOBII_TESTS_PER_MINUTE = 1
    response = ada.client.post(reverse("console:account_test", args=[ada.account.pk]), {"protocol": "smtp"})
    assert response.status_code == 429
    assert "the next may begin at" in response.content.decode()


# Signing in with the provider


@pytest.fixture
def google(settings: Any) -> Iterator[LocalOAuthProvider]:
    with LocalOAuthProvider(
        person={"email": "ada@gmail.com", "email_verified": True, "sub": "1"}
    ) as provider:
        for name, value in provider.settings("google").items():
            setattr(settings, name, value)
        wiring.token_issuers.cache_clear()
        yield provider
    wiring.token_issuers.cache_clear()


def sign_in(owner: Owner, provider: LocalOAuthProvider) -> dict[str, str]:
    """What the provider sends back with, for a new mailbox."""
    response = owner.client.post(ADD + "sign-in/", who(owner, "ada@gmail.com"))
    assert response.status_code == 302 and response.url.startswith(provider.url)
    return provider.sign_in(response.url)


CALLBACK = "/console/oauth/callback/"


def test_a_mailbox_is_connected_by_signing_in(
    ada: Owner, google: LocalOAuthProvider, begun: list[tuple[str, str]]
) -> None:
    page = ada.client.get(FOUND, who(ada, "ada@gmail.com"))
    assert "Sign in with Google" in page.content.decode() and problems(page.content.decode()) == []
    assert f"form-action 'self' {google.url};" in page.headers["Content-Security-Policy"] + ";"
    back = sign_in(ada, google)
    response = ada.client.get(CALLBACK, back)
    account = AgentEmailAccount.objects.get(endpoint__address="ada@gmail.com")
    assert response.url == reverse("console:account", args=[account.pk]) + "#tests"
    assert account.smtp_auth == "oauth2" and account.smtp_host == "smtp.gmail.com"
    assert ("ada@gmail.com", "smtp") in begun
    html = ada.client.get(response.url).content.decode()
    assert "Connected with Google" in html and "Reconnect with Google" in html and problems(html) == []
    for token in (*google.access_tokens, *google.refresh_tokens, back["code"], back["state"]):
        assert token not in html
    said = [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]
    assert said == ["Added.", "Sent to sign in with Google.", "Connected by signing in with its provider."]


def test_a_sign_in_is_good_once_and_for_who_began_it(
    ada: Owner, bob: Owner, google: LocalOAuthProvider, begun: list[tuple[str, str]]
) -> None:
    back = sign_in(ada, google)
    swapped = bob.client.get(CALLBACK, back)
    assert swapped.status_code == 400 and "begun by another user" in swapped.content.decode()
    assert ada.client.get(CALLBACK, back).status_code == 302
    replayed = ada.client.get(CALLBACK, back)
    assert replayed.status_code == 400 and "has been used already" in replayed.content.decode()
    assert problems(replayed.content.decode()) == []


def test_a_refusal_of_the_provider_is_told_in_a_sentence(ada: Owner, google: LocalOAuthProvider) -> None:
    back = sign_in(ada, google)
    response = ada.client.get(CALLBACK, {"state": back["state"], "error": "access_denied"})
    assert response.status_code == 400 and "nothing was connected" in response.content.decode()


@pytest.mark.parametrize("query", [{}, {"code": "x"}, {"state": "x"}])
def test_a_callback_without_its_parts_is_nothing(query: dict[str, str], ada: Owner) -> None:
    assert ada.client.get(CALLBACK, query).status_code == 404


def test_the_mailbox_of_another_person_is_not_connected(
    ada: Owner, google: LocalOAuthProvider, begun: list[tuple[str, str]]
) -> None:
    google.person["email"] = "mallory@gmail.com"
    response = ada.client.get(CALLBACK, sign_in(ada, google))
    assert response.status_code == 400 and "this mailbox is ada@gmail.com" in response.content.decode()
    assert begun == []


def test_a_sign_in_that_ran_out_of_session_goes_on_after_signing_in_here(
    ada: Owner, google: LocalOAuthProvider, begun: list[tuple[str, str]]
) -> None:
    back = sign_in(ada, google)
    login = Client().get(CALLBACK, back).url
    wanted = dict(parse_qsl(urlsplit(login).query))["next"]
    assert ada.client.get(wanted).status_code == 302


def test_a_mailbox_is_disconnected(
    ada: Owner, google: LocalOAuthProvider, begun: list[tuple[str, str]]
) -> None:
    ada.client.get(CALLBACK, sign_in(ada, google))
    account = AgentEmailAccount.objects.get(endpoint__address="ada@gmail.com")
    response = ada.client.post(reverse("console:account_disconnect", args=[account.pk]), follow=True)
    assert "disconnected" in response.content.decode()
    assert len(google.revoked) == 1


def test_without_a_client_at_the_provider_no_sign_in_is_offered(ada: Owner) -> None:
    page = ada.client.get(FOUND, who(ada, "ada@gmail.com")).content.decode()
    assert "Sign in with Google</button>" not in page
    response = ada.client.post(ADD + "sign-in/", who(ada, "ada@gmail.com"))
    assert response.status_code == 422 and "GOOGLE_CLIENT_ID" in response.content.decode()
    assert not AgentEmailAccount.objects.filter(endpoint__address="ada@gmail.com").exists()
