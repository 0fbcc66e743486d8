"""Postmark's webhook over HTTP: what gets in, what is refused, what it changes."""

import json
from base64 import b64encode
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted
from gobii_email.domain.smtp_replies import Reply
from gobii_email.models import OutboundMessageAttempt, PersistentAgentCommsEndpoint
from gobii_email.services.settle import settle
from tests.conftest import RecordingDoorbell, row_of, taken

pytestmark = pytest.mark.django_db

URL = "/anymail/postmark/tracking/"
SECRET = "postmark:wörd-S3cret"


@pytest.fixture(autouse=True)
def secret(settings: Any, doorbell: RecordingDoorbell) -> None:
    settings.POSTMARK_WEBHOOK_SECRET = SECRET


@pytest.fixture
def attempt(endpoint: PersistentAgentCommsEndpoint) -> OutboundMessageAttempt:
    message = api.send_agent_email(from_endpoint=endpoint, to="a@rcpt.example", subject="Hello", body="Hi")
    held = row_of(taken(message))
    outcome = Accepted(Reply(250, "", "OK"), provider_message_id="pm-1")
    settle(held, outcome, provider=Provider.POSTMARK, now=timezone.now())
    return held


def post(body: Any, *, auth: str | None = SECRET, **extra: Any) -> Any:
    headers = {} if auth is None else {"Authorization": f"Basic {b64encode(auth.encode()).decode()}"}
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    return client.post(URL, content, content_type="application/json", headers=headers, **extra)


def report(attempt: OutboundMessageAttempt, kind: str, **values: Any) -> dict[str, Any]:
    common = {
        "RecordType": kind,
        "MessageID": "pm-1",
        "Metadata": {"attempt_id": str(attempt.pk)},
        "Tag": "persistent-agent",
    }
    return common | values


def delivery(attempt: OutboundMessageAttempt) -> dict[str, Any]:
    return report(
        attempt,
        "Delivery",
        Recipient="a@rcpt.example",
        DeliveredAt="2026-01-02T03:04:05Z",
        Details="smtp;250 2.0.0 OK",
    )


def bounce(attempt: OutboundMessageAttempt, kind: str = "HardBounce") -> dict[str, Any]:
    return report(
        attempt,
        "Bounce",
        ID=42,
        Type=kind,
        Email="a@rcpt.example",
        BouncedAt="2026-01-02T03:04:05Z",
        Description="The server was unable to deliver your message (ex: unknown user).",
        Details="smtp;550 5.1.1 No such user",
    )


def status_of(attempt: OutboundMessageAttempt) -> str:
    return OutboundMessageAttempt.objects.get(pk=attempt.pk).status


def test_a_delivery_is_written_down(attempt: OutboundMessageAttempt) -> None:
    assert post(delivery(attempt)).status_code == 200
    document = api.delivery_status(attempt.message_id)
    assert (document.status, document.recipients[0].status) == ("delivered", "delivered")


@pytest.mark.parametrize("kind", ["HardBounce", "SoftBounce", "BadEmailAddress", "Blocked"])
def test_a_bounce_is_written_down_with_its_code(attempt: OutboundMessageAttempt, kind: str) -> None:
    assert post(bounce(attempt, kind)).status_code == 200
    document = api.delivery_status(attempt.message_id)
    assert (document.status, document.recipients[0].status) == ("failed", "bounced")
    assert (document.recipients[0].smtp_code, document.recipients[0].enhanced_status) == (550, "5.1.1")


def test_a_complaint_is_told_in_the_timeline(attempt: OutboundMessageAttempt) -> None:
    body = report(attempt, "SpamComplaint", ID=43, Type="SpamComplaint", Email="a@rcpt.example")
    assert post(body).status_code == 200
    assert [entry.event for entry in api.delivery_status(attempt.message_id).timeline][-1] == "complained"
    assert status_of(attempt) == "sent"


def test_the_same_event_twice_is_one_event(attempt: OutboundMessageAttempt) -> None:
    for _ in range(2):
        assert post(bounce(attempt)).status_code == 200
    assert [entry.event for entry in api.delivery_status(attempt.message_id).timeline].count("bounced") == 1


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        pytest.param("Open", {"Recipient": "a@rcpt.example"}, id="opened"),
        pytest.param("Click", {"Recipient": "a@rcpt.example"}, id="clicked"),
        pytest.param("Bounce", {"Type": "Transient", "Email": "a@rcpt.example"}, id="delayed"),
        pytest.param("Bounce", {"Type": "AutoResponder", "Email": "a@rcpt.example"}, id="auto reply"),
        pytest.param("Inbound", {}, id="inbound"),
        pytest.param("SomethingNew", {}, id="unknown"),
    ],
)
def test_what_means_nothing_here_is_answered_politely(
    attempt: OutboundMessageAttempt, kind: str, values: dict[str, Any]
) -> None:
    assert post(report(attempt, kind, **values)).status_code == 200
    assert status_of(attempt) == "sent"


def test_an_unknown_id_is_answered_politely(db: None, caplog: pytest.LogCaptureFixture) -> None:
    body = {"RecordType": "Delivery", "MessageID": "pm-404", "Recipient": "x@rcpt.example"}
    assert post(body).status_code == 200
    assert "tracking.ignored" in caplog.text


def test_a_report_that_comes_too_early_is_asked_for_again(attempt: OutboundMessageAttempt) -> None:
    OutboundMessageAttempt.objects.filter(pk=attempt.pk).update(status="sending")
    assert post(delivery(attempt)).status_code == 503


def test_a_report_that_could_not_be_written_down_is_asked_for_again(
    attempt: OutboundMessageAttempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OperationalError("the database is away")

    with monkeypatch.context() as away:
        away.setattr("gobii_email.services.track.prove", broken)
        assert post(bounce(attempt)).status_code == 500
    assert status_of(attempt) == "sent"
    assert post(bounce(attempt)).status_code == 200 and status_of(attempt) == "failed"


@pytest.mark.parametrize("configured", ["", " ", "\n", ":", "user", "user:"])
def test_without_a_configured_secret_nobody_gets_in(
    attempt: OutboundMessageAttempt, settings: Any, configured: str
) -> None:
    settings.POSTMARK_WEBHOOK_SECRET = configured
    for auth in (None, "", ":", configured, SECRET):
        assert post(bounce(attempt), auth=auth).status_code == 403
    assert status_of(attempt) == "sent"


@pytest.mark.parametrize(
    "auth", [None, "", "postmark:", "postmark:wrong", SECRET + "x", "Postmark:wörd-S3cret"]
)
def test_a_wrong_secret_is_refused_before_anything_is_read(
    attempt: OutboundMessageAttempt, auth: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert post(bounce(attempt), auth=auth).status_code == 403
    assert post(b"\xff{", auth=auth).status_code == 403
    assert status_of(attempt) == "sent"
    assert "wrong" not in caplog.text


def test_a_broken_authorization_is_refused(attempt: OutboundMessageAttempt) -> None:
    for value in ("Basic", "Basic ???", "Bearer x", "Basic " + b64encode(b"\xff\xfe").decode()):
        response = Client(raise_request_exception=False).post(
            URL, b"{}", content_type="application/json", headers={"Authorization": value}
        )
        assert response.status_code == 403


def test_two_secrets_hold_while_one_replaces_the_other(
    attempt: OutboundMessageAttempt, settings: Any
) -> None:
    settings.POSTMARK_WEBHOOK_SECRET = f"new:secret\n{SECRET}"
    assert post(delivery(attempt)).status_code == 200
    assert post(delivery(attempt), auth="new:secret").status_code == 200
    assert post(delivery(attempt), auth=f"new:secret\n{SECRET}").status_code == 403


def test_a_body_above_a_megabyte_is_refused(attempt: OutboundMessageAttempt) -> None:
    padded = delivery(attempt) | {"Padding": "x" * 1_000_000}
    assert post(padded).status_code == 413
    assert status_of(attempt) == "sent"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"RecordType": []}',
        b'{"RecordType": "Bounce", "Type": []}',
        b'{"RecordType": "Delivery", "Metadata": 5}',
        b'{"RecordType": "Delivery", "DeliveredAt": 5}',
    ],
    ids=lambda body: body[:45].decode("latin-1"),
)
def test_what_is_no_event_is_a_bad_request(db: None, body: bytes) -> None:
    assert post(body).status_code == 400


@pytest.mark.parametrize("recipient", [5, None, [], {"a": 1}])
def test_fields_of_a_wrong_kind_change_nothing(attempt: OutboundMessageAttempt, recipient: object) -> None:
    assert post(bounce(attempt) | {"Email": recipient, "ID": recipient}).status_code == 200
    assert status_of(attempt) == "sent"


def test_only_posts_are_read(db: None) -> None:
    auth = {"Authorization": f"Basic {b64encode(SECRET.encode()).decode()}"}
    assert Client().get(URL, headers=auth).status_code == 405
    assert Client().head(URL, headers=auth).status_code == 200
    assert Client().head(URL).status_code == 403


def test_webhooks_of_other_providers_do_not_exist(db: None) -> None:
    for path in ("mailgun/tracking/", "postmark/inbound/", "sendgrid/tracking/"):
        assert Client().post(f"/anymail/{path}", b"{}", content_type="application/json").status_code == 404
