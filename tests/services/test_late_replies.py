"""Replies to the final dot that come when the lease of their attempt is over: the server's word stands.

Whole turns at a real server. The lease runs out between the dot and its reply; what differs is whether
somebody has rescued the attempt meanwhile, and whether its end is written with others or alone.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services import account_turn
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import Round, dispatch_round
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db

TAKEN, REFUSED = "to@rcpt.example", "no@rcpt.example"
WRITTEN = pytest.mark.parametrize(
    ("to", "latest"),
    [([TAKEN], "sent"), ([TAKEN, REFUSED], "partially_sent")],
    ids=["written with others", "written alone"],
)


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, smtp_server: ScriptedSmtpServer) -> None:
    smtp_server.faults.always[REFUSED] = "550 5.1.1 No such user"


def send(to: list[str]) -> PersistentAgentMessage:
    return api.send_agent_email(from_endpoint="agent@sender.example", to=to, subject="Hello", body="Hi")


def let_the_reply_wait(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Nobody renews the lease, and `act` happens before the worker gets to see the server's reply."""
    real = account_turn.send_by_account

    def send_by_account(*args: Any) -> Any:
        outcome = real(*args)
        sending = OutboundMessageAttempt.objects.filter(status="sending")
        assert sending.update(due_at=timezone.now() - timedelta(seconds=1)) == 1
        act()
        return outcome

    monkeypatch.setattr(account_turn, "send_by_account", send_by_account)


def turn(message: PersistentAgentMessage) -> str:
    return deliver(str(message.attempts.get().pk), owner="worker-1")


def told(message: PersistentAgentMessage) -> dict[str, str]:
    return dict(message.events.order_by("pk").values_list("event", "text"))


def assert_is_sent(message: PersistentAgentMessage, latest: str) -> None:
    attempt = message.attempts.get()
    assert (attempt.status, attempt.due_at, attempt.error_code) == ("sent", None, "")
    assert attempt.sent_at is not None
    assert PersistentAgentMessage.objects.get(pk=message.pk).latest_status == latest
    recipients = dict(message.recipients.values_list("address", "status"))
    expected = {TAKEN: "accepted", REFUSED: "refused"}
    assert recipients == {address: expected[address] for address in recipients}


@WRITTEN
def test_a_reply_after_the_lease_that_nobody_rescued_is_an_ordinary_one(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    monkeypatch: pytest.MonkeyPatch,
    to: list[str],
    latest: str,
) -> None:
    let_the_reply_wait(monkeypatch, lambda: None)
    message = send(to)
    assert turn(message) == "sent"
    assert_is_sent(message, latest)
    assert not told(message).keys() & {"in_doubt", "late_answer", "doubt_found"}
    assert dispatch_round() == Round(), "nothing is left to be rescued"
    assert len(smtp_server.messages) == 1


@WRITTEN
def test_a_reply_after_its_attempt_was_rescued_ends_the_doubt_and_the_events_tell_how(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    monkeypatch: pytest.MonkeyPatch,
    to: list[str],
    latest: str,
) -> None:
    statuses = []

    def rescue() -> None:
        assert dispatch_round() == Round(rescued=1)
        statuses.append(PersistentAgentMessage.objects.get().latest_status)

    let_the_reply_wait(monkeypatch, rescue)
    message = send(to)
    assert turn(message) == "lease lost"
    assert statuses == ["in_doubt"]
    assert_is_sent(message, latest)
    story = told(message)
    assert list(story)[-3:] == ["in_doubt", "late_answer", "doubt_found"]
    assert "The worker was lost after the message was handed to the server" in story["in_doubt"]
    assert "A worker that had lost its lease reports: 250" in story["late_answer"]
    assert "The late answer of its own worker ends the doubt: 250" in story["doubt_found"]
    assert dispatch_round() == Round(), "nothing is sent again"
    assert len(smtp_server.messages) == 1
