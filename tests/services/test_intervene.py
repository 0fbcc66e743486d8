"""What a person may do to a message on its way, in every state it can be in."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.intervene import NotPossible, cancel, resolve_by_hand, retry
from gobii_email.services.lease import Lease
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell, live_until, taken

pytestmark = pytest.mark.django_db

TO, SLOW, NO = "to@rcpt.example", "slow@rcpt.example", "no@rcpt.example"


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any, account: AgentEmailAccount) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"


def send(*to: str, **values: Any) -> PersistentAgentMessage:
    facts: dict[str, Any] = {
        "from_endpoint": "agent@sender.example",
        "subject": "Hello",
        "body": "Good morning",
    }
    return api.send_agent_email(**(facts | {"to": to or [TO]} | values))


def go(message: PersistentAgentMessage) -> str:
    """Delivers what waits, whenever it was to be."""
    now = timezone.now()
    message.attempts.filter(status="queued").update(not_before=now, due_at=now)
    return deliver(str(message.attempts.get(status="queued").pk), owner="worker")


def fresh(message: PersistentAgentMessage) -> PersistentAgentMessage:
    return PersistentAgentMessage.objects.get(pk=message.pk)


def facts(message: PersistentAgentMessage) -> tuple[str, list[str], list[str]]:
    """The message's status, its attempts' and its recipients'."""
    attempts = message.attempts.order_by("number").values_list("status", flat=True)
    return fresh(message).latest_status, list(attempts), [row.status for row in message.recipients.all()]


def queued(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    return send()


def sending(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    message = send()
    taken(message)
    return message


def marked(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    message = send()
    Lease(taken(message), Provider.SMTP).mark()
    return message


def waiting_again(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    server.faults.recipients[TO] = ["451 4.7.1 Greylisted"]
    message = send()
    go(message)
    return message


def partly_waiting(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    server.faults.recipients[SLOW] = ["451 4.7.1 Greylisted"]
    message = send(TO, SLOW)
    go(message)
    return message


def sent(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    message = send()
    go(message)
    return message


def partially_sent(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    server.faults.recipients[NO] = ["550 5.1.1 No such user"]
    message = send(TO, NO)
    go(message)
    return message


def failed(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    server.faults.recipients[NO] = ["550 5.1.1 No such user"]
    message = send(NO)
    go(message)
    return message


def in_doubt(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    server.faults.drops.add("AFTER_DOT")
    server.faults.times["AFTER_DOT"] = 1
    message = send()
    go(message)
    return message


def cancelled(server: ScriptedSmtpServer) -> PersistentAgentMessage:
    message = send()
    assert cancel(message)
    return message


Make = Callable[[ScriptedSmtpServer], PersistentAgentMessage]


@pytest.mark.parametrize(
    ("make", "before", "is_withdrawn", "after"),
    [
        (queued, "queued", True, ("cancelled", ["cancelled"], ["pending"])),
        (sending, "sending", True, ("cancelled", ["cancelled"], ["pending"])),
        (marked, "sending", False, ("sending", ["sending"], ["pending"])),
        (waiting_again, "queued", True, ("cancelled", ["deferred", "cancelled"], ["deferred"])),
        (partly_waiting, "queued", True, ("partially_sent", ["sent", "cancelled"], ["accepted", "deferred"])),
        (sent, "sent", False, ("sent", ["sent"], ["accepted"])),
        (partially_sent, "partially_sent", False, ("partially_sent", ["sent"], ["accepted", "refused"])),
        (failed, "failed", False, ("failed", ["failed"], ["refused"])),
        (in_doubt, "in_doubt", False, ("in_doubt", ["in_doubt"], ["pending"])),
        (cancelled, "cancelled", False, ("cancelled", ["cancelled"], ["pending"])),
    ],
)
def test_withdrawing(
    smtp_server: ScriptedSmtpServer, make: Make, before: str, is_withdrawn: bool, after: tuple[Any, ...]
) -> None:
    message = make(smtp_server)
    assert fresh(message).latest_status == before
    assert cancel(message, by="Ada") is is_withdrawn
    assert facts(message) == after
    if is_withdrawn:
        assert "Withdrawn by Ada" in message.events.get(event="cancelled").text


def test_what_is_withdrawn_is_not_sent(smtp_server: ScriptedSmtpServer) -> None:
    message = send()
    cancel(message)
    assert deliver(str(message.attempts.get().pk), owner="worker") == "not due"
    assert smtp_server.messages == []


@pytest.mark.parametrize(
    ("make", "after", "received"),
    [
        (queued, ("sent", ["sent"], ["accepted"]), [(TO,)]),
        (waiting_again, ("sent", ["deferred", "sent"], ["accepted"]), [(TO,)]),
        (partly_waiting, ("sent", ["sent", "sent"], ["accepted", "accepted"]), [(TO,), (SLOW,)]),
        (partially_sent, ("sent", ["sent", "sent"], ["accepted", "accepted"]), [(TO,), (NO,)]),
        (failed, ("sent", ["failed", "sent"], ["accepted"]), [(NO,)]),
        (cancelled, ("sent", ["cancelled", "sent"], ["accepted"]), [(TO,)]),
    ],
)
def test_trying_again_writes_only_to_those_who_did_not_get_it(
    smtp_server: ScriptedSmtpServer, make: Make, after: tuple[Any, ...], received: list[tuple[str, ...]]
) -> None:
    message = make(smtp_server)
    attempt = retry(message, by="Ada")
    assert fresh(message).latest_status == "queued"
    assert "by Ada" in message.events.get(event="retried").text
    assert attempt.not_before <= timezone.now() or attempt.pk == message.attempts.last().pk  # type: ignore[union-attr]
    assert deliver(str(message.attempts.get(status="queued").pk), owner="worker") == "sent"
    assert facts(message) == after
    assert [kept.recipients for kept in smtp_server.messages] == received


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(sending, "being sent right now"), (sent, "accepted the message already"), (in_doubt, "email_resolve")],
)
def test_trying_again_is_refused_where_it_could_send_twice(
    smtp_server: ScriptedSmtpServer, make: Make, sentence: str
) -> None:
    message = make(smtp_server)
    before = (facts(message), message.events.count())
    with pytest.raises(NotPossible, match=sentence):
        retry(message)
    assert (facts(message), message.events.count()) == before


def test_trying_again_rings_on_commit(
    smtp_server: ScriptedSmtpServer, doorbell: RecordingDoorbell, django_capture_on_commit_callbacks: Any
) -> None:
    message = failed(smtp_server)
    doorbell.rung.clear()
    with django_capture_on_commit_callbacks(execute=True):
        attempt = retry(message)
    assert doorbell.rung == [str(attempt.pk)]


def test_an_expired_message_that_is_tried_again_lives_anew(smtp_server: ScriptedSmtpServer) -> None:
    message = send()
    live_until(timezone.now() - timedelta(seconds=1))
    assert go(message) == "failed"
    retry(fresh(message))
    life = fresh(message).expires_at
    assert life is not None and life > timezone.now() + timedelta(hours=23)
    assert go(message) == "sent"


@pytest.mark.django_db(transaction=True)
def test_trying_again_while_the_dispatcher_ends_the_same_mail_locks_nobody_out() -> None:
    messages = [send() for _ in range(40)]
    live_until(timezone.now() - timedelta(seconds=1))
    OutboundMessageAttempt.objects.update(due_at=timezone.now() - timedelta(seconds=1))
    problems: list[Exception] = []
    barrier = threading.Barrier(2)

    def run(act: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            act()
        except Exception as problem:
            problems.append(problem)
        finally:
            connection.close()

    def retry_all() -> None:
        for message in reversed(messages):
            retry(fresh(message))

    threads = [threading.Thread(target=run, args=(act,)) for act in (dispatch_round, retry_all)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert {fresh(message).latest_status for message in messages} == {"queued"}


def test_mail_of_a_mailbox_that_is_gone_may_be_moved_by_hand(smtp_server: ScriptedSmtpServer) -> None:
    message = send()
    AgentEmailAccount.objects.all().delete()
    assert go(message) == "postponed"
    retry(fresh(message))
    assert go(message) == "postponed", "trying again alone does not switch the transport"
    retry(fresh(message), use_default_transport=True)
    assert go(message) == "delivered"
    assert smtp_server.messages == []


def test_a_message_that_was_never_submitted_cannot_be_tried_again(account: AgentEmailAccount) -> None:
    message = PersistentAgentMessage.objects.create(from_endpoint=account.endpoint, body="Hello")
    with pytest.raises(NotPossible, match="deliver_agent_email"):
        retry(message)


@pytest.mark.parametrize(
    ("how", "after"),
    [
        ("sent", ("sent", ["sent"], ["accepted"])),
        ("resend", ("queued", ["deferred", "queued"], ["deferred"])),
        ("failed", ("failed", ["failed"], ["refused"])),
    ],
)
def test_a_doubt_is_settled_by_hand(
    smtp_server: ScriptedSmtpServer, how: str, after: tuple[Any, ...]
) -> None:
    message = in_doubt(smtp_server)
    resolve_by_hand(message, how, by="Ada")
    assert facts(message) == after
    assert "by Ada" in message.events.filter(event__startswith="doubt_").get().text
    with pytest.raises(NotPossible, match="not in doubt"):
        resolve_by_hand(message, how)


def test_a_doubt_settled_as_resend_is_sent_again_under_its_message_id(
    smtp_server: ScriptedSmtpServer,
) -> None:
    message = in_doubt(smtp_server)
    resolve_by_hand(message, "resend")
    assert go(message) == "sent"
    assert len(smtp_server.messages) == 2
    assert all(message.rfc_message_id.encode() in kept.content for kept in smtp_server.messages)


def test_a_doubt_that_outlived_the_message_is_still_sent_again_when_a_person_says_so(
    smtp_server: ScriptedSmtpServer,
) -> None:
    message = in_doubt(smtp_server)
    live_until(timezone.now() - timedelta(hours=1))
    resolve_by_hand(fresh(message), "resend")
    assert go(message) == "sent"


@pytest.mark.parametrize("make", [queued, sending, sent, partially_sent, failed, cancelled])
@pytest.mark.parametrize("how", ["sent", "resend", "failed"])
def test_where_there_is_no_doubt_nothing_is_settled(
    smtp_server: ScriptedSmtpServer, make: Make, how: str
) -> None:
    message = make(smtp_server)
    before = (facts(message), message.events.count())
    with pytest.raises(NotPossible, match="not in doubt"):
        resolve_by_hand(message, how)
    assert (facts(message), message.events.count()) == before


def test_only_those_the_doubt_is_about_are_sent_it_again(smtp_server: ScriptedSmtpServer) -> None:
    smtp_server.faults.recipients[NO] = ["550 5.1.1 No such user"]
    smtp_server.faults.recipients[SLOW] = ["451 4.7.1 Greylisted"]
    smtp_server.faults.drops.add("AFTER_DOT")
    smtp_server.faults.times["AFTER_DOT"] = 1
    message = send(TO, NO, SLOW)
    assert go(message) == "in_doubt"
    resolve_by_hand(message, "sent")
    assert facts(message) == ("queued", ["sent", "queued"], ["accepted", "refused", "deferred"])
    assert go(message) == "sent"
    assert [kept.recipients for kept in smtp_server.messages] == [(TO,), (SLOW,)]
    assert fresh(message).latest_status == "partially_sent"
