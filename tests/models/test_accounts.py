"""Every rule about an account, said by `clean()` with a remedy and kept by the database without it."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from gobii_email.models import AgentEmailAccount, PersistentAgent, PersistentAgentCommsEndpoint

pytestmark = pytest.mark.django_db

COMPLETE: dict[str, Any] = {
    "smtp_host": "smtp.sender.example",
    "smtp_port": 587,
    "smtp_username": "agent@sender.example",
    "smtp_password_encrypted": b"sealed",
}
RECEIVING: dict[str, Any] = {"imap_host": "imap.sender.example", "imap_port": 993, "is_inbound_enabled": True}


def vouched_for(endpoint: PersistentAgentCommsEndpoint, **values: Any) -> AgentEmailAccount:
    account = AgentEmailAccount(endpoint=endpoint, **(COMPLETE | values))
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.imap_tested_fingerprint = account.imap_fingerprint()
    return account


def insert(account: AgentEmailAccount) -> None:
    """Straight into the table: neither clean() nor save()."""
    with transaction.atomic():
        AgentEmailAccount.objects.bulk_create([account])


def test_a_complete_and_tested_account_is_accepted(endpoint: PersistentAgentCommsEndpoint) -> None:
    account = vouched_for(endpoint, is_outbound_enabled=True, **RECEIVING)
    account.full_clean()
    insert(account)
    assert AgentEmailAccount.objects.get().is_smtp_tested


def test_a_draft_may_be_empty_as_long_as_nothing_is_enabled(endpoint: PersistentAgentCommsEndpoint) -> None:
    account = AgentEmailAccount(endpoint=endpoint)
    account.full_clean()
    insert(account)
    assert (account.poll_interval_sec, account.imap_folder, account.is_outbound_enabled) == (
        120,
        "INBOX",
        False,
    )


def unfit(kind: str) -> PersistentAgentCommsEndpoint:
    agent = PersistentAgent.objects.create(name="Ada")
    values = {
        "outside": {"channel": "email", "address": "contact@rcpt.example"},
        "not e-mail": {"channel": "sms", "address": "+4912345", "owner_agent": agent},
    }[kind]
    return PersistentAgentCommsEndpoint.objects.create(**values)


@pytest.mark.parametrize("kind", ["outside", "not e-mail"])
def test_clean_names_the_endpoint_that_cannot_have_an_account(kind: str) -> None:
    with pytest.raises(ValidationError) as caught:
        AgentEmailAccount(endpoint=unfit(kind)).full_clean()
    assert set(caught.value.message_dict) == {"endpoint"}


@pytest.mark.parametrize("kind", ["outside", "not e-mail"])
def test_the_database_refuses_an_account_of_an_unfit_endpoint(kind: str) -> None:
    account = AgentEmailAccount(endpoint=unfit(kind))
    with pytest.raises(IntegrityError):
        insert(account)


@pytest.mark.parametrize("kind", ["outside", "not e-mail"])
def test_the_database_refuses_to_move_an_account_to_an_unfit_endpoint(
    endpoint: PersistentAgentCommsEndpoint, kind: str
) -> None:
    insert(AgentEmailAccount(endpoint=endpoint))
    target = unfit(kind)
    with pytest.raises(IntegrityError), transaction.atomic():
        AgentEmailAccount.objects.update(endpoint=target)


def test_an_endpoint_has_one_account(endpoint: PersistentAgentCommsEndpoint) -> None:
    insert(AgentEmailAccount(endpoint=endpoint))
    with pytest.raises(IntegrityError):
        insert(AgentEmailAccount(endpoint=endpoint))


@pytest.mark.parametrize("field", ["smtp_port", "imap_port"])
@pytest.mark.parametrize("port", [0, 65536])
def test_a_port_outside_the_range_is_refused_twice(
    endpoint: PersistentAgentCommsEndpoint, field: str, port: int
) -> None:
    account = AgentEmailAccount(endpoint=endpoint, **{field: port})
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert field in caught.value.message_dict
    with pytest.raises(IntegrityError):
        insert(account)


@pytest.mark.parametrize("field", ["smtp_port", "imap_port"])
@pytest.mark.parametrize("port", [1, 65535])
def test_the_ends_of_the_range_are_ports(
    endpoint: PersistentAgentCommsEndpoint, field: str, port: int
) -> None:
    account = AgentEmailAccount(endpoint=endpoint, **{field: port})
    account.full_clean()
    insert(account)


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ({"smtp_host": ""}, "smtp_host"),
        ({"smtp_port": None}, "smtp_port"),
        ({"smtp_username": ""}, "smtp_username"),
        ({"smtp_password_encrypted": None}, "smtp_auth"),
    ],
    ids=lambda value: str(value),
)
def test_sending_needs_every_field_of_the_server(
    endpoint: PersistentAgentCommsEndpoint, missing: dict[str, Any], named: str
) -> None:
    account = vouched_for(endpoint, is_outbound_enabled=True, **missing)
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert named in caught.value.message_dict
    with pytest.raises(IntegrityError):
        insert(account)


def test_sending_needs_a_test_that_succeeded(endpoint: PersistentAgentCommsEndpoint) -> None:
    account = AgentEmailAccount(endpoint=endpoint, is_outbound_enabled=True, **COMPLETE)
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert set(caught.value.message_dict) == {"is_outbound_enabled"}
    with pytest.raises(IntegrityError):
        insert(account)


@pytest.mark.parametrize(
    "edit",
    [
        {"smtp_host": "other.example"},
        {"smtp_port": 465},
        {"smtp_security": "ssl"},
        {"smtp_auth": "plain"},
        {"smtp_username": "somebody"},
        {"smtp_password_encrypted": b"another"},
    ],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edit_withdraws_the_test(endpoint: PersistentAgentCommsEndpoint, edit: dict[str, Any]) -> None:
    account = vouched_for(endpoint, is_outbound_enabled=True)
    assert account.is_smtp_tested
    for name, value in edit.items():
        setattr(account, name, value)
    assert not account.is_smtp_tested
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert set(caught.value.message_dict) == {"is_outbound_enabled"}


def test_a_server_without_sign_in_needs_neither_name_nor_password(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    account = vouched_for(
        endpoint, is_outbound_enabled=True, smtp_auth="none", smtp_username="", smtp_password_encrypted=None
    )
    account.full_clean()
    insert(account)


def test_oauth_needs_a_connected_account(endpoint: PersistentAgentCommsEndpoint) -> None:
    account = vouched_for(
        endpoint, is_outbound_enabled=True, smtp_auth="oauth2", smtp_password_encrypted=None
    )
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert set(caught.value.message_dict) == {"smtp_auth"}


@pytest.mark.parametrize("missing", [{"imap_host": ""}, {"imap_port": None}], ids=["host", "port"])
def test_receiving_needs_host_and_port(
    endpoint: PersistentAgentCommsEndpoint, missing: dict[str, Any]
) -> None:
    account = vouched_for(endpoint, **(RECEIVING | missing))
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert set(caught.value.message_dict) == set(missing)
    with pytest.raises(IntegrityError):
        insert(account)


@pytest.mark.parametrize("field", ["smtp_security", "smtp_auth", "imap_security", "imap_auth"])
def test_only_known_words_are_taken_for_modes(endpoint: PersistentAgentCommsEndpoint, field: str) -> None:
    account = AgentEmailAccount(endpoint=endpoint, **{field: "clear"})
    with pytest.raises(ValidationError) as caught:
        account.full_clean()
    assert field in caught.value.message_dict
    with pytest.raises(IntegrityError):
        insert(account)


def test_mailboxes_are_not_polled_more_often_than_every_30_seconds(
    endpoint: PersistentAgentCommsEndpoint,
) -> None:
    account = AgentEmailAccount(endpoint=endpoint, poll_interval_sec=29)
    with pytest.raises(ValidationError):
        account.full_clean()
    with pytest.raises(IntegrityError):
        insert(account)


def test_an_update_past_clean_is_held_to_the_same_rules(endpoint: PersistentAgentCommsEndpoint) -> None:
    insert(vouched_for(endpoint, is_outbound_enabled=True))
    for change in ({"smtp_host": ""}, {"smtp_port": 70000}, {"smtp_tested_fingerprint": ""}):
        with pytest.raises(IntegrityError), transaction.atomic():
            AgentEmailAccount.objects.update(**change)
