"""Taking mail in: what is stored, what is refused, and that nothing is half done."""

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.files.base import ContentFile
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from opentelemetry import trace

from gobii_email import api
from gobii_email.domain.lifecycle import Priority
from gobii_email.models import (
    AgentEmailAccount,
    CommsAllowlistEntry,
    FrozenMessage,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.ports import Hint
from gobii_email.services import submit
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell

Endpoint = PersistentAgentCommsEndpoint
Deliver = Callable[[], list[str]]

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    """No test here rings a real broker."""


@pytest.fixture(autouse=True)
def files(settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = tmp_path


def send(**values: Any) -> PersistentAgentMessage:
    facts = {
        "from_endpoint": "agent@sender.example",
        "to": "to@rcpt.example",
        "subject": "Hello",
        "body": "Good *morning*",
    }
    return api.send_agent_email(**(facts | values))


def contact(address: str) -> Endpoint:
    return Endpoint.objects.get_or_create(channel="email", address=address, owner_agent=None)[0]


def written(endpoint: Endpoint, to: str | None = "to@rcpt.example", **values: Any) -> PersistentAgentMessage:
    """A message as the platform stores it before it is delivered."""
    facts = {"subject": "Hello", "body": "Good morning", "to_endpoint": contact(to) if to else None}
    return PersistentAgentMessage.objects.create(from_endpoint=endpoint, **(facts | values))


def other_sender() -> Endpoint:
    agent = PersistentAgent.objects.create(name="Other")
    return Endpoint.objects.create(owner_agent=agent, channel="email", address="other@sender.example")


def mail_of(message: PersistentAgentMessage) -> EmailMessage:
    frozen = FrozenMessage.objects.get(message=message)
    return message_from_bytes(bytes(frozen.mime), policy=policy.SMTP)  # type: ignore[return-value]


def html_of(message: PersistentAgentMessage) -> str:
    body = mail_of(message).get_body(("html",))
    assert body is not None
    return str(body.get_content())


def inline_parts(message: PersistentAgentMessage) -> list[EmailMessage]:
    return [part for part in mail_of(message).walk() if part.get_content_disposition() == "inline"]  # type: ignore[misc]


def attached_parts(message: PersistentAgentMessage) -> list[EmailMessage]:
    return [part for part in mail_of(message).walk() if part.get_content_disposition() == "attachment"]  # type: ignore[misc]


def picture(name: str, content: bytes = b"\x89PNG picture") -> api.EmailAttachmentPayload:
    return api.EmailAttachmentPayload(name, content, "image/png")


def row_counts() -> dict[str, int]:
    """How many rows each table of the app has."""
    return {
        model.__name__: model.objects.count() for model in apps.get_app_config("gobii_email").get_models()
    }


def in_threads(*acts: Callable[[], Any]) -> list[Any]:
    """What `acts` answer or raise, all run at the same time."""
    barrier = threading.Barrier(len(acts))
    answers: list[Any] = [None] * len(acts)

    def run(position: int) -> None:
        barrier.wait()
        try:
            answers[position] = acts[position]()
        except Exception as problem:
            answers[position] = problem
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(position,)) for position in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# In the caller's transaction


@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_nothing_and_rings_nobody(endpoint: Endpoint, doorbell: RecordingDoorbell) -> None:
    before = row_counts()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        send()
        raise ZeroDivisionError
    assert row_counts() == before
    assert doorbell.rung == []


@pytest.mark.django_db(transaction=True)
def test_a_commit_rings_once_and_not_before(endpoint: Endpoint, doorbell: RecordingDoorbell) -> None:
    with transaction.atomic():
        message = written(endpoint)
        first = api.deliver_agent_email(message)
        assert api.deliver_agent_email(message) == first
        assert doorbell.rung == []
    assert first is not None
    assert doorbell.rung == [str(first.pk)]


@pytest.mark.django_db(transaction=True)
def test_a_bell_that_breaks_does_not_reach_the_caller(
    endpoint: Endpoint, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> bool:
        raise OSError("the wire is cut")

    monkeypatch.setattr(doorbell, "ring", broken)
    assert send().attempts.get().status == "queued"


def test_a_second_call_answers_the_first_attempt(endpoint: Endpoint) -> None:
    message = written(endpoint)
    first, second = api.deliver_agent_email(message), api.deliver_agent_email(message)
    assert first is not None
    assert first == second
    assert (first.number, first.status) == (1, "queued")
    assert OutboundMessageAttempt.objects.count() == 1


def test_a_message_already_sent_is_left_alone_with_one_line_in_the_log(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    deliver_all: Deliver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = send()
    assert deliver_all() == ["sent"]
    caplog.clear()
    with caplog.at_level(logging.INFO, "gobii_email"):
        attempt = api.deliver_agent_email(PersistentAgentMessage.objects.get(pk=message.pk))
    assert attempt is not None and attempt.status == "sent"
    assert [row.message for row in caplog.records] == ["message.already_submitted"]
    assert len(smtp_server.messages) == 1


@pytest.mark.django_db(transaction=True)
def test_two_threads_that_submit_the_same_message_get_the_same_attempt(endpoint: Endpoint) -> None:
    message = written(endpoint)

    def act() -> Any:
        return api.deliver_agent_email(PersistentAgentMessage.objects.get(pk=message.pk))

    first, second = in_threads(act, act)
    assert isinstance(first, OutboundMessageAttempt), first
    assert first == second
    assert OutboundMessageAttempt.objects.count() == 1


# Idempotency keys


def test_the_same_key_and_content_answers_the_first_message(endpoint: Endpoint) -> None:
    first = send(idempotency_key="order-7", to=["to@rcpt.example", "b@rcpt.example"])
    second = send(idempotency_key="order-7", to=["B@rcpt.example", "to@rcpt.example"])
    assert first == second
    assert PersistentAgentMessage.objects.count() == 1


def test_the_same_key_on_another_stored_message_answers_the_first_attempt(endpoint: Endpoint) -> None:
    again = written(endpoint)
    first = api.deliver_agent_email(written(endpoint), idempotency_key="order-7")
    second = api.deliver_agent_email(again, idempotency_key="order-7")
    assert first is not None
    assert first == second
    again.refresh_from_db()
    assert (again.latest_status, again.latest_error_code) == ("cancelled", "duplicate")


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "Bye"},
        {"body": "Good night"},
        {"to": "other@rcpt.example"},
        {"cc": "cc@rcpt.example"},
        {"bcc": "bcc@rcpt.example"},
        {"headers": {"X-Ticket": "7"}},
        {"in_reply_to": "<parent@rcpt.example>"},
        {"attachments": [picture("a.png")]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_same_key_with_other_content_is_a_conflict(endpoint: Endpoint, change: dict[str, Any]) -> None:
    send(idempotency_key="order-7")
    before = row_counts()
    with pytest.raises(api.IdempotencyConflict, match=r"order-7.*new key"):
        send(idempotency_key="order-7", **change)
    assert row_counts() == before


def test_two_senders_may_use_the_same_key(endpoint: Endpoint) -> None:
    other = PersistentAgent.objects.create(name="Other")
    Endpoint.objects.create(owner_agent=other, channel="email", address="other@sender.example")
    assert send(idempotency_key="k") != send(idempotency_key="k", from_endpoint="other@sender.example")


@pytest.mark.django_db(transaction=True)
def test_two_threads_with_the_same_key_and_content_get_one_message(endpoint: Endpoint) -> None:
    def act() -> PersistentAgentMessage:
        return send(idempotency_key="order-7")

    first, *others = in_threads(*[act] * 4)
    assert isinstance(first, PersistentAgentMessage), first
    assert others == [first] * 3
    assert PersistentAgentMessage.objects.count() == OutboundMessageAttempt.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_two_threads_with_the_same_key_and_other_content_get_one_message_and_one_conflict(
    endpoint: Endpoint,
) -> None:
    answers = in_threads(
        lambda: send(idempotency_key="order-7"), lambda: send(idempotency_key="order-7", subject="Bye")
    )
    kinds = sorted(type(answer).__name__ for answer in answers)
    assert kinds == ["IdempotencyConflict", "PersistentAgentMessage"], answers
    assert PersistentAgentMessage.objects.count() == OutboundMessageAttempt.objects.count() == 1


# When, and until when


def test_mail_for_later_rings_nobody_and_is_not_due_before_its_time(
    endpoint: Endpoint,
    doorbell: RecordingDoorbell,
    django_capture_on_commit_callbacks: Any,
    deliver_all: Deliver,
) -> None:
    send_at = timezone.now() + timedelta(hours=2)
    with django_capture_on_commit_callbacks(execute=True):
        attempt = send(send_at=send_at).attempts.get()
    assert (attempt.not_before, attempt.due_at) == (send_at, send_at)
    assert attempt.message.expires_at == send_at + timedelta(hours=24)
    assert doorbell.rung == []
    assert deliver_all() == ["not due"]


def test_mail_for_a_time_that_is_over_goes_out_now(
    endpoint: Endpoint,
    doorbell: RecordingDoorbell,
    django_capture_on_commit_callbacks: Any,
    deliver_all: Deliver,
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        attempt = send(send_at=timezone.now() - timedelta(hours=2)).attempts.get()
    assert doorbell.rung == [str(attempt.pk)]
    assert deliver_all() == ["delivered"]


def test_a_message_lives_a_day_unless_it_says_otherwise(endpoint: Endpoint, settings: Any) -> None:
    soon = timezone.now() + timedelta(minutes=10)
    assert send(expires_at=soon).expires_at == soon
    message = send()
    assert message.expires_at == message.submitted_at + timedelta(hours=24)  # type: ignore[operator]
    settings.GOBII_EXPIRES_AFTER = "1h"
    message = send()
    assert message.expires_at == message.submitted_at + timedelta(hours=1)  # type: ignore[operator]


def test_what_to_do_in_doubt_is_kept(endpoint: Endpoint) -> None:
    assert send().on_doubt == "hold"
    assert send(on_doubt="resend").on_doubt == "resend"


# What is not outbound mail


@pytest.mark.parametrize("kind", ["sms", "inbound", "no sender"])
def test_what_is_not_outbound_mail_gets_a_warning_only(
    endpoint: Endpoint, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    sms = Endpoint.objects.create(owner_agent=endpoint.owner_agent, channel="sms", address="+15550100")
    message = written(
        {"sms": sms, "inbound": endpoint, "no sender": None}[kind], is_outbound=kind != "inbound"
    )
    before = row_counts()
    with caplog.at_level(logging.INFO, "gobii_email"):
        assert api.deliver_agent_email(message) is None
    assert [(row.levelname, row.message) for row in caplog.records] == [
        ("WARNING", "message.not_outbound_email")
    ]
    assert row_counts() == before


# Bad input

PAST = datetime(2020, 1, 1, tzinfo=UTC)
NAIVE = datetime(2099, 1, 1)  # noqa: DTZ001
BAD_INPUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nobody to write to": ("to", {"to": []}),
    "an empty address": ("to", {"to": ""}),
    "no at sign": ("to", {"to": "rcpt.example"}),
    "two addresses in one": ("to", {"to": "a@rcpt.example, b@rcpt.example"}),
    "a line break in an address": ("to", {"to": "a@rcpt.example\r\nBcc: c@rcpt.example"}),
    "a bad cc": ("cc", {"cc": ["good@rcpt.example", "bad@"]}),
    "a bad bcc": ("bcc", {"bcc": "@rcpt.example"}),
    "an unknown sender": ("from", {"from_endpoint": "nobody@sender.example"}),
    "a subject too long": ("subject", {"subject": "x" * 2000}),
    "an empty body": ("body", {"body": "  \n "}),
    "a body too long": ("body", {"body": "x" * 1_000_001}),
    "a header that is ours": ("headers", {"headers": {"X-Gobii-Message-ID": "7"}}),
    "a header that is not allowed": ("headers", {"headers": {"Bcc": "c@rcpt.example"}}),
    "a line break in a header": ("headers", {"headers": {"X-Ticket": "7\r\nBcc: c@rcpt.example"}}),
    "a bad reply-to": ("reply_to", {"headers": {"Reply-To": "nowhere"}}),
    "naive send_at": ("send_at", {"send_at": NAIVE}),
    "naive expires_at": ("expires_at", {"expires_at": NAIVE}),
    "already expired": ("expires_at", {"expires_at": PAST}),
    "expires before it is sent": (
        "expires_at",
        {"send_at": datetime(2099, 1, 2, tzinfo=UTC), "expires_at": datetime(2099, 1, 1, tzinfo=UTC)},
    ),
    "an unknown policy": ("on_doubt", {"on_doubt": "guess"}),
    "an unknown priority": ("priority", {"priority": "urgent"}),
    "an empty priority": ("priority", {"priority": ""}),
    "an empty key": ("idempotency_key", {"idempotency_key": ""}),
    "a key too long": ("idempotency_key", {"idempotency_key": "k" * 256}),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_is_refused_with_field_and_remedy_and_nothing_is_stored(
    endpoint: Endpoint, doorbell: RecordingDoorbell, name: str
) -> None:
    field, values = BAD_INPUTS[name]
    before = row_counts()
    with pytest.raises(api.InvalidMail) as caught:
        send(**values)
    assert (caught.value.field, bool(caught.value.reason), bool(caught.value.remedy)) == (field, True, True)
    assert str(caught.value).startswith(f"{field}: ")
    assert row_counts() == before


def test_more_recipients_than_allowed_are_refused(endpoint: Endpoint, settings: Any) -> None:
    settings.GOBII_MAX_RECIPIENTS = 2
    before = row_counts()
    with pytest.raises(api.InvalidMail, match="more than 2 recipients"):
        send(to=["a@rcpt.example"], cc=["b@rcpt.example"], bcc=["c@rcpt.example"])
    assert row_counts() == before


def test_a_file_larger_than_allowed_is_refused(endpoint: Endpoint, settings: Any) -> None:
    settings.GOBII_MAX_MESSAGE_BYTES = 10_000
    before = row_counts()
    with pytest.raises(api.InvalidMail, match=r"attachments.*10,000 bytes"):
        send(attachments=[picture("large.png", b"x" * 10_001)])
    assert row_counts() == before


def test_a_stored_message_that_cannot_be_sent_stays_unsubmitted(endpoint: Endpoint) -> None:
    message = written(endpoint, to=None)
    before = row_counts()
    with pytest.raises(api.InvalidMail) as caught:
        api.deliver_agent_email(message)
    assert caught.value.field == "to"
    assert row_counts() == before
    assert PersistentAgentMessage.objects.get(pk=message.pk).submitted_at is None


def test_a_message_that_was_never_saved_is_refused(endpoint: Endpoint) -> None:
    message = PersistentAgentMessage(
        from_endpoint=endpoint, to_endpoint=contact("to@rcpt.example"), body="Hi"
    )
    before = row_counts()
    with pytest.raises(api.InvalidMail, match="message: it was never saved"):
        api.deliver_agent_email(message)
    assert row_counts() == before


def test_one_bad_message_of_many_queues_none(endpoint: Endpoint) -> None:
    messages = [written(endpoint), written(endpoint, body=""), written(endpoint)]
    before = row_counts()
    with pytest.raises(api.InvalidMail):
        api.deliver_many(messages)
    assert row_counts() == before


# Many


def statements_for(endpoint: Endpoint, count: int) -> int:
    made = [written(endpoint, to=f"to{number}@rcpt.example") for number in range(count)]
    for message in made:
        message.cc_endpoints.add(contact("cc@rcpt.example"))
    messages = list(PersistentAgentMessage.objects.filter(pk__in=[message.pk for message in made]))
    with CaptureQueriesContext(connection) as queries:
        attempts = api.deliver_many(messages)
    assert len({attempt.pk for attempt in attempts if attempt is not None}) == count
    assert [attempt.message_id for attempt in attempts if attempt] == [message.pk for message in messages]
    return len(queries)


def test_the_number_of_statements_does_not_grow_with_the_messages(
    account: AgentEmailAccount, endpoint: Endpoint
) -> None:
    assert statements_for(endpoint, 2) <= statements_for(endpoint, 20) == statements_for(endpoint, 40)


def test_many_answers_in_order_also_for_what_was_submitted_before(endpoint: Endpoint) -> None:
    old, new = written(endpoint), written(endpoint)
    first = api.deliver_agent_email(old)
    inbound = written(endpoint, is_outbound=False)
    answers = api.deliver_many([new, inbound, old])
    assert answers[0] is not None and answers[0].message_id == new.pk
    assert answers[1:] == [None, first]


def test_a_message_named_twice_among_many_is_queued_once(endpoint: Endpoint) -> None:
    message, other = written(endpoint), written(endpoint)
    first, second, third = api.deliver_many([message, other, message])
    assert first is not None and first == third != second
    assert OutboundMessageAttempt.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_many_ring_once_a_sender_with_the_first_that_is_due(
    endpoint: Endpoint, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings: list[tuple[list[Hint], bool]] = []
    monkeypatch.setattr(doorbell, "ring", lambda hints, *, once: rings.append((list(hints), once)) or True)
    other = other_sender()
    attempts = api.deliver_many([written(sender) for sender in (endpoint, other, endpoint, other)])
    first, second = (attempt for attempt in attempts[:2] if attempt)
    assert rings == [([Hint(str(first.pk), str(endpoint.pk)), Hint(str(second.pk), str(other.pk))], True)]


@pytest.mark.django_db(transaction=True)
def test_a_call_for_very_many_senders_rings_for_some_of_them(
    endpoint: Endpoint, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "MOST_HINTS", 1)
    first, _ = api.deliver_many([written(endpoint), written(other_sender())])
    assert first is not None
    assert doorbell.rung == [str(first.pk)]


# Whose turn it is first


def test_a_single_mail_is_interactive_and_many_are_bulk_unless_they_say_otherwise(endpoint: Endpoint) -> None:
    one = [send(), send(priority="bulk")]
    assert [message.attempts.get().priority for message in one] == [Priority.INTERACTIVE, Priority.BULK]
    assert api.deliver_agent_email(written(endpoint)).priority == Priority.INTERACTIVE  # type: ignore[union-attr]
    assert api.deliver_agent_email(written(endpoint), priority="bulk").priority == Priority.BULK  # type: ignore[union-attr]
    many = api.deliver_many([written(endpoint)]) + api.deliver_many(
        [written(endpoint)], priority="interactive"
    )
    assert [attempt.priority for attempt in many if attempt] == [Priority.BULK, Priority.INTERACTIVE]


def test_the_first_attempt_is_due_at_once_and_knows_its_messages_end(endpoint: Endpoint) -> None:
    attempt = send().attempts.get()
    assert attempt.due_at == attempt.queued_at == attempt.not_before
    assert attempt.expires_at == attempt.message.expires_at is not None


# Recipients


def test_an_address_is_written_to_once_under_its_first_kind(endpoint: Endpoint) -> None:
    message = send(
        to=["a@rcpt.example", "A@rcpt.example"],
        cc=["a@RCPT.example", "b@rcpt.example"],
        bcc=["B@rcpt.example", "c@rcpt.example"],
    )
    kinds = {row.address.lower(): row.kind for row in message.recipients.all()}
    assert kinds == {"a@rcpt.example": "to", "b@rcpt.example": "cc", "c@rcpt.example": "bcc"}
    assert len(message.attempts.get().addresses) == 3


def test_bcc_is_in_the_envelope_and_nowhere_in_the_mail(endpoint: Endpoint) -> None:
    message = send(cc="cc@rcpt.example", bcc=["secret@rcpt.example"])
    frozen = FrozenMessage.objects.get(message=message)
    assert b"secret@rcpt.example" not in bytes(frozen.mime)
    assert b"\nbcc:" not in bytes(frozen.mime).lower()
    assert "secret@rcpt.example" in message.attempts.get().addresses
    assert mail_of(message)["Cc"] == "cc@rcpt.example"


def test_cc_and_bcc_endpoints_are_kept(endpoint: Endpoint) -> None:
    message = send(cc="cc@rcpt.example", bcc=["bcc@rcpt.example"])
    assert [found.address for found in message.cc_endpoints.all()] == ["cc@rcpt.example"]
    assert [found.address for found in message.bcc_endpoints.all()] == ["bcc@rcpt.example"]
    assert message.to_endpoint == contact("to@rcpt.example")


def test_the_sender_shows_the_endpoints_name_else_the_agents(endpoint: Endpoint) -> None:
    assert mail_of(send())["From"] == "Ada Agent <agent@sender.example>"
    apps.get_model("gobii_email", "PersistentAgentEmailEndpoint").objects.create(
        endpoint=endpoint, display_name="Sales, Ltd."
    )
    assert mail_of(send())["From"].addresses[0].display_name == "Sales, Ltd."
    assert mail_of(send())["From"].addresses[0].addr_spec == "agent@sender.example"


# Threads and subjects


def received(endpoint: Endpoint, message_id: str, references: str) -> PersistentAgentMessage:
    return PersistentAgentMessage.objects.create(
        is_outbound=False,
        from_endpoint=contact("to@rcpt.example"),
        to_endpoint=endpoint,
        body="Hello agent",
        raw_payload={"message_id": message_id, "references": references},
    )


def test_a_reply_names_its_parent_and_merges_the_references(endpoint: Endpoint) -> None:
    inbound = received(endpoint, "<c@rcpt.example>", "<a@rcpt.example> <b@rcpt.example>")
    message = written(endpoint, parent=inbound)
    api.deliver_agent_email(message)
    mail = mail_of(message)
    assert mail["In-Reply-To"] == "<c@rcpt.example>"
    assert mail["References"].split() == ["<a@rcpt.example>", "<b@rcpt.example>", "<c@rcpt.example>"]


def test_the_message_id_is_kept_where_the_platform_looks_for_it(endpoint: Endpoint) -> None:
    message = written(endpoint)
    api.deliver_agent_email(message)
    message.refresh_from_db()
    assert message.raw_payload["message_id"] == message.rfc_message_id == mail_of(message)["Message-ID"]
    assert message.rfc_message_id.endswith("@sender.example>")
    assert "Good morning" in FrozenMessage.objects.get(message=message).html


def test_a_follow_up_to_a_reply_continues_the_references(endpoint: Endpoint) -> None:
    inbound = received(endpoint, "<c@rcpt.example>", "<a@rcpt.example>")
    reply = written(endpoint, parent=inbound)
    api.deliver_agent_email(reply)
    follow_up = written(endpoint, parent=reply)
    api.deliver_agent_email(follow_up)
    chain = mail_of(follow_up)["References"].split()
    assert chain == ["<a@rcpt.example>", "<c@rcpt.example>", reply.rfc_message_id]
    assert mail_of(follow_up)["In-Reply-To"] == reply.rfc_message_id


def test_a_reply_may_be_to_a_stored_message_or_to_an_id(endpoint: Endpoint) -> None:
    first = send()
    assert mail_of(send(in_reply_to=first))["In-Reply-To"] == first.rfc_message_id
    assert send(in_reply_to=first).parent == first
    assert mail_of(send(in_reply_to="x@rcpt.example"))["In-Reply-To"] == "<x@rcpt.example>"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("\\ud83d\\ude80 Lift-off", "\U0001f680 Lift-off"),
        ("Prices \\u2014 May", "Prices — May"),
        ("Plain", "Plain"),
    ],
)
def test_a_subject_from_the_payload_has_its_escapes_decoded(
    endpoint: Endpoint, given: str, meant: str
) -> None:
    message = written(endpoint, subject="", raw_payload={"subject": given})
    api.deliver_agent_email(message)
    assert mail_of(message)["Subject"] == meant
    message.refresh_from_db()
    assert message.subject == meant


def test_a_new_mails_subject_is_decoded_too(endpoint: Endpoint) -> None:
    assert mail_of(send(subject="Prices \\u2014 May"))["Subject"] == "Prices — May"


def test_a_subject_with_line_breaks_becomes_one_line(endpoint: Endpoint) -> None:
    message = send(subject="Hello\r\nBcc: c@rcpt.example")
    assert mail_of(message)["Subject"] == "Hello Bcc: c@rcpt.example"
    assert mail_of(message)["Bcc"] is None


# Files and images


def test_a_picture_that_the_body_shows_is_inline(endpoint: Endpoint) -> None:
    message = send(body='<p>See <img src="cid:photo.png"></p>', attachments=[picture("photo.png")])
    (part,) = inline_parts(message)
    assert part["Content-ID"] == "<inline-1-photo.png>"
    assert "cid:inline-1-photo.png" in html_of(message)
    assert part.get_payload(decode=True) == b"\x89PNG picture"
    assert [found.get_content_type() for found in mail_of(message).walk()].count("multipart/related") == 1


def test_the_same_picture_shown_twice_travels_once(endpoint: Endpoint) -> None:
    body = '<p><img src="cid:photo.png"> and <img src="cid:photo.png"></p>'
    message = send(body=body, attachments=[picture("photo.png")])
    assert len(inline_parts(message)) == 1
    assert html_of(message).count("cid:inline-1-photo.png") == 2


@pytest.mark.parametrize(
    "reference", ["my photo (1).png", "my%20photo%20%281%29.png"], ids=["as it is", "percent"]
)
def test_a_name_with_blanks_becomes_an_id_without(endpoint: Endpoint, reference: str) -> None:
    message = send(body=f'<p><img src="cid:{reference}"></p>', attachments=[picture("my photo (1).png")])
    (part,) = inline_parts(message)
    content_id = part["Content-ID"].strip("<>")
    assert " " not in content_id and "(" not in content_id
    assert f"cid:{content_id}" in html_of(message)


def test_two_files_of_the_same_name_get_an_id_each(endpoint: Endpoint) -> None:
    body = '<p><img src="cid:a/logo.png"><img src="cid:b/logo.png"></p>'
    files = [picture("a/logo.png", b"first"), picture("b/logo.png", b"second")]
    message = send(body=body, attachments=files)
    found = {part["Content-ID"].strip("<>"): part.get_payload(decode=True) for part in inline_parts(message)}
    assert sorted(found.values()) == [b"first", b"second"]
    assert all(f"cid:{content_id}" in html_of(message) for content_id in found)


def test_a_file_that_is_not_shown_stays_attached(endpoint: Endpoint) -> None:
    message = send(attachments=[picture("photo.png")])
    assert inline_parts(message) == []
    (part,) = attached_parts(message)
    assert (part.get_filename(), part.get_payload(decode=True)) == ("photo.png", b"\x89PNG picture")
    assert PersistentAgentMessageAttachment.objects.get(message=message).file_size == 12


def test_a_stored_file_is_attached_with_its_bytes(endpoint: Endpoint) -> None:
    message = written(endpoint)
    stored = PersistentAgentMessageAttachment(
        message=message, filename="report.pdf", content_type="application/pdf"
    )
    stored.file.save("report.pdf", ContentFile(b"%PDF report"))
    api.deliver_agent_email(message)
    (part,) = attached_parts(message)
    assert (part.get_filename(), part.get_content_type()) == ("report.pdf", "application/pdf")
    assert part.get_payload(decode=True) == b"%PDF report"


def test_a_stored_picture_that_the_body_shows_is_inline(endpoint: Endpoint) -> None:
    message = written(endpoint, body='<p><img src="cid:photo.png"></p>')
    stored = PersistentAgentMessageAttachment(message=message, filename="photo.png", content_type="image/png")
    stored.file.save("photo.png", ContentFile(b"picture"))
    api.deliver_agent_email(message)
    (part,) = inline_parts(message)
    assert part["Content-ID"] == "<inline-1-photo.png>"
    assert "cid:inline-1-photo.png" in html_of(message)


def test_what_is_frozen_stays_when_the_file_goes(endpoint: Endpoint) -> None:
    message = written(endpoint)
    stored = PersistentAgentMessageAttachment(message=message, filename="report.pdf")
    stored.file.save("report.pdf", ContentFile(b"report"))
    api.deliver_agent_email(message)
    stored.file.delete()
    (part,) = attached_parts(message)
    assert part.get_payload(decode=True) == b"report"


@pytest.mark.parametrize("is_named", [True, False], ids=["deleted", "never stored"])
def test_a_file_that_is_gone_is_named_and_nothing_is_queued(endpoint: Endpoint, is_named: bool) -> None:
    message = written(endpoint)
    stored = PersistentAgentMessageAttachment(message=message, filename="report.pdf")
    if is_named:
        stored.file.save("report.pdf", ContentFile(b"report"))
        stored.file.storage.delete(stored.file.name)
    stored.save()
    before = row_counts()
    with pytest.raises(
        api.InvalidMail, match=r"attachments: report\.pdf cannot be read\. Attach the file again"
    ):
        api.deliver_agent_email(message)
    assert row_counts() == before


# Who may be written to


@pytest.fixture
def owned(agent: PersistentAgent) -> PersistentAgent:
    agent.user = get_user_model().objects.create_user("owner", email="Owner@home.example")
    agent.save()
    return agent


def test_the_manual_policy_allows_the_owner_and_the_allowed(
    owned: PersistentAgent, endpoint: Endpoint
) -> None:
    owned.whitelist_policy = "manual"
    owned.save()
    CommsAllowlistEntry.objects.create(agent=owned, address="Friend@rcpt.example")
    CommsAllowlistEntry.objects.create(agent=owned, address="former@rcpt.example", is_active=False)
    CommsAllowlistEntry.objects.create(agent=owned, address="inbound@rcpt.example", allow_outbound=False)
    assert send(to="friend@rcpt.example", cc="owner@home.example").attempts.count() == 1
    before = row_counts()
    for kind, address in [
        ("to", "other"),
        ("to", "former"),
        ("to", "inbound"),
        ("cc", "other"),
        ("bcc", "other"),
    ]:
        with pytest.raises(api.InvalidMail, match="not allowed") as caught:
            send(**({"to": "friend@rcpt.example"} | {kind: f"{address}@rcpt.example"}))
        assert caught.value.field == kind
    assert row_counts() == before


def test_the_default_policy_allows_the_owner_alone(owned: PersistentAgent, endpoint: Endpoint) -> None:
    owned.whitelist_policy = "default"
    owned.save()
    CommsAllowlistEntry.objects.create(agent=owned, address="friend@rcpt.example")
    assert send(to="owner@home.example").attempts.count() == 1
    with pytest.raises(api.InvalidMail, match="not allowed"):
        send(to="friend@rcpt.example")


# Withdrawing, and the trace


def test_mail_is_withdrawn_before_and_not_after_it_was_handed_over(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    early, late = send(), send(to="late@rcpt.example")
    answer = api.cancel_agent_email(early.pk)
    assert bool(answer) and answer.status == "cancelled"
    assert deliver_all() == ["sent"]
    assert [kept.recipients for kept in smtp_server.messages] == [("late@rcpt.example",)]
    answer = api.cancel_agent_email(str(late.pk))
    assert not answer and answer.status == "sent" and "sent" in answer.text


def test_withdrawn_twice_is_withdrawn_once(endpoint: Endpoint) -> None:
    message = send()
    assert api.cancel_agent_email(message)
    assert not api.cancel_agent_email(message)
    assert message.events.filter(event="cancelled").count() == 1


@pytest.mark.parametrize("wrong", ["nonsense", "00000000-0000-0000-0000-000000000000"])
def test_an_unknown_message_is_said_to_be_so(db: None, wrong: str) -> None:
    for ask in (api.delivery_status, api.cancel_agent_email):
        with pytest.raises(PersistentAgentMessage.DoesNotExist):
            ask(wrong)


def test_the_callers_trace_is_kept(endpoint: Endpoint) -> None:
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(context)):
        message = send()
    assert message.traceparent.startswith(f"00-{0xABC:032x}-")
    assert f"{0xABC:032x}" not in send().traceparent


def test_no_account_of_another_endpoint_is_ever_used(account: AgentEmailAccount) -> None:
    other = PersistentAgent.objects.create(name="Other")
    Endpoint.objects.create(owner_agent=other, channel="email", address="other@sender.example")
    assert send().had_account
    assert not send(from_endpoint="other@sender.example").had_account
    assert MailHost.objects.count() == 0
