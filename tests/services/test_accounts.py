"""Connecting, changing, enabling and removing an account: all or nothing, and never a secret shown."""

import copy
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.api import send_agent_email
from gobii_email.domain.secret import Secret
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services import hold
from gobii_email.services.accounts import (
    InvalidAccount,
    apply_account,
    delete,
    disable,
    edit_account,
    enable,
    find_account,
)

pytestmark = pytest.mark.django_db
PASSWORD = "pässwörd-S3cret"
DOCUMENT: dict[str, Any] = {
    "agent": "Anna",
    "address": "anna@sender.example",
    "display_name": "Anna of Sales",
    "smtp": {
        "host": "smtp.sender.example",
        "port": 587,
        "security": "starttls",
        "auth": "plain",
        "username": "anna",
        "password": PASSWORD,
    },
}


def changed(**sections: Any) -> dict[str, Any]:
    """DOCUMENT with parts of it replaced; a section given as a dict is merged."""
    document = copy.deepcopy(DOCUMENT)
    for name, value in sections.items():
        document[name] = document.get(name, {}) | value if isinstance(value, dict) else value
    return document


def vouched_for(account: AgentEmailAccount) -> AgentEmailAccount:
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.save()
    return account


def problems(document: Any) -> dict[str, str]:
    with pytest.raises(InvalidAccount) as wrong:
        apply_account(document)
    assert PASSWORD not in str(wrong.value) + repr(wrong.value)
    return {problem.field: f"{problem.reason} {problem.remedy}" for problem in wrong.value.problems}


def test_a_document_makes_agent_endpoint_and_account_with_the_secret_encrypted() -> None:
    account = AgentEmailAccount.objects.get(pk=apply_account(DOCUMENT).pk)
    assert account.endpoint.owner_agent is not None
    assert (account.endpoint.owner_agent.name, account.endpoint.display_name) == ("Anna", "Anna of Sales")
    assert (account.smtp_host, account.smtp_port, account.smtp_username) == (
        "smtp.sender.example",
        587,
        "anna",
    )
    assert account.get_smtp_password() == Secret(PASSWORD)
    assert PASSWORD.encode() not in bytes(account.smtp_password_encrypted)
    assert not account.is_outbound_enabled and not account.is_smtp_tested


@pytest.mark.parametrize(
    ("smtp", "expected"),
    [
        ({}, (587, "starttls")),
        ({"port": 465}, (465, "ssl")),
        ({"security": "ssl"}, (465, "ssl")),
        ({"port": 2525}, (2525, "starttls")),
    ],
)
def test_port_and_security_follow_from_each_other_and_the_user_name_from_the_address(
    smtp: dict[str, Any], expected: tuple[int, str]
) -> None:
    account = apply_account(
        {
            "agent": "Anna",
            "address": "Anna@Sender.example",
            "smtp": {"host": "h.example", "password": "x"} | smtp,
        }
    )
    assert (account.smtp_port, account.smtp_security) == expected
    assert account.smtp_username == account.endpoint.address == "anna@sender.example"


def test_everything_wrong_is_said_at_once_and_nothing_is_written() -> None:
    found = problems(
        {
            "adress": "anna@sender.example",
            "agent": "",
            "address": "no address",
            "smtp": {
                "host": "smtp://x",
                "port": 0,
                "security": PASSWORD,
                "pasword": PASSWORD,
                "auth": "plain",
            },
            "imap": "none",
            "limits": {"per_minute": -1},
            "oauth": {"expires_at": "tomorrow"},
        }
    )
    assert set(found) == {
        *("adress", "agent", "address", "imap", "limits.per_minute", "oauth.expires_at"),
        *("smtp.host", "smtp.port", "smtp.security", "smtp.pasword"),
    }
    assert "Did you mean address?" in found["adress"]
    assert "Did you mean smtp.password?" in found["smtp.pasword"]
    assert not PersistentAgent.objects.exists() and not AgentEmailAccount.objects.exists()


def test_nothing_is_half_written_when_only_the_account_is_wrong() -> None:
    assert set(problems(changed(smtp={"password": None}))) == {"smtp.password"}
    assert not PersistentAgent.objects.exists() and not PersistentAgentCommsEndpoint.objects.exists()


@pytest.mark.parametrize("name", ["host", "username", "password"])
def test_half_a_character_is_refused_by_name(name: str) -> None:
    assert set(problems(changed(smtp={name: "a\ud800"}))) == {f"smtp.{name}"}


@pytest.mark.parametrize("name", ["host", "username"])
def test_what_turns_the_direction_of_text_is_refused_by_name(name: str) -> None:
    assert set(problems(changed(smtp={name: "moc.elpmaxe\u202e"}))) == {f"smtp.{name}"}


@pytest.mark.parametrize("document", [[], "text", None, 3])
def test_a_document_that_is_no_object_is_refused(document: Any) -> None:
    assert set(problems(document)) >= {"document"}


def test_an_unchanged_document_changes_nothing() -> None:
    account = vouched_for(apply_account(DOCUMENT))
    before = AgentEmailAccount.objects.filter(pk=account.pk).values().get()
    apply_account(DOCUMENT)
    assert AgentEmailAccount.objects.filter(pk=account.pk).values().get() == before


@pytest.mark.parametrize(
    "edit",
    [{"host": "smtp.elsewhere.example"}, {"port": 465}, {"security": "ssl"}, {"username": "berta"}],
    ids=lambda edit: next(iter(edit)),
)
def test_where_a_password_goes_changes_only_together_with_the_password(edit: dict[str, Any]) -> None:
    account = enable(vouched_for(apply_account(DOCUMENT)), outbound=True)
    assert set(problems({"address": "anna@sender.example", "smtp": edit})) == {"smtp.password"}
    account.refresh_from_db()
    assert account.is_outbound_enabled and account.is_smtp_tested

    apply_account(changed(smtp=edit))
    account.refresh_from_db()
    assert not account.is_outbound_enabled and not account.smtp_tested_fingerprint
    assert account.get_smtp_password() == Secret(PASSWORD)


def test_a_new_password_withdraws_the_test_and_switches_sending_off() -> None:
    account = enable(vouched_for(apply_account(DOCUMENT)), outbound=True)
    apply_account(changed(smtp={"password": "another"}))
    account.refresh_from_db()
    assert not account.is_outbound_enabled and not account.smtp_tested_fingerprint


def test_limits_and_names_leave_the_test_alone_and_null_means_the_default() -> None:
    account = enable(vouched_for(apply_account(DOCUMENT)), outbound=True)
    apply_account(changed(limits={"per_minute": 10}, display_name="Anna B"))
    account.refresh_from_db()
    assert (account.per_minute, account.is_outbound_enabled, account.is_smtp_tested) == (10, True, True)
    apply_account({"address": "anna@sender.example", "limits": {"per_minute": None}})
    account.refresh_from_db()
    assert account.per_minute is None


def test_without_authentication_neither_user_name_nor_password_is_needed_or_kept() -> None:
    account = apply_account(DOCUMENT)
    apply_account({"address": "anna@sender.example", "smtp": {"auth": "none"}})
    account.refresh_from_db()
    assert account.smtp_password_encrypted is None
    # The way back needs it again, so that it cannot be taken to another server meanwhile.
    assert set(problems({"address": "anna@sender.example", "smtp": {"auth": "plain"}})) == {"smtp.password"}


def test_a_password_does_not_travel_unencrypted_to_the_internet(settings: Any) -> None:
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
    assert "smtp.security" in problems(changed(smtp={"security": "none"}))
    settings.BYO_EMAIL_ALLOWED_NETWORKS = "127.0.0.0/8"
    assert "smtp.security" in problems(changed(smtp={"security": "none", "host": "192.0.2.1"}))
    apply_account(changed(smtp={"security": "none", "host": "127.0.0.1"}))


def test_a_port_that_is_never_dialled_is_refused_at_once() -> None:
    assert "465" in problems(changed(smtp={"port": 25}))["smtp.port"]


def test_an_address_of_another_agent_is_not_taken_over() -> None:
    apply_account(DOCUMENT)
    assert set(problems(changed(agent="Berta"))) == {"agent"}
    PersistentAgent.objects.create(name="Twin")
    PersistentAgent.objects.create(name="Twin")
    assert set(problems(changed(agent="Twin", address="t@sender.example"))) == {"agent"}


def test_an_outside_contact_of_the_same_address_stays_one() -> None:
    outside = PersistentAgentCommsEndpoint.objects.create(channel="email", address="anna@sender.example")
    account = apply_account(DOCUMENT)
    assert account.pk != outside.pk
    outside.refresh_from_db()
    assert outside.owner_agent is None


def test_a_sign_in_with_oauth_is_kept_apart_and_does_not_follow_to_another_server() -> None:
    oauth = {"provider": "google", "access_token": "tok-1", "refresh_token": "ref-1"}
    document = changed(smtp={"auth": "oauth2", "password": None}, oauth=oauth)
    account = apply_account(document)
    assert account.smtp_server().secret == Secret("tok-1")
    assert account.connection_mode == "oauth2"
    moved = {"address": "anna@sender.example", "smtp": {"host": "smtp.elsewhere.example"}}
    assert set(problems(moved)) == {"smtp.auth"}
    apply_account(moved | {"oauth": {"access_token": "tok-2"}})
    account = AgentEmailAccount.objects.get(pk=account.pk)
    assert account.smtp_server().secret == Secret("tok-2")


def test_what_was_not_tested_is_not_enabled() -> None:
    account = apply_account(DOCUMENT)
    with pytest.raises(InvalidAccount, match="Run Test SMTP"):
        enable(account, outbound=True)
    with pytest.raises(InvalidAccount, match=r"imap\.host"):
        enable(account, inbound=True)
    account.refresh_from_db()
    assert not account.is_outbound_enabled


def test_enabling_wakes_the_mail_that_waited_and_disabling_keeps_it() -> None:
    account = enable(vouched_for(apply_account(DOCUMENT)), outbound=True)
    message = send_agent_email(
        from_endpoint="anna@sender.example", to="b@rcpt.example", subject="Hi", body="Hi"
    )
    later = timezone.now() + timedelta(hours=5)
    OutboundMessageAttempt.objects.update(held_code="account_disabled", held_reason="off", due_at=later)
    disable(account, outbound=True)
    assert OutboundMessageAttempt.objects.get(message=message).status == "queued"
    enable(account, outbound=True)
    attempt = OutboundMessageAttempt.objects.get(message=message)
    assert attempt.held_code == "" and attempt.due_at is not None and attempt.due_at < later


def test_removing_an_account_keeps_endpoint_and_history() -> None:
    account = vouched_for(apply_account(DOCUMENT))
    message = send_agent_email(
        from_endpoint="anna@sender.example", to="b@rcpt.example", subject="Hi", body="Hi"
    )
    delete(account)
    assert find_account("anna@sender.example") is None
    assert PersistentAgentMessage.objects.filter(pk=message.pk, from_endpoint__isnull=False).exists()
    assert OutboundMessageAttempt.objects.filter(message=message).count() == 1


def test_an_edit_in_memory_does_not_overwrite_a_hold_made_meanwhile() -> None:
    from gobii_email.services.accounts import save_account

    account = apply_account(DOCUMENT)
    stale = AgentEmailAccount.objects.get(pk=account.pk)
    hold.pause(account, reason="stop")
    save_account(stale, edit_account(stale, {"per_hour": 5}))
    account.refresh_from_db()
    assert (account.state, account.per_hour) == ("paused", 5)


@pytest.mark.parametrize("host", ["smtp..example.com", ".example.com", "2130706433", "smtp.example.com:587"])
def test_what_cannot_be_a_host_name_is_refused_before_any_test(db: None, host: str) -> None:
    with pytest.raises(InvalidAccount, match=r"smtp\.host"):
        apply_account({"agent": "Ada", "address": "ada@example.com", "smtp": {"host": host, "auth": "none"}})
