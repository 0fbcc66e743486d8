"""Whom nobody writes to again: how they come onto the list, what it stops, and how they leave it."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.domain.suppression import is_dead
from gobii_email.models import PersistentAgent, PersistentAgentCommsEndpoint, Suppression
from gobii_email.services.settle import settle
from gobii_email.services.suppress import Cause, in_force, lift, question, suppress, suppress_by_hand
from gobii_email.services.track import Sighting, What, track
from gobii_email.services.write import NewMail, prepare
from tests.conftest import RecordingDoorbell, row_of, taken
from tests.services.returned import SENDER, A, B, report, sent, submitted, told

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint) -> None:
    pass


def listed() -> list[tuple[str, str, str]]:
    return list(Suppression.objects.filter(lifted_at=None).values_list("address", "cause", "enhanced_status"))


def enter(endpoint: PersistentAgentCommsEndpoint, address: str = A, reason: str = "It bounced.") -> None:
    assert suppress(endpoint.pk, address, cause=Cause.BOUNCED, reason=reason, now=timezone.now())


@pytest.mark.parametrize("status", ["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"])
def test_a_bounce_about_the_address_enters_it(status: str) -> None:
    attempt = sent()
    assert told(report(attempt, status=status, diagnostic=f"smtp; 550 {status} No such mailbox"))
    assert listed() == [(A, "bounced", status)]
    entered = Suppression.objects.get()
    assert "No such mailbox" in entered.reason and entered.message_id == attempt.message_id


OTHERS = {
    "mailbox full": ("5.2.2", "smtp; 552 5.2.2 Mailbox full"),
    "too much mail this hour": (
        "5.2.1",
        "smtp; 550 5.2.1 The user is receiving mail at a rate that prevents",
    ),
    "no route": ("5.4.4", "smtp; Host or domain name not found"),
    "content": ("5.6.0", "smtp; 554 5.6.0 Bad content"),
    "policy": ("5.7.1", "smtp; 554 5.7.1 Refused"),
    "a sender's fault": ("5.1.8", "smtp; 553 5.1.8 Domain of sender does not exist"),
    "gave up waiting": ("4.4.1", "smtp; 451 4.4.1 No answer"),
    "a sender without a reputation": ("5.1.1", "smtp; 550 5.1.1 blocked using zen.spamhaus.org"),
    "nothing written": ("", "smtp; 550 No such user here"),
}


@pytest.mark.parametrize(("status", "said"), OTHERS.values(), ids=OTHERS.keys())
def test_a_bounce_about_something_else_does_not(status: str, said: str) -> None:
    attempt = sent()
    assert told(report(attempt, status=status, diagnostic=said))
    assert attempt.message.recipients.get().status == "bounced"
    assert listed() == []


def test_what_a_server_does_not_write_is_not_guessed() -> None:
    assert not is_dead("", "550 No such user") and not is_dead("5.0.0", "550 No such user")


def test_an_address_that_the_own_server_refuses_twice_is_entered() -> None:
    refused = {
        A: Reply(550, "5.1.1", "No such user"),
        B: Reply(550, "5.7.1", "Not from you"),
    }
    taken_for_the_rest = Accepted(Reply(250, "2.0.0", "OK"), refused)
    for expected in ([], [(A, "bounced", "5.1.1")]):
        attempt = row_of(taken(submitted(A, B, "c@rcpt.example")))
        assert settle(attempt, taken_for_the_rest, provider=Provider.SMTP, now=timezone.now())
        assert listed() == expected


def test_one_that_is_refused_for_now_is_not() -> None:
    attempt = row_of(taken(submitted(A)))
    reply = Reply(450, "4.1.1", "Unverified address")
    assert settle(attempt, Refused(Stage.RCPT, reply, {A: reply}), provider=Provider.SMTP, now=timezone.now())
    assert listed() == []


def test_what_postmark_reports_enters_it_too() -> None:
    attempt = row_of(taken(submitted(A, B)))
    took = Accepted(Reply(250, "2.0.0", "OK"), provider_message_id="pm-1")
    assert settle(attempt, took, provider=Provider.POSTMARK, now=timezone.now())
    facts = {"attempt_id": str(attempt.pk), "provider_message_id": "pm-1"}
    assert track(Sighting(What.BOUNCED, A, said="smtp;550 5.1.1 The account does not exist", **facts))
    assert track(Sighting(What.COMPLAINED, B, **facts))
    assert sorted(listed()) == [(A, "bounced", "5.1.1"), (B, "complained", "")]


def test_a_submission_is_refused_with_address_reason_date_and_remedy(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    enter(endpoint, reason="It bounced: 550 5.1.1 No such user")
    with pytest.raises(InvalidMail) as refused:
        submitted("A@rcpt.example")
    text = str(refused.value)
    assert refused.value.field == "to"
    assert f"A@rcpt.example since {timezone.now():%Y-%m-%d} (It bounced: 550 5.1.1 No such user)" in text
    assert f"email_suppression {SENDER} --lift A@rcpt.example" in text


def test_one_of_several_refuses_them_all_and_is_named(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint, B)
    with pytest.raises(InvalidMail, match=B) as refused:
        api.send_agent_email(from_endpoint=SENDER, to=A, cc=[B], subject="Hello", body="Hi")
    assert refused.value.field == "cc" and A not in str(refused.value)
    assert not endpoint.messages_sent.exists()


def test_a_stored_message_is_refused_as_well(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint)
    contact = PersistentAgentCommsEndpoint.objects.create(channel="email", address=A)
    message = endpoint.messages_sent.create(to_endpoint=contact, subject="Hello", body="Hi")
    with pytest.raises(InvalidMail, match=A):
        api.deliver_agent_email(message)
    assert not message.attempts.exists()


def test_in_a_batch_each_mail_is_judged_by_itself(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint)
    ready = prepare([NewMail(SENDER, to, "Hello", "Hi") for to in (A, B)])
    assert isinstance(ready[0], InvalidMail) and not isinstance(ready[1], InvalidMail)


def test_other_senders_are_not_concerned(
    agent: PersistentAgent, endpoint: PersistentAgentCommsEndpoint
) -> None:
    PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="other@sender.example"
    )
    enter(endpoint)
    assert api.send_agent_email(from_endpoint="other@sender.example", to=A, subject="Hello", body="Hi")


def test_what_is_queued_already_still_goes_out(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = submitted(A, idempotency_key="once")
    enter(endpoint)
    took = Accepted(Reply(250, "2.0.0", "OK"))
    assert settle(row_of(taken(message)), took, provider=Provider.SMTP, now=timezone.now())
    message.refresh_from_db()
    assert message.latest_status == "sent"
    assert submitted(A, idempotency_key="once").pk == message.pk


def test_lifting_lets_mail_through_and_keeps_who_did_it(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint)
    assert lift(in_force(endpoint).filter(address=A), by="ada") == 1
    assert lift(in_force(endpoint).filter(address=A), by="ada") == 0
    assert submitted(A)
    row = Suppression.objects.get()
    assert row.lifted_by == "ada" and row.lifted_at is not None
    enter(endpoint, reason="Again.")
    assert Suppression.objects.count() == 2


def test_the_first_reason_stays(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint, reason="First.")
    again = suppress(endpoint.pk, A.upper(), cause=Cause.COMPLAINED, reason="Then.", now=timezone.now())
    assert not again and Suppression.objects.get().reason == "First."


@pytest.mark.parametrize(
    ("address", "reason", "field"), [("none", "Because", "recipient"), (A, " ", "reason")]
)
def test_by_hand_it_takes_an_address_and_a_reason(
    endpoint: PersistentAgentCommsEndpoint, address: str, reason: str, field: str
) -> None:
    with pytest.raises(InvalidMail) as refused:
        suppress_by_hand(endpoint, address, reason, by="ada")
    assert refused.value.field == field


def test_a_submission_asks_once_however_many_it_writes_to(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint, "somebody@else.example")
    for count in (1, 300):
        with CaptureQueriesContext(connection) as queries:
            submitted(*(f"to{number}@rcpt.example" for number in range(count)))
        asked = [row["sql"] for row in queries if Suppression._meta.db_table in row["sql"]]
        assert len(asked) == 1, asked


def test_the_question_is_answered_by_the_index_of_what_is_in_force(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    now = timezone.now() - timedelta(days=1)
    Suppression.objects.bulk_create(
        Suppression(endpoint=endpoint, address=f"x{n}@rcpt.example", cause="bounced", created_at=now)
        for n in range(5_000)
    )
    with connection.cursor() as cursor:
        cursor.execute(f"ANALYZE {Suppression._meta.db_table}")
    plan = explained(*question({endpoint.pk}, {A, B}))
    assert "suppression_in_force" in plan, plan


def explained(asked: str, given: list[Any]) -> str:
    words = "EXPLAIN" if connection.vendor == "postgresql" else "EXPLAIN QUERY PLAN"
    with connection.cursor() as cursor:
        cursor.execute(f"{words} {asked}", given)
        return "\n".join(str(row) for row in cursor.fetchall())


def test_nothing_secret_and_no_address_is_logged(endpoint: PersistentAgentCommsEndpoint, caplog: Any) -> None:
    caplog.set_level("INFO")
    enter(endpoint)
    assert A not in caplog.text and "suppression.added" in caplog.text
