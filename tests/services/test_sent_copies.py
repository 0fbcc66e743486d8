"""Copies of ordinary mail: what they teach about a server, and filing those that it does not file."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gobii_email.adapters.imap_sent import ImapSentMail
from gobii_email.models import AgentEmailAccount, Mailbox, OutboundMessageAttempt, SentCopy
from gobii_email.services import learn
from gobii_email.services.accounts import InvalidAccount, apply_account, edit_account, save_account
from gobii_email.services.deliver import deliver
from gobii_email.services.learn import habit_of
from gobii_email.services.visit import visit_sent
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell
from tests.entrypoints.commands import run
from tests.services.sent import Scene, connect_imap

pytestmark = pytest.mark.django_db


@pytest.fixture
def scene(
    account: AgentEmailAccount, authority: ThrowAwayAuthority, settings: Any, doorbell: RecordingDoorbell
) -> Iterator[Scene]:
    learn.asked.forget()
    with ScriptedImapServer(tls=authority.good("localhost", "127.0.0.1"), users={"anna": "pw"}) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{account.smtp_port},{server.port}"
        settings.BYO_EMAIL_ALLOWED_NETWORKS = "127.0.0.0/8,::1/128"
        yield Scene(connect_imap(account, server.port), server)


def send(scene: Scene, **values: Any) -> OutboundMessageAttempt:
    """An ordinary mail that the account's server accepts."""
    message = scene.write(**values)
    attempt = message.attempts.get()
    assert deliver(str(attempt.pk), owner="worker") == "sent"
    attempt.refresh_from_db()
    return attempt


def files(account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.filter(pk=account.pk).update(copies_to_sent=True)
    account.refresh_from_db()


def copy_of(attempt: OutboundMessageAttempt) -> SentCopy:
    return SentCopy.objects.get(pk=attempt.pk)


# What is learned


def test_three_copies_that_the_server_filed_are_a_habit(scene: Scene) -> None:
    attempts = [send(scene) for _ in range(3)]
    for attempt in attempts:
        assert attempt.sent_at
        scene.file(attempt, at=attempt.sent_at + timedelta(seconds=2))
    assert scene.later(seconds=66) == "looked for 3"
    habit = habit_of(scene.account, scene.now)
    assert habit.files_itself and habit.seen == 3
    assert timedelta(0) <= habit.lag <= timedelta(seconds=2)
    assert Mailbox.objects.get().sent_look_at is None


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_a_server_whose_clock_is_wrong_teaches_no_wrong_lag(scene: Scene, skew: int) -> None:
    attempt = send(scene)
    scene.file(attempt, at=timezone.now() + timedelta(seconds=skew))
    scene.later(seconds=70)
    lag = copy_of(attempt).lag_seconds
    assert lag is not None and 0 <= lag < 120


def test_a_copy_that_is_seen_late_took_at_least_as_long_as_it_was_missing(scene: Scene) -> None:
    attempt = send(scene)
    scene.later(seconds=70)
    scene.file(attempt, at=attempt.sent_at)
    scene.later(seconds=100)
    copy = copy_of(attempt)
    assert copy.state == "found" and copy.looks == 2 and 69 < (copy.lag_seconds or 0) < 300


def test_a_copy_that_does_not_come_within_an_hour_is_a_miss(scene: Scene) -> None:
    attempt = send(scene)
    for _ in range(14):
        scene.later(minutes=5)
    copy = copy_of(attempt)
    assert (copy.state, copy.look_at) == ("absent", None) and 3 < copy.looks < 9
    assert not habit_of(scene.account, scene.now).files_itself


def test_a_look_that_fails_teaches_nothing(scene: Scene) -> None:
    attempt = send(scene)
    scene.server.faults.answers["LIST"] = b"TAG NO [SERVERBUG] sorry\r\n"
    for _ in range(60):
        scene.later(minutes=30)
    copy = copy_of(attempt)
    assert (copy.state, copy.looks, copy.look_at) == ("unknown", 0, None) and "SERVERBUG" in copy.reason
    assert habit_of(scene.account, scene.now).looked_for == 0


def test_a_few_mails_an_hour_are_looked_for(scene: Scene) -> None:
    attempts = [send(scene) for _ in range(8)]
    scene.later(seconds=70)
    assert set(SentCopy.objects.values_list("pk", flat=True)) == {attempt.pk for attempt in attempts[3:]}
    assert scene.server.connections == 1


def test_only_the_newest_hundred_are_kept(scene: Scene) -> None:
    scene.has_filed(times=130)
    send(scene)
    scene.later(seconds=70)
    assert SentCopy.objects.count() == 100


def test_other_servers_make_other_habits(scene: Scene) -> None:
    scene.has_filed(times=5)
    save_account(scene.account, edit_account(scene.account, {"per_hour": 7}))
    assert SentCopy.objects.count() == 5, "a limit has nothing to do with it"
    scene.account.smtp_host = "smtp.example.com"
    save_account(scene.account, {"smtp_host"})
    assert SentCopy.objects.count() == 0


def test_an_account_that_cannot_be_read_costs_nothing(scene: Scene) -> None:
    AgentEmailAccount.objects.update(imap_tested_fingerprint="")
    scene.account.refresh_from_db()
    with CaptureQueriesContext(connection) as queries:
        learn.expect_copies(scene.account, timezone.now())
    assert len(queries) == 0
    send(scene)
    assert not Mailbox.objects.exists()


def test_a_process_asks_once_an_hour(scene: Scene) -> None:
    learn.expect_copies(scene.account, timezone.now())
    with CaptureQueriesContext(connection) as queries:
        learn.expect_copies(scene.account, timezone.now())
    assert len(queries) == 0


# What is filed


def test_a_copy_is_filed_once_where_the_server_files_none(
    scene: Scene, smtp_server: ScriptedSmtpServer
) -> None:
    files(scene.account)
    attempt = send(scene)
    assert scene.later(seconds=30) == "not due"
    scene.later(seconds=36)
    assert scene.sent == [scene.copy_of(attempt)] == [smtp_server.messages[0].content]
    copy = copy_of(attempt)
    assert (copy.state, copy.folder, copy.uid, copy.look_at) == ("appended", "Sent", 1, None)
    for _ in range(3):
        scene.later(minutes=30)
    visit_sent(str(scene.account.pk))
    assert len(scene.sent) == 1


def test_what_the_server_filed_is_not_filed_again(scene: Scene) -> None:
    files(scene.account)
    attempt = send(scene)
    scene.file(attempt)
    scene.later(seconds=70)
    assert len(scene.sent) == 1 and copy_of(attempt).state == "found"


def test_a_server_that_files_itself_is_given_its_time(scene: Scene) -> None:
    scene.has_filed(times=5, lag=60)
    files(scene.account)
    attempt = send(scene)
    scene.later(seconds=70)
    assert scene.sent == []
    scene.file(attempt)
    scene.later(seconds=120)
    assert len(scene.sent) == 1 and copy_of(attempt).state == "found"


def test_copies_that_we_filed_are_no_habit_of_the_server(scene: Scene) -> None:
    files(scene.account)
    for _ in range(4):
        send(scene)
    scene.later(seconds=70)
    habit = habit_of(scene.account, scene.now)
    assert (habit.seen, habit.looked_for) == (0, 4) and len(scene.sent) == 4


def test_a_provider_that_is_known_to_file_gets_no_copies(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gobii_email.services.file_sent.files_for_sure", lambda account: True)
    files(scene.account)
    send(scene)
    for _ in range(4):
        scene.later(minutes=30)
    assert scene.sent == []


@pytest.mark.parametrize("keeps", [True, False])
def test_a_line_that_drops_while_filing_leaves_one_copy(scene: Scene, keeps: bool) -> None:
    files(scene.account)
    attempt = send(scene)
    scene.server.faults.drops.add("APPEND")
    scene.server.faults.keeps_dropped = keeps
    scene.later(seconds=70)
    scene.server.faults.drops.clear()
    for _ in range(4):
        scene.later(minutes=5)
    assert len(scene.sent) == 1 and copy_of(attempt).state == "appended"
    attempt.refresh_from_db()
    assert attempt.status == "sent"


def test_a_worker_that_dies_after_filing_leaves_one_copy(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kill -9 between APPEND and the commit that notes it."""
    files(scene.account)
    attempt = send(scene)

    class Killed(BaseException):
        pass

    file = ImapSentMail.file

    def file_and_die(*given: Any) -> None:
        file(*given)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ImapSentMail, "file", file_and_die)
        with pytest.raises(Killed):
            scene.later(seconds=70)
    assert len(scene.sent) == 1 and copy_of(attempt).uid is None
    scene.later(minutes=2)
    scene.later(minutes=15)
    assert len(scene.sent) == 1 and (copy_of(attempt).state, copy_of(attempt).uid) == ("appended", 1)
    assert habit_of(scene.account, scene.now).seen == 0


def test_two_visits_at_once_file_one_copy(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    files(scene.account)
    send(scene)
    scene.passed += timedelta(seconds=70)
    inner: list[str] = []
    real = ImapSentMail.look

    def look_while_another_visit_runs(self: Any, wanted: Any) -> Any:
        if not inner:
            inner.append("")
            inner[0] = visit_sent(str(scene.account.pk), clock=lambda: scene.now)
        return real(self, wanted)

    monkeypatch.setattr(ImapSentMail, "look", look_while_another_visit_runs)
    assert scene.later(seconds=0) == "looked for 1"
    assert inner == ["nothing due"] and len(scene.sent) == 1


def test_a_refused_copy_is_tried_for_a_day_and_shown(scene: Scene) -> None:
    files(scene.account)
    attempt = send(scene)
    scene.server.faults.answers["APPEND"] = b"TAG NO [OVERQUOTA] the mailbox is full\r\n"
    for _ in range(80):
        scene.later(minutes=20)
    copy = copy_of(attempt)
    assert copy.look_at is None and "OVERQUOTA" in copy.reason and scene.sent == []
    assert 5 < scene.server.heard.count(b" APPEND ") < 20
    attempt.refresh_from_db()
    assert attempt.status == "sent" and attempt.message.latest_status == "sent"


def test_a_second_attempt_for_other_people_files_no_second_copy(scene: Scene) -> None:
    files(scene.account)
    first = send(scene)
    scene.later(seconds=70)
    second = OutboundMessageAttempt.objects.create(
        message=first.message, number=2, status="sent", provider="smtp", from_endpoint_id=scene.account.pk,
        queued_at=scene.now, not_before=scene.now, sent_at=scene.now, marked_at=scene.now,
    )  # fmt: skip
    learn.expect_copies(scene.account, scene.now)
    scene.later(seconds=70)
    assert len(scene.sent) == 1 and copy_of(second).state == "unknown"


def test_mail_that_follows_while_a_visit_is_due_is_filed_too(scene: Scene) -> None:
    files(scene.account)
    send(scene)
    scene.passed += timedelta(seconds=40)
    later = send(scene)
    OutboundMessageAttempt.objects.filter(pk=later.pk).update(sent_at=scene.now)
    scene.later(seconds=30)
    assert len(scene.sent) == 1
    scene.later(seconds=66)
    assert len(scene.sent) == 2


# What is set and shown


def test_filing_is_set_by_the_document_and_needs_imap(scene: Scene) -> None:
    address = scene.account.endpoint.address
    account = apply_account({"address": address, "imap": {"copies_to_sent": True}})
    assert account.copies_to_sent
    with pytest.raises(InvalidAccount, match=r"imap\.copies_to_sent: it is neither true nor false"):
        apply_account({"address": address, "imap": {"copies_to_sent": "yes"}})
    AgentEmailAccount.objects.update(imap_host="", imap_port=None, imap_username="")
    with pytest.raises(InvalidAccount, match=r"imap\.copies_to_sent: Filing copies needs"):
        apply_account({"address": address, "display_name": "Ada"})


def test_the_habit_and_the_last_trouble_are_shown(scene: Scene) -> None:
    scene.has_filed(times=20)
    shown = run("email_account", "show", scene.account.endpoint.address)
    assert "files sent mail itself, usually within 2 s; 20 of 20 seen" in shown.out
    send(scene)
    scene.server.faults.answers["EXAMINE"] = b"TAG NO [NOPERM] not for you\r\n"
    scene.later(seconds=70)
    shown = run("email_account", "show", scene.account.endpoint.address, "--json")
    assert "NOPERM" in shown.document["sent_mail"]["trouble"]
    assert shown.document["imap"]["copies_to_sent"] is False
