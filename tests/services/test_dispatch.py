"""What the dispatcher finds: lost leases, overdue mail, doubts; and workers that come too late."""

import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Stage, parse_reply
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.ports import LeaseLost
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import Round, dispatch_round
from gobii_email.services.lease import Lease
from gobii_email.services.settle import settle
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import eventually
from tests.conftest import RecordingDoorbell, live_until, row_of, taken

Deliver = Callable[[], list[str]]

pytestmark = pytest.mark.django_db

ACCEPTED = Accepted(parse_reply("250 2.0.0 Ok: queued as 7F"), provider_message_id="7F")
REFUSED = Refused(Stage.DOT, parse_reply("554 5.7.1 Message refused"))


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"
    settings.GOBII_RETRY_JITTER = "0"


def send(**values: Any) -> PersistentAgentMessage:
    facts = {
        "from_endpoint": "agent@sender.example",
        "to": ["to@rcpt.example", "b@rcpt.example"],
        "subject": "Hello",
        "body": "Good morning",
    }
    return api.send_agent_email(**(facts | values))


def claimed(message: PersistentAgentMessage, *, until: str = "claim") -> OutboundMessageAttempt:
    """The message's attempt in the hands of a worker that came as far as `until`: claim, connect or mark."""
    work = taken(message)
    lease = Lease(work, Provider.SMTP)
    if until in {"connect", "mark"}:
        lease.reached(Stage.CONNECT)
    if until == "mark":
        lease.mark()
    return row_of(work)


def run_out(message: PersistentAgentMessage) -> None:
    """Whatever `message` waits for is over now."""
    OutboundMessageAttempt.objects.filter(message=message, due_at__isnull=False).update(
        due_at=timezone.now() - timedelta(seconds=1)
    )


def lost(message: PersistentAgentMessage, *, until: str) -> OutboundMessageAttempt:
    """An attempt whose worker died at `until`, its lease over."""
    attempt = claimed(message, until=until)
    run_out(message)
    return attempt


def statuses(message: PersistentAgentMessage) -> list[str]:
    return list(message.attempts.order_by("number").values_list("status", flat=True))


def latest(message: PersistentAgentMessage) -> str:
    return PersistentAgentMessage.objects.get(pk=message.pk).latest_status


def events(message: PersistentAgentMessage) -> list[str]:
    return list(message.events.values_list("event", flat=True))


# Rescue, by stage


def test_a_lease_that_still_runs_is_left_alone(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = send()
    claimed(message, until="mark")
    assert dispatch_round() == Round()
    assert statuses(message) == ["sending"]


def test_a_worker_lost_before_it_connected_uses_up_no_attempt(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell
) -> None:
    message = send()
    attempt = lost(message, until="claim")
    assert dispatch_round() == Round(rescued=1, handed_out=1)
    attempt.refresh_from_db()
    assert (attempt.number, attempt.status, attempt.lease_token) == (1, "queued", None)
    assert doorbell.rung == [str(attempt.pk)]
    assert latest(message) == "queued"
    assert deliver(str(attempt.pk), owner="worker-2") == "delivered"


def test_a_worker_lost_after_it_connected_leads_to_the_next_attempt(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    message = send()
    assert message.latest_status == "queued"
    lost(message, until="connect")
    before = timezone.now()
    assert dispatch_round() == Round(rescued=1)
    first, second = message.attempts.order_by("number")
    assert (first.status, first.error_code, first.due_at) == ("deferred", "worker_lost", None)
    assert (second.status, second.addresses) == ("queued", first.addresses)
    assert timedelta(seconds=59) < second.not_before - before
    assert second.not_before - timezone.now() < timedelta(seconds=62)
    assert {row.attempt_id for row in message.recipients.all()} == {second.pk}
    assert latest(message) == "queued"


def test_a_worker_lost_when_no_time_is_left_fails_the_message(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = send(expires_at=timezone.now() + timedelta(seconds=30))
    lost(message, until="connect")
    dispatch_round()
    assert statuses(message) == ["failed"]
    assert latest(message) == "failed"
    assert {row.status for row in message.recipients.all()} == {"refused"}


def test_a_worker_lost_after_the_mark_leaves_a_doubt_that_waits_for_evidence(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    message = send()
    attempt = lost(message, until="mark")
    assert dispatch_round() == Round(rescued=1)
    attempt.refresh_from_db()
    assert (attempt.status, attempt.verdict, attempt.stage) == ("in_doubt", "in_doubt", "dot")
    assert attempt.due_at is None
    assert latest(message) == "in_doubt"
    assert dispatch_round() == Round()
    assert deliver(str(attempt.pk), owner="worker-2") == "not due"


def test_a_message_that_asks_for_it_is_sent_again_after_the_wait_under_the_same_message_id(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.GOBII_DOUBT_RESEND_AFTER = "15m"
    smtp_server.faults.drops.add("AFTER_DOT")
    smtp_server.faults.times["AFTER_DOT"] = 1
    message = send(on_doubt="resend")
    attempt = message.attempts.get()
    assert deliver(str(attempt.pk), owner="worker-1") == "in_doubt"
    attempt.refresh_from_db()
    assert attempt.due_at is not None
    assert timedelta(minutes=14) < attempt.due_at - timezone.now() <= timedelta(minutes=15)
    assert dispatch_round() == Round()
    run_out(message)
    assert dispatch_round() == Round(resent=1, handed_out=1)
    assert statuses(message) == ["deferred", "queued"]
    second = message.attempts.get(number=2)
    assert deliver(str(second.pk), owner="worker-2") == "sent"
    ids = {
        line
        for kept in smtp_server.messages
        for line in kept.content.splitlines()
        if b"Message-ID: <" in line
    }
    assert len(smtp_server.messages) == 2
    assert ids == {f"Message-ID: {message.rfc_message_id}".encode()}
    assert latest(message) == "sent"


def test_a_rescued_doubt_of_a_message_that_asks_for_it_is_sent_again_too(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    message = send(on_doubt="resend")
    lost(message, until="mark")
    assert dispatch_round() == Round(rescued=1)
    assert statuses(message) == ["in_doubt"]
    run_out(message)
    assert dispatch_round().resent == 1
    assert statuses(message) == ["deferred", "queued"]


# Handing out and expiry


def test_mail_is_handed_out_and_looked_at_again_later(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, settings: Any
) -> None:
    settings.GOBII_HINT_LIFETIME = settings.GOBII_RING_GRACE = "60s"
    message = send()
    assert dispatch_round() == Round(), "a fresh attempt is left to its own ring"
    run_out(message)
    due_at = message.attempts.get().due_at
    before = timezone.now()
    assert dispatch_round() == Round(handed_out=1)
    lane = Lane.objects.get(pk=endpoint.pk)
    assert lane.look_at is not None and not lane.code
    assert timedelta(seconds=58) < lane.look_at - before
    assert lane.look_at - timezone.now() <= timedelta(seconds=60)
    assert message.attempts.get().due_at == due_at, "its place in the queue is its own"
    assert dispatch_round() == Round()
    Lane.objects.update(look_at=timezone.now() - timedelta(seconds=1))
    assert dispatch_round() == Round(handed_out=1), "a hint that was lost is given again"
    assert doorbell.rung == [str(message.attempts.get().pk)] * 2


def test_a_bell_that_nobody_hears_loses_nothing(
    endpoint: PersistentAgentCommsEndpoint,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
) -> None:
    settings.GOBII_BREAKER_PAUSE = "5s"
    message = send()
    run_out(message)
    monkeypatch.setattr(doorbell, "ring", lambda hints, **_: False)
    dispatch_round()
    assert statuses(message) == ["queued"]
    look_at = Lane.objects.get(pk=endpoint.pk).look_at
    assert look_at is not None
    assert look_at - timezone.now() <= timedelta(seconds=5), "looked at again once the breaker has closed"


@pytest.mark.parametrize("held", ["", "The mailbox is paused."])
def test_waiting_mail_expires_with_the_reason_it_waited_for(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, held: str
) -> None:
    message = send()
    message.attempts.update(held_code="paused" if held else "", held_reason=held)
    live_until(timezone.now() - timedelta(seconds=1))
    run_out(message)
    assert dispatch_round() == Round(expired=1)
    assert statuses(message) == ["failed"]
    assert latest(message) == "failed"
    attempt = message.attempts.get()
    assert attempt.error_code == "expired"
    assert held in attempt.error_message
    assert doorbell.rung == []


# Workers that come too late


def report(attempt: OutboundMessageAttempt, outcome: Outcome) -> bool:
    return settle(attempt, outcome, provider=Provider.SMTP, now=timezone.now())


def test_a_late_250_ends_the_doubt_and_is_kept(account: AgentEmailAccount) -> None:
    message = send()
    attempt = lost(message, until="mark")
    dispatch_round()
    assert report(attempt, ACCEPTED) is False
    assert statuses(message) == ["sent"]
    assert latest(message) == "sent"
    assert {row.status for row in message.recipients.all()} == {"accepted"}
    late = message.events.get(event="late_answer")
    assert "queued as 7F" in late.text
    assert events(message)[-1] == "doubt_found"


def test_a_late_refusal_ends_the_doubt_the_other_way(account: AgentEmailAccount) -> None:
    message = send()
    attempt = lost(message, until="mark")
    dispatch_round()
    assert report(attempt, REFUSED) is False
    assert statuses(message) == ["failed"]
    assert {row.reply for row in message.recipients.all()} == {REFUSED.reply.text}
    assert "late_answer" in events(message)


def test_a_late_loss_changes_nothing(account: AgentEmailAccount) -> None:
    message = send()
    attempt = lost(message, until="mark")
    dispatch_round()
    told = events(message)
    assert report(attempt, Lost(Stage.DOT, Cause.TIMEOUT, "No answer came.", is_marked=True)) is False
    assert statuses(message) == ["in_doubt"]
    assert events(message) == told


@pytest.mark.parametrize("until", ["claim", "connect"])
def test_a_worker_that_lost_its_lease_cannot_mark_any_more(account: AgentEmailAccount, until: str) -> None:
    message = send()
    work = taken(message)
    attempt, lease = row_of(work), Lease(work, Provider.SMTP)
    if until == "connect":
        lease.reached(Stage.CONNECT)
    run_out(message)
    dispatch_round()
    lease.reached(Stage.CONNECT)
    assert message.attempts.get(number=1).stage == "", "the note is written by the lease's owner alone"
    with pytest.raises(LeaseLost):
        lease.mark()
    after_rescue = (statuses(message), latest(message))
    assert report(attempt, ACCEPTED) is False
    assert (statuses(message), latest(message)) == after_rescue
    assert "late_answer" in events(message)


def test_a_late_answer_of_an_older_lease_does_not_end_the_doubt_of_a_newer(
    account: AgentEmailAccount,
) -> None:
    message = send()
    older = lost(message, until="claim")
    dispatch_round()
    lost(message, until="mark")
    dispatch_round()
    assert statuses(message) == ["in_doubt"]
    report(older, ACCEPTED)
    assert statuses(message) == ["in_doubt"]


@pytest.mark.django_db(transaction=True)
def test_a_withdrawn_attempt_stops_the_worker_before_the_dot(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, caplog: pytest.LogCaptureFixture
) -> None:
    is_withdrawn = smtp_server.faults.holds["RCPT"] = threading.Event()
    smtp_server.faults.times["RCPT"] = 1
    message = send(to="to@rcpt.example")
    outcome: list[str] = []

    def work() -> None:
        outcome.append(deliver(str(message.attempts.get().pk), owner="worker-1"))
        connection.close()

    worker = threading.Thread(target=work)
    with caplog.at_level(logging.INFO, "gobii_email"):
        worker.start()
        eventually(lambda: message.attempts.get().stage == "connect")
        assert (latest(message), message.attempts.get().stage) == ("sending", "connect")
        assert api.cancel_agent_email(message)
        is_withdrawn.set()
        worker.join()
    assert smtp_server.messages == []
    assert (statuses(message), latest(message)) == (["cancelled"], "cancelled")
    assert "attempt.lease_lost" in [row.message for row in caplog.records]
    assert MailHost.objects.count() == 0
    account.refresh_from_db()
    assert account.state == "active"


# Several dispatchers


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("until", ["claim", "connect", "mark"])
def test_two_dispatchers_never_rescue_the_same_row_twice(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, until: str
) -> None:
    messages = [send() for _ in range(12)]
    for message in messages:
        lost(message, until=until)
    doorbell.rung.clear()
    rounds: list[Round | Exception] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        barrier.wait()
        try:
            rounds.append(dispatch_round())
        except Exception as problem:
            rounds.append(problem)
        finally:
            connection.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [result for result in rounds if isinstance(result, Round)]
    assert len(found) == 3, rounds
    assert sum(result.rescued for result in found) == len(messages)
    told = {"claim": "released", "connect": "deferred", "mark": "in_doubt"}[until]
    for message in messages:
        assert events(message).count(told) == 1
        assert message.attempts.count() == (2 if until == "connect" else 1)
    # One hint a lane; a lane that somebody rescues mail of meanwhile may be rung for once more.
    assert len(doorbell.rung) in (range(1, 4) if until == "claim" else [0])
