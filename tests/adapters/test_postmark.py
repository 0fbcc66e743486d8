"""The Postmark transport against a real HTTP server on a loopback socket, played by these tests."""

import json
import socket
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from gobii_email.adapters.postmark import PostmarkTransport
from gobii_email.domain.composition import EmailAttachmentPayload, MailParts, compose, with_attempt_header
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Envelope
from tests.adapters.conftest import Notes

TOKEN = "3f9c1d2e-canary-token"
ATTEMPT = "0e9f6e9c-8f0d-4a2c-9a53-0d6f6f0f9b11"
LATIN_FILE = "naïve;1\r\n".encode("latin-1")


@dataclass
class Api:
    """A stand-in for Postmark's API: notes requests, answers what it is told to."""

    url: str = ""
    status: int = 200
    answer: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    interrupt: Callable[[BaseHTTPRequestHandler], None] | None = None
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    @property
    def data(self) -> dict[str, Any]:
        assert len(self.requests) == 1
        return self.requests[0][2]

    def fail(self, status: int, error: int, message: str) -> None:
        self.status, self.answer = status, {"ErrorCode": error, "Message": message}


@pytest.fixture
def api() -> Iterator[Api]:
    script = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            data = json.loads(body)
            script.requests.append((self.path, dict(self.headers), data))
            if script.interrupt is not None:
                script.interrupt(self)
                return
            ok = {"To": data.get("To", ""), "MessageID": "pm-1", "ErrorCode": 0, "Message": "OK"}
            if not data.get("To"):
                del ok["To"]
            answer = ok if script.answer is None else script.answer
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(script.status)
            self.send_header("Content-Length", str(len(content)))
            for name, value in script.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    script.url = f"http://127.0.0.1:{server.server_port}/"
    yield script
    server.shutdown()
    server.server_close()
    thread.join()


def frozen(**changed: Any) -> bytes:
    values: dict[str, Any] = {
        "from_name": "Zoë, the Agent",
        "from_address": "zoe@sender.example",
        "to": ("b@rcpt.example", "c@rcpt.example"),
        "cc": ("d@rcpt.example",),
        "subject": "Grüße 🎉 an alle",
        "text": "Hallo,\n.\nein Text mit Umlaut: ü",
        "html": '<p>Hallo ü <img src="cid:logo@x"></p>',
        "message_id": "<abc123@sender.example>",
        "date": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "in_reply_to": "<parent@rcpt.example>",
        "references": ("<first@rcpt.example>", "<parent@rcpt.example>"),
        "reply_to": "desk@sender.example",
        "headers": {"X-Campaign": "Größe"},
        "attachments": (
            EmailAttachmentPayload("lögo.png", b"\x89PNG\x00", "image/png", "logo@x", "inline"),
            EmailAttachmentPayload("liste.csv", LATIN_FILE, "text/csv", "", "attachment"),
        ),
    }
    return with_attempt_header(compose(MailParts(**(values | changed))), ATTEMPT)


def envelope(*recipients: str) -> Envelope:
    return Envelope(
        "zoe@sender.example",
        recipients or ("b@rcpt.example", "c@rcpt.example", "d@rcpt.example", "hidden@rcpt.example"),
        ATTEMPT,
    )


def transport(url: str, **named: Any) -> PostmarkTransport:
    return PostmarkTransport(token=Secret(TOKEN), api_url=url, **named)


def send(api: Api, *recipients: str, **named: Any) -> Any:
    return transport(api.url, **named).send(envelope(*recipients), frozen(), Notes())


def test_the_frozen_mail_arrives_in_all_its_parts(api: Api) -> None:
    notes = Notes()
    outcome = transport(api.url).send(envelope(), frozen(), notes)
    assert isinstance(outcome, Accepted)
    assert (outcome.provider_message_id, outcome.reply.code, outcome.refused) == ("pm-1", 250, {})
    path, request_headers, data = api.requests[0]
    assert path == "/email"
    assert request_headers["X-Postmark-Server-Token"] == TOKEN
    assert data["From"] == '"Zoë, the Agent" <zoe@sender.example>'
    assert (data["To"], data["Cc"]) == ("b@rcpt.example, c@rcpt.example", "d@rcpt.example")
    assert data["Bcc"] == "hidden@rcpt.example"
    assert data["Subject"] == "Grüße 🎉 an alle"
    assert data["TextBody"].strip() == "Hallo,\n.\nein Text mit Umlaut: ü"
    assert data["HtmlBody"].strip() == '<p>Hallo ü <img src="cid:logo@x"></p>'
    assert data["ReplyTo"] == "desk@sender.example"
    assert data["Tag"] == "persistent-agent"
    assert data["Metadata"] == {"attempt_id": ATTEMPT}
    assert notes.told == ["connect", "mark"]


def test_identity_and_extra_headers_go_along(api: Api) -> None:
    send(api)
    headers = {row["Name"]: row["Value"] for row in api.data["Headers"]}
    assert headers == {
        "X-Gobii-Message-ID": ATTEMPT,
        "Message-ID": "<abc123@sender.example>",
        "X-PM-KeepID": "true",
        "In-Reply-To": "<parent@rcpt.example>",
        "References": "<first@rcpt.example> <parent@rcpt.example>",
        "X-Campaign": "Größe",
    }


def test_files_arrive_byte_for_byte_and_inline_ones_with_their_cid(api: Api) -> None:
    send(api)
    logo, table = api.data["Attachments"]
    assert (logo["Name"], logo["ContentID"], b64decode(logo["Content"])) == (
        "lögo.png",
        "cid:logo@x",
        b"\x89PNG\x00",
    )
    assert (table["Name"], b64decode(table["Content"])) == ("liste.csv", LATIN_FILE)
    assert table["ContentType"] == "text/csv"
    assert "ContentID" not in table


def test_who_is_not_in_the_envelope_gets_nothing(api: Api) -> None:
    assert isinstance(send(api, "c@rcpt.example"), Accepted)
    assert api.data["To"] == "c@rcpt.example"
    assert "Cc" not in api.data
    assert "Bcc" not in api.data


def test_a_hidden_recipient_alone_is_sent_to_as_bcc(api: Api) -> None:
    outcome = send(api, "hidden@rcpt.example")
    assert isinstance(outcome, Accepted)
    assert "To" not in api.data
    assert api.data["Bcc"] == "hidden@rcpt.example"


def test_a_text_file_is_not_taken_for_the_body(api: Api) -> None:
    file = EmailAttachmentPayload("notes.txt", b"not the body", "text/plain", "", "attachment")
    transport(api.url).send(envelope(), frozen(html="", text="the body", attachments=(file,)), Notes())
    assert api.data["TextBody"].strip() == "the body"
    assert "HtmlBody" not in api.data
    assert [row["Name"] for row in api.data["Attachments"]] == ["notes.txt"]


def test_inactive_recipients_are_refused_and_the_others_accepted(api: Api) -> None:
    message = (
        "Message OK, but will not deliver to these inactive addresses: c@rcpt.example. Inactive recipients "
        "are ones that have generated a hard bounce or a spam complaint."
    )
    api.answer = {
        "To": "b@rcpt.example, c@rcpt.example",
        "MessageID": "pm-2",
        "ErrorCode": 0,
        "Message": message,
    }
    outcome = send(api)
    assert isinstance(outcome, Accepted)
    assert set(outcome.refused) == {"c@rcpt.example"}
    assert outcome.refused["c@rcpt.example"].code == 550
    assert outcome.provider_message_id == "pm-2"


def test_when_all_are_inactive_each_is_refused(api: Api) -> None:
    api.fail(
        422,
        406,
        "You tried to send to a recipient that has been marked as inactive.\nFound inactive addresses: "
        "b@rcpt.example, c@rcpt.example.\nInactive recipients are ones that have generated a hard bounce or "
        "a spam complaint.",
    )
    outcome = send(api, "b@rcpt.example", "c@rcpt.example")
    assert isinstance(outcome, Refused)
    assert (outcome.stage, set(outcome.refused)) == (Stage.RCPT, {"b@rcpt.example", "c@rcpt.example"})
    assert "Postmark error 406" in outcome.reply.text


def test_an_invalid_address_is_refused_for_good_and_the_others_only_for_now(api: Api) -> None:
    api.fail(422, 300, "Invalid 'To' address: 'c@rcpt.example'.")
    outcome = send(api, "b@rcpt.example", "c@rcpt.example")
    assert isinstance(outcome, Refused)
    assert outcome.reply.is_temporary
    assert {address: reply.code for address, reply in outcome.refused.items()} == {"c@rcpt.example": 550}


@pytest.mark.parametrize(
    ("status", "error", "stage", "code"),
    [
        pytest.param(401, 10, Stage.AUTH, 535, id="wrong token"),
        pytest.param(422, 400, Stage.MAIL, 554, id="unknown sender signature"),
        pytest.param(422, 300, Stage.DOT, 554, id="invalid mail"),
        pytest.param(422, 405, Stage.DOT, 451, id="credit used up"),
        pytest.param(413, 0, Stage.DOT, 552, id="too large"),
        pytest.param(429, 0, Stage.DOT, 451, id="too fast"),
        pytest.param(500, 0, Stage.DOT, 451, id="server error"),
        pytest.param(503, 100, Stage.DOT, 451, id="maintenance"),
    ],
)
def test_a_refusal_has_stage_code_and_postmarks_own_words(
    api: Api, status: int, error: int, stage: Stage, code: int
) -> None:
    api.fail(status, error, "The reason, in words")
    outcome = send(api)
    assert isinstance(outcome, Refused)
    assert (outcome.stage, outcome.reply.code) == (stage, code)
    assert "The reason, in words" in outcome.reply.text
    assert error == 0 or f"Postmark error {error}" in outcome.reply.text


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        pytest.param(200, b"<html>welcome</html>", id="no JSON"),
        pytest.param(200, {"ErrorCode": 0, "Message": "OK"}, id="no MessageID"),
        pytest.param(200, [], id="not an object"),
        pytest.param(504, b"gateway time-out", id="504"),
        pytest.param(502, b"bad gateway", id="502"),
    ],
)
def test_an_answer_that_says_nothing_leaves_it_in_doubt(api: Api, status: int, answer: object) -> None:
    api.status, api.answer = status, answer
    outcome = send(api)
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.DOT, Cause.API_ERROR, True)


def test_a_redirect_is_not_followed(api: Api) -> None:
    api.status, api.answer, api.headers = 307, b"", {"Location": f"{api.url}elsewhere"}
    outcome = send(api)
    assert isinstance(outcome, Refused)
    assert outcome.reply.code == 451
    assert len(api.requests) == 1


def test_a_server_that_is_not_there_means_nothing_was_sent() -> None:
    with closing(socket.socket()) as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        notes = Notes()
        outcome = transport(url).send(envelope(), frozen(), notes)
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (
        Stage.CONNECT,
        Cause.CONNECTION_REFUSED,
        False,
    )
    assert notes.told == ["connect"]


def test_an_unknown_host_means_nothing_was_sent() -> None:
    outcome = transport("http://no-such-host.invalid/").send(envelope(), frozen(), Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.CONNECT, Cause.DNS_FAILED, False)


def test_a_server_without_tls_means_nothing_was_sent(api: Api) -> None:
    outcome = transport(api.url.replace("http", "https")).send(envelope(), frozen(), Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.cause, outcome.is_marked) == (Cause.TLS_FAILED, False)
    assert api.requests == []


def test_an_address_that_is_none_means_nothing_was_sent() -> None:
    outcome = transport("not an address").send(envelope(), frozen(), Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.is_marked) == (Stage.CONNECT, False)


def test_a_connection_that_breaks_after_the_request_leaves_it_in_doubt(api: Api) -> None:
    api.interrupt = lambda handler: handler.connection.close()
    outcome = send(api)
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.DOT, Cause.CONNECTION_LOST, True)


def _drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte of a header now and then: every single wait is short, the whole has no end."""
    try:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(200):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        pass


def _say_nothing(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.settimeout(60)
    try:
        handler.connection.recv(1)
    except OSError:
        pass


@pytest.mark.parametrize(
    ("interrupt", "cause"),
    [
        pytest.param(_say_nothing, Cause.TIMEOUT, id="silence"),
        pytest.param(_drip, Cause.API_ERROR, id="endless header"),
    ],
)
def test_a_server_that_never_finishes_is_left_in_doubt_within_the_bound(
    api: Api, interrupt: Callable[[BaseHTTPRequestHandler], None], cause: Cause
) -> None:
    api.interrupt = interrupt
    began = time.monotonic()
    outcome = send(api, total=timedelta(seconds=0.5))
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.DOT, cause, True)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("lost_at", ["connect", "mark"])
def test_without_the_lease_no_byte_is_sent(api: Api, lost_at: str) -> None:
    outcome = transport(api.url).send(envelope(), frozen(), Notes(lose_at=lost_at))
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.DATA, Cause.LEASE_LOST, False)
    assert api.requests == []


@pytest.mark.parametrize("status", [200, 401, 422, 429, 500])
def test_the_token_is_in_no_outcome_and_no_log(
    api: Api, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.fail(status, 10, f"Token {TOKEN} is not valid")
    assert TOKEN not in repr(send(api))
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join(repr(record.__dict__) for record in caplog.records)


def test_a_token_outside_ascii_is_refused_without_being_shown(api: Api) -> None:
    outcome = PostmarkTransport(token=Secret("gehéim"), api_url=api.url).send(envelope(), frozen(), Notes())
    assert isinstance(outcome, Refused)
    assert outcome.stage is Stage.AUTH
    assert "gehéim" not in repr(outcome)
    assert api.requests == []


@pytest.mark.django_db
def test_a_queued_mail_goes_through_the_whole_walk(
    api: Api, endpoint: Any, doorbell: Any, deliver_all: Callable[[], list[str]], settings: Any
) -> None:
    from gobii_email.api import delivery_status, send_agent_email

    settings.GOBII_PROPRIETARY_MODE, settings.POSTMARK_SERVER_TOKEN = True, TOKEN
    settings.POSTMARK_API_URL = api.url
    message = send_agent_email(
        from_endpoint=endpoint,
        to="b@rcpt.example",
        bcc="hidden@rcpt.example",
        subject="Hello \\ud83d\\ude00",
        body="Hi",
    )
    assert deliver_all() == ["sent"]
    attempt = delivery_status(message.pk).attempts[0]
    assert (attempt.provider, attempt.provider_message_id) == ("postmark", "pm-1")
    headers = {row["Name"]: row["Value"] for row in api.data["Headers"]}
    assert headers["X-Gobii-Message-ID"] == attempt.attempt_id == api.data["Metadata"]["attempt_id"]
    assert headers["Message-ID"] == delivery_status(message.pk).rfc_message_id
    assert (api.data["To"], api.data["Bcc"]) == ("b@rcpt.example", "hidden@rcpt.example")
    assert api.data["Subject"] == "Hello 😀"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("status", "error", "text", "message_status"),
    [
        pytest.param(401, 10, "Bad or missing Server API token.", "queued", id="token"),
        pytest.param(
            422,
            406,
            "Found inactive addresses: b@rcpt.example.\nInactive recipients are",
            "failed",
            id="inactive",
        ),
        pytest.param(422, 405, "You ran out of credits.", "queued", id="credit"),
        pytest.param(422, 300, "Invalid 'From' address.", "failed", id="invalid"),
        pytest.param(503, 100, "Maintenance", "queued", id="maintenance"),
        pytest.param(504, 0, "", "in_doubt", id="gateway"),
    ],
)
def test_a_refusal_ends_in_a_status_with_its_reason(
    api: Api,
    endpoint: Any,
    doorbell: Any,
    deliver_all: Callable[[], list[str]],
    settings: Any,
    status: int,
    error: int,
    text: str,
    message_status: str,
) -> None:
    from gobii_email.api import delivery_status, send_agent_email

    settings.GOBII_PROPRIETARY_MODE, settings.POSTMARK_SERVER_TOKEN = True, TOKEN
    settings.POSTMARK_API_URL = api.url
    api.fail(status, error, text)
    message = send_agent_email(from_endpoint=endpoint, to="b@rcpt.example", subject="Hello", body="Hi")
    deliver_all()
    document = delivery_status(message.pk)
    assert document.status == message_status
    assert f"Postmark error {error}" in document.attempts[0].error_message or not error
    assert TOKEN not in repr(document)
