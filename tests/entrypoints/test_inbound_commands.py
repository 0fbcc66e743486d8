"""What commands say of messages that were received: what they are, and nothing that is meant for sending."""

import pytest

from gobii_email import api
from gobii_email.models import PersistentAgentCommsEndpoint, PersistentAgentMessage
from gobii_email.services import intervene
from gobii_email.services.act import acts_for
from tests.conftest import RecordingDoorbell
from tests.entrypoints.commands import run
from tests.services.inbound import ANN, mail, received

pytestmark = pytest.mark.django_db


@pytest.fixture
def inbound(endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell) -> PersistentAgentMessage:
    return received(endpoint, mail(), uid=42).message


def test_the_status_says_that_it_was_received(inbound: PersistentAgentMessage) -> None:
    document = run("email_status", inbound.pk, "--json").document
    assert (document["direction"], document["from"], document["attempts"]) == ("inbound", ANN, [])
    assert [row["address"] for row in document["recipients"]] == ["agent@sender.example"]
    assert document["waiting_for"] is None
    assert "written by a person" in document["timeline"][-1]["text"]
    told = run("email_status", inbound.pk).out
    assert f"{inbound.pk}  received" in told and "attempts" not in told


def test_it_is_found_by_its_message_id(inbound: PersistentAgentMessage) -> None:
    assert run("email_status", "<one@person.example>", "--json").document["message_id"] == str(inbound.pk)


def test_it_is_in_no_queue(inbound: PersistentAgentMessage) -> None:
    before = run("email_queue", "--json").document
    inbound.delete()
    assert run("email_queue", "--json").document == before


def test_it_cannot_be_sent_retried_or_withdrawn(inbound: PersistentAgentMessage) -> None:
    assert api.deliver_agent_email(inbound) is None
    assert api.cancel_agent_email(inbound.pk).status == "delivered"
    with pytest.raises(intervene.NotPossible):
        intervene.retry(inbound)
    found = PersistentAgentMessage.objects.get(pk=inbound.pk)
    assert (found.latest_status, found.submitted_at, found.expires_at) == ("delivered", None, None)
    assert found.attempts.count() == 0


@pytest.mark.parametrize("status", ["delivered", "failed", "in_doubt", "queued"])
def test_whatever_its_status_there_is_nothing_to_be_done_about_it(status: str) -> None:
    assert acts_for(PersistentAgentMessage(is_outbound=False, latest_status=status)) == []
