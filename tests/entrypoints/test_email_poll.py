"""`email_poll`, and the acts that ask for a poll: what they say, and how they end what a mailbox waits on."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgent, PersistentAgentCommsEndpoint
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from tests.conftest import PASSWORD, RecordingDoorbell
from tests.entrypoints.commands import run
from tests.services.polling import AGENT, inbox, is_friend, mail, mailbox, receiving

pytestmark = pytest.mark.django_db


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={AGENT: PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port}
        yield started


@pytest.fixture
def account(
    endpoint: PersistentAgentCommsEndpoint, server: ScriptedImapServer, doorbell: RecordingDoorbell
) -> AgentEmailAccount:
    PersistentAgent.objects.update(whitelist_policy="manual")
    is_friend(endpoint)
    return receiving(endpoint, server.port)


def test_a_mailbox_that_nobody_scheduled_is_polled_by_hand(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    first = run("email_poll", AGENT)
    assert first.code == 0 and "first poll" in first.out, first
    inbox(server).extend([mail(1), mail(2, sender="stranger@else.example")])
    second = run("email_poll", AGENT.upper())
    assert second.code == 0 and "2 new mails (1 received, 1 skipped)." in second.out, second
    assert "no new mails." in run("email_poll", AGENT).out


def test_the_document_says_what_was_found(account: AgentEmailAccount, server: ScriptedImapServer) -> None:
    run("email_poll", AGENT)
    inbox(server).append(mail(1))
    document = run("email_poll", AGENT, "--json").document
    assert document.pop("next_poll_at") is not None
    assert document == {
        "address": AGENT,
        "ok": True,
        "outcome": "read",
        "folder": "INBOX",
        "new": 1,
        "states": {"received": 1},
        "missing": 0,
        "has_more": False,
        "last_seen_uid": "v:1795292296:1",
        "text": "",
    }


def test_a_failure_ends_the_command_with_its_reason_and_without_the_password(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.users[AGENT] = "another"
    failed = run("email_poll", AGENT, "--json")
    assert failed.code == 1 and failed.document["outcome"] == "held"
    assert "AUTHENTICATIONFAILED" in failed.document["error"]["reason"] and "password" in failed.error
    assert PASSWORD not in failed.out + failed.error
    server.users[AGENT] = PASSWORD
    assert run("email_poll", AGENT).code == 0
    assert mailbox(account).hold_code == ""


def test_what_cannot_be_polled_says_why(account: AgentEmailAccount, settings: Any) -> None:
    unknown = run("email_poll", "nobody@sender.example")
    assert unknown.code == 1 and "no account" in unknown.error
    settings.BYO_EMAIL_ENABLED = False
    assert "BYO_EMAIL_ENABLED" in run("email_poll", AGENT).error
    settings.BYO_EMAIL_ENABLED = True
    AgentEmailAccount.objects.update(is_inbound_enabled=False)
    off = run("email_poll", AGENT)
    assert off.code == 1 and "switched off" in off.error


def test_a_mailbox_that_a_worker_reads_is_left_to_it(account: AgentEmailAccount) -> None:
    later = timezone.now() + timedelta(minutes=1)
    Mailbox.objects.create(account=account, lease_until=later)
    busy = run("email_poll", AGENT)
    assert busy.code == 1 and "ask again" in busy.error


# Asked for on pages


def held(account: AgentEmailAccount) -> None:
    Mailbox.objects.create(account=account, hold_code="auth_needed", hold_reason="No.", failures=3)


def is_due(account: AgentEmailAccount) -> bool:
    row = mailbox(account)
    return row.hold_code == "" and row.due_at is not None and row.due_at <= timezone.now()


def test_poll_now_in_the_admin_ends_a_hold(account: AgentEmailAccount, admin_user: User) -> None:
    held(account)
    staff = Client()
    staff.force_login(admin_user)
    url = reverse("admin:gobii_email_persistentagentcommsendpoint_poll", args=[account.pk])
    assert "Poll now" in staff.get(url).content.decode() and not is_due(account)
    answer = staff.post(url, follow=True)
    assert "as soon as a worker is free" in answer.content.decode() and is_due(account)
    selected = {"action": "poll_selected", "_selected_action": [str(account.pk)], "confirmed": "yes"}
    Mailbox.objects.update(hold_code="auth_needed")
    staff.post(reverse("admin:gobii_email_agentemailaccount_changelist"), selected)
    assert is_due(account)


def test_poll_now_in_the_console_ends_a_hold_and_shows_it_before(account: AgentEmailAccount) -> None:
    held(account)
    owner = User.objects.create_user("ada", "ada@people.example", "x")
    PersistentAgent.objects.update(user=owner)
    client = Client()
    client.force_login(owner)
    page, poll = (reverse(f"console:{name}", args=[account.pk]) for name in ("account", "account_poll"))
    assert "It is read again when a test succeeds" in client.get(page).content.decode()
    assert client.get(poll).status_code == 405
    answer = client.post(poll, follow=True)
    assert "as soon as a worker is free" in answer.content.decode() and is_due(account)
    AgentEmailAccount.objects.update(is_inbound_enabled=False)
    assert client.post(poll).status_code == 422


def test_nobody_polls_the_mailbox_of_somebody_else(account: AgentEmailAccount) -> None:
    client = Client()
    client.force_login(User.objects.create_user("bob", "bob@people.example", "x"))
    assert client.post(reverse("console:account_poll", args=[account.pk])).status_code == 404
    assert not Mailbox.objects.exists()
