"""Spans of real sends, as an exporter sees them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from gobii_email import api, telemetry, tracing
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt
from gobii_email.ports import Auth, Security, SmtpServer
from gobii_email.services.poll import poll
from gobii_email.services.poll_schedule import schedule
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack
from tests.conftest import PASSWORD, RecordingDoorbell

pytestmark = pytest.mark.django_db

SEND_ATTRIBUTES = {
    "smtp.host": "localhost",
    "smtp.security": "starttls",
    "from": "agent@sender.example",
    "to_count": 2,
    "cc_count": 1,
    "server.address": "localhost",
}
PRIVATE = (PASSWORD, "rcpt.example", "to-one", "cc-one", "hidden", "Private subject", "Private body")

Deliver = Callable[[], list[str]]


@pytest.fixture(scope="session")
def exporter() -> InMemorySpanExporter:
    """A process has one provider for good, so all tests share it."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[Callable[[], list[ReadableSpan]]]:
    exporter.clear()
    yield lambda: list(exporter.get_finished_spans())
    exporter.clear()


def send(**values: Any) -> OutboundMessageAttempt:
    facts = {
        "from_endpoint": "agent@sender.example",
        "to": ["to-one@rcpt.example", "to-two@rcpt.example"],
        "cc": ["cc-one@rcpt.example"],
        "bcc": ["hidden@rcpt.example"],
        "subject": "Private subject",
        "body": "Private body",
    }
    return api.send_agent_email(**(facts | values)).attempts.get()


def named(spans: list[ReadableSpan], name: str) -> ReadableSpan:
    (found,) = (span for span in spans if span.name == name)
    return found


def everything_in(spans: list[ReadableSpan]) -> str:
    return "\n".join(span.to_json() for span in spans)


def test_a_send_is_one_client_span_with_exactly_the_promised_attributes(
    account: AgentEmailAccount, doorbell: RecordingDoorbell, deliver_all: Deliver, spans: Any
) -> None:
    send()
    assert deliver_all() == ["sent"]
    span = named(spans(), "email.smtp.send")
    ports = {"smtp.port": account.smtp_port, "server.port": account.smtp_port}
    assert dict(span.attributes or {}) == SEND_ATTRIBUTES | ports
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    stages = [(event.name, (event.attributes or {})["stage"]) for event in span.events]
    assert stages == [
        ("email.stage", stage) for stage in ("connect", "ehlo", "tls", "auth", "mail", "rcpt", "data", "dot")
    ]
    times = [event.timestamp for event in span.events]
    assert span.start_time is not None and span.start_time <= times[0]
    assert times == sorted(times)


def test_nothing_private_is_in_any_span(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    deliver_all: Deliver,
    spans: Any,
) -> None:
    smtp_server.faults.always["to-one@rcpt.example"] = "550 5.1.1 <to-one@rcpt.example> unknown here"
    send()
    smtp_server.faults.replies["DOT"] = f"554 5.7.1 {PASSWORD} of agent@sender.example says spam"
    deliver_all()
    told = everything_in(spans())
    assert "email.smtp.send" in told
    assert [word for word in PRIVATE if word in told] == []


PROMISED = {
    *SEND_ATTRIBUTES, "smtp.port", "server.port", "error.type", "imap.host", "imap.port", "imap.security",
    "imap.folder", "new_uid_count", "oauth.provider", "messaging.system", "messaging.batch.message_count",
    "stage", "ms", "text",
}  # fmt: skip


def test_a_journey_out_and_back_tells_what_is_promised_and_nothing_private(
    account: AgentEmailAccount, authority: ThrowAwayAuthority, smtp_server: ScriptedSmtpServer, settings: Any,
    doorbell: RecordingDoorbell, deliver_all: Deliver, spans: Any,
) -> None:  # fmt: skip
    send()
    deliver_all()
    smtp_server.faults.replies["RCPT"] = "550 5.1.1 <to-one@rcpt.example> unknown, said " + PASSWORD
    send()
    deliver_all()
    users = {"agent@sender.example": PASSWORD}
    with ScriptedImapServer(tls=authority.good("localhost", "127.0.0.1"), users=users) as imap:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{smtp_server.port},{imap.port}"
        account.imap_host, account.imap_port, account.imap_security = "localhost", imap.port, "ssl"
        account.imap_username, account.is_inbound_enabled = "agent@sender.example", True
        account.set_imap_password(PASSWORD)
        account.imap_tested_fingerprint = account.imap_fingerprint()
        account.save()
        schedule(account)
        assert poll(account.pk, owner="test", is_asked_for=True) == "baseline"
        imap.users.clear()
        assert poll(account.pk, owner="test", is_asked_for=True) == "held"
    told = [dict(one.attributes or {}) for one in spans()]
    told += [dict(event.attributes or {}) for one in spans() for event in one.events]
    assert {one.name for one in spans()} == {"email.enqueue", "email.smtp.send", "email.imap.poll"}
    assert {name for one in told for name in one} <= PROMISED
    assert [word for word in PRIVATE if word in everything_in(spans())] == []


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (
            {"RCPT": "550 5.1.1 <to-one@rcpt.example> unknown, ask postmaster@sender.example"},
            "550",
            "unknown",
        ),
        ({"AUTH": "535 5.7.8 bad login AGFnZW50QHNlbmRlci5leGFtcGxlAHNlY3JldA=="}, "535", "bad login"),
        ({"MAIL": "451 4.3.0 try agent again"}, "451", "try"),
    ],
    ids=["rcpt", "auth", "mail"],
)
def test_a_refusal_is_an_error_with_the_servers_words_redacted(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    deliver_all: Deliver,
    spans: Any,
    fault: dict[str, str],
    error: str,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    smtp_server.faults.replies |= fault
    attempt = send()
    deliver_all()
    span = named(spans(), "email.smtp.send")
    (event,) = (event for event in span.events if event.name != "email.stage")
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})["error.type"] == error
    assert (event.name, (event.attributes or {})["error.type"]) == ("email.failure", error)
    told = f"{span.status.description} {dict(event.attributes or {})}"
    assert words in told
    for private in ("@", "AGFn", "agent", PASSWORD):
        assert private not in told
    (line,) = (record for record in caplog.records if record.getMessage() == "smtp.send.failed")
    assert vars(line)["attempt_id"] == str(attempt.pk)
    assert words in vars(line)["text"]


def test_a_lost_connection_is_an_error_of_its_cause(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    deliver_all: Deliver,
    spans: Any,
) -> None:
    smtp_server.faults.drops.add("MAIL")
    send()
    deliver_all()
    assert (named(spans(), "email.smtp.send").attributes or {})["error.type"] == "connection_lost"


def test_a_bug_below_is_told_without_what_it_carried(spans: Any) -> None:
    server = SmtpServer("mail.example", 587, Security.STARTTLS, Auth.PLAIN, username="bob.login")
    with pytest.raises(ValueError, match="a@rcpt"):
        with telemetry.smtp_send(
            server, attempt_id="1", sender="s@x", to_count=1, cc_count=0, traceparent=""
        ):
            raise ValueError("bad line for bob.login: RCPT TO:<a@rcpt.example> Bearer abc")
    told = everything_in(spans())
    assert "ValueError" in told
    assert [word for word in ("a@rcpt", "bob.login", "abc") if word in told] == []


def test_a_send_from_the_dispatchers_hand_joins_the_submissions_trace(
    account: AgentEmailAccount, doorbell: RecordingDoorbell, deliver_all: Deliver, spans: Any
) -> None:
    tracer = trace.get_tracer("test")
    with tracer.start_as_current_span("request"):
        send()
    with tracer.start_as_current_span("hand-out") as hand_out:
        deliver_all()
    request, enqueue, sent = (
        named(spans(), name) for name in ("request", "email.enqueue", "email.smtp.send")
    )
    assert enqueue.parent is not None and enqueue.parent.span_id == request.context.span_id
    assert sent.parent is not None and sent.parent.span_id == enqueue.context.span_id
    assert [link.context.span_id for link in sent.links] == [hand_out.get_span_context().span_id]


def test_a_send_within_the_submissions_trace_is_a_child_of_where_it_is(
    account: AgentEmailAccount, doorbell: RecordingDoorbell, deliver_all: Deliver, spans: Any
) -> None:
    with trace.get_tracer("test").start_as_current_span("request"):
        send()
        with trace.get_tracer("test").start_as_current_span("consumer") as consumer:
            deliver_all()
    sent = named(spans(), "email.smtp.send")
    assert sent.parent is not None and sent.parent.span_id == consumer.get_span_context().span_id
    assert sent.links == ()


def test_the_variables_decide_whether_anything_is_exported() -> None:
    assert tracing.wanted_exporters({}) == []
    assert tracing.wanted_exporters({"OTEL_TRACES_EXPORTER": "none"}) == []
    assert tracing.wanted_exporters({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}) == ["otlp"]
    assert tracing.wanted_exporters({"OTEL_TRACES_EXPORTER": "console,otlp"}) == ["console", "otlp"]
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}
    assert tracing.wanted_exporters(endpoint | {"OTEL_SDK_DISABLED": "true"}) == []
    assert tracing.wanted_exporters(endpoint | {"OTEL_TRACES_EXPORTER": "none"}) == []


@pytest.mark.parametrize("name", ["otlp", "console"])
def test_an_exporter_that_is_asked_for_can_be_had(name: str) -> None:
    exporter = tracing._exporter(name)
    assert exporter is not None and hasattr(exporter, "export")


SEND_IN_A_TRACE = """
from gobii_email import tracing
tracing.start_exporting()
from opentelemetry import trace
from gobii_email import api
with trace.get_tracer("test").start_as_current_span("request") as request:
    api.send_agent_email(from_endpoint="agent@sender.example", to="to@rcpt.example", subject="S", body="B")
print(trace.format_trace_id(request.get_span_context().trace_id))
"""


def test_one_trace_leads_from_the_enqueue_through_the_worker_to_the_server(
    smtp_server: ScriptedSmtpServer, tmp_path: Path
) -> None:
    env = {"OTEL_TRACES_EXPORTER": "console", "BYO_EMAIL_ALLOWED_PORTS": str(smtp_server.port)}
    with Stack(tmp_path, env=env) as stack:
        worker = stack.start_worker()
        stack.connect("agent@sender.example", smtp_server.port, PASSWORD)
        (trace_id,) = re.findall(r"^[0-9a-f]{32}$", stack.python(SEND_IN_A_TRACE), re.MULTILINE)
        smtp_server.wait_for(1)
        worker.wait_for("succeeded")
        worker.stop()
        told = spans_printed(worker.output())
    run, sent = told["run/gobii_email.deliver"], told["email.smtp.send"]
    assert {span["context"]["trace_id"] for span in (run, sent)} == {f"0x{trace_id}"}
    assert sent["parent_id"] == run["context"]["span_id"]
    assert run["parent_id"] is not None
    assert [word for word in (PASSWORD, "to@rcpt.example") if word in worker.output()] == []


def spans_printed(log: str) -> dict[str, Any]:
    """The console exporter's spans by name."""
    blocks = re.findall(r"^\{\n.*?^\}$", log, re.MULTILINE | re.DOTALL)
    return {span["name"]: span for span in map(json.loads, blocks)}
