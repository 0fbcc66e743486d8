"""Rare meetings of workers, people and faults: what two of them do to the same mail at once."""

import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, InterfaceError, OperationalError, connection, transaction
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
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models import queue as statements
from gobii_email.models.queue import Acceptance, Work
from gobii_email.ports import LeaseLost
from gobii_email.services import account_turn, hold, intervene, settle, submit, write
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.lease import Kept, Lease, LeaseKeeper
from gobii_email.services.record import persist
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell, live_until, row_of, taken
from tests.services.measuring import Counted

pytestmark = pytest.mark.django_db

on_postgresql = pytest.mark.skipif(
    "connection.vendor != 'postgresql'", reason="SQLite has one writer at a time; these two cannot meet there"
)

ACCEPTED = Accepted(parse_reply("250 2.0.0 Ok: queued as 7F"), provider_message_id="7F")
BUSY = Refused(Stage.EHLO, parse_reply("421 4.3.2 Too busy, come back later"))


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"
    settings.GOBII_RETRY_JITTER = "0"


def send(**values: Any) -> PersistentAgentMessage:
    facts = {
        "from_endpoint": "agent@sender.example",
        "to": ["a@rcpt.example", "b@rcpt.example"],
        "subject": "Hello",
        "body": "Good morning",
    }
    return api.send_agent_email(**(facts | values))


def in_hand(message: PersistentAgentMessage) -> Work:
    """The message's attempt in the hands of a worker, whenever it was to be."""
    now = timezone.now()
    message.attempts.filter(status="queued").update(not_before=now, due_at=now)
    return taken(message)


def claimed(message: PersistentAgentMessage) -> OutboundMessageAttempt:
    return row_of(in_hand(message))


def marked(message: PersistentAgentMessage) -> OutboundMessageAttempt:
    work = in_hand(message)
    lease = Lease(work, Provider.SMTP)
    lease.reached(Stage.CONNECT)
    lease.mark()
    return row_of(work)


def report(attempt: OutboundMessageAttempt, outcome: Outcome, provider: Provider = Provider.SMTP) -> bool:
    return settle.settle(attempt, outcome, provider=provider, now=timezone.now())


def run_out(message: PersistentAgentMessage) -> None:
    """Whatever `message` waits for is over now."""
    message.attempts.filter(due_at__isnull=False).update(due_at=timezone.now() - timedelta(seconds=1))


def fresh(message: PersistentAgentMessage) -> PersistentAgentMessage:
    return PersistentAgentMessage.objects.get(pk=message.pk)


def recipients(message: PersistentAgentMessage) -> dict[str, str]:
    return dict(message.recipients.values_list("address", "status"))


def together(*acts: Callable[[], object]) -> list[Exception]:
    """Runs `acts` in threads of their own; answers what they raised."""
    problems: list[Exception] = []

    def run(act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as problem:
            problems.append(problem)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return problems


# Late answers


def test_a_late_250_does_not_speak_for_those_it_refused(account: AgentEmailAccount) -> None:
    message = send(to=["a@rcpt.example", "no@rcpt.example", "later@rcpt.example"])
    attempt = marked(message)
    run_out(message)
    dispatch_round()
    refused = {
        "no@rcpt.example": parse_reply("550 5.1.1 No such user"),
        "later@rcpt.example": parse_reply("450 4.2.0 Greylisted"),
    }
    report(attempt, Accepted(ACCEPTED.reply, refused=refused))
    assert recipients(message)["a@rcpt.example"] == "accepted"
    assert recipients(message)["no@rcpt.example"] == "refused"
    assert message.attempts.get(status="queued").addresses == ["later@rcpt.example"]
    assert message.recipients.get(address="no@rcpt.example").smtp_code == 550


def test_an_ending_whose_commit_was_not_confirmed_is_written_once(account: AgentEmailAccount) -> None:
    message = send()
    attempt = marked(message)
    report(attempt, ACCEPTED)
    report(attempt, ACCEPTED)
    assert "late_answer" not in message.events.values_list("event", flat=True)
    assert attempt.status == "sent"


def test_an_ending_whose_commit_was_not_confirmed_is_counted(
    account: AgentEmailAccount,
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    counted = Counted(settings, tmp_path)
    real, faults = statements.write_acceptances, [OperationalError("the answer to COMMIT was lost")]

    def write(rows: Sequence[Acceptance]) -> set[uuid.UUID]:
        written = real(rows)
        if faults:
            raise faults.pop()
        return written

    monkeypatch.setattr(statements, "write_acceptances", write)
    message = send(to="a@rcpt.example")
    with django_capture_on_commit_callbacks(execute=True):
        deliver(str(message.attempts.get().pk), owner="worker-1")
    assert fresh(message).latest_status == "sent" and not faults
    assert counted.of("gobii_email_attempts_total", outcome="sent") == 1
    counted.begin_anew()


def test_an_ending_that_cannot_be_written_keeps_no_other_from_being_counted(
    account: AgentEmailAccount, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(settings, tmp_path)
    real, faults = statements.write_acceptances, [ValueError("not this one")]

    def write(rows: Sequence[Acceptance]) -> set[uuid.UUID]:
        if faults:
            raise faults.pop()
        return real(rows)

    monkeypatch.setattr(statements, "write_acceptances", write)
    messages = [send(to=f"{name}@rcpt.example") for name in "abc"]
    with pytest.raises(ValueError, match="not this one"):
        deliver(str(messages[0].attempts.get().pk), owner="worker-1")
    assert [fresh(message).latest_status for message in messages] == ["sending", "sent", "sent"]
    assert counted.of("gobii_email_attempts_total", outcome="sent") == 2
    counted.begin_anew()


def test_an_ending_written_at_the_second_try_is_complete(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = send()
    attempt = marked(message)
    real, faults = settle.tell, [OperationalError("the database went away")]

    def tell(events: Any) -> None:
        if faults:
            raise faults.pop()
        real(events)

    monkeypatch.setattr(settle, "tell", tell)
    persist(lambda: report(attempt, ACCEPTED), within=timedelta(seconds=5))
    assert fresh(message).latest_status == "sent"
    assert fresh(message).latest_sent_at is not None


# Two at once


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_worker_that_starts_while_its_mail_is_withdrawn_does_not_call_it_sending(
    account: AgentEmailAccount,
) -> None:
    message = send()
    work = in_hand(message)
    is_withdrawn, problems = threading.Event(), []

    def withdraw() -> None:
        with transaction.atomic():
            assert intervene.cancel(message)
            is_withdrawn.set()
            threading.Event().wait(0.5)

    def start() -> None:
        is_withdrawn.wait(60)
        lease = Lease(work, Provider.SMTP)
        lease.reached(Stage.CONNECT)
        lease.mark()

    problems = together(withdraw, start)
    assert [type(problem) for problem in problems] == [LeaseLost]
    assert fresh(message).latest_status == "cancelled"


@pytest.mark.parametrize("until", [None, "later"])
def test_a_mailbox_resumed_while_a_worker_puts_its_mail_back_leaves_none_behind(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    end = timezone.now() + timedelta(hours=3) if until else None
    hold.pause(account, reason="Moving house", until=end)
    message = send()
    real = account_turn.obstacle_of_the_moment

    def obstacle(*args: Any) -> Any:
        found = real(*args)
        hold.resume(AgentEmailAccount.objects.get())
        return found

    monkeypatch.setattr(account_turn, "obstacle_of_the_moment", obstacle)
    assert deliver(str(message.attempts.get().pk), owner="worker-1") == "postponed"
    assert_waits_for_nothing(message)


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_a_mailbox_that_is_just_being_resumed_leaves_no_mail_behind(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold.pause(account, reason="Moving house")
    message = send()
    real, is_looked_at, is_resumed = account_turn.obstacle_of_the_moment, threading.Event(), threading.Event()

    def obstacle(*args: Any) -> Any:
        found = real(*args)
        is_looked_at.set()
        is_resumed.wait(60)
        return found

    def resume() -> None:
        is_looked_at.wait(60)
        with transaction.atomic():
            hold.resume(AgentEmailAccount.objects.get())
            is_resumed.set()
            threading.Event().wait(0.5)

    monkeypatch.setattr(account_turn, "obstacle_of_the_moment", obstacle)
    assert together(lambda: deliver(str(message.attempts.get().pk), owner="worker-1"), resume) == []
    assert_waits_for_nothing(message)


def assert_waits_for_nothing(message: PersistentAgentMessage) -> None:
    attempt, now = message.attempts.get(), timezone.now()
    assert attempt.due_at is not None and attempt.due_at <= now
    assert not Lane.objects.filter(look_at__gt=now).exists()


def test_a_login_refused_with_the_old_password_does_not_hold_a_mailbox_tested_since(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    smtp_server.faults.replies["AUTH"] = "535 5.7.8 Wrong password"
    message = send()
    real = account_turn.send_by_account

    def send_and_edit(*args: Any) -> Outcome:
        outcome = real(*args)
        other = AgentEmailAccount.objects.get()
        other.set_smtp_password("a new one")
        other.smtp_tested_fingerprint = other.smtp_fingerprint()
        other.save()
        return outcome

    monkeypatch.setattr(account_turn, "send_by_account", send_and_edit)
    assert deliver(str(message.attempts.get().pk), owner="worker-1") == "deferred"
    account.refresh_from_db()
    assert account.state == "active"
    following = message.attempts.get(status="queued")
    assert following.due_at is not None and following.due_at <= timezone.now() + timedelta(minutes=2)


@on_postgresql
@pytest.mark.django_db(transaction=True)
def test_mail_is_withdrawn_also_while_a_worker_takes_it(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = send()
    is_claimed, answers = threading.Event(), []

    def take() -> None:
        with transaction.atomic():
            claimed(message)
            is_claimed.set()
            threading.Event().wait(0.5)

    def withdraw() -> None:
        is_claimed.wait(60)
        answers.append(intervene.cancel(message))

    assert together(take, withdraw) == []
    assert answers == [True]
    assert fresh(message).latest_status == "cancelled"


def test_a_key_that_is_not_to_blame_is_not_tried_for_ever(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def store(drafts: object, *_: object) -> None:
        calls.append(drafts)
        raise IntegrityError("something else")

    monkeypatch.setattr(write, "_store", store)
    with pytest.raises(IntegrityError):
        send(idempotency_key="k")
    assert len(calls) <= 2


def test_failures_of_one_moment_back_a_host_off_once(account: AgentEmailAccount) -> None:
    attempts = [claimed(send()) for _ in range(8)]
    for attempt in attempts:
        report(attempt, BUSY)
    host = MailHost.objects.get()
    assert host.failures == 1
    assert host.backoff_until is not None and host.backoff_until <= timezone.now() + timedelta(seconds=30)


# Leases


@pytest.mark.parametrize("fault", [InterfaceError("connection already closed"), RuntimeError("a bug")])
@pytest.mark.django_db(transaction=True)
def test_the_keeper_of_leases_outlives_whatever_it_meets(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    work = in_hand(send())
    keeper, faults, is_renewed = LeaseKeeper(), [fault], threading.Event()
    real = keeper.renew

    def renew() -> int:
        if faults:
            raise faults.pop()
        count = real()
        is_renewed.set()
        return count

    monkeypatch.setattr(keeper, "renew", renew)
    kept = Kept("turn", timedelta(milliseconds=150), [work])
    kept.touch(timedelta(minutes=5))
    keeper.keep(kept)
    try:
        assert is_renewed.wait(60)
    finally:
        keeper.let_go(kept)


def test_a_mark_whose_connection_is_broken_sends_no_dot(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(in_hand(send()), Provider.SMTP)

    def broken(*_: object, **__: object) -> Any:
        raise InterfaceError("connection already closed")

    monkeypatch.setattr(statements, "mark", broken)
    with pytest.raises(LeaseLost):
        lease.mark()


def test_an_ending_is_written_again_over_a_new_connection() -> None:
    faults = [InterfaceError("connection already closed")]

    def write() -> None:
        if faults:
            raise faults.pop()

    persist(write, within=timedelta(seconds=5))
    assert faults == []


def test_a_worker_with_a_long_name_may_send(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = send()
    assert deliver(str(message.attempts.get().pk), owner="celery@" + "node." * 40) == "delivered"
    assert len(message.attempts.get().lease_owner) == 128


# Doubts


def test_a_doubt_that_outlived_its_message_stays_a_doubt(account: AgentEmailAccount) -> None:
    message = send(on_doubt="resend")
    marked(message)
    run_out(message)
    dispatch_round()
    live_until(timezone.now() - timedelta(seconds=1))
    run_out(message)
    dispatch_round()
    dispatch_round()
    assert fresh(message).latest_status == "in_doubt"
    assert "a person" in (api.delivery_status(message.pk).waiting_for or "")


def test_a_doubt_that_will_outlive_its_message_promises_no_second_sending(account: AgentEmailAccount) -> None:
    message = send(on_doubt="resend", expires_at=timezone.now() + timedelta(minutes=5))
    report(marked(message), Lost(Stage.DOT, Cause.TIMEOUT, "No answer came.", is_marked=True))
    assert "a person" in (api.delivery_status(message.pk).waiting_for or "")


def test_each_further_doubt_about_a_message_waits_twice_as_long(account: AgentEmailAccount) -> None:
    message = send(on_doubt="resend")
    waits = []
    for _ in range(3):
        attempt = marked(message)
        report(attempt, Lost(Stage.DOT, Cause.TIMEOUT, "No answer came.", is_marked=True))
        assert attempt.due_at is not None
        waits.append(round((attempt.due_at - timezone.now()) / timedelta(minutes=15)))
        run_out(message)
        dispatch_round()
    assert waits == [1, 2, 4]


# What is said


def test_mail_withdrawn_from_the_rest_does_not_claim_that_nobody_has_it(account: AgentEmailAccount) -> None:
    message = send()
    refused = {"b@rcpt.example": parse_reply("450 4.2.0 Greylisted")}
    report(marked(message), Accepted(ACCEPTED.reply, refused))
    answer = api.cancel_agent_email(message)
    assert (bool(answer), answer.status) == (True, "partially_sent")
    assert "no server has it" not in answer.text.lower()


def test_mail_whose_hold_is_over_does_not_say_that_it_is_held(account: AgentEmailAccount) -> None:
    hold.pause(account, reason="Moving house", until=timezone.now() + timedelta(hours=1))
    message = send()
    deliver(str(message.attempts.get().pk), owner="worker-1")
    assert "Moving house" in (api.delivery_status(message.pk).waiting_for or "")
    over = timezone.now() - timedelta(seconds=1)
    AgentEmailAccount.objects.update(state_until=over)
    Lane.objects.update(look_at=over)
    dispatch_round()
    assert api.delivery_status(message.pk).waiting_for == "Waits for a free worker."


# Size


@pytest.mark.django_db(transaction=True)
def test_a_large_submission_rings_for_its_first_senders_and_leaves_the_others_to_the_dispatcher(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "MOST_HINTS", 2)
    senders = [endpoint]
    for number in range(4):
        address = f"agent{number}@sender.example"
        agent = PersistentAgent.objects.create(name=f"Agent {number}")
        senders.append(
            PersistentAgentCommsEndpoint.objects.create(owner_agent=agent, channel="email", address=address)
        )
    facts = {"to": "to@rcpt.example", "subject": "Hello", "body": "Good morning"}
    messages = write.write([write.NewMail(from_endpoint=sender, **facts) for sender in senders])
    assert len(doorbell.rung) == 2
    OutboundMessageAttempt.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    dispatch_round()
    assert set(doorbell.rung) == {str(message.attempts.get().pk) for message in messages}


def test_the_dispatcher_does_not_read_what_the_mails_say(endpoint: PersistentAgentCommsEndpoint) -> None:
    from django.test.utils import CaptureQueriesContext

    message = send()
    run_out(message)
    with CaptureQueriesContext(connection) as queries:
        dispatch_round()
    assert not any('"body"' in row["sql"] for row in queries)
