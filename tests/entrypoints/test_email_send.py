"""`email_send`: one message or a file of them, what is wrong with each, and what becomes of them."""

import io
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from gobii_email.domain.lifecycle import Priority
from gobii_email.management.batch_file import new_mail, split_addresses
from gobii_email.management.progress import Progress
from gobii_email.models import OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services import write
from tests.entrypoints.commands import SENDER, an_endpoint, deliver_all, into_doubt, run

pytestmark = pytest.mark.django_db
FLAGS = ("--from", SENDER, "--to", "bob@example.com", "--subject", "Tea", "--body", "At *five*?")


@pytest.fixture(autouse=True)
def no_broker(settings):
    settings.GOBII_BROKER_URL = "memory://"


@pytest.fixture
def endpoint():
    return an_endpoint()


def frozen(message_id):
    return bytes(PersistentAgentMessage.objects.get(pk=message_id).frozen.mime).decode()


# One message


def test_the_id_is_printed_and_the_message_is_queued(endpoint):
    answer = run("email_send", *FLAGS)
    assert answer.code == 0
    message = PersistentAgentMessage.objects.get()
    assert answer.out.strip() == str(message.pk)
    assert (message.latest_status, message.subject) == ("queued", "Tea")


def test_with_json_the_status_document_is_printed(endpoint):
    document = run("email_send", *FLAGS, "--json").document
    assert document["status"] == "queued"
    assert document["from"] == SENDER


def test_every_flag_reaches_the_message(endpoint, tmp_path):
    (tmp_path / "body.md").write_text("# Grüße", encoding="utf-8")
    (tmp_path / "menu.csv").write_bytes(b"tea,1\n")
    answer = run(
        "email_send", "--from", SENDER, "--to", "bob@example.com", '"Jones, Carla" <carla@example.com>',
        "--to", "dan@example.com, eve@example.com", "--cc", "fay@example.com", "--bcc", "gus@example.com",
        "--subject", "Tea", "--body-file", tmp_path / "body.md", "--attach", tmp_path / "menu.csv",
        "--in-reply-to", "<1@example.com>", "--header", "X-Kind: invitation",
        "--header", "Reply-To: tea@example.org",
        "--idempotency-key", "k1", "--send-at", "2099-01-01T00:00:00Z", "--expires-in", "2h",
        "--on-doubt", "resend", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.error
    kinds = {row["address"].partition("@")[0]: row["kind"] for row in answer.document["recipients"]}
    assert kinds == {"bob": "to", "carla": "to", "dan": "to", "eve": "to", "fay": "cc", "gus": "bcc"}
    message = PersistentAgentMessage.objects.get()
    assert message.expires_at == datetime(2099, 1, 1, 2, tzinfo=UTC)
    assert (message.idempotency_key, message.on_doubt) == ("k1", "resend")
    mime = frozen(message.pk)
    for part in (
        "In-Reply-To: <1@example.com>",
        "X-Kind: invitation",
        "Reply-To: tea@example.org",
        'filename="menu.csv"',
    ):
        assert part in mime
    assert "gus@example.com" not in mime
    assert "text/csv" in mime


def test_a_reply_to_a_stored_message_threads_with_it(endpoint):
    first = run("email_send", *FLAGS, "--json").document
    second = run("email_send", *FLAGS, "--in-reply-to", first["message_id"], "--json").document
    assert f"In-Reply-To: {first['rfc_message_id']}" in frozen(second["message_id"])
    assert PersistentAgentMessage.objects.get(pk=second["message_id"]).parent_id is not None


def test_the_body_may_come_from_standard_input(endpoint, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("From a pipe"))
    run("email_send", *FLAGS[:6], "--body-file", "-")
    assert PersistentAgentMessage.objects.get().body == "From a pipe"


def test_the_same_key_is_sent_once_and_refused_for_other_content(endpoint):
    first = run("email_send", *FLAGS, "--idempotency-key", "k").out
    assert run("email_send", *FLAGS, "--idempotency-key", "k").out == first
    answer = run("email_send", *FLAGS[:-1], "Other", "--idempotency-key", "k", "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "idempotency_key"
    assert "new key" in answer.document["error"]["remedy"]


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--from", "nobody@example.org"), "from"),
        (("--to", "bob"), "to"),
        (("--cc", "a@b@c"), "cc"),
        (("--subject", "x" * 5000), "subject"),
        (("--header", "Bcc: eve@example.com"), "headers"),
        (("--header", "X-A: b\r\nBcc: eve@example.com"), "headers"),
        (("--send-at", "tomorrow"), "send_at"),
        (("--send-at", "2099-01-01T00:00:00"), "send_at"),
        (("--send-at", "9999-12-31T23:59:59-12:00"), "send_at"),
        (("--send-at", "0001-01-01T00:00:00+14:00"), "send_at"),
        (("--expires-at", "9999-12-31T23:59:59-12:00"), "expires_at"),
        (("--expires-at", "2001-01-01T00:00:00Z"), "expires_at"),
        (("--in-reply-to", "00000000-0000-0000-0000-000000000000"), "in_reply_to"),
        (("--attach", "no/such/file"), "attachments"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_names_the_field_and_the_remedy_and_leaves_nothing(endpoint, flags, field):
    answer = run("email_send", *FLAGS, *flags, "--json")
    assert answer.code == 1
    error = answer.document["error"]
    assert error["field"] == field
    assert error["reason"] and error["remedy"]
    assert not PersistentAgentMessage.objects.exists()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        FLAGS[:4],
        FLAGS[:6],
        (*FLAGS, "--body-file", "-"),
        (*FLAGS, "--header", "nocolon"),
        (*FLAGS, "--batch", "-"),
        (*FLAGS, "--expires-in", "1h", "--expires-at", "2099-01-01T00:00:00Z"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(flags):
    assert run("email_send", *flags).code == 2


# Waiting


@pytest.fixture
def workers(monkeypatch):
    """Workers that deliver, or do what the test wants, while the command waits."""

    def work():
        action()

    action = deliver_all
    monkeypatch.setattr("gobii_email.management.commands.email_send.time.sleep", lambda _: work())

    def use(other):
        nonlocal action
        action = other

    return use


def test_waiting_tells_how_it_ended(endpoint, workers):
    answer = run("email_send", *FLAGS, "--wait", "30")
    assert answer.code == 0
    assert answer.out.strip() == f"{PersistentAgentMessage.objects.get().pk} delivered"


def test_a_message_that_still_waits_when_the_wait_is_over_ends_with_one_and_the_reason(endpoint):
    answer = run("email_send", *FLAGS, "--send-at", "2099-01-01T00:00:00Z", "--wait", "0.3")
    assert answer.code == 1
    assert "queued Waits for its time to be sent, 2099-01-01" in answer.out
    assert "still on their way" in answer.error


def test_a_doubt_is_no_success(endpoint, workers):
    workers(lambda: into_doubt(PersistentAgentMessage.objects.get()))
    answer = run("email_send", *FLAGS, "--wait", "30", "--json")
    assert answer.code == 1
    assert answer.document["status"] == "in_doubt"


# A file of them


def batch(tmp_path, *rows):
    """A file of `rows`: objects completed to messages, or lines as they are."""
    path = tmp_path / "mails.ndjson"
    complete = {"from": SENDER, "to": "bob@example.com", "subject": "Tea", "body": "At five?"}
    lines = [row if isinstance(row, bytes) else json.dumps(complete | row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_batch_prints_an_id_a_line_in_order(endpoint, tmp_path):
    path = batch(
        tmp_path,
        {"subject": "one"},
        {"subject": "two", "to": ["bob@example.com", "eve@example.com"]},
        b"",
        {"subject": "three"},
    )
    answer = run("email_send", "--batch", path)
    assert answer.code == 0, answer.error
    subjects = [PersistentAgentMessage.objects.get(pk=pk).subject for pk in answer.out.split()]
    assert subjects == ["one", "two", "three"]


def test_every_field_of_a_line_reaches_its_message(endpoint, tmp_path):
    path = batch(
        tmp_path,
        {
            "to": "bob@example.com, dan@example.com", "cc": ["fay@example.com"], "bcc": "gus@example.com",
            "in_reply_to": "<1@example.com>", "headers": {"X-Kind": "invitation"}, "idempotency_key": "k1",
            "send_at": "2099-01-01T00:00:00Z", "expires_at": "2099-01-02T00:00:00Z", "on_doubt": "resend",
        },
    )  # fmt: skip
    (document,) = run("email_send", "--batch", path, "--json").documents
    assert (document["line"], document["status"]) == (1, "queued")
    message = PersistentAgentMessage.objects.get(pk=document["message_id"])
    assert (message.idempotency_key, message.on_doubt, message.recipients.count()) == ("k1", "resend", 4)
    assert message.expires_at - message.attempts.get().not_before == timedelta(days=1)
    assert "X-Kind: invitation" in frozen(message.pk)


BAD = [
    (b"{nonsense", "line"),
    (b"[1, 2]", "line"),
    (b"\xff\xfe", "line"),
    (b"[" * 100_000, "line"),
    ({"to": ""}, "to"),
    ({"to": [7]}, "to"),
    ({"to": "bob"}, "to"),
    ({"cc": {"a": 1}}, "cc"),
    ({"bcc": "a@example.com\r\nX: y"}, "bcc"),
    ({"from": "nobody@example.org"}, "from"),
    ({"from": None}, "from"),
    ({"subject": 7}, "subject"),
    ({"body": None}, "body"),
    ({"headers": {"Bcc": "eve@example.com"}}, "headers"),
    ({"headers": ["X: y"]}, "headers"),
    ({"send_at": "soon"}, "send_at"),
    ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ({"on_doubt": "panic"}, "on_doubt"),
    ({"priority": "urgent"}, "priority"),
    ({"idempotency_key": "k" * 300}, "idempotency_key"),
    ({"colour": "blue"}, "colour"),
]


def test_all_bad_lines_are_told_and_nothing_is_sent(endpoint, tmp_path):
    path = batch(tmp_path, {}, *(row for row, _ in BAD), {})
    answer = run("email_send", "--batch", path)
    assert answer.code == 1
    told = [line.split(": ")[:2] for line in answer.error.splitlines() if line.startswith("line ")]
    assert told == [[f"line {number}", field] for number, (_, field) in enumerate(BAD, start=2)]
    assert "nothing was sent" in answer.error
    assert not PersistentAgentMessage.objects.exists()


def test_bad_lines_are_documents_with_json(endpoint, tmp_path):
    answer = run("email_send", "--batch", batch(tmp_path, {"to": "bob"}), "--json")
    (document,) = answer.documents
    assert document["line"] == 1
    assert set(document["error"]) == {"field", "reason", "remedy"}


def test_keeping_on_sends_the_good_lines_and_still_ends_with_one(endpoint, tmp_path):
    path = batch(tmp_path, {"subject": "one"}, {"to": "bob"}, {"subject": "three"})
    answer = run("email_send", "--batch", path, "--keep-going")
    assert answer.code == 1
    assert "line 2: to:" in answer.error
    assert set(PersistentAgentMessage.objects.values_list("subject", flat=True)) == {"one", "three"}
    assert len(answer.out.split()) == 2


def test_a_key_twice_in_a_file_is_one_message_or_a_conflict(endpoint, tmp_path):
    same = run("email_send", "--batch", batch(tmp_path, {"idempotency_key": "k"}, {"idempotency_key": "k"}))
    assert same.code == 0
    assert len(set(same.out.split())) == PersistentAgentMessage.objects.count() == 1
    other = run(
        "email_send",
        "--batch",
        batch(tmp_path, {"idempotency_key": "n"}, {"idempotency_key": "n", "body": "Other"}),
    )
    assert other.code == 1
    assert "line 2: idempotency_key: line 1 has the same with other content" in other.error
    assert PersistentAgentMessage.objects.count() == 1


def test_the_same_key_with_the_same_content_twice_in_one_call_is_one_message(endpoint):
    mail = new_mail(
        {"from": SENDER, "to": "bob@example.com", "subject": "x", "body": "x", "idempotency_key": "k"}
    )
    first, second = write.write([mail, mail])
    assert first.pk == second.pk


def test_a_batch_sent_again_after_a_crash_sends_nothing_twice(endpoint, tmp_path):
    path = batch(tmp_path, *({"idempotency_key": f"k{number}"} for number in range(5)))
    first = run("email_send", "--batch", path).out
    assert run("email_send", "--batch", path).out == first
    assert OutboundMessageAttempt.objects.count() == 5


def test_a_batch_may_come_from_standard_input(endpoint, tmp_path, monkeypatch):
    path = batch(tmp_path, {}, {})
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert len(run("email_send", "--batch", "-").out.split()) == 2


def test_a_file_that_is_not_there_ends_with_one():
    answer = run("email_send", "--batch", "no/such/file", "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "batch"


def test_a_batch_is_bulk_unless_a_flag_or_a_line_says_otherwise(endpoint, tmp_path):
    def priorities(*flags):
        OutboundMessageAttempt.objects.all().delete()
        run("email_send", "--batch", batch(tmp_path, {}, {"priority": "interactive"}), *flags)
        return sorted(OutboundMessageAttempt.objects.values_list("priority", flat=True))

    assert priorities() == [Priority.INTERACTIVE, Priority.BULK]
    assert priorities("--priority", "interactive") == [Priority.INTERACTIVE] * 2
    run("email_send", *FLAGS, "--subject", "One")
    run("email_send", *FLAGS, "--subject", "Two", "--priority", "bulk")
    found = OutboundMessageAttempt.objects.filter(message__subject__in=("One", "Two"))
    assert sorted(found.values_list("priority", flat=True)) == [Priority.INTERACTIVE, Priority.BULK]


def test_a_long_batch_is_queued_in_chunks_and_waited_for(endpoint, tmp_path, workers):
    path = batch(tmp_path, *({"subject": f"Mail {number}"} for number in range(450)))
    answer = run("email_send", "--batch", path, "--wait", "60", "--json")
    assert answer.code == 0, answer.error
    documents = answer.documents
    assert {document["status"] for document in documents} == {"delivered"}
    assert sorted(document["line"] for document in documents) == list(range(1, 451))


def test_statements_grow_with_chunks_and_not_with_lines(endpoint, tmp_path, django_assert_max_num_queries):
    path = batch(tmp_path, *({"subject": f"Mail {number}"} for number in range(200)))
    with django_assert_max_num_queries(60):
        run("email_send", "--batch", path)


# Small parts


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (["a@x.org,b@x.org"], ["a@x.org", "b@x.org"]),
        (['"Doe, Jane" <j@x.org>, b@x.org'], ['"Doe, Jane" <j@x.org>', "b@x.org"]),
        (['"un,closed <j@x.org>'], ['"un', "closed <j@x.org>"]),
        ([" ", ","], []),
    ],
)
def test_addresses_are_parted_at_commas_outside_quotes(items, expected):
    assert split_addresses(items) == expected


@pytest.mark.parametrize(
    "name", ["from", "to", "in_reply_to", "idempotency_key", "on_doubt", "send_at", "headers"]
)
@pytest.mark.parametrize("text", ["\ud800", "a\0b@example.com"])
def test_what_no_database_keeps_is_a_bad_line_and_no_traceback(endpoint, tmp_path, name, text):
    value = {"X-Kind": text} if name == "headers" else text
    answer = run("email_send", "--batch", batch(tmp_path, {name: value}))
    assert (answer.code, answer.out) == ((0, answer.out) if name == "in_reply_to" else (1, ""))


@pytest.mark.parametrize(
    "name", ["from", "to", "cc", "in_reply_to", "idempotency_key", "on_doubt", "send_at", "headers"]
)
@pytest.mark.parametrize("value", [0, False, {"a": 1}, 1.5], ids=str)
def test_another_type_is_a_bad_line_and_no_traceback(endpoint, tmp_path, name, value):
    answer = run("email_send", "--batch", batch(tmp_path, {name: value}), "--json")
    assert answer.code == 1 and answer.documents[0]["error"]["field"] == name
    assert not PersistentAgentMessage.objects.exists()


def letter(endpoint: object) -> PersistentAgentMessage:
    """Received from a program."""
    return PersistentAgentMessage.objects.create(
        is_outbound=False,
        to_endpoint=endpoint,
        from_address="grace@example.org",
        body="Hi",
        rfc_message_id="<letter@example.org>",
        raw_payload={"provenance": {"is_automated": True}},
    )


def test_an_answer_to_a_program_needs_a_persons_word(endpoint):
    message = letter(endpoint)
    one = ("--from", SENDER, "--to", "grace@example.org", "--subject", "Re", "--body", "Hi")
    for parent in (message.pk, message.rfc_message_id):
        refused = run("email_send", *one, "--in-reply-to", parent, "--json")
        assert refused.code == 1 and refused.document["error"]["field"] == "in_reply_to"
        assert run("email_send", *one, "--in-reply-to", parent, "--approved").code == 0


def test_a_line_of_a_batch_says_that_a_person_approved_it(endpoint, tmp_path):
    facts = {"in_reply_to": letter(endpoint).rfc_message_id}
    assert run("email_send", "--batch", batch(tmp_path, facts)).code == 1
    assert run("email_send", "--batch", batch(tmp_path, facts | {"is_automatic": "no"})).code == 1
    assert run("email_send", "--batch", batch(tmp_path, facts | {"is_automatic": False})).code == 0


def test_half_characters_and_nul_in_subject_and_body_are_made_safe(endpoint, tmp_path):
    assert (
        run("email_send", "--batch", batch(tmp_path, {"subject": "a\ud800\0", "body": "b\udfff\0c"})).code
        == 0
    )
    message = PersistentAgentMessage.objects.get()
    assert (message.subject, message.body) == ("a\ufffd", "b\ufffd\ufffdc")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_bar_on_a_terminal_and_a_line_every_ten_seconds_elsewhere():
    now = [0.0]
    terminal, pipe = Terminal(), io.StringIO()
    with Progress("queued", 100, terminal, lambda: now[0]) as on_terminal:
        with Progress("queued", 100, pipe, lambda: now[0]) as on_pipe:
            for second in range(1, 26):
                now[0] = float(second)
                on_terminal.at(second * 4)
                on_pipe.at(second * 4)
    assert terminal.getvalue().count("\r") == 26
    assert "█ 100 of 100" in terminal.getvalue()
    assert [line.split(" of ")[0][-2:] for line in pipe.getvalue().splitlines()] == ["40", "80"]
    assert "\r" not in pipe.getvalue()
