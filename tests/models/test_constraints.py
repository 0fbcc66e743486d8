"""Rules of the queue and its story that hold for every writer, and guards that survive migrations."""

from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import call_command
from django.db import DataError, IntegrityError, connection, transaction
from django.utils import timezone

from gobii_email.models import (
    AgentEmailAccount,
    CommsAllowlistEntry,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    guards,
)
from gobii_email.models.attempts import EventsAreKept

pytestmark = pytest.mark.django_db


@pytest.fixture
def message(endpoint: PersistentAgentCommsEndpoint) -> PersistentAgentMessage:
    return PersistentAgentMessage.objects.create(
        from_endpoint=endpoint, from_address=endpoint.address, body="Hi", idempotency_key="one"
    )


def attempt(message: PersistentAgentMessage, number: int = 1, **values: Any) -> OutboundMessageAttempt:
    now = timezone.now()
    return OutboundMessageAttempt(message=message, number=number, queued_at=now, not_before=now, **values)


def refused_by_the_database(act: Callable[[], object]) -> None:
    with pytest.raises(IntegrityError), transaction.atomic():
        act()


@pytest.mark.parametrize("first", ["queued", "sending", "in_doubt"])
@pytest.mark.parametrize("second", ["queued", "sending", "in_doubt"])
def test_a_message_has_one_open_attempt(message: PersistentAgentMessage, first: str, second: str) -> None:
    attempt(message, 1, status=first).save()
    refused_by_the_database(attempt(message, 2, status=second).save)


def test_a_message_may_have_many_ended_attempts(message: PersistentAgentMessage) -> None:
    for number, status in enumerate(["deferred", "deferred", "failed", "sent", "queued"], start=1):
        attempt(message, number, status=status).save()
    assert message.attempts.count() == 5


def test_an_attempt_number_is_given_once(message: PersistentAgentMessage) -> None:
    attempt(message, 1, status="deferred").save()
    refused_by_the_database(attempt(message, 1).save)


def test_only_an_open_attempt_is_ever_due(message: PersistentAgentMessage) -> None:
    refused_by_the_database(attempt(message, 1, status="sent", due_at=timezone.now()).save)


def test_an_idempotency_key_stands_for_one_message_of_a_sender(message: PersistentAgentMessage) -> None:
    again = PersistentAgentMessage(from_endpoint=message.from_endpoint, body="x", idempotency_key="one")
    refused_by_the_database(lambda: PersistentAgentMessage.objects.bulk_create([again]))


def test_a_recipient_stands_once_in_a_message(message: PersistentAgentMessage) -> None:
    rows = [
        OutboundMessageRecipient(message=message, address="to@rcpt.example", kind=kind)
        for kind in ("to", "cc")
    ]
    refused_by_the_database(lambda: OutboundMessageRecipient.objects.bulk_create(rows))


def test_a_contact_is_allowed_once(agent: PersistentAgent) -> None:
    rows = [CommsAllowlistEntry(agent=agent, address=text) for text in ("a@rcpt.example", "A@rcpt.example")]
    refused_by_the_database(lambda: CommsAllowlistEntry.objects.bulk_create(rows))


# Events


@pytest.fixture
def told(message: PersistentAgentMessage) -> OutboundMessageEvent:
    first = attempt(message)
    first.save()
    return OutboundMessageEvent.objects.create(
        message=message, attempt=first, at=timezone.now(), event="queued", text="Queued."
    )


def test_an_event_is_neither_changed_nor_deleted_by_itself(told: OutboundMessageEvent) -> None:
    told.text = "Something else."
    with pytest.raises(EventsAreKept):
        told.save()
    with pytest.raises(EventsAreKept):
        told.delete()


def test_the_database_refuses_to_rewrite_an_event(told: OutboundMessageEvent) -> None:
    refused_by_the_database(lambda: OutboundMessageEvent.objects.update(text="Something else."))
    refused_by_the_database(lambda: OutboundMessageEvent.objects.bulk_update([told], ["text"]))
    table = OutboundMessageEvent._meta.db_table

    def raw() -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET text = 'Something else.'")

    refused_by_the_database(raw)
    assert OutboundMessageEvent.objects.get().text == "Queued."


def test_events_go_with_their_message(told: OutboundMessageEvent, message: PersistentAgentMessage) -> None:
    message.delete()
    assert not OutboundMessageEvent.objects.exists()


# Guards


def outside_account() -> None:
    outside, _ = PersistentAgentCommsEndpoint.objects.get_or_create(channel="email", address="x@rcpt.example")
    AgentEmailAccount.objects.bulk_create([AgentEmailAccount(endpoint=outside)])


def test_guards_may_be_put_up_again_and_again() -> None:
    guards.put_up(connection)
    guards.put_up(connection)
    refused_by_the_database(outside_account)


def test_without_guards_the_same_row_would_be_taken() -> None:
    guards.take_down(connection)
    outside_account()
    assert AgentEmailAccount.objects.count() == 1


def test_the_table_names_in_the_guards_are_the_models() -> None:
    named = {guards.ACCOUNTS, guards.ENDPOINTS, guards.EVENTS}
    rows = (AgentEmailAccount, PersistentAgentCommsEndpoint, OutboundMessageEvent)
    assert named == {row._meta.db_table for row in rows}


@pytest.mark.django_db(transaction=True)
def test_guards_are_back_after_migrations() -> None:
    guards.take_down(connection)
    call_command("migrate", verbosity=0)
    refused_by_the_database(outside_account)


def rebuild_the_endpoints() -> None:
    """What a change of a column does on SQLite: a new table, the old one dropped, the new one renamed."""
    present = PersistentAgentCommsEndpoint._meta.get_field("address")
    wider = present.clone()
    wider.max_length = 513
    wider.set_attributes_from_name("address")
    wider.model = PersistentAgentCommsEndpoint
    with connection.schema_editor() as editor:
        editor.alter_field(PersistentAgentCommsEndpoint, present, wider)
    with connection.schema_editor() as editor:
        editor.alter_field(PersistentAgentCommsEndpoint, wider, present)


@pytest.mark.django_db(transaction=True)
def test_a_later_migration_may_rebuild_a_guarded_table() -> None:
    guards._before_migrations(using="default")
    try:
        rebuild_the_endpoints()
    finally:
        guards._after_migrations(using="default")
    refused_by_the_database(outside_account)


def test_a_value_that_is_too_long_leaves_nothing_half_written(message: PersistentAgentMessage) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite keeps no lengths")
    with pytest.raises(DataError), transaction.atomic():
        attempt(message, provider_message_id="x" * 256).save()
    assert message.attempts.count() == 0
