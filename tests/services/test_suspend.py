"""Switching sending off and on while mail is on its way: what stops, what waits, and what goes on."""

import json
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from gobii_email import api
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    RolloutChange,
    Suspension,
)
from gobii_email.services import share, switches
from gobii_email.services.deliver import deliver
from gobii_email.services.intervene import NotPossible
from gobii_email.services.share import Shares
from gobii_email.services.suspend import change_rollout, lift, suspend
from gobii_email.services.switches import Subject, Switches
from gobii_email.testing.smtp_server import ScriptedSmtpServer

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("real_switches", "doorbell")]

Scope = Suspension.Scope
ADDRESS = "agent@sender.example"


@pytest.fixture(autouse=True)
def shares(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shares]:
    monkeypatch.setattr(share.shares, "__dict__", vars(Shares()))
    yield share.shares


def send(**values: Any) -> PersistentAgentMessage:
    facts = {"from_endpoint": ADDRESS, "to": "to@rcpt.example", "subject": "Hello", "body": "Good morning"}
    return api.send_agent_email(**(facts | values))


def turn(message: PersistentAgentMessage) -> str:
    return deliver(str(message.attempts.order_by("number").last().pk), owner="test")


def why(message: PersistentAgentMessage) -> str:
    return api.delivery_status(message.pk).waiting_for or ""


def status(message: PersistentAgentMessage) -> str:
    return PersistentAgentMessage.objects.get(pk=message.pk).latest_status


def stop(scope: Suspension.Scope, subject: str = "", span: timedelta | None = None) -> Suspension:
    until = None if span is None else timezone.now() + span
    return suspend(scope, subject, reason="Investigating a complaint.", until=until, by="op")


def subject_to_stop(scope: Suspension.Scope, account: AgentEmailAccount) -> str:
    return {
        Scope.ACCOUNT: ADDRESS,
        Scope.AGENT: account.endpoint.owner_agent.name,
        Scope.PROVIDER: "localhost",
        Scope.ALL: "",
    }[scope]


@pytest.mark.parametrize("scope", Scope)
def test_what_is_suspended_waits_with_the_reason_and_goes_on_when_it_is_lifted(
    scope: Suspension.Scope, account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    suspension = stop(scope, subject_to_stop(scope, account))
    message = send()
    assert turn(message) == "postponed"
    assert smtp_server.connections == 0
    assert "Investigating a complaint." in why(message)
    assert lift(suspension, by="op")
    turn(message)
    assert status(message) == "sent"
    assert message.attempts.get().number == 1
    assert not lift(suspension, by="op"), "it is over"


@pytest.mark.parametrize(
    ("scope", "subject"),
    [(Scope.PROVIDER, "google"), (Scope.PROVIDER, "postmark")],
    ids=["another provider", "another transport"],
)
def test_a_suspension_of_something_else_stops_nothing(
    scope: Suspension.Scope, subject: str, account: AgentEmailAccount
) -> None:
    stop(scope, subject)
    message = send()
    turn(message)
    assert status(message) == "sent"


def test_a_suspension_ends_by_itself(account: AgentEmailAccount) -> None:
    suspension = stop(Scope.ALL, span=timedelta(minutes=30))
    message = send()
    assert turn(message) == "postponed"
    assert Lane.objects.get().look_at == suspension.ends_at
    Suspension.objects.update(ends_at=timezone.now())
    Lane.objects.update(look_at=timezone.now())
    turn(message)
    assert status(message) == "sent"


def test_mail_without_an_account_is_suspended_as_well(endpoint: PersistentAgentCommsEndpoint) -> None:
    suspension = stop(Scope.PROVIDER, "postmark_simulation")
    message = send()
    assert turn(message) == "postponed"
    assert "Investigating" in why(message)
    lift(suspension, by="op")
    assert turn(message) == "delivered"


class Flipped:
    """Switches that are asked `asked` times before `then` is in force."""

    def __init__(self, asked: int, then: Switches) -> None:
        self.left, self.then = asked, then

    def __call__(self) -> Switches:
        self.left -= 1
        return switches.settings_alone() if self.left >= 0 else self.then


def suspended_now() -> Switches:
    row = Suspension(scope=Scope.ALL, reason="Stop.", created_at=timezone.now())
    return Switches(True, switches.settings_alone().rollout, [row])


def flag_off() -> Switches:
    return Switches(False, switches.settings_alone().rollout)


@pytest.mark.parametrize("then", [suspended_now, flag_off])
def test_a_switch_that_comes_after_the_login_stops_before_mail_from(
    then: Any, account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, heard, strikes = [send(), send()], [], smtp_server.faults.strikes

    def listen(command: str) -> bool:
        heard.append(command)
        return strikes(command)

    monkeypatch.setattr(smtp_server.faults, "strikes", listen)
    # Selection, the beginning of the turn, the connection; the next question is the one before MAIL FROM.
    monkeypatch.setattr(switches._known, "now", Flipped(3, then()))
    assert turn(messages[0]) == "postponed"
    assert "AUTH" in heard and "MAIL" not in heard
    assert [status(message) for message in messages] == ["queued", "queued"]
    assert {message.attempts.get().number for message in messages} == {1}
    monkeypatch.setattr(switches._known, "now", switches.settings_alone)
    Lane.objects.update(look_at=None, code="")
    turn(messages[0])
    assert [status(message) for message in messages] == ["sent", "sent"]


def test_turning_the_flag_off_holds_what_was_submitted_for_an_account(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    message = send()
    change_rollout(is_enabled=False, rollout="", reason="trouble", by="op")
    assert turn(message) == "postponed"
    assert "BYO_EMAIL_ENABLED" in why(message)
    assert smtp_server.connections == 0
    change_rollout(is_enabled=True, rollout="", reason="over", by="op")
    turn(message)
    assert status(message) == "sent"


def test_a_rollout_by_names_includes_whom_it_names(account: AgentEmailAccount) -> None:
    change_rollout(is_enabled=None, rollout="somebody@else.example", reason="", by="op")
    message = send()
    assert message.had_account is False, "then the installation's own transport takes it"
    change_rollout(is_enabled=None, rollout=ADDRESS, reason="", by="op")
    assert send().had_account


def test_a_switch_is_read_once_a_second_and_not_for_each_mail(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(switches, "FRESH_SECONDS", 60)
    switches.forget()
    with django_assert_num_queries(2):
        for _ in range(5):
            switches.switches()
    switches.forget()


@pytest.mark.parametrize(
    ("scope", "subject"),
    [(Scope.ACCOUNT, "no@body.example"), (Scope.AGENT, "Nobody"), (Scope.PROVIDER, "no.such.host")],
    ids=["account", "agent", "provider"],
)
def test_nobody_suspends_by_a_typing_error(
    scope: Suspension.Scope, subject: str, account: AgentEmailAccount
) -> None:
    with pytest.raises(NotPossible, match=subject):
        stop(scope, subject)


def test_a_provider_is_known_by_the_servers_of_its_accounts() -> None:
    subject = Subject("a@b.example", None, host="smtp.gmail.com")
    assert {"google", "smtp.gmail.com"} <= subject.names(Scope.PROVIDER)


def command(*arguments: str) -> Any:
    said = StringIO()
    call_command(*arguments, "--json", stdout=said)
    return json.loads(said.getvalue())


def test_the_command_suspends_lists_and_cancels(account: AgentEmailAccount) -> None:
    made = command("email_suspend", "--account", ADDRESS.upper(), "--reason", "Spam run", "--for", "30m")
    assert (made["scope"], made["subject"]) == ("account", ADDRESS)
    assert [row["number"] for row in command("email_suspend", "--list")["suspensions"]] == [made["number"]]
    assert command("email_suspend", "--cancel", str(made["number"]))["is_lifted"]
    assert command("email_suspend", "--list") == {"suspensions": []}
    with pytest.raises(CommandError) as refused:
        call_command("email_suspend", "--all")
    assert refused.value.returncode == 2


def test_the_command_changes_the_rollout_and_gives_it_back_to_the_settings() -> None:
    assert command("email_rollout", "--to", "25%", "--reason", "stage 2")["rollout"] == "25%"
    off = command("email_rollout", "--off")
    assert (off["is_enabled"], off["rollout"]) == (False, "25%")
    again = command("email_rollout", "--reset")
    assert (again["is_enabled"], again["rollout"]) == (True, "100%")
    assert RolloutChange.objects.count() == 3
    with pytest.raises(CommandError, match="percentage"):
        call_command("email_rollout", "--to", "400%")
