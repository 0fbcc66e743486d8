"""Polls of a mailbox on a scripted server: what is taken over, what is left, and what happens in between."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email.models import (
    AgentEmailAccount,
    Mailbox,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    ReceivedMail,
)
from gobii_email.services import fetch, mailbox_lease
from gobii_email.services import poll as poll_service
from gobii_email.services.mailbox_lease import take
from gobii_email.services.poll import Visit, poll, poll_now, schedule, visit
from gobii_email.services.share import Shares
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.stack import eventually
from tests.conftest import PASSWORD, RecordingDoorbell
from tests.services.polling import (
    AGENT,
    cursor,
    inbox,
    is_friend,
    mail,
    mailbox,
    make_due,
    receiving,
    stored,
    subjects,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mails stay as they were stored: what they mean is proved elsewhere."""
    monkeypatch.setattr(fetch, "receive", lambda mail_id: ReceivedMail.State.STORED)


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={AGENT: PASSWORD}) as started:
        settings.BYO_EMAIL_ALLOWED_PORTS = {started.port}
        yield started


@pytest.fixture
def account(endpoint: PersistentAgentCommsEndpoint, server: ScriptedImapServer) -> AgentEmailAccount:
    PersistentAgent.objects.update(whitelist_policy="manual")
    endpoint.owner_agent.refresh_from_db()  # type: ignore[union-attr]
    is_friend(endpoint)
    account = receiving(endpoint, server.port)
    schedule(account)
    return account


def polled(account: AgentEmailAccount) -> Visit:
    return visit(account.pk, owner="test", is_asked_for=True)


@pytest.fixture
def begun(account: AgentEmailAccount) -> AgentEmailAccount:
    """An account whose baseline is taken, in an empty mailbox."""
    assert polled(account).outcome == "baseline"
    return account


# The first run, and after it


def test_the_first_mail_in_an_empty_mailbox_is_not_missed(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    assert polled(account) == Visit("baseline", due_at=mailbox(account).due_at)
    assert cursor(account) == "v:1795292296:0"
    inbox(server).append(mail(1))
    assert str(polled(account)) == "1 new"
    assert subjects(stored()) == ["Mail 1"]
    assert cursor(account) == "v:1795292296:1"


def test_what_was_there_before_the_first_run_is_nobodys_business(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number) for number in (1, 2))
    assert polled(account).outcome == "baseline"
    inbox(server).append(mail(3))
    assert polled(account).found == 1
    assert subjects(stored()) == ["Mail 3"]


def test_a_mailbox_that_names_no_next_uid_is_read_all_the_same(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).append(mail(1))
    server.faults.untold = {"UIDNEXT"}
    assert polled(account).outcome == "baseline"
    assert cursor(account) == "v:1795292296:1"
    inbox(server).append(mail(2))
    assert polled(account).found == 1
    assert polled(account).found == 0, "`n:*` names the newest mail also where it is older than n"
    assert subjects(stored()) == ["Mail 2"]


@pytest.mark.parametrize("written", ["1", "v:1795292296:1"])
def test_a_cursor_of_the_platform_in_either_form_is_followed(
    account: AgentEmailAccount, server: ScriptedImapServer, written: str
) -> None:
    AgentEmailAccount.objects.update(last_seen_uid=written)
    inbox(server).extend([mail(1), mail(2)])
    assert polled(account).found == 1
    assert subjects(stored()) == ["Mail 2"]
    assert cursor(account) == "v:1795292296:2"


def test_mail_from_strangers_is_passed_over_and_never_downloaded(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend([mail(1, sender="stranger@else.example"), mail(2)])
    assert (polled(begun).found, cursor(begun)) == (2, "v:1795292296:2")
    assert [(row.uid, row.state, row.raw is None) for row in stored()] == [
        (1, "skipped", True),
        (2, "stored", False),
    ]
    assert b"UID FETCH 1 (UID BODY.PEEK[])" not in server.heard
    assert b"UID FETCH 2 (UID BODY.PEEK[])" in server.heard


def test_a_mail_opened_by_its_owner_is_read_and_none_is_marked(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).append(mail(1))
    polled(begun)
    said = server.heard
    assert b"UNSEEN" not in said and b"STORE" not in said and b" SELECT" not in said
    assert b"BODY[" not in said and b"BODY.PEEK[]" in said and b"EXPUNGE" not in said


def test_a_mail_larger_than_allowed_is_never_downloaded(
    begun: AgentEmailAccount, server: ScriptedImapServer, settings: Any
) -> None:
    settings.GOBII_MAX_RECEIVED_BYTES = 2000
    inbox(server).extend([mail(1, size=3000), mail(2)])
    assert polled(begun).found == 2
    assert b"UID FETCH 1 (UID BODY.PEEK[])" not in server.heard
    large, small = stored()
    assert large.size > 3000 and len(bytes(large.raw or b"")) < 1000
    assert bytes(small.raw or b"") == mail(2)


def test_an_unchanged_mailbox_costs_three_round_trips_at_most_after_the_login(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    before = len(server.heard)
    assert str(polled(begun)) == "0 new"
    eventually(lambda: server.heard[before:].endswith(b"LOGOUT\r\n"))
    said = server.heard[before:].split(b"\r\n")
    after_login = said[[b"LOGIN" in line or b"AUTHENTICATE" in line for line in said].index(True) + 1 :]
    commands = [line.split(b" ")[1] for line in after_login if line.count(b" ")]
    assert commands == [b"CAPABILITY", b"EXAMINE", b"LOGOUT"]


def test_a_folder_with_blanks_and_accents_is_read(
    account: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    AgentEmailAccount.objects.update(imap_folder="Entwürfe & mehr")
    folder = server.folders["Entw&APw-rfe &- mehr"] = []
    assert polled(account).outcome == "baseline"
    folder.append(mail(1))
    assert polled(account).found == 1


# Interruptions


def test_a_lost_connection_in_the_middle_of_a_batch_loses_nothing_and_doubles_nothing(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(server).extend(mail(number) for number in range(1, 8))
    real, bodies = fetch.Fetching._fetch_body, []

    def cut_at_the_fourth(self: fetch.Fetching, row: ReceivedMail) -> None:
        bodies.append(row.uid)
        if len(bodies) == 4:
            server.faults.drops = {"UID FETCH"}
        real(self, row)

    monkeypatch.setattr(fetch.Fetching, "_fetch_body", cut_at_the_fourth)
    failed = polled(begun)
    assert failed.outcome == "failed" and "closed the connection" in failed.text
    assert cursor(begun) == "v:1795292296:3" and len(stored()) == 3
    server.faults.drops = set()
    assert polled(begun).is_ok
    assert subjects(stored()) == [f"Mail {number}" for number in range(1, 8)]


def test_a_worker_that_dies_after_storing_leaves_nothing_to_be_stored_twice(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(server).extend([mail(1), mail(2)])
    monkeypatch.setattr(fetch.Fetching, "_save", lambda self, uid: None)
    polled(begun)
    monkeypatch.undo()
    monkeypatch.setattr(fetch, "receive", lambda mail_id: ReceivedMail.State.STORED)
    assert cursor(begun) == "v:1795292296:0" and len(stored()) == 2
    assert polled(begun).stored == 0
    assert cursor(begun) == "v:1795292296:2" and len(stored()) == 2


def test_a_mail_whose_reading_fails_is_stored_and_stops_nothing(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(mail_id: object) -> ReceivedMail.State:
        raise RuntimeError("parser")

    monkeypatch.setattr(fetch, "receive", crash)
    inbox(server).extend([mail(1), mail(2)])
    assert polled(begun).is_ok
    assert subjects(stored("stored")) == ["Mail 1", "Mail 2"]


def test_a_mail_that_is_not_handed_out_goes_to_quarantine_after_three_polls_and_stops_nothing(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number) for number in (1, 2, 3))
    server.faults.refused = {2}
    first = polled(begun)
    assert first.is_ok and first.missing == 1 and "did not hand out 1" in first.text
    assert [row.uid for row in stored()] == [1, 3] and cursor(begun) == "v:1795292296:1"
    polled(begun)
    assert [row.uid for row in stored()] == [1, 3]
    assert polled(begun).missing == 0
    (bad,) = stored("quarantined")
    assert bad.uid == 2 and "does not hand it out" in bad.reason and bad.raw is None
    assert cursor(begun) == "v:1795292296:3" and mailbox(begun).unfetched == {}


def test_a_mail_that_an_answer_leaves_out_is_asked_for_again(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number) for number in (1, 2, 3))
    server.faults.left_out = {2}
    assert polled(begun).missing == 1 and cursor(begun) == "v:1795292296:1"
    server.faults.left_out = set()
    assert polled(begun).stored == 1 and cursor(begun) == "v:1795292296:3"
    assert sorted(row.uid for row in stored()) == [1, 2, 3]


def test_a_mail_that_ends_the_connection_each_time_is_found_out(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number) for number in (1, 2, 3))
    server.faults.deadly = {2}
    outcomes = [polled(begun).outcome for _ in range(5)]
    assert outcomes == ["failed", "failed", "failed", "failed", "read"]
    assert [(row.uid, row.state) for row in stored()] == [
        (1, "stored"),
        (2, "quarantined"),
        (3, "stored"),
    ]


def test_a_mail_that_was_deleted_before_it_was_handed_out_is_not_waited_for(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number) for number in (1, 2))
    server.faults.refused = {1}
    assert polled(begun).missing == 1
    inbox(server)[0] = b""
    assert polled(begun).missing == 0 and cursor(begun) == "v:1795292296:2"


def test_a_server_with_its_share_of_threads_lets_others_go_first(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Shares()
    places.threads = 8
    monkeypatch.setattr(poll_service, "poll_shares", places)
    host = f"{begun.imap_host}:{begun.imap_port}"
    assert places.enter(host, "somebody")
    make_due(begun)
    due_at = mailbox(begun).due_at
    assert poll(begun.pk, owner="test") == "waits its turn"
    assert mailbox(begun).due_at == due_at and mailbox(begun).look_at > timezone.now()
    assert mailbox(begun).lease_token is None
    places.leave(host, "somebody")
    assert poll(begun.pk, owner="test") == "0 new"
    assert places.enter(host, "a") and places.enter(host, "b"), "a quick answer has made a place"


def test_a_backlog_is_taken_in_turns_and_the_rest_is_due_at_once(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "BATCH", 5)
    monkeypatch.setattr(fetch, "MOST_A_POLL", 10)
    inbox(server).extend(mail(number) for number in range(1, 26))
    visits = []
    for _ in range(3):
        make_due(begun)
        visits.append(poll(begun.pk, owner="test"))
        assert visits[-1] != "10 new" or mailbox(begun).due_at <= timezone.now()
    assert visits == ["10 new, more left", "10 new, more left", "5 new"]
    assert len(stored()) == 25 and cursor(begun) == "v:1795292296:25"


def test_headers_of_many_mails_are_asked_for_at_once(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    inbox(server).extend(mail(number, sender="stranger@else.example") for number in range(1, 121))
    assert polled(begun).found == 120
    assert server.heard.count(b"UID FETCH") == 3


def test_gaps_between_uids_are_stepped_over(begun: AgentEmailAccount, server: ScriptedImapServer) -> None:
    inbox(server).extend([b"", b"", mail(3), b"", b""])
    assert polled(begun).found == 1 and cursor(begun) == "v:1795292296:5"


# A new generation of UIDs


def test_a_new_uidvalidity_floods_nobody_and_misses_nothing(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    now = timezone.now()
    old = [mail(f"old {number}") for number in range(5)]
    server.dates |= {message: now - timedelta(days=30) for message in old}
    known = [mail(1), mail(2, message_id="")]
    server.dates |= dict.fromkeys(known, now)
    inbox(server).extend(known)
    assert polled(begun).found == 2
    server.uid_validity = 9
    inbox(server)[:] = [*old, *known, mail("new one")]
    result = polled(begun)
    assert result.is_ok and result.stored == 1
    assert sorted(subjects(stored())) == ["Mail 1", "Mail 2", "Mail new one"]
    assert cursor(begun) == "v:9:8" and mailbox(begun).rescan_until is None


def test_a_restored_folder_that_dates_every_mail_today_floods_nobody(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.uid_validity = 9
    inbox(server).extend(mail(number, date="Tue, 04 Mar 2025 10:00:00 +0000") for number in range(30))
    assert polled(begun).stored == 0
    assert stored() == [] and cursor(begun) == "v:9:30"


def test_a_rescan_takes_nothing_that_came_hours_before_the_last_good_poll(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    server.uid_validity = 9
    this_morning, just_now = mail("this morning"), mail("just now")
    server.dates[this_morning] = timezone.now() - timedelta(hours=3)
    inbox(server).extend([this_morning, just_now])
    assert polled(begun).stored == 1
    assert subjects(stored()) == ["Mail just now"]


def test_a_rescan_that_is_interrupted_goes_on_as_one(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "BATCH", 2)
    monkeypatch.setattr(fetch, "MOST_A_POLL", 2)
    inbox(server).extend(mail(number) for number in range(1, 6))
    while polled(begun).has_more:
        pass
    assert len(stored()) == 5
    server.uid_validity = 9
    assert polled(begun).has_more and mailbox(begun).rescan_until == 5
    while polled(begun).has_more:
        pass
    assert len(stored()) == 5 and cursor(begun) == "v:9:5"


def test_another_folder_is_read_from_the_last_good_poll_on(
    begun: AgentEmailAccount, server: ScriptedImapServer
) -> None:
    old = mail("old")
    server.dates[old] = timezone.now() - timedelta(days=3)
    server.folders["Agent"] = [old, mail("new")]
    AgentEmailAccount.objects.update(imap_folder="Agent", last_seen_uid="")
    assert polled(begun).stored == 1
    assert subjects(stored()) == ["Mail new"]


# Leases


def test_two_workers_are_never_at_one_mailbox(begun: AgentEmailAccount) -> None:
    lease = take(begun.pk, timezone.now(), is_asked_for=True)
    assert lease is not None
    assert polled(begun).outcome == "busy"
    make_due(begun)
    assert poll(begun.pk, owner="other") == "not due"


def test_a_lease_that_ran_out_is_taken_over_and_its_former_owner_changes_nothing(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(server).extend([mail(1), mail(2)])
    real = fetch.Fetching._fetch_body

    def lose_the_lease(self: fetch.Fetching, row: ReceivedMail) -> None:
        Mailbox.objects.update(lease_until=timezone.now() - timedelta(seconds=1))
        assert take(begun.pk, timezone.now(), is_asked_for=True) is not None
        real(self, row)

    monkeypatch.setattr(fetch.Fetching, "_fetch_body", lose_the_lease)
    assert polled(begun).outcome == "taken over"
    assert stored() == [] and cursor(begun) == "v:1795292296:0"


def test_a_lease_is_extended_while_the_server_is_waited_for(
    begun: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox_lease, "RENEWED_AFTER", 0.0)
    written = []
    real = mailbox_lease.MailboxLease._write

    def note(self: mailbox_lease.MailboxLease, **values: object) -> None:
        written.append(values)
        real(self, **values)

    monkeypatch.setattr(mailbox_lease.MailboxLease, "_write", note)
    assert polled(begun).is_ok
    assert len(written) > 3 and {} in written


def test_settings_that_change_during_a_poll_end_it(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(server).append(mail(1))
    real = fetch.Fetching._fetch_body

    def change(self: fetch.Fetching, row: ReceivedMail) -> None:
        schedule(begun)
        real(self, row)

    monkeypatch.setattr(fetch.Fetching, "_fetch_body", change)
    assert polled(begun).outcome == "taken over" and stored() == []


def test_a_poll_that_is_asked_for_during_another_one_follows_it(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox(server).append(mail(1))
    real = fetch.Fetching._fetch_body

    def ask(self: fetch.Fetching, row: ReceivedMail) -> None:
        assert poll_now(begun)
        real(self, row)

    monkeypatch.setattr(fetch.Fetching, "_fetch_body", ask)
    assert polled(begun).found == 1
    due_at = mailbox(begun).due_at
    assert due_at is not None and due_at <= timezone.now()


def test_no_transaction_is_open_while_the_server_is_waited_for(
    begun: AgentEmailAccount, server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    depth = len(connection.savepoint_ids)
    inbox(server).append(mail(1))
    seen = []
    real = mailbox_lease.MailboxLease.touch

    def note(self: mailbox_lease.MailboxLease) -> None:
        seen.append(len(connection.savepoint_ids))
        real(self)

    monkeypatch.setattr(mailbox_lease.MailboxLease, "touch", note)
    assert polled(begun).found == 1
    assert seen and set(seen) == {depth}
