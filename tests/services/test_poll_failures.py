"""What failures of a poll lead to, by their cause: a hold with advice, or a backoff that grows."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, Mailbox
from gobii_email.models.agents import PersistentAgentCommsEndpoint
from gobii_email.services import fetch, poll
from gobii_email.services.accounts import edit_account, enable, save_account
from gobii_email.services.diagnose import test_imap
from gobii_email.services.poll import Visit, poll_now, schedule, visit
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from tests.conftest import PASSWORD
from tests.services.polling import AGENT, inbox, mail, mailbox, make_due, receiving

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("doorbell")]


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={AGENT: PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port}
        yield started


@pytest.fixture
def account(endpoint: PersistentAgentCommsEndpoint, server: ScriptedImapServer) -> AgentEmailAccount:
    made = receiving(endpoint, server.port)
    schedule(made)
    assert visit(made.pk).outcome == "baseline"
    return made


def fresh(account: AgentEmailAccount) -> AgentEmailAccount:
    return AgentEmailAccount.objects.get(pk=account.pk)


def due_poll(account: AgentEmailAccount) -> Visit:
    """As a worker would make it when its time has come."""
    make_due(account)
    return visit(account.pk, owner="test")


def minutes_of_backoff(account: AgentEmailAccount) -> float:
    until = fresh(account).backoff_until
    assert until is not None
    return (until - timezone.now()) / timedelta(minutes=1)


# Server trouble


def test_backoff_grows_with_failures_in_a_row_and_a_success_clears_it(
    account: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll.random, "random", lambda: 0.5)
    server.faults.answers["EXAMINE"] = b"TAG NO [UNAVAILABLE] backend is down\r\n"
    for expected in (2, 4, 8, 16, 32, 60, 60):
        assert due_poll(account).outcome == "failed"
        assert minutes_of_backoff(account) == pytest.approx(expected, abs=0.1)
        look_at = mailbox(account).look_at
        assert look_at is not None and look_at == fresh(account).backoff_until
        assert visit(account.pk).outcome == "not due", "nobody polls before the backoff is over"
    failed = fresh(account)
    assert "UNAVAILABLE" in failed.imap_error and failed.is_inbound_enabled
    server.faults.answers.clear()
    assert due_poll(account).outcome == "read"
    well = fresh(account)
    assert (well.backoff_until, well.imap_error, mailbox(account).failures) == (None, "", 0)
    assert well.imap_last_ok_at == well.last_polled_at != failed.last_polled_at


def test_one_hiccup_disables_nothing(account: AgentEmailAccount, server: ScriptedImapServer) -> None:
    server.faults.drops = {"EXAMINE"}
    assert due_poll(account).outcome == "failed"
    assert mailbox(account).hold_code == ""
    server.faults.drops = set()
    assert due_poll(account).outcome == "read"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"* BYE shutting down\r\n", "BYE"),
        (b"TAG NO [INUSE] locked\r\n", "INUSE"),
        (b"* 1 EXISTS\r\n" * 200_000, "more than an answer may hold"),
        (b"* OK [UIDVALIDITY x]\r\n(((\r\n", "not IMAP"),
    ],
    ids=["bye", "in use", "flood", "nonsense"],
)
def test_a_server_in_trouble_is_left_alone_and_the_reason_kept(
    account: AgentEmailAccount, server: ScriptedImapServer, said: bytes, error: str
) -> None:
    server.faults.answers["EXAMINE"] = said
    failed = due_poll(account)
    assert failed.outcome == "failed" and error in failed.text == fresh(account).imap_error


def test_a_mistake_of_ours_backs_off_as_well_and_is_told(
    account: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise RuntimeError("bug")

    inbox(server).append(mail(1))
    monkeypatch.setattr(fetch, "wanted", crash)
    make_due(account)
    with pytest.raises(RuntimeError):
        visit(account.pk)
    assert minutes_of_backoff(account) > 1 and mailbox(account).lease_token is None


# What waits for a person


def test_a_refused_login_holds_the_mailbox_with_advice(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.users[AGENT] = "changed at the provider"
    held = due_poll(account)
    assert held.outcome == "held" and "password" in held.text
    row = mailbox(account)
    assert row.hold_code == "auth_needed" and row.hold_reason == held.text
    logins = len(server.logins)
    assert due_poll(account).outcome == "not due" and len(server.logins) == logins
    assert PASSWORD not in row.hold_reason + fresh(account).imap_error


@pytest.mark.parametrize("way", ["poll now", "test", "password"])
def test_a_hold_ends_when_somebody_acts(
    account: AgentEmailAccount, server: ScriptedImapServer, way: str
) -> None:
    server.users[AGENT] = "changed at the provider"
    assert due_poll(account).outcome == "held"
    account.refresh_from_db()
    if way == "password":
        save_account(account, edit_account(account, {}, imap_password=Secret("changed at the provider")))
        assert not fresh(account).is_inbound_enabled and mailbox(account).due_at is None
        assert test_imap(fresh(account)).ok
        enable(fresh(account), inbound=True)
    else:
        server.users[AGENT] = PASSWORD
        assert poll_now(account) if way == "poll now" else test_imap(account).ok
    row = mailbox(account)
    assert row.hold_code == "" and row.due_at is not None and row.due_at <= timezone.now()
    assert visit(account.pk).outcome == "read"
    assert fresh(account).imap_error == ""


def test_a_missing_folder_holds_the_mailbox_until_its_settings_are_mended(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    del server.folders["INBOX"]
    held = due_poll(account)
    assert held.outcome == "held" and "Choose a folder" in held.text
    assert mailbox(account).hold_code == "config_needed"


def test_a_folder_that_is_refused_without_a_reason_is_believed_missing_at_the_third_time(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.faults.answers["EXAMINE"] = b"TAG NO try again\r\n"
    assert [due_poll(account).outcome for _ in range(3)] == ["failed", "failed", "held"]


def test_an_unreadable_secret_holds_the_mailbox(account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.update(imap_password_encrypted=b"damaged")
    assert due_poll(account).outcome == "held"
    assert mailbox(account).hold_code == "auth_needed"


def test_polling_by_hand_does_not_mind_a_hold(account: AgentEmailAccount) -> None:
    Mailbox.objects.update(hold_code="auth_needed", failures=4)
    assert visit(account.pk, is_asked_for=True).outcome == "read"
    assert mailbox(account).hold_code == ""


# Tokens


@pytest.fixture
def by_token(
    endpoint: PersistentAgentCommsEndpoint, server: ScriptedImapServer
) -> Iterator[AgentEmailAccount]:
    made = receiving(endpoint, server.port)
    credential = AgentEmailOAuthCredential(account=made, provider="google")
    credential.set_access_token("token-1")
    credential.save()
    made.imap_auth = "oauth2"
    made.imap_tested_fingerprint = made.imap_fingerprint()
    made.save()
    schedule(made)
    server.users[AGENT] = "token-1"
    assert visit(made.pk).outcome == "baseline"
    yield made


def test_a_mailbox_is_read_with_its_access_token(
    by_token: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    assert due_poll(by_token).outcome == "read"
    assert server.logins[-1] == (AGENT, "XOAUTH2", True)


def test_a_refused_token_is_renewed_once(
    by_token: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.users[AGENT] = "token-2"

    def renew(account: AgentEmailAccount, refused: Secret) -> Secret:
        account.oauth_credential.set_access_token("token-2")
        return Secret("token-2")

    monkeypatch.setattr(poll, "renewed_token", renew)
    assert due_poll(by_token).outcome == "read"
    assert [is_ok for *_, is_ok in server.logins[-2:]] == [False, True]


def test_a_refused_token_that_cannot_be_renewed_holds_the_mailbox(
    by_token: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.users[AGENT] = "token-2"
    held = due_poll(by_token)
    assert held.outcome == "held" and "Connect the account again" in held.text
    assert mailbox(by_token).hold_code == "auth_needed"


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (ReconnectNeeded("Sign in again."), "held"),
        (TokenUnavailable("The provider is away.", timezone.now()), "failed"),
    ],
    ids=["grant over", "provider away"],
)
def test_no_token_means_no_login(
    by_token: AgentEmailAccount,
    server: ScriptedImapServer,
    monkeypatch: pytest.MonkeyPatch,
    problem: Exception,
    outcome: str,
) -> None:
    def none(account: AgentEmailAccount) -> None:
        raise problem

    monkeypatch.setattr(poll, "access_token", none)
    before = server.connections
    assert due_poll(by_token).outcome == outcome
    assert server.connections == before


# Switches


def test_the_flag_off_stops_polling_before_the_next_poll(
    account: AgentEmailAccount, server: ScriptedImapServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ENABLED = False
    before = server.connections
    assert due_poll(account).outcome == "off" == visit(account.pk, is_asked_for=True).outcome
    assert server.connections == before
    settings.BYO_EMAIL_ENABLED = True
    assert due_poll(account).outcome == "read"


def test_a_mailbox_outside_the_rollout_is_not_read(
    account: AgentEmailAccount, server: ScriptedImapServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ROLLOUT = "somebody@else.example"
    assert due_poll(account).outcome == "off"
    look_at = mailbox(account).look_at
    assert look_at is not None and look_at > timezone.now() + timedelta(minutes=4)


def test_settings_for_receiving_are_ignored_while_it_is_off(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    AgentEmailAccount.objects.update(is_inbound_enabled=False)
    before = server.connections
    assert due_poll(account).outcome == "off" and server.connections == before
    assert mailbox(account).due_at is None
    assert not poll_now(fresh(account))
