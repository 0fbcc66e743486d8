"""What a kept statement answers, for other keys than the one it was written for."""

import uuid

import pytest

from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentEmailEndpoint,
)
from gobii_email.services.gather import senders, senders_by_address
from tests.conftest import RecordingDoorbell

Endpoint = PersistentAgentCommsEndpoint

pytestmark = pytest.mark.django_db


def fields(found: object) -> dict[str, object]:
    return {name: value for name, value in vars(found).items() if name != "_state"}


def test_each_key_gets_its_own_rows_with_all_that_hangs_on_them(
    account: AgentEmailAccount, endpoint: Endpoint
) -> None:
    other = Endpoint.objects.create(
        owner_agent=PersistentAgent.objects.create(name="Bob"), channel="email", address="bob@sender.example"
    )
    PersistentAgentEmailEndpoint.objects.create(endpoint=other, display_name="Bobby")
    for _ in range(2):
        (first,) = senders({endpoint.pk}).values()
        (second,) = senders_by_address({other.address}).values()
        assert fields(first.agentemailaccount) == fields(AgentEmailAccount.objects.get(pk=endpoint.pk))
        assert (first.pk, first.owner_agent) == (endpoint.pk, endpoint.owner_agent)
        assert (second.pk, second.display_name) == (other.pk, "Bobby")
        assert not hasattr(second, "agentemailaccount")
    assert senders({uuid.uuid4()}) == {}
    assert senders_by_address({"nobody@sender.example"}) == {}


def test_one_sender_and_several_are_read_alike(account: AgentEmailAccount, endpoint: Endpoint) -> None:
    other = Endpoint.objects.create(
        owner_agent=endpoint.owner_agent, channel="email", address="second@sender.example"
    )
    both = senders({endpoint.pk, other.pk})
    assert fields(both[endpoint.pk].agentemailaccount) == fields(
        senders({endpoint.pk})[endpoint.pk].agentemailaccount
    )
    assert senders_by_address({endpoint.address, other.address}).keys() == {endpoint.address, other.address}


def test_an_attempt_that_is_gone_has_no_origin(doorbell: RecordingDoorbell) -> None:
    assert OutboundMessageAttempt.objects.origin(str(uuid.uuid4())) is None
