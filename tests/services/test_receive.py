"""What becomes of a stored mail: a message with all that belongs to it, once, or a reason why not."""

from typing import Any

import pytest
from django.core.files.storage import default_storage
from django.utils import timezone

from gobii_email import api, wiring
from gobii_email.models import (
    CommsAllowlistEntry,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    ReceivedMail,
)
from gobii_email.ports import GaveUp
from gobii_email.services import bounce, receive, sort_mail
from gobii_email.services.receive import MOST_READINGS
from tests.conftest import RecordingDoorbell
from tests.services.inbound import ANN, mail, received, stored

pytestmark = pytest.mark.django_db

State = ReceivedMail.State


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any, tmp_path: Any) -> None:
    settings.MEDIA_ROOT = str(tmp_path)


def sent(**values: Any) -> PersistentAgentMessage:
    facts = {"from_endpoint": "agent@sender.example", "to": ANN, "subject": "Ask", "body": "Well?"}
    message = api.send_agent_email(**(facts | values))
    message.refresh_from_db()
    return message


def only_list(agent: PersistentAgent, *addresses: str) -> None:
    agent.whitelist_policy = PersistentAgent.WhitelistPolicy.MANUAL
    agent.save()
    for address in addresses:
        CommsAllowlistEntry.objects.create(agent=agent, address=address)


# A message


def test_a_plain_mail_becomes_a_message_for_the_agent(endpoint: PersistentAgentCommsEndpoint) -> None:
    row = received(endpoint, mail("Good morning"), uid=42)
    message = row.message
    assert (row.state, row.reason, row.kind, row.from_address) == (State.RECEIVED, "", "ordinary", ANN)
    assert message is not None and row.read_at is not None
    assert (message.is_outbound, message.latest_status) == (False, "delivered")
    assert (message.subject, message.body, message.from_address) == ("Hello", "Good morning", ANN)
    assert (message.from_endpoint.address, message.from_endpoint.owner_agent) == (ANN, None)
    assert (message.to_endpoint, message.owner_agent) == (endpoint, endpoint.owner_agent)
    assert message.rfc_message_id == row.rfc_message_id == "<one@person.example>"
    payload = message.raw_payload
    assert (payload["imap_uid"], payload["imap_folder"]) == ("42", "INBOX")
    assert (payload["subject"], payload["message_id"]) == ("Hello", "<one@person.example>")
    assert payload["headers"]["Date"] == "Mon, 02 Nov 2026 10:00:00 +0000"
    assert payload["rejected_attachments"] == [] and payload["from_name"] == "Ann Person"
    assert payload["provenance"] == {
        "authenticated_domain": None,
        "authentication": "none",
        "is_automated": False,
        "is_first_contact": True,
    }


def test_mail_of_html_alone_has_a_text_and_keeps_its_html(endpoint: PersistentAgentCommsEndpoint) -> None:
    html = (
        '<p onclick="x()">Good <b>morning</b></p><script>evil()</script><img src="https://track.example/1">'
    )
    message = received(endpoint, mail(html, Content_Type="text/html")).message
    assert message.body == "Good morning"
    assert message.raw_payload["body_html"] == html
    safe = message.raw_payload["chat_body_html_v1"]
    assert "<b>morning</b>" in safe
    assert not any(word in safe for word in ("onclick", "script", "track.example"))


def part(content_type: str, body: str, *more: str) -> str:
    return "\r\n".join(["--b", f"Content-Type: {content_type}", *more, "", body, ""])


def parted(kind: str, *parts: str, **fields: str) -> bytes:
    return mail("".join(parts) + "--b--\r\n", Content_Type=f"multipart/{kind}; boundary=b", **fields)


def test_of_alternatives_the_text_is_the_body(endpoint: PersistentAgentCommsEndpoint) -> None:
    raw = parted("alternative", part("text/plain", "As text"), part("text/html", "<i>As HTML</i>"))
    message = received(endpoint, raw).message
    assert (message.body, message.raw_payload["body_html"]) == ("As text", "<i>As HTML</i>")
    assert message.attachments.count() == 0


def test_an_attached_message_is_a_file_and_no_body(endpoint: PersistentAgentCommsEndpoint) -> None:
    inner = "Subject: Inner\r\nContent-Type: text/html\r\n\r\n<b>not this</b>"
    message = received(
        endpoint, parted("mixed", part("text/plain", "This"), part("message/rfc822", inner))
    ).message
    assert (message.body, message.raw_payload["body_html"]) == ("This", "")
    (file,) = message.attachments.all()
    assert (file.filename, file.content_type) == ("Inner.eml", "message/rfc822")


def test_a_file_is_kept_with_name_size_and_type(endpoint: PersistentAgentCommsEndpoint) -> None:
    pdf = part(
        "application/pdf",
        "JVBERi0=",
        "Content-Transfer-Encoding: base64",
        'Content-Disposition: attachment; filename="../../etc/r\u00e9sum\u00e9.pdf"',
    )
    message = received(endpoint, parted("mixed", part("text/plain", "See"), pdf)).message
    (file,) = message.attachments.all()
    assert (file.filename, file.content_type, file.file_size) == ("résumé.pdf", "application/pdf", 5)
    assert file.file.read() == b"%PDF-"
    assert file.file.name.startswith("received/") and "sum" not in file.file.name


def test_files_beyond_the_limits_are_named_and_left_out(
    endpoint: PersistentAgentCommsEndpoint, settings: Any
) -> None:
    settings.GOBII_MAX_RECEIVED_FILE_BYTES = 5
    settings.GOBII_MAX_RECEIVED_FILES = 1
    settings.GOBII_REFUSED_FILE_TYPES = "exe"

    def file(name: str, body: str) -> str:
        return part("application/x-any", body, f"Content-Disposition: attachment; filename={name}")

    files = [file("large.bin", "123456"), file("run.exe", "1"), file("a.bin", "1"), file("b.bin", "22")]
    message = received(endpoint, parted("mixed", part("text/plain", "See"), *files)).message
    assert [kept.filename for kept in message.attachments.all()] == ["a.bin"]
    assert message.raw_payload["rejected_attachments"] == [
        {"filename": "large.bin", "limit": 5, "reason": "too_large", "size": 6, "channel": "email"},
        {"filename": "run.exe", "limit": "exe", "reason": "not_allowed", "size": 1, "channel": "email"},
        {"filename": "b.bin", "limit": 1, "reason": "too_many", "size": 2, "channel": "email"},
    ]


def test_what_no_database_keeps_is_replaced(endpoint: PersistentAgentCommsEndpoint) -> None:
    raw = mail("a\0b", Subject="x\0y", Content_Type="text/plain; charset=unicode_escape")
    raw += b"\\ud800"
    message = received(endpoint, raw).message
    assert (message.subject, message.body) == ("x\ufffdy", "a\ufffdb\ufffd")


def test_what_is_hidden_in_encoded_words_is_stored_safely(endpoint: PersistentAgentCommsEndpoint) -> None:
    hidden = "=?unicode_escape?q?a=5Cud800=5Cx00=5Cnb?="
    raw = mail(From=f"{hidden} <{ANN}>", Subject=hidden, Reply_To=hidden, Precedence=hidden)
    message = received(endpoint, raw).message
    assert (message.subject, message.raw_payload["from_name"]) == ("a b", "a b")
    assert message.raw_payload["headers"]["Precedence"] == "a b"


def test_copies_and_further_recipients_are_kept(endpoint: PersistentAgentCommsEndpoint) -> None:
    raw = mail(To="Agent@Sender.example, Bob <bob@person.example>", Cc="Carl <carl@person.example>, nobody")
    message = received(endpoint, raw).message
    copied = set(message.cc_endpoints.values_list("address", flat=True))
    assert copied == {"bob@person.example", "carl@person.example"}


# Threads


def test_an_answer_is_threaded_to_what_it_answers(endpoint: PersistentAgentCommsEndpoint) -> None:
    ours = sent()
    answer = received(endpoint, mail(In_Reply_To=ours.rfc_message_id)).message
    assert (answer.parent, answer.thread_root) == (ours, ours.pk)
    assert answer.raw_payload["provenance"]["is_first_contact"] is False
    second = mail(Message_ID="<two@person.example>", References=f"{ours.rfc_message_id} <one@person.example>")
    following = received(endpoint, second, uid=2).message
    assert (following.parent, following.thread_root) == (answer, ours.pk)


def test_an_id_that_the_server_put_in_place_of_ours_is_known(endpoint: PersistentAgentCommsEndpoint) -> None:
    ours = sent()
    ours.attempts.update(provider_message_id="<new@prod.outlook.example>")
    answer = received(endpoint, mail(In_Reply_To="<new@prod.outlook.example>")).message
    assert answer.parent == ours


def test_ids_of_another_mailbox_thread_nothing(
    endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent
) -> None:
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="other@sender.example"
    )
    theirs = sent(from_endpoint="other@sender.example")
    assert received(endpoint, mail(In_Reply_To=theirs.rfc_message_id)).message.parent is None
    assert received(other, mail(In_Reply_To=theirs.rfc_message_id), uid=2).message.parent == theirs


def test_the_agents_answer_names_what_it_answers(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = received(endpoint, mail(References="<zero@person.example>")).message
    answer = sent(in_reply_to=message)
    assert answer.raw_payload["in_reply_to"] == "<one@person.example>"
    assert answer.raw_payload["references"] == "<zero@person.example> <one@person.example>"
    assert answer.parent == message


# Once


def test_reading_twice_makes_one_message(endpoint: PersistentAgentCommsEndpoint) -> None:
    row = received(endpoint, mail())
    assert receive.receive(row.pk) == State.RECEIVED
    assert PersistentAgentMessage.objects.count() == 1


def test_a_second_copy_under_the_same_message_id_makes_none(endpoint: PersistentAgentCommsEndpoint) -> None:
    first = received(endpoint, mail())
    second = received(endpoint, mail("Good morning, once more"), uid=2)
    assert (second.state, second.message, second.raw) == (State.SKIPPED, None, None)
    assert str(first.pk) in second.reason
    assert PersistentAgentMessage.objects.count() == 1


def test_somebody_elses_mail_under_a_known_message_id_is_not_lost(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    received(endpoint, mail(From="eve@evil.example"))
    assert received(endpoint, mail(), uid=2).state == State.RECEIVED


def test_without_a_message_id_the_same_bytes_are_the_same_mail(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    assert received(endpoint, mail("aa", Message_ID="")).state == State.RECEIVED
    assert received(endpoint, mail("aa", Message_ID=""), uid=2).state == State.SKIPPED
    assert received(endpoint, mail("bb", Message_ID=""), uid=3).state == State.RECEIVED


def test_another_mailbox_gets_its_own_copy(
    endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent
) -> None:
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="other@sender.example"
    )
    assert received(endpoint, mail()).state == received(other, mail()).state == State.RECEIVED


def test_whoever_comes_second_changes_nothing(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = part("application/pdf", "x", "Content-Disposition: attachment; filename=a.pdf")
    row = stored(endpoint, parted("mixed", file))
    keep = receive.keep_files.keep

    def keep_after_another(mail_id: Any, files: Any) -> list[str]:
        monkeypatch.setattr(receive.keep_files, "keep", keep)
        receive.receive(row.pk)
        return keep(mail_id, files)

    monkeypatch.setattr(receive.keep_files, "keep", keep_after_another)
    assert receive.receive(row.pk) == State.RECEIVED
    (message,) = PersistentAgentMessage.objects.all()
    assert message.attachments.get().file.read() == b"x"


def test_what_breaks_off_is_read_again_and_leaves_no_second_file(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = part("application/pdf", "x", "Content-Disposition: attachment; filename=a.pdf")
    row = stored(endpoint, parted("mixed", file))
    with monkeypatch.context() as patch:
        patch.setattr(sort_mail, "take_in", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            receive.receive(row.pk)
    row.refresh_from_db()
    assert (row.state, row.readings) == (State.STORED, 1)
    assert receive.receive(row.pk) == State.RECEIVED
    assert len(default_storage.listdir(f"received/{row.pk}")[1]) == 1


# Not for the agent


def test_only_those_on_the_list_reach_the_agent_whatever_their_case(
    endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent
) -> None:
    only_list(agent, "ann@person.example")
    assert received(endpoint, mail(From='"Ann, Person" <ANN@Person.Example>')).state == State.RECEIVED
    other = received(endpoint, mail(From='"ann@person.example" <eve@evil.example>'), uid=2)
    assert (other.state, other.raw, other.message) == (State.SKIPPED, None, None)
    assert "not among those" in other.reason


@pytest.mark.parametrize(
    "sender", ["", "(((", "nobody", "ann@person.example, eve@evil.example", '"' * 20_000]
)
def test_nobody_readable_is_nobody(endpoint: PersistentAgentCommsEndpoint, sender: str) -> None:
    row = received(endpoint, mail(From=sender))
    assert (row.state, "one readable address" in row.reason) == (State.SKIPPED, True)


def test_two_from_fields_name_nobody(endpoint: PersistentAgentCommsEndpoint) -> None:
    assert received(endpoint, b"From: eve@evil.example\r\n" + mail()).state == State.SKIPPED


def test_own_mail_comes_back_to_nobody(endpoint: PersistentAgentCommsEndpoint) -> None:
    ours = sent()
    assert received(endpoint, mail(From="Me <Agent@sender.example>")).state == State.SKIPPED
    assert received(endpoint, mail(Message_ID=ours.rfc_message_id), uid=2).state == State.SKIPPED


REPORT = (
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
    b"Final-Recipient: rfc822; ann@person.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
    b"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: %s\r\n\r\n--b--\r\n"
)


def report(message_id: str, **fields: str) -> bytes:
    header = {
        "From": "MAILER-DAEMON@mx.example",
        "Content-Type": "multipart/report; report-type=delivery-status; boundary=b",
    }
    return mail(body=REPORT % message_id.encode(), **(header | fields))


def test_a_report_about_our_mail_is_noted_and_wakes_nobody(
    endpoint: PersistentAgentCommsEndpoint, deliver_all: Any, django_capture_on_commit_callbacks: Any
) -> None:
    ours = sent()
    ours.attempts.update(status="sent", due_at=None, provider="smtp", sent_at=timezone.now())
    ours.recipients.update(status="accepted")
    with django_capture_on_commit_callbacks(execute=True):
        row = received(endpoint, report(ours.rfc_message_id))
    assert (row.state, row.kind, row.message) == (State.REPORT, "dsn-failed", None)
    assert row.about == ours.attempts.get()
    assert ours.recipients.get().status == "bounced"
    assert PersistentAgentMessage.objects.filter(is_outbound=False).count() == 0


def test_a_report_about_nothing_of_ours_is_kept_with_its_reason(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    row = received(endpoint, report("<unknown@else.example>"))
    assert (row.state, row.message, bool(row.reason)) == (State.SKIPPED, None, True)
    assert row.raw is not None


def test_a_report_that_overtakes_our_own_note_is_read_again(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_early(*_: Any) -> bool:
        raise bounce.StillSending("later")

    monkeypatch.setattr(sort_mail, "note_returned", too_early)
    row = received(endpoint, report("<x@y.example>"))
    assert (row.state, row.readings) == (State.STORED, 0)


def test_an_automatic_answer_is_a_message_that_says_so(endpoint: PersistentAgentCommsEndpoint) -> None:
    row = received(endpoint, mail("Back in May", Auto_Submitted="auto-replied", Subject="Out of office"))
    assert (row.state, row.kind, row.is_automated) == (State.RECEIVED, "autoreply", True)
    assert row.message.raw_payload["provenance"]["is_automated"] is True


# Too large


def test_of_a_mail_that_is_too_large_the_agent_learns_that_it_came(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    header = mail().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    message = received(endpoint, header, size=99_999_999).message
    assert (message.subject, message.from_address) == ("Hello", ANN)
    assert "99,999,999 bytes" in message.body and "INBOX" in message.body


# Readers that die


def dying(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> None:
    left = list(answers)
    monkeypatch.setattr(wiring.mail_reader(), "read", lambda *_: left.pop(0))


def test_a_mail_that_ends_its_reader_twice_is_kept_back(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying(monkeypatch, GaveUp("it fell"), GaveUp("it fell again"))
    row = received(endpoint, mail())
    assert (row.state, row.reason) == (State.QUARANTINED, "The reader gave up: it fell again.")
    assert (row.readings, row.raw is None) == (2, False)


def test_a_mail_that_ends_its_reader_once_is_read(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = wiring.mail_reader().read(mail())
    dying(monkeypatch, GaveUp("it fell"), reading)
    assert received(endpoint, mail()).state == State.RECEIVED


def test_a_mail_whose_reading_never_ends_is_kept_back(endpoint: PersistentAgentCommsEndpoint) -> None:
    row = received(endpoint, mail(), readings=MOST_READINGS)
    assert (row.state, row.message) == (State.QUARANTINED, None)


def test_mail_of_a_mailbox_that_is_gone_is_nobodys(endpoint: PersistentAgentCommsEndpoint) -> None:
    row = stored(endpoint, mail())
    endpoint.delete()
    assert receive.receive(row.pk) == State.SKIPPED
