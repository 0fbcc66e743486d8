"""How tests are kept and limited, what a readable mailbox is worth, and the mail to oneself."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone

from gobii_email.models import AgentEmailAccount, ConnectionTest
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.diagnose import (
    AT_ONCE,
    UNREACHABLE_NAME,
    TooManyTests,
    latest_test,
    start_test,
    test_imap,
    test_smtp,
)
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import Faults, ScriptedSmtpServer
from gobii_email.testing.stack import eventually
from tests.services.test_diagnose import ADDRESS, PASSWORD, account_at, server, stored

__all__ = ["server"]

pytestmark = pytest.mark.django_db


# How a test is kept


def row() -> ConnectionTest:
    return ConnectionTest.objects.get()


def test_a_test_is_kept_step_by_step_as_it_goes(server: ScriptedSmtpServer) -> None:
    seen: list[tuple[str, int]] = []
    account = account_at(server)
    test = test_smtp(account, on_step=lambda step: seen.append((step.id, len(row().steps))))
    assert [name for name, _ in seen] == [step.id for step in test.steps]
    assert [count for _, count in seen] == list(range(1, len(seen) + 1))
    kept = row()
    assert kept.is_ok and kept.finished_at and kept.fingerprint == account.smtp_fingerprint()
    assert kept.steps == [step.as_document() for step in test.steps] and kept.text == test.text
    latest = latest_test(account, "smtp")
    assert latest is not None and latest.pk == kept.pk and latest_test(account, "imap") is None


def test_a_test_up_to_a_stage_vouches_for_nothing(server: ScriptedSmtpServer) -> None:
    test = test_smtp(account_at(server), until="AUTH")
    assert test.ok and "auth" in test.text and not stored().is_smtp_tested
    assert [str(step.status) for step in test.steps if step.id in ("auth", "mail")] == ["ok", "skipped"]


def test_a_stage_that_does_not_exist_is_refused_before_anything_is_kept(server: ScriptedSmtpServer) -> None:
    with pytest.raises(ValueError, match="no step"):
        test_smtp(account_at(server), until="SELECT")
    assert not ConnectionTest.objects.exists() and server.connections == 0


def test_no_secret_is_kept(server: ScriptedSmtpServer) -> None:
    test_smtp(account_at(server, password="canary-S3cret"))
    assert "S3cret" not in repr(vars(row()))


def test_an_answer_about_a_forbidden_host_takes_its_time(server: ScriptedSmtpServer, settings: Any) -> None:
    settings.BYO_EMAIL_ALLOWED_NETWORKS, settings.GOBII_TEST_BLOCKED_AFTER = "", "400ms"
    for host in ("10.0.0.1", "no-such-name.invalid"):
        began = time.monotonic()
        assert test_smtp(account_at(server, host=host)).text == UNREACHABLE_NAME
        assert time.monotonic() - began >= 0.4


def test_a_test_that_nobody_ended_is_told_as_interrupted(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    begun = timezone.now() - timedelta(minutes=10)
    ConnectionTest.objects.create(account=account, protocol="smtp", fingerprint="x", started_at=begun)
    found = latest_test(account, "smtp")
    assert found is not None and not found.is_ok and "interrupted" in found.text and found.finished_at


# How often


def test_who_tests_too_often_is_told_when_the_next_may_be(server: ScriptedSmtpServer, settings: Any) -> None:
    settings.GOBII_TESTS_PER_MINUTE = 2
    account, other = account_at(server), second_account_at(server)
    for _ in range(2):
        test_smtp(account, asked_by="olga", until="policy")
    said = r"At most 2 tests a minute .* may begin at \d\d:\d\d:\d\d UTC"
    for attempt in (
        lambda: test_smtp(account, asked_by="olga"),
        lambda: test_smtp(account, asked_by="paul"),  # the mailbox
        lambda: test_smtp(other, asked_by="olga"),  # the person
        lambda: start_test(account, "smtp", "paul"),
    ):
        with pytest.raises(TooManyTests, match=said):
            attempt()
    assert server.connections == 0
    assert test_smtp(other, asked_by="paul", until="policy").ok
    assert test_smtp(account, until="policy").ok  # an operator's command


def test_the_hour_is_limited_as_well(server: ScriptedSmtpServer, settings: Any) -> None:
    settings.GOBII_TESTS_PER_HOUR = 1
    account = account_at(server)
    test_smtp(account, asked_by="olga", until="policy")
    ConnectionTest.objects.update(started_at=timezone.now() - timedelta(minutes=50))
    with pytest.raises(TooManyTests, match="an hour"):
        test_smtp(account, asked_by="olga")
    ConnectionTest.objects.update(started_at=timezone.now() - timedelta(minutes=61))
    assert test_smtp(account, asked_by="olga", until="policy").ok


def second_account_at(server: ScriptedSmtpServer) -> AgentEmailAccount:
    smtp = {"host": "localhost", "port": server.port, "username": "anna", "password": PASSWORD}
    return apply_account({"agent": "Berta", "address": "berta@sender.example", "smtp": smtp})


# Reading


@pytest.fixture
def mailbox(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port}
        yield started


def readable_at(mailbox: ScriptedImapServer, **imap: Any) -> AgentEmailAccount:
    document = {"host": "localhost", "port": mailbox.port, "username": "anna", "password": PASSWORD} | imap
    return apply_account({"agent": "Anna", "address": ADDRESS, "imap": document})


def test_a_mailbox_that_can_be_read_may_be_enabled_for_it(mailbox: ScriptedImapServer) -> None:
    account = readable_at(mailbox)
    test = test_imap(account)
    assert test.ok and test.protocol == "imap", test
    kept = stored()
    assert kept.is_imap_tested and kept.imap_last_ok_at and not kept.imap_error and not kept.is_smtp_tested
    assert enable(kept, inbound=True).is_inbound_enabled
    assert row().protocol == "imap" and row().fingerprint == kept.imap_fingerprint()


def test_a_mailbox_that_cannot_be_read_any_more_is_not_vouched_for(mailbox: ScriptedImapServer) -> None:
    account = readable_at(mailbox)
    test_imap(account)
    mailbox.users["anna"] = "changed at the provider"
    test = test_imap(account)
    assert not test.ok and "AUTHENTICATIONFAILED" in test.text
    kept = stored()
    assert not kept.is_imap_tested and kept.imap_error and kept.state == "active"


def test_a_lasting_failure_of_reading_leaves_an_enabled_mailbox_in_service(
    mailbox: ScriptedImapServer,
) -> None:
    account = readable_at(mailbox)
    test_imap(account)
    enable(stored(), inbound=True)
    mailbox.users["anna"] = "changed at the provider"
    assert not test_imap(account).ok
    kept = stored()
    assert kept.is_inbound_enabled and kept.is_imap_tested and "password" in kept.imap_error


def test_a_missing_folder_is_a_failure_that_names_the_others(mailbox: ScriptedImapServer) -> None:
    test = test_imap(readable_at(mailbox, folder="Archive"))
    assert not test.ok and "INBOX, Sent" in test.text and not stored().is_imap_tested


# A mail to oneself


def test_a_mail_to_itself_is_sent_and_found_again(
    server: ScriptedSmtpServer, mailbox: ScriptedImapServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = {server.port, mailbox.port}
    account_at(server)
    test_imap(readable_at(mailbox))
    delivered = threading.Thread(
        target=lambda: mailbox.folders["INBOX"].extend(mail.content for mail in server.wait_for(1))
    )
    delivered.start()
    test = test_smtp(stored(), sends_to_self=True)
    delivered.join()
    assert test.ok, test
    (mail,) = server.messages
    assert (mail.sender, mail.recipients) == (ADDRESS, (ADDRESS,))
    step = test.steps[-1]
    assert step.id == "message" and step.facts["uid"] == 1 and step.facts["round_trip_seconds"] < 30
    assert str(step.facts["message_id"]).encode() in mail.content
    assert row_of("smtp").steps[-1]["id"] == "message" and "found in INBOX after" in row_of("smtp").text


def row_of(protocol: str) -> ConnectionTest:
    return ConnectionTest.objects.get(protocol=protocol)


def test_a_mail_to_itself_that_does_not_arrive_is_a_warning(
    server: ScriptedSmtpServer, mailbox: ScriptedImapServer, settings: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gobii_email.services.mail_itself.LONGEST", timedelta(seconds=5))
    settings.BYO_EMAIL_ALLOWED_PORTS = {server.port, mailbox.port}
    account_at(server)
    test_imap(readable_at(mailbox))
    test = test_smtp(stored(), sends_to_self=True)
    assert test.ok and test.steps[-1].status == "warn" and "spam folder" in test.advice


def test_a_mail_to_itself_is_not_sent_after_a_failure(server: ScriptedSmtpServer) -> None:
    server.users["anna"] = "another"
    test = test_smtp(account_at(server), sends_to_self=True)
    assert not test.ok and server.messages == [] and "message" not in [step.id for step in test.steps]


def test_a_mail_to_itself_is_not_waited_for_as_long_as_mail_is(
    server: ScriptedSmtpServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr("gobii_email.services.mail_itself.LONGEST", timedelta(seconds=1))
    server.faults = Faults(delays={"DOT": timedelta(seconds=30)})
    test = test_smtp(account_at(server), sends_to_self=True)
    assert not test.ok and test.steps[-1].status == "fail" and "within 1 seconds" in test.text


def test_a_refused_mail_to_itself_is_a_failure_that_withdraws_nothing(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(replies={"DOT": "554 5.7.1 looks like spam"})
    test = test_smtp(account_at(server), sends_to_self=True)
    assert not test.ok and test.steps[-1].status == "fail" and "554" in test.text
    assert stored().is_smtp_tested


# In the background


@pytest.mark.django_db(transaction=True)
def test_a_test_in_the_background_can_be_watched(server: ScriptedSmtpServer) -> None:
    goes_on = threading.Event()
    server.faults = Faults(holds={"EHLO": goes_on})
    begun = start_test(account_at(server), "smtp", "olga")
    assert begun.finished_at is None and begun.asked_by == "olga"
    eventually(lambda: row().steps and not row().finished_at)
    goes_on.set()
    eventually(lambda: row().finished_at is not None)
    assert row().is_ok and stored().is_smtp_tested


@pytest.mark.django_db(transaction=True)
def test_a_test_in_the_background_sends_a_mail_to_itself_where_that_was_asked(
    server: ScriptedSmtpServer,
) -> None:
    start_test(account_at(server), "smtp", "olga", sends_to_self=True)
    eventually(lambda: row().finished_at is not None)
    assert row().is_ok and row().steps[-1]["id"] == "message" and "not looked for" in row().steps[-1]["text"]
    assert [mail.recipients for mail in server.messages] == [(ADDRESS,)]


@pytest.mark.django_db(transaction=True)
def test_many_begun_in_one_act_count_for_their_mailboxes_alone(
    server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.GOBII_TESTS_PER_MINUTE = 1
    account, other = account_at(server), second_account_at(server)
    for one in (account, other):
        start_test(one, "smtp", "olga", is_one_of_many=True)
    with pytest.raises(TooManyTests, match="run for a mailbox"):
        start_test(account, "smtp", "olga", is_one_of_many=True)
    eventually(lambda: not ConnectionTest.objects.filter(finished_at=None).exists())
    with pytest.raises(TooManyTests, match="run for"):
        start_test(other, "smtp", "olga")


@pytest.mark.django_db(transaction=True)
def test_a_process_runs_only_so_many_tests_at_once(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    goes_on = threading.Event()
    server.faults = Faults(holds={"EHLO": goes_on})
    for _ in range(AT_ONCE):
        start_test(account, "smtp", "olga")
    with pytest.raises(TooManyTests, match="under way"):
        start_test(account, "smtp", "olga")
    goes_on.set()
    eventually(lambda: not ConnectionTest.objects.filter(finished_at=None).exists())
    eventually(lambda: not [thread for thread in threading.enumerate() if thread.name == "test"])


@pytest.mark.django_db(transaction=True)
def test_a_test_begins_with_its_callers_commit_and_not_at_all_without(server: ScriptedSmtpServer) -> None:
    account = account_at(server)
    with transaction.atomic():
        start_test(account, "smtp", "olga")
        transaction.set_rollback(True)
    assert not ConnectionTest.objects.exists()
    with transaction.atomic():
        start_test(account, "smtp", "olga")
        time.sleep(0.2)
        assert server.connections == 0
    eventually(lambda: row().finished_at is not None)
    assert row().is_ok and server.connections == 1
