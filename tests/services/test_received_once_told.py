"""The agent runtime learns of every message at least once, whatever is down meanwhile."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.models import PersistentAgentCommsEndpoint, ReceivedMail
from gobii_email.ports import INBOUND_QUEUE, Call
from gobii_email.services import receive
from gobii_email.services.receive import LEFT_FOR, RECEIVE, read_what_is_stored
from gobii_email.signals import email_received
from tests.conftest import RecordingDoorbell
from tests.services.inbound import ANN, mail, received, stored

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receive, "_asked", receive._Asked())


@pytest.fixture
def heard() -> Iterator[list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []

    def hear(sender: object, signal: object, **facts: Any) -> None:
        told.append(facts)
        raise RuntimeError("a receiver's own problem")

    email_received.connect(hear)
    yield told
    email_received.disconnect(hear)


@pytest.fixture
def commits(django_capture_on_commit_callbacks: Any) -> Any:
    return lambda: django_capture_on_commit_callbacks(execute=True)


def test_a_message_is_told_of_once_it_is_committed(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, heard: list[Any], commits: Any
) -> None:
    with commits():
        row = received(endpoint, mail())
        assert heard == []
    row.refresh_from_db()
    assert heard == [
        {
            "message_id": row.message_id,
            "endpoint_id": endpoint.pk,
            "is_automated": False,
            "from_address": ANN,
        }
    ]
    assert row.announced_at is not None and doorbell.called == []
    receive.receive(row.pk)
    assert len(heard) == 1


def test_the_hosts_task_is_rung_by_name(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, settings: Any, commits: Any
) -> None:
    settings.EMAIL_RECEIVED_TASK, settings.EMAIL_RECEIVED_QUEUE = "runtime.wake", "agents"
    with commits():
        row = received(endpoint, mail())
    assert doorbell.called == [Call("runtime.wake", str(row.message_id), "agents")]


def test_a_broker_that_is_away_is_told_later(
    endpoint: PersistentAgentCommsEndpoint,
    doorbell: RecordingDoorbell,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    commits: Any,
) -> None:
    settings.EMAIL_RECEIVED_TASK = "runtime.wake"
    with monkeypatch.context() as away:
        away.setattr(doorbell, "call", lambda calls: False)
        with commits():
            row = received(endpoint, mail())
        row.refresh_from_db()
        assert (row.state, row.announced_at) == (ReceivedMail.State.RECEIVED, None)
        assert read_what_is_stored(timezone.now() + LEFT_FOR) == 1
    assert read_what_is_stored(timezone.now() + LEFT_FOR) == 1
    assert doorbell.called == [Call(RECEIVE, str(row.pk), INBOUND_QUEUE)]
    receive.receive(row.pk)
    row.refresh_from_db()
    assert row.announced_at is not None
    assert doorbell.called[-1].task == "runtime.wake"
    assert read_what_is_stored(timezone.now() + 3 * LEFT_FOR) == 0


UNMATCHED = (
    b"--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx\r\n\r\n"
    b"Final-Recipient: rfc822; x@y.example\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
)


@pytest.mark.parametrize(
    "raw",
    [
        mail(From="agent@sender.example"),
        mail(body=UNMATCHED, From="MAILER-DAEMON@mx.example", Content_Type="multipart/report; boundary=b"),
    ],
    ids=["own", "report"],
)
def test_what_is_no_message_is_told_to_nobody(
    endpoint: PersistentAgentCommsEndpoint, heard: list[Any], commits: Any, raw: bytes
) -> None:
    with commits():
        row = received(endpoint, raw)
    assert (heard, row.message, row.announced_at) == ([], None, None)
    assert read_what_is_stored(timezone.now() + 2 * LEFT_FOR) == 0


def test_what_nobody_read_is_asked_for_once_a_while(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell
) -> None:
    now = timezone.now()
    old = stored(endpoint, mail(), stored_at=now - 2 * LEFT_FOR)
    stored(endpoint, mail(), uid=2, stored_at=now)
    assert read_what_is_stored(now) == 1
    assert doorbell.called == [Call(RECEIVE, str(old.pk), INBOUND_QUEUE)]
    assert read_what_is_stored(now + timedelta(seconds=1)) == 0
    assert read_what_is_stored(now + LEFT_FOR + timedelta(seconds=1)) == 2
