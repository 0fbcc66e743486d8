"""`email_retry`, `email_cancel`, `email_resolve`: what a person may do to a message on its way."""

from datetime import timedelta

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.models import OutboundMessageAttempt
from tests.entrypoints.commands import an_endpoint, deliver_all, into_doubt, run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_broker(settings):
    settings.GOBII_BROKER_URL = "memory://"


def send(**options):
    endpoint = an_endpoint()
    return api.send_agent_email(
        from_endpoint=endpoint, to="bob@example.com", subject="Tea", body="At five?", **options
    )


def test_a_waiting_message_is_withdrawn():
    message = send()
    answer = run("email_cancel", message.pk, "--json")
    assert answer.code == 0
    assert answer.document["status"] == "cancelled"
    deliver_all()
    assert api.delivery_status(message).status == "cancelled"


def test_withdrawing_too_late_ends_with_one_and_says_where_the_message_is():
    message = send()
    deliver_all()
    answer = run("email_cancel", message.pk, "--json")
    assert answer.code == 1
    assert answer.document["error"]["status"] == "delivered"
    assert "delivered" in answer.error


def test_a_message_for_later_is_made_due_now():
    message = send(send_at=timezone.now() + timedelta(hours=3))
    answer = run("email_retry", message.pk, "--json")
    assert (answer.code, answer.document["number"]) == (0, 1)
    assert OutboundMessageAttempt.objects.get().not_before <= timezone.now()
    assert "Made due now" in run("email_status", message.pk).out


def test_a_message_that_nobody_lacks_is_not_sent_again():
    message = send()
    deliver_all()
    answer = run("email_retry", message.pk)
    assert answer.code == 1
    assert "nothing is left to send" in answer.error
    assert OutboundMessageAttempt.objects.count() == 1


def test_mail_of_a_mailbox_that_is_gone_takes_the_default_transport_only_when_told_so():
    message = send()
    type(message).objects.update(had_account=True)
    run("email_retry", message.pk)
    deliver_all()
    assert api.delivery_status(message).status == "queued"
    run("email_retry", message.pk, "--default-transport")
    deliver_all()
    assert api.delivery_status(message).status == "delivered"


@pytest.mark.parametrize(
    ("how", "status", "attempts"), [("sent", "sent", 1), ("resend", "queued", 2), ("failed", "failed", 1)]
)
def test_a_doubt_is_settled_by_hand(how, status, attempts):
    message = send()
    into_doubt(message)
    answer = run("email_resolve", message.pk, "--as", how, "--json")
    assert (answer.code, answer.document["status"]) == (0, status)
    assert message.attempts.count() == attempts


def test_a_message_that_is_not_in_doubt_cannot_be_settled():
    message = send()
    answer = run("email_resolve", message.pk, "--as", "sent")
    assert answer.code == 1
    assert "not in doubt" in answer.error


def test_a_look_that_nobody_can_take_is_no_success():
    message = send()
    into_doubt(message)
    for had_account, reason in (
        (False, "there is no Sent to look into"),
        (True, "Nobody can look into Sent"),
    ):
        type(message).objects.update(had_account=had_account)
        answer = run("email_resolve", message.pk, "--look", "--json")
        assert answer.code == 1
        assert reason in answer.document["error"]["reason"]
    both = run("email_resolve", message.pk, "--look", "--as", "sent")
    assert both.code != 0 and message.attempts.get().status == "in_doubt"


def test_a_worker_is_asked_to_look(monkeypatch):
    message = send()
    into_doubt(message)
    asked = []
    monkeypatch.setattr("gobii_email.services.visit.ask_for_look", asked.append)
    answer = run("email_resolve", message.pk, "--look", "--json")
    assert (answer.code, answer.document["status"]) == (0, "in_doubt")
    assert asked == [message] and "A worker looks" in answer.document["text"]


def test_an_unknown_resolution_is_wrong_usage():
    answer = run("email_resolve", "00000000-0000-0000-0000-000000000000", "--as", "lost")
    assert answer.code != 0
    assert "lost" in answer.error


@pytest.mark.parametrize("command", [("email_retry",), ("email_cancel",), ("email_resolve", "--as", "sent")])
def test_an_unknown_message_ends_with_one(command):
    name, *options = command
    answer = run(name, "4711", *options, "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "message_id"
