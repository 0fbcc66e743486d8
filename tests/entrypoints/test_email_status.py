"""`email_status`: the document of the contract, a form for people, and the timeline as it happens."""

import threading

import pytest

from gobii_email import api
from gobii_email.models import OutboundMessageRecipient
from tests.entrypoints.commands import SENDER, an_endpoint, deliver_all, run

pytestmark = pytest.mark.django_db
IN_THREADS = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def no_broker(settings):
    settings.GOBII_BROKER_URL = "memory://"


@pytest.fixture
def message():
    endpoint = an_endpoint()
    return api.send_agent_email(
        from_endpoint=endpoint, to=["bob@example.com"], subject="Tea", body="At *five*?"
    )


def test_the_document_has_every_field_of_the_contract(message):
    answer = run("email_status", message.pk, "--json")
    assert answer.code == 0
    document = answer.document
    assert set(document) == {
        "message_id", "direction", "rfc_message_id", "status", "subject", "from", "created_at", "waiting_for",
        "recipients", "attempts", "timeline",
    }  # fmt: skip
    assert document["message_id"] == str(message.pk)
    assert document["status"] == "queued"
    assert document["waiting_for"]
    assert document["from"] == SENDER
    assert set(document["recipients"][0]) == {
        "address", "kind", "status", "smtp_code", "enhanced_status", "reply",
    }  # fmt: skip
    assert set(document["attempts"][0]) == {
        "attempt_id", "number", "provider", "status", "stage", "verdict", "scope", "smtp_code",
        "enhanced_status", "error_code", "error_message", "provider_message_id",
        "queued_at", "started_at", "finished_at",
        "next_attempt_at",
    }  # fmt: skip
    assert set(document["timeline"][0]) == {"at", "event", "text"}


def test_people_see_recipients_attempts_and_the_timeline(message):
    deliver_all()
    out = run("email_status", message.pk).out
    assert out.startswith(f"{message.pk}  delivered")
    assert "bob@example.com" in out
    assert "postmark_simulation" in out
    assert "Queued for 1 recipient" in out


def test_a_message_is_also_found_by_its_message_id(message):
    named = run("email_status", message.rfc_message_id, "--json").document
    bare = run("email_status", message.rfc_message_id.strip("<>"), "--json").document
    assert named["message_id"] == bare["message_id"] == str(message.pk)


@pytest.mark.parametrize(
    "name", ["nonsense", "00000000-0000-0000-0000-000000000000", "<no@such.example>", ""]
)
def test_an_unknown_message_ends_with_one_and_says_what_to_give(name):
    answer = run("email_status", name, "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "message_id"
    assert "email_send" in answer.document["error"]["remedy"]


def test_a_reply_of_a_server_cannot_steer_the_terminal(message):
    OutboundMessageRecipient.objects.update(reply="550 no\x1b[2J\x9b31m\r\n\u202eevil")
    out = run("email_status", message.pk).out
    assert "550 no" in out
    assert not {"\x1b", "\x9b", "\r", "\u202e"} & set(out)


@IN_THREADS
def test_following_prints_events_as_they_happen_and_ends_when_it_is_over(message):
    from django.db import connection

    def work_a_little_later():
        deliver_all()
        connection.close()

    worker = threading.Timer(0.7, work_a_little_later)
    worker.start()
    answer = run("email_status", message.pk, "--follow", "--json")
    worker.join()
    *events, last = answer.documents
    assert events[0]["event"] == "queued"
    assert [event["text"] for event in events] == [entry["text"] for entry in last["timeline"]]
    assert len(events) > 1
    assert last["status"] == "delivered"
