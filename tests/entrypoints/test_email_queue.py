"""`email_queue`: how much waits, since when, and what holds it up, in a bounded number of statements."""

from datetime import timedelta

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.models import AgentEmailAccount, Lane, MailHost, OutboundMessageAttempt
from gobii_email.services import hold
from tests.entrypoints.commands import SENDER, ago, an_endpoint, deliver_all, run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_broker(settings):
    settings.GOBII_BROKER_URL = "memory://"


def send(endpoint, number=1):
    for index in range(number):
        api.send_agent_email(
            from_endpoint=endpoint, to="bob@example.com", subject=f"Mail {index}", body="Hello"
        )


def test_an_empty_queue_is_told_in_words_and_in_numbers():
    assert "0 waiting" in run("email_queue").out
    document = run("email_queue", "--json").document
    assert set(document["messages"].values()) == {0}
    assert document["waiting"]["oldest_queued_at"] is None


def test_messages_are_counted_by_status_and_the_oldest_that_waits_is_named():
    endpoint = an_endpoint()
    send(endpoint)
    deliver_all()
    send(endpoint, 3)
    OutboundMessageAttempt.objects.filter(status="queued").update(queued_at=ago(minutes=7))
    document = run("email_queue", "--json").document
    assert document["messages"]["delivered"] == 1
    assert document["messages"]["queued"] == 3
    assert document["waiting"]["attempts"] == document["waiting"]["ready"] == 3
    assert 420 <= document["waiting"]["oldest_seconds"] < 480


def test_mail_for_later_is_waiting_but_not_ready_nor_old():
    endpoint = an_endpoint()
    api.send_agent_email(
        from_endpoint=endpoint,
        to="bob@example.com",
        subject="x",
        body="x",
        send_at=timezone.now() + timedelta(hours=1),
    )
    waiting = run("email_queue", "--json").document["waiting"]
    assert (waiting["attempts"], waiting["ready"], waiting["oldest_queued_at"]) == (1, 0, None)


def test_an_account_that_is_held_is_shown_with_its_reason_its_end_and_its_mail():
    endpoint = an_endpoint()
    account = AgentEmailAccount.objects.create(endpoint=endpoint, smtp_host="smtp.example.org", smtp_port=587)
    send(endpoint, 2)
    until = timezone.now() + timedelta(hours=2)
    hold.pause(account, reason="Moving house", until=until)
    (found,) = run("email_queue", "--json").document["accounts"]
    assert found == {
        "address": SENDER,
        "state": "paused",
        "reason": "Moving house",
        "until": until.isoformat(),
        "waiting": 2,
    }
    assert f"account {SENDER}: paused until" in run("email_queue").out


def test_a_hold_that_has_run_out_is_not_shown():
    account = AgentEmailAccount.objects.create(endpoint=an_endpoint())
    hold.pause(account, reason="Moving house", until=ago(seconds=1))
    assert run("email_queue", "--json").document["accounts"] == []


def test_an_account_that_waits_for_a_limit_is_shown_until_it_has_waited():
    endpoint = an_endpoint()
    send(endpoint, 2)
    assert run("email_queue", "--json").document["lanes"] == []
    until = timezone.now() + timedelta(minutes=1)
    lane = Lane.objects.create(
        endpoint=endpoint, look_at=until, code="rate_limit", reason="the account's limit of 60 a minute"
    )
    document = run("email_queue", "--json").document
    assert document["lanes"] == [
        {
            "address": SENDER,
            "code": "rate_limit",
            "reason": "the account's limit of 60 a minute",
            "until": until.isoformat(),
            "waiting": 2,
        }
    ]
    assert (document["waiting"]["attempts"], document["waiting"]["ready"]) == (2, 0)
    assert document["causes"]["rate_limit"] == 1
    assert "2 waiting. the account's limit of 60 a minute" in run("email_queue").out
    lane.look_at = ago(seconds=1)
    lane.save()
    document = run("email_queue", "--json").document
    assert (document["lanes"], document["waiting"]["ready"]) == ([], 2)


def test_a_lane_that_was_handed_out_waits_for_nothing():
    endpoint = an_endpoint()
    send(endpoint)
    Lane.objects.create(endpoint=endpoint, look_at=timezone.now() + timedelta(minutes=1))
    document = run("email_queue", "--json").document
    assert (document["lanes"], document["waiting"]["ready"]) == ([], 1)


def test_mail_that_waits_each_for_itself_is_shown_by_sender_and_reason():
    send(an_endpoint(), 2)
    until = timezone.now() + timedelta(minutes=5)
    OutboundMessageAttempt.objects.update(
        held_code="account_gone", held_reason="The mailbox was removed.", due_at=until
    )
    document = run("email_queue", "--json").document
    (found,) = document["held"]
    assert (found["address"], found["code"], found["waiting"]) == (SENDER, "account_gone", 2)
    assert document["waiting"]["ready"] == 0
    assert f"mail of {SENDER}: account_gone until" in run("email_queue").out


def test_accounts_that_do_not_send_freely_are_counted_by_cause():
    def account(name, **values):
        facts = {"smtp_host": "smtp.office365.com", "smtp_port": 587} | values
        return AgentEmailAccount.objects.create(endpoint=an_endpoint(f"{name}@agents.example"), **facts)

    now = timezone.now()
    account("well")
    account("limited", state="limited", state_until=now + timedelta(minutes=1))
    account("was-limited", state="limited", state_until=ago(minutes=1))
    account("quota", state="quota", smtp_port=25)
    account("blocked", state="blocked", smtp_port=25)
    account("slow", learned_per_minute=5, learned_at=ago(minutes=5), smtp_port=25)
    account("grown", learned_per_minute=5, learned_at=ago(hours=3), smtp_port=25)
    MailHost.objects.create(name="smtp.office365.com:587", backoff_until=now + timedelta(minutes=1))
    causes = run("email_queue", "--json").document["causes"]
    assert {cause: count for cause, count in causes.items() if count} == {
        "limited": 1,
        "quota": 1,
        "blocked": 1,
        "host_backoff": 3,
        "learned": 1,
    }
    assert set(causes) >= {"auth_needed", "config_needed", "paused", "rate_limit"}
    assert "accounts that do not send freely: limited 1" in run("email_queue").out


def test_a_host_in_backoff_is_shown_until_it_is_over():
    MailHost.objects.create(
        name="smtp.example.org",
        backoff_until=timezone.now() + timedelta(minutes=5),
        failures=3,
        reason="421 busy",
    )
    MailHost.objects.create(name="well.example.org", backoff_until=ago(minutes=5), reason="421 busy")
    (found,) = run("email_queue", "--json").document["hosts"]
    assert (found["host"], found["failures"], found["reason"]) == ("smtp.example.org", 3, "421 busy")


def test_nine_statements_do_whatever_the_length_of_the_queue(django_assert_num_queries):
    send(an_endpoint(), 12)
    for number in range(5):
        account = AgentEmailAccount.objects.create(endpoint=an_endpoint(f"{number}@agents.example"))
        hold.pause(account, reason="Moving house")
    with django_assert_num_queries(9):
        run("email_queue", "--json")
