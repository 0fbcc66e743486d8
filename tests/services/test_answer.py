"""Automatic answers say what they are, and stop."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from gobii_email import api
from gobii_email.domain.inbound_mail import read_inbound
from gobii_email.models import PersistentAgent, PersistentAgentCommsEndpoint, PersistentAgentMessage
from gobii_email.services.ingest import ingest_inbound_message
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db

SENDER, GRACE = "agent@sender.example", "grace@rcpt.example"


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint) -> None:
    pass


def received(sender: str = GRACE, **payload: Any) -> PersistentAgentMessage:
    """A message that an agent got, as it is taken in."""
    number = PersistentAgentMessage.objects.count()
    return PersistentAgentMessage.objects.create(
        is_outbound=False,
        to_endpoint=PersistentAgentCommsEndpoint.objects.get(address=SENDER),
        from_address=sender,
        body="Can you help?",
        subject="Help",
        rfc_message_id=f"<letter-{number}@rcpt.example>",
        raw_payload={"headers": {"From": sender}, "provenance": {"is_automated": False}} | payload,
    )


def answer(letter: PersistentAgentMessage | str, to: str = GRACE, **options: Any) -> PersistentAgentMessage:
    return api.send_agent_email(
        from_endpoint=SENDER, to=to, subject="Re: Help", body="Yes.", in_reply_to=letter, **options
    )


def header(message: PersistentAgentMessage) -> Any:
    return read_inbound(bytes(message.frozen.mime)).fields


def later(span: timedelta) -> None:
    """What was sent until now was sent so long ago."""
    for message in PersistentAgentMessage.objects.filter(is_outbound=True):
        moments = {"timestamp": message.timestamp - span}
        if message.submitted_at:
            moments["submitted_at"] = message.submitted_at - span
        PersistentAgentMessage.objects.filter(pk=message.pk).update(**moments)


def test_an_answer_says_that_no_person_wrote_it() -> None:
    letter = received()
    message = answer(letter)
    assert (message.is_automatic, message.thread_root, message.parent_id) == (True, letter.pk, letter.pk)
    fields = header(message)
    assert fields.get("auto-submitted") == "auto-replied"
    assert fields.get("x-auto-response-suppress") == "All"
    assert fields.get("x-gobii-hops") == "1"
    message.refresh_from_db()
    assert message.is_automatic and message.thread_root == letter.pk


def test_hops_are_counted_on_and_end() -> None:
    letter = received(headers={"From": GRACE, "X-Gobii-Hops": "4"})
    assert header(answer(letter)).get("x-gobii-hops") == "5"
    with pytest.raises(api.AutomaticAnswerRefused, match="5 automatic answers led to"):
        answer(received(headers={"From": GRACE, "X-Gobii-Hops": "5"}))


def test_what_a_person_approved_is_no_automatic_answer() -> None:
    letter = received(provenance={"is_automated": True})
    message = answer(letter, is_automatic=False)
    assert not message.is_automatic and message.thread_root == letter.pk
    assert "auto-submitted" not in header(message) and "x-gobii-hops" not in header(message)


def test_a_mail_that_answers_nobody_is_none_either() -> None:
    message = api.send_agent_email(from_endpoint=SENDER, to=GRACE, subject="Hello", body="Hi")
    assert not message.is_automatic and message.thread_root is None
    assert "auto-submitted" not in header(message)
    again = answer(message)
    assert not again.is_automatic and again.thread_root == message.pk


def test_ours_wins_over_a_header_of_the_same_name() -> None:
    fields = header(answer(received(), headers={"auto-submitted": "no", "X-Mine": "1"}))
    assert fields.all("auto-submitted") == ("auto-replied",) and fields.get("x-mine") == "1"


PROGRAMS: dict[str, dict[str, Any]] = {
    "found out when it came": {"provenance": {"is_automated": True}},
    "Auto-Submitted": {"headers": {"Auto-Submitted": "auto-generated"}},
    "a list": {"headers": {"List-Id": "<news.example>"}},
    "Precedence": {"headers": {"Precedence": "bulk"}},
}


@pytest.mark.parametrize("payload", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_a_program_is_not_answered_automatically(payload: dict[str, Any]) -> None:
    with pytest.raises(api.AutomaticAnswerRefused, match="written by a program") as refused:
        answer(received(**payload))
    assert refused.value.field == "in_reply_to" and "is_automatic=False" in refused.value.remedy


def test_nobody_answers_his_own_mail() -> None:
    with pytest.raises(api.AutomaticAnswerRefused, match="written by a program"):
        answer(received(sender="Agent@Sender.example"))


def test_an_answer_by_message_id_alone_is_as_automatic() -> None:
    letter = received()
    message = answer(letter.rfc_message_id)
    assert (message.is_automatic, message.thread_root, message.parent_id) == (True, letter.pk, letter.pk)
    with pytest.raises(api.AutomaticAnswerRefused):
        answer(received(provenance={"is_automated": True}).rfc_message_id.strip("<>"))


def test_a_message_id_of_another_mailbox_answers_nothing_here(agent: PersistentAgent) -> None:
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="other@sender.example"
    )
    letter = received()
    PersistentAgentMessage.objects.filter(pk=letter.pk).update(to_endpoint=other)
    message = answer(letter.rfc_message_id)
    assert not message.is_automatic and message.parent_id is None


def test_a_stored_message_is_an_automatic_answer_too() -> None:
    endpoint = PersistentAgentCommsEndpoint.objects.get(address=SENDER)
    grace = PersistentAgentCommsEndpoint.objects.create(channel="email", address=GRACE)

    def stored(**payload: Any) -> PersistentAgentMessage:
        letter = received(**payload)
        return PersistentAgentMessage.objects.create(
            from_endpoint=endpoint, to_endpoint=grace, parent=letter, body="Yes.", subject="Re: Help"
        )

    message = stored()
    api.deliver_agent_email(message)
    message.refresh_from_db()
    assert message.is_automatic and message.thread_root == message.parent_id
    assert header(message).get("auto-submitted") == "auto-replied"
    with pytest.raises(api.AutomaticAnswerRefused):
        api.deliver_agent_email(stored(provenance={"is_automated": True}))
    approved = stored(provenance={"is_automated": True})
    api.deliver_agent_email(approved, is_automatic=False)
    assert "auto-submitted" not in header(approved)


def test_a_thread_gets_one_automatic_answer_a_minute() -> None:
    letter = received()
    answer(letter)
    with pytest.raises(api.AutomaticAnswerRefused, match="this thread had an automatic answer") as refused:
        answer(letter)
    assert refused.value.remedy.startswith("Wait until ")
    answer(letter, is_automatic=False)
    later(timedelta(seconds=61))
    answer(letter)


def test_one_correspondent_gets_so_many_automatic_answers_an_hour(settings: Any) -> None:
    settings.GOBII_ANSWERS_PER_HOUR = 3
    for _ in range(3):
        answer(received(), to=GRACE.title())
    with pytest.raises(api.AutomaticAnswerRefused, match="had 3 automatic answers within the last hour"):
        answer(received(), to=GRACE.upper())
    answer(received("alan@rcpt.example"), to="alan@rcpt.example")
    later(timedelta(minutes=61))
    answer(received())


def test_a_refused_answer_leaves_nothing_behind() -> None:
    letter = received()
    answer(letter)
    before = PersistentAgentMessage.objects.count()
    with pytest.raises(api.AutomaticAnswerRefused):
        answer(letter)
    assert PersistentAgentMessage.objects.count() == before


def test_the_same_key_still_answers_the_first_message() -> None:
    letter = received()
    first = answer(letter, idempotency_key="once")
    assert answer(letter, idempotency_key="once").pk == first.pk


def test_answers_of_one_call_count_each_other() -> None:
    endpoint = PersistentAgentCommsEndpoint.objects.get(address=SENDER)
    grace = PersistentAgentCommsEndpoint.objects.create(channel="email", address=GRACE)
    letter = received()
    pair = [
        PersistentAgentMessage.objects.create(
            from_endpoint=endpoint, to_endpoint=grace, parent=letter, body="Yes.", subject="Re: Help"
        )
        for _ in range(2)
    ]
    with pytest.raises(api.AutomaticAnswerRefused):
        api.deliver_many(pair)
    assert not PersistentAgentMessage.objects.filter(submitted_at__isnull=False).exists()


def test_a_mail_without_a_parent_asks_nothing_about_answers() -> None:
    def asked(**options: Any) -> list[str]:
        with CaptureQueriesContext(connection) as queries:
            api.send_agent_email(from_endpoint=SENDER, to=GRACE, subject="Hello", body="Hi", **options)
        return [row["sql"] for row in queries if "is_automatic" in row["sql"] and "SELECT" in row["sql"]]

    assert [sql for sql in asked() if "INSERT" not in sql] == []
    assert [sql for sql in asked(in_reply_to=received()) if "INSERT" not in sql] != []


def stripped(raw: bytes) -> bytes:
    """As a server hands it on that keeps no field it does not know."""
    kept = (b"From:", b"To:", b"Subject:", b"Date:", b"Message-ID:", b"Content-", b"MIME-", b" ")
    head, _, body = raw.partition(b"\r\n\r\n")
    return b"\r\n".join(line for line in head.split(b"\r\n") if line.startswith(kept)) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("hand_on", "most"), [(bytes, 1), (stripped, 2 * 5)], ids=["as it is", "without our fields"]
)
def test_two_agents_that_answer_whatever_comes_stop(
    endpoint: PersistentAgentCommsEndpoint,
    settings: Any,
    hand_on: Callable[[bytes], bytes],
    most: int,
) -> None:
    settings.GOBII_ANSWERS_PER_HOUR = 5
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=PersistentAgent.objects.create(name="Bob"), channel="email", address="bob@other.example"
    )
    message = api.send_agent_email(from_endpoint=endpoint, to=other.address, subject="Hello", body="Hi")
    sender, receiver = endpoint, other
    answers = 0
    with pytest.raises(api.AutomaticAnswerRefused):
        for _ in range(100):
            letter = ingest_inbound_message(endpoint=receiver, raw=hand_on(bytes(message.frozen.mime)))
            assert letter is not None
            sender, receiver = receiver, sender
            message = api.send_agent_email(
                from_endpoint=sender, to=receiver.address, subject="Re: Hello", body="Hi", in_reply_to=letter
            )
            answers += 1
    assert answers == most
