"""Mail that a host project got by other means goes the same way as mail from a mailbox."""

from typing import Any

import pytest

from gobii_email import api
from gobii_email.models import (
    CommsAllowlistEntry,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    ReceivedMail,
)
from tests.conftest import RecordingDoorbell
from tests.services.inbound import ANN, mail

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell) -> None:
    pass


def test_it_becomes_a_message_once(endpoint: PersistentAgentCommsEndpoint) -> None:
    message = api.ingest_inbound_message(endpoint=endpoint, raw=mail("Good morning"), source="webhook")
    assert message is not None and (message.body, message.from_address) == ("Good morning", ANN)
    assert message.raw_payload["imap_folder"] == "webhook"
    assert (
        api.ingest_inbound_message(endpoint=endpoint, raw=mail("Good morning"), source="webhook") == message
    )
    assert PersistentAgentMessage.objects.count() == ReceivedMail.objects.count() == 1


def test_an_envelope_line_before_it_does_no_harm(endpoint: PersistentAgentCommsEndpoint) -> None:
    raw = b"From ann@person.example Mon Nov  2 10:00:00 2026\r\n" + mail("Good morning")
    message = api.ingest_inbound_message(endpoint=endpoint, raw=raw)
    assert message is not None and message.body == "Good morning"


def test_what_becomes_none_says_why_in_its_row(
    endpoint: PersistentAgentCommsEndpoint, agent: PersistentAgent
) -> None:
    agent.whitelist_policy = PersistentAgent.WhitelistPolicy.MANUAL
    agent.save()
    assert api.ingest_inbound_message(endpoint=endpoint, raw=mail()) is None
    row = ReceivedMail.objects.get()
    assert (row.state, row.raw) == (ReceivedMail.State.SKIPPED, None)
    CommsAllowlistEntry.objects.create(agent=agent, address=ANN)
    assert api.ingest_inbound_message(endpoint=endpoint, raw=mail(Subject="Again")) is not None


def test_of_one_that_is_too_large_the_agent_learns_that_it_came(
    endpoint: PersistentAgentCommsEndpoint, settings: Any
) -> None:
    settings.GOBII_MAX_RECEIVED_BYTES = 500
    message = api.ingest_inbound_message(endpoint=endpoint, raw=mail("x" * 1_000))
    assert message is not None and "too large" in message.body
    assert len(ReceivedMail.objects.get().raw) < 500


def test_mail_for_nobodys_agent_is_refused(db: None) -> None:
    outside = PersistentAgentCommsEndpoint.objects.create(channel="email", address=ANN)
    with pytest.raises(ValueError, match=r"no agent owns ann@person\.example"):
        api.ingest_inbound_message(endpoint=outside, raw=mail())
