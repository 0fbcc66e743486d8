"""Simulated mail is composed in full, kept, viewable, and called delivered."""

from collections.abc import Callable
from email import message_from_bytes, policy
from typing import Any

import pytest

from gobii_email import api
from gobii_email.models import FrozenMessage, PersistentAgentCommsEndpoint, PersistentAgentMessage
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db

Deliver = Callable[[], list[str]]


@pytest.fixture
def message(endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell) -> PersistentAgentMessage:
    return api.send_agent_email(
        from_endpoint=endpoint,
        to="to@rcpt.example",
        cc=["cc@rcpt.example"],
        bcc=["bcc@rcpt.example"],
        subject="Hello \U0001f600",
        body="Good *morning*",
        attachments=[api.EmailAttachmentPayload("a.txt", b"file", "text/plain")],
    )


def test_simulated_mail_is_delivered_to_everybody(
    message: PersistentAgentMessage, deliver_all: Deliver
) -> None:
    assert deliver_all() == ["delivered"]
    document = api.delivery_status(message.pk)
    assert document.status == "delivered"
    assert {row.status for row in document.recipients} == {"delivered"}
    (attempt,) = document.attempts
    assert (attempt.provider, attempt.status, attempt.smtp_code) == ("postmark_simulation", "delivered", None)
    message.refresh_from_db()
    assert message.latest_sent_at is not None
    assert message.latest_delivered_at is not None


def test_the_timeline_says_that_nothing_left_the_machine(
    message: PersistentAgentMessage, deliver_all: Deliver
) -> None:
    deliver_all()
    assert "nothing left this machine" in api.delivery_status(message.pk).timeline[-1].text


def test_the_whole_mail_is_kept_and_can_be_read(
    message: PersistentAgentMessage, deliver_all: Deliver
) -> None:
    deliver_all()
    frozen = FrozenMessage.objects.get(message=message)
    mail = message_from_bytes(bytes(frozen.mime), policy=policy.SMTP)
    assert mail["Subject"] == "Hello \U0001f600"
    assert (mail["To"], mail["Cc"], mail["Bcc"]) == ("to@rcpt.example", "cc@rcpt.example", None)
    assert [part.get_filename() for part in mail.iter_attachments()] == ["a.txt"]
    assert "<em>morning</em>" in frozen.html
    assert "morning" in frozen.text


def test_no_socket_is_opened_for_simulated_mail(
    message: PersistentAgentMessage, deliver_all: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    assert deliver_all() == ["delivered"]


def test_simulation_never_stands_in_where_it_is_switched_off(
    message: PersistentAgentMessage, deliver_all: Deliver, settings: Any
) -> None:
    settings.SIMULATE_EMAIL_DELIVERY = False
    assert deliver_all() == ["failed"]
    document = api.delivery_status(message.pk)
    assert document.attempts[0].error_code == "no_transport"
    assert "SIMULATE_EMAIL_DELIVERY" in document.attempts[0].error_message


def test_in_production_without_postmark_mail_fails_aloud(
    message: PersistentAgentMessage, deliver_all: Deliver, settings: Any
) -> None:
    settings.GOBII_PROPRIETARY_MODE = True
    settings.EMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"
    assert deliver_all() == ["failed"]
    attempt = api.delivery_status(message.pk).attempts[0]
    assert (attempt.provider, attempt.error_code) == ("", "no_transport")
