"""Test SMTP, against real servers on loopback: what it vouches for, and what it withdraws."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.api import send_agent_email
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt
from gobii_email.services import hold
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.deliver import deliver
from gobii_email.services.diagnose import UNREACHABLE_NAME, test_smtp
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import Faults, ScriptedSmtpServer

pytestmark = pytest.mark.django_db
PASSWORD = "pässwörd-S3cret"
ADDRESS = "anna@sender.example"


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(tls=authority.good(), users={"anna": PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port, 587}
        yield started


def account_at(server: ScriptedSmtpServer, **smtp: Any) -> AgentEmailAccount:
    document = {"host": "localhost", "port": server.port, "username": "anna", "password": PASSWORD} | smtp
    return apply_account({"agent": "Anna", "address": ADDRESS, "smtp": document})


def stored() -> AgentEmailAccount:
    return AgentEmailAccount.objects.get(endpoint__address=ADDRESS)


def test_a_passed_test_vouches_for_the_settings_and_sends_nothing(server: ScriptedSmtpServer) -> None:
    test = test_smtp(account_at(server))
    assert test.ok, test
    assert [step.id for step in test.steps] == [
        *("settings", "policy", "dns", "tcp", "banner", "ehlo", "starttls", "tls", "ehlo_again"),
        *("auth", "mail", "rcpt"),
    ]
    account = stored()
    assert account.is_smtp_tested and account.smtp_last_ok_at == account.connection_last_ok_at
    assert not account.smtp_error and server.messages == []
    assert enable(account, outbound=True).is_outbound_enabled


@pytest.mark.parametrize("state", ["auth_needed", "config_needed", "blocked"])
def test_a_passed_test_ends_a_hold_that_waited_for_the_owner(server: ScriptedSmtpServer, state: str) -> None:
    account = account_at(server)
    test_smtp(account)
    enable(account, outbound=True)
    attempt = waiting_attempt(account, state)
    AgentEmailAccount.objects.update(state=state, state_reason="no", smtp_error="no")
    assert test_smtp(account).ok
    assert stored().state == "active"
    attempt.refresh_from_db()
    assert attempt.held_code == "" and attempt.due_at is not None and attempt.due_at <= timezone.now()


def test_a_pause_by_a_person_outlives_a_passed_test(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    hold.pause(account, reason="stop")
    assert test_smtp(account).ok
    assert stored().state == "paused"


def waiting_attempt(account: AgentEmailAccount, code: str) -> OutboundMessageAttempt:
    message = send_agent_email(from_endpoint=ADDRESS, to="b@rcpt.example", subject="Hi", body="Hi")
    later = timezone.now() + timedelta(hours=5)
    OutboundMessageAttempt.objects.filter(message=message).update(
        held_code=code, held_reason="no", due_at=later
    )
    return OutboundMessageAttempt.objects.get(message=message)


def test_a_refused_password_is_told_with_advice_and_never_shown(server: ScriptedSmtpServer) -> None:
    test = test_smtp(account_at(server, password="wröng-S3cret"))
    assert not test.ok and "535" in test.text and "password" in test.advice
    account = stored()
    assert account.smtp_error == account.connection_error != ""
    assert "wröng" not in repr(test) + account.smtp_error
    assert not account.is_smtp_tested


def test_a_lasting_failure_of_an_enabled_mailbox_holds_its_mail_and_reroutes_none(
    server: ScriptedSmtpServer,
) -> None:
    account = account_at(server)
    test_smtp(account)
    enable(account, outbound=True)
    server.users["anna"] = "changed at the provider"
    test = test_smtp(account)
    assert not test.ok and "waits" in test.advice
    account = stored()
    assert (account.is_outbound_enabled, account.state) == (True, "auth_needed")
    message = send_agent_email(from_endpoint=ADDRESS, to="b@rcpt.example", subject="Hi", body="Hi")
    assert deliver(str(message.attempts.get().pk), owner="test") == "postponed"
    server.users["anna"] = PASSWORD
    assert test_smtp(account).ok
    assert deliver(str(message.attempts.get().pk), owner="test") == "sent"


def test_a_lasting_failure_of_a_mailbox_that_is_off_withdraws_the_former_test(
    server: ScriptedSmtpServer,
) -> None:
    account = account_at(server)
    test_smtp(account)
    server.users["anna"] = "changed at the provider"
    assert not test_smtp(account).ok
    assert stored().smtp_tested_fingerprint == ""


def test_a_passing_failure_is_noted_and_leaves_the_account_in_service(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    test_smtp(account)
    enable(account, outbound=True)
    server.faults = Faults(replies={"MAIL": "451 4.3.0 Try later"})
    assert not test_smtp(account).ok
    account = stored()
    assert account.is_outbound_enabled and account.is_smtp_tested and "451" in account.smtp_error


def test_a_sender_that_the_server_does_not_let_through_is_found_before_any_mail(
    server: ScriptedSmtpServer,
) -> None:
    server.faults = Faults(replies={"MAIL": "553 5.7.1 Sender address rejected: not owned by user anna"})
    test = test_smtp(account_at(server))
    assert not test.ok and "at mail" in test.text
    assert not stored().is_smtp_tested


def test_an_edit_while_the_test_runs_is_not_vouched_for(server: ScriptedSmtpServer, monkeypatch: Any) -> None:
    account = account_at(server)
    from gobii_email.adapters.smtp import SmtpTransport

    real = SmtpTransport.probe

    def slow(*args: Any, **options: Any) -> Any:
        probe = real(*args, **options)
        account_at(server, username="berta")
        return probe

    monkeypatch.setattr(SmtpTransport, "probe", slow)
    test = test_smtp(account)
    assert not test.ok and "changed while the test ran" in test.text
    assert not stored().is_smtp_tested and stored().smtp_last_ok_at is None


def test_a_password_that_cannot_be_read_is_an_error_and_nothing_is_dialled(
    server: ScriptedSmtpServer,
) -> None:
    account = account_at(server)
    AgentEmailAccount.objects.update(smtp_host="127.0.0.1")
    test = test_smtp(account)
    assert not test.ok and "enter the password again" in test.text
    assert server.connections == 0


def test_settings_that_are_not_complete_are_named(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    AgentEmailAccount.objects.update(smtp_password_encrypted=None, smtp_port=None)
    test = test_smtp(account)
    assert not test.ok and "port and password" in test.text and server.connections == 0


def test_a_forbidden_network_and_an_unknown_name_cannot_be_told_apart(
    server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
    answers = [test_smtp(account_at(server, host=host)) for host in ("10.0.0.1", "no-such-name.invalid")]
    for test in answers:
        assert (test.ok, test.text) == (False, UNREACHABLE_NAME)
    first, second = (
        [(step.id, step.status, step.text, step.milliseconds) for step in test.steps[1:]] for test in answers
    )
    assert first == second


def test_a_certificate_of_nobody_ends_the_test_before_the_password(
    authority: ThrowAwayAuthority, settings: Any
) -> None:
    with ScriptedSmtpServer(tls=authority.self_signed(), users={"anna": PASSWORD}) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = {server.port}
        test = test_smtp(account_at(server))
    assert not test.ok and "certificate" in test.advice
    assert server.logins == []


@pytest.mark.parametrize(
    ("reply", "passes"),
    [
        ("550 5.1.1 no such user", True),
        ("450 4.2.0 greylisted", True),
        ("554 5.7.1 Relay access denied", False),
        ("553 5.7.1 Sender address rejected: not owned by user anna", False),
    ],
)
def test_what_is_said_of_the_own_address_as_a_recipient_counts_only_against_the_sender(
    server: ScriptedSmtpServer, reply: str, passes: bool
) -> None:
    server.faults = Faults(always={ADDRESS: reply})
    test = test_smtp(account_at(server))
    (step,) = [step for step in test.steps if step.id == "rcpt"]
    assert (test.ok, step.status) == (passes, "warn" if passes else "fail")
    assert stored().is_smtp_tested is passes


@pytest.mark.parametrize("faults", [Faults(drops={"RCPT"}), Faults(replies={"RCPT": "421 4.3.2 busy"})])
def test_a_server_that_breaks_off_at_the_recipient_has_still_accepted_the_sender(
    server: ScriptedSmtpServer, faults: Faults
) -> None:
    server.faults = faults
    test = test_smtp(account_at(server))
    assert test.ok
    assert [step.status for step in test.steps if step.id == "rcpt"] == ["warn"]
