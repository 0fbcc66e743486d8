"""Addresses: whose they are, each once, and what outlives them."""

import pytest
from django.db import IntegrityError, transaction

from gobii_email import api
from gobii_email.models import (
    AgentEmailAccount,
    CommsChannel,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db

Endpoint = PersistentAgentCommsEndpoint


def refused_by_the_database(act: object) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        act()  # type: ignore[operator]


def test_an_address_is_stored_in_lower_case() -> None:
    assert (
        Endpoint.objects.create(channel="email", address=" Bob@Rcpt.Example ").address == "bob@rcpt.example"
    )


def test_an_address_belongs_to_one_agent_only(endpoint: Endpoint) -> None:
    other = PersistentAgent.objects.create(name="Other")
    row = Endpoint(owner_agent=other, channel="email", address="AGENT@sender.example")
    refused_by_the_database(lambda: Endpoint.objects.bulk_create([row]))


def test_an_outside_address_stands_once_whatever_its_case() -> None:
    Endpoint.objects.create(channel="email", address="bob@rcpt.example")
    row = Endpoint(channel="email", address="BOB@rcpt.example")
    refused_by_the_database(lambda: Endpoint.objects.bulk_create([row]))


def test_connecting_an_address_does_not_take_over_the_contact_of_that_name(agent: PersistentAgent) -> None:
    contact = Endpoint.objects.create(channel="email", address="shared@rcpt.example")
    own = Endpoint.objects.create(channel="email", address="shared@rcpt.example", owner_agent=agent)
    contact.refresh_from_db()
    assert contact.owner_agent is None
    assert own.pk != contact.pk


def test_an_endpoint_with_an_account_keeps_its_owner(endpoint: Endpoint) -> None:
    AgentEmailAccount.objects.create(endpoint=endpoint)
    refused_by_the_database(lambda: Endpoint.objects.filter(pk=endpoint.pk).update(owner_agent=None))


def test_an_endpoint_with_an_account_keeps_its_channel(endpoint: Endpoint) -> None:
    AgentEmailAccount.objects.create(endpoint=endpoint)
    refused_by_the_database(lambda: Endpoint.objects.filter(pk=endpoint.pk).update(channel=CommsChannel.SMS))


def test_an_endpoint_with_an_account_may_be_edited_otherwise(endpoint: Endpoint) -> None:
    AgentEmailAccount.objects.create(endpoint=endpoint)
    endpoint.is_primary = True
    endpoint.owner_agent = PersistentAgent.objects.create(name="Successor")
    endpoint.save()
    assert Endpoint.objects.get(pk=endpoint.pk).owner_agent.name == "Successor"


def test_an_endpoint_without_an_account_may_lose_its_owner(endpoint: Endpoint) -> None:
    assert Endpoint.objects.filter(pk=endpoint.pk).update(owner_agent=None, channel="sms") == 1


@pytest.mark.parametrize("removed", ["account", "endpoint", "agent"])
def test_history_outlives_what_wrote_it(
    endpoint: Endpoint, doorbell: RecordingDoorbell, removed: str
) -> None:
    account = AgentEmailAccount.objects.create(endpoint=endpoint)
    message = api.send_agent_email(
        from_endpoint=endpoint, to="to@rcpt.example", cc=["cc@rcpt.example"], subject="Hello", body="Hi"
    )
    rows = {"account": account, "endpoint": endpoint, "agent": endpoint.owner_agent}
    rows[removed].delete()
    assert not AgentEmailAccount.objects.exists()
    kept = PersistentAgentMessage.objects.get(pk=message.pk)
    assert (kept.from_address, kept.subject, kept.body) == ("agent@sender.example", "Hello", "Hi")
    assert {row.address for row in kept.recipients.all()} == {"to@rcpt.example", "cc@rcpt.example"}
    assert OutboundMessageAttempt.objects.filter(message=kept).count() == 1
    assert OutboundMessageEvent.objects.filter(message=kept).exists()
    assert api.delivery_status(message.pk).from_address == "agent@sender.example"


def test_history_outlives_the_address_it_was_sent_to(endpoint: Endpoint, doorbell: RecordingDoorbell) -> None:
    message = api.send_agent_email(from_endpoint=endpoint, to="to@rcpt.example", subject="Hello", body="Hi")
    Endpoint.objects.get(address="to@rcpt.example").delete()
    assert [row.address for row in message.recipients.all()] == ["to@rcpt.example"]
    assert PersistentAgentMessage.objects.filter(pk=message.pk).exists()
