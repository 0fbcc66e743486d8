"""Doubts resolved by what lies in Sent: both ways, and never by a look that could not see."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from hypothesis import HealthCheck, given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from gobii_email import api
from gobii_email.models import AgentEmailAccount, Mailbox, OutboundMessageAttempt, SentCopy
from gobii_email.services import hold
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.follow import doubt_began
from gobii_email.services.intervene import NotPossible
from gobii_email.services.reconcile import look_at_doubt
from gobii_email.services.visit import ask_for_look, look_for_copy
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from tests.conftest import RecordingDoorbell
from tests.services.sent import Scene, connect_imap, statuses, told

pytestmark = pytest.mark.django_db


@pytest.fixture
def scene(
    account: AgentEmailAccount, authority: ThrowAwayAuthority, settings: Any, doorbell: RecordingDoorbell
) -> Iterator[Scene]:
    with ScriptedImapServer(tls=authority.good("localhost", "127.0.0.1"), users={"anna": "pw"}) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{account.smtp_port},{server.port}"
        settings.BYO_EMAIL_ALLOWED_NETWORKS = "127.0.0.0/8,::1/128"
        yield Scene(connect_imap(account, server.port), server)


# Found


def test_a_doubtful_mail_that_lies_in_sent_was_sent(scene: Scene) -> None:
    attempt = scene.doubtful()
    assert attempt.due_at is not None and attempt.due_at - timezone.now() <= timedelta(seconds=30)
    scene.file(attempt)
    assert scene.later(seconds=31) == "looked for 1"
    message = attempt.message
    assert statuses(message) == ["sent", "sent"] and message.recipients.get().status == "accepted"
    (evidence,) = told(message, "doubt_found")
    assert f'Found in "Sent" (UIDVALIDITY {scene.server.uid_validity}, UID 1), filed at ' in evidence
    copy = SentCopy.objects.get(pk=attempt.pk)
    assert (copy.state, copy.folder, copy.uid, copy.look_at) == ("found", "Sent", 1, None)


def test_a_copy_that_comes_late_ends_the_doubt_then(scene: Scene) -> None:
    attempt = scene.doubtful()
    scene.later(seconds=31)
    assert statuses(attempt.message)[0] == "in_doubt"
    scene.file(attempt)
    scene.later(seconds=32)
    assert statuses(attempt.message)[0] == "sent"


@pytest.mark.parametrize("minutes", [0, 1, 25 * 60], ids=["at once", "between looks", "after the last"])
def test_somebody_may_look_at_any_time(scene: Scene, minutes: int) -> None:
    attempt = scene.doubtful()
    for _ in range(20 if minutes else 0):
        scene.later(minutes=minutes / 20)
    scene.file(attempt)
    assert look_for_copy(str(attempt.pk), clock=lambda: scene.now + timedelta(minutes=1)) == "found"
    assert statuses(attempt.message) == ["sent", "sent"]
    copy = SentCopy.objects.get(pk=attempt.pk)
    assert (copy.state, copy.folder, copy.look_at) == ("found", "Sent", None)
    assert look_for_copy(str(attempt.pk)) == "not in doubt"


def test_looks_that_somebody_asked_for_prove_no_absence_and_send_nothing_again(scene: Scene) -> None:
    scene.has_filed()
    attempt = scene.doubtful(on_doubt="resend")
    before = SentCopy.objects.filter(pk=attempt.pk).first()
    scene.passed += timedelta(minutes=30)
    assert look_for_copy(str(attempt.pk), clock=lambda: scene.now) == "not found"
    assert look_for_copy(str(attempt.pk), clock=lambda: scene.now) == "looked for a moment ago"
    scene.passed += timedelta(seconds=31)
    assert look_for_copy(str(attempt.pk), clock=lambda: scene.now) == "not found"
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    assert SentCopy.objects.filter(pk=attempt.pk).first() == before is None
    assert len(told(attempt.message)) == 2 and "proves nothing by itself" in told(attempt.message)[0]


def test_a_look_that_somebody_asked_for_may_fail(scene: Scene) -> None:
    attempt = scene.doubtful()
    scene.server.users["anna"] = "another"
    assert look_for_copy(str(attempt.pk)) == "failed"
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    assert "proves nothing" in told(attempt.message)[0]


def test_who_asks_for_a_look_calls_a_worker_or_hears_why_not(
    scene: Scene, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = scene.doubtful()
    ask_for_look(attempt.message)
    called = [(call.task, call.subject, call.queue) for call in doorbell.called]
    assert called == [("gobii_email.look_for_copy", str(attempt.pk), "email.control")]

    def refused() -> str:
        with pytest.raises(NotPossible) as why:
            ask_for_look(attempt.message)
        return str(why.value)

    monkeypatch.setattr(doorbell, "call", lambda calls: False)
    assert "No worker" in refused()
    assert look_for_copy(str(attempt.pk)) == "not found" and "a moment ago" in refused()
    AgentEmailAccount.objects.update(imap_tested_fingerprint="")
    assert "(IMAP)" in refused() and look_for_copy(str(attempt.pk)) == "not now"
    scene.account.delete()
    assert "removed" in refused()
    type(attempt.message).objects.update(had_account=False)
    assert "not sent from a mailbox" in refused()
    OutboundMessageAttempt.objects.update(status="sent", due_at=None)
    assert "not in doubt" in refused()


@pytest.mark.parametrize("names_its_attempt", [True, False])
def test_a_mail_that_an_earlier_attempt_left_is_no_evidence_of_a_later_one(
    scene: Scene, names_its_attempt: bool
) -> None:
    """Two people, one of them deferred: the copy of attempt 1 says nothing of attempt 2."""
    scene.has_filed()
    first = scene.doubtful(to=["a@rcpt.example", "b@rcpt.example"])
    scene.file(first)
    scene.later(seconds=31)
    message = first.message
    OutboundMessageAttempt.objects.filter(pk=first.pk).update(number=2)
    earlier = OutboundMessageAttempt.objects.create(
        message=message, number=1, status="deferred", marked_at=scene.now, queued_at=scene.now,
        not_before=scene.now, provider="smtp",
    )  # fmt: skip
    second = OutboundMessageAttempt.objects.get(pk=first.pk)
    SentCopy.objects.filter(pk=second.pk).delete()
    OutboundMessageAttempt.objects.filter(pk=second.pk).update(status="in_doubt", due_at=scene.now)
    copy = scene.copy_of(earlier)
    if not names_its_attempt:
        copy = copy.partition(b"\r\n")[2]
    scene.server.folders["Sent"] = [copy]
    for _ in range(4):
        scene.later(minutes=10)
    assert statuses(message)[-1] == "in_doubt"
    assert "another attempt of this message" in told(message)[-1]


# Absent


@pytest.mark.parametrize("on_doubt", ["hold", "resend"])
def test_a_mail_that_a_filing_server_did_not_file_was_not_sent(scene: Scene, on_doubt: str) -> None:
    scene.has_filed()
    attempt = scene.doubtful(on_doubt=on_doubt)
    scene.later(seconds=31)
    assert "files sent mail itself, usually within 2 s" in told(attempt.message)[0]
    while statuses(attempt.message)[0] == "in_doubt":
        assert scene.now - doubt_began(attempt) < timedelta(minutes=6)
        scene.later(seconds=10)
    assert scene.now - doubt_began(attempt) >= timedelta(minutes=5)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]
    attempt.refresh_from_db()
    assert attempt.verdict == "temporary", "proven, so it does not come back as a doubt"
    (evidence,) = told(attempt.message, "doubt_absent")
    assert "it never took the mail" in evidence and "3 of 3 seen" in evidence


def test_one_look_is_no_proof_however_late_it_comes(scene: Scene) -> None:
    scene.has_filed()
    attempt = scene.doubtful()
    scene.later(minutes=30)
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    scene.later(seconds=31)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]


def test_a_slow_server_is_given_three_times_its_own_lag(scene: Scene) -> None:
    scene.has_filed(times=20, lag=600)
    attempt = scene.doubtful()
    scene.later(seconds=31)
    scene.later(minutes=29)
    assert statuses(attempt.message)[0] == "in_doubt"
    scene.later(minutes=1)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]


@pytest.mark.parametrize(
    "habit",
    [{"times": 0}, {"times": 2}, {"times": 19, "missed": 1}, {"times": 0, "missed": 20}],
    ids=["unknown", "two mails", "one missed", "files nothing"],
)
def test_without_a_habit_absence_proves_nothing(scene: Scene, habit: dict[str, int]) -> None:
    scene.has_filed(**habit)
    attempt = scene.doubtful(expires_at=timezone.now() + timedelta(days=5))
    for _ in range(60):
        scene.later(minutes=30)
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    assert all("proves nothing" in text for text in told(attempt.message)) and len(told(attempt.message)) == 2
    assert "Nobody looks any more" in told(attempt.message)[-1]
    assert 5 < scene.server.connections <= 13
    attempt.refresh_from_db()
    assert attempt.due_at is None


@pytest.mark.parametrize("habit", [{"times": 0}, {"times": 0, "missed": 20}])
def test_without_proof_a_message_that_asks_for_it_is_sent_again_in_time(
    scene: Scene, habit: dict[str, int]
) -> None:
    scene.has_filed(**habit)
    attempt = scene.doubtful(on_doubt="resend")
    assert "sent again at" in str(api.delivery_status(attempt.message_id).waiting_for)
    scene.later(seconds=31)
    scene.later(minutes=14)
    assert statuses(attempt.message)[0] == "in_doubt"
    scene.later(minutes=1)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]
    attempt.refresh_from_db()
    assert attempt.verdict == "in_doubt", "not proven: it comes back if sending again comes to nothing"


def test_what_was_learned_after_the_mail_proves_nothing_of_it(scene: Scene) -> None:
    attempt = scene.doubtful()
    scene.passed += timedelta(days=2)
    scene.has_filed(times=5)
    scene.passed = timedelta(0)
    for _ in range(6):
        scene.later(minutes=10)
    assert statuses(attempt.message)[0] == "in_doubt"


def test_a_folder_made_anew_proves_nothing(scene: Scene) -> None:
    scene.has_filed()
    attempt = scene.doubtful()
    scene.later(seconds=31)
    scene.server.uid_validity += 1
    for _ in range(6):
        scene.later(minutes=10)
    assert statuses(attempt.message)[0] == "in_doubt"
    assert "made anew" in told(attempt.message)[-1]


def test_a_habit_of_another_folder_proves_nothing(scene: Scene) -> None:
    scene.has_filed()
    SentCopy.objects.update(folder="Sent Items")
    attempt = scene.doubtful()
    for _ in range(6):
        scene.later(minutes=10)
    assert statuses(attempt.message)[0] == "in_doubt"


def test_a_doubt_that_came_back_ends_as_failed_when_it_is_proven(scene: Scene) -> None:
    """Sent again without proof, and refused; then it turns out that the first copy never arrived."""
    scene.has_filed()
    scene.server.faults.answers["LIST"] = b"TAG NO not now\r\n"
    attempt = scene.doubtful(on_doubt="resend")
    scene.later(seconds=31)
    scene.later(minutes=15)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]
    api.cancel_agent_email(attempt.message)
    assert statuses(attempt.message) == ["in_doubt", "in_doubt", "cancelled"]
    scene.server.faults.answers.clear()
    for _ in range(4):
        scene.later(minutes=10)
    assert statuses(attempt.message) == ["cancelled", "failed", "cancelled"]


# A failed look


_COMMANDS = ["LOGIN", "LIST", "EXAMINE", "FETCH", "UID SEARCH", "CAPABILITY"]
_ANSWERS = [b"TAG NO no\r\n", b"TAG BAD no\r\n", b"* BYE no\r\n", b"nonsense\r\n", b"TAG OK\r\n", None]


@bounds(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.dictionaries(st.sampled_from(_COMMANDS), st.sampled_from(_ANSWERS), min_size=1, max_size=3))
def test_a_failed_look_is_never_taken_for_absence(scene: Scene, faults: dict[str, bytes | None]) -> None:
    """The mail lies there all the time: whatever the server says when asked, it is not called absent."""
    SentCopy.objects.all().delete()
    Mailbox.objects.all().delete()
    AgentEmailAccount.objects.update(imap_error="", state="active", state_until=None)
    OutboundMessageAttempt.objects.filter(status="in_doubt").update(status="sent", due_at=None)
    scene.passed = timedelta(0)
    scene.has_filed()
    scene.server.faults.answers = {name: said for name, said in faults.items() if said is not None}
    scene.server.faults.drops = {name for name, said in faults.items() if said is None}
    attempt = scene.doubtful()
    scene.file(attempt)
    for _ in range(4):
        scene.later(minutes=6)
    assert statuses(attempt.message)[0] in {"in_doubt", "sent"}
    assert not attempt.message.events.filter(event="doubt_absent").exists()


def test_a_failing_lookup_is_told_once_and_the_doubt_stays(scene: Scene) -> None:
    scene.has_filed()
    scene.server.faults.answers["UID SEARCH"] = b"TAG NO the index is broken\r\n"
    attempt = scene.doubtful()
    for _ in range(8):
        scene.later(minutes=10)
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    (text,) = told(attempt.message)
    assert "proves nothing" in text and "the index is broken" in text


def test_a_refused_login_is_shown_on_the_account_and_gone_when_it_works(scene: Scene) -> None:
    attempt = scene.doubtful()
    scene.server.faults.answers["LOGIN"] = b"TAG NO [AUTHENTICATIONFAILED] no\r\n"
    scene.later(seconds=31)
    scene.account.refresh_from_db()
    assert "AUTHENTICATIONFAILED" in scene.account.imap_error and "pw" not in told(attempt.message)[0]
    scene.server.faults.answers.clear()
    scene.later(minutes=5)
    scene.account.refresh_from_db()
    assert scene.account.imap_error == ""


# Who does not look


def test_without_imap_it_says_once_that_nobody_can_look(scene: Scene) -> None:
    AgentEmailAccount.objects.update(imap_tested_fingerprint="")
    attempt = scene.doubtful()
    scene.later(minutes=1)
    scene.later(minutes=60)
    assert statuses(attempt.message)[0] == "in_doubt" and scene.server.connections == 0
    (text,) = told(attempt.message)
    assert "no settings for reading (IMAP)" in text


def test_without_imap_a_message_that_asks_for_it_is_sent_again(scene: Scene) -> None:
    AgentEmailAccount.objects.update(imap_tested_fingerprint="")
    attempt = scene.doubtful(on_doubt="resend")
    scene.later(minutes=14)
    assert statuses(attempt.message)[0] == "in_doubt"
    scene.later(minutes=2)
    assert statuses(attempt.message) == ["queued", "deferred", "queued"]


@pytest.mark.parametrize("why", ["off", "paused", "held"])
@pytest.mark.parametrize("on_doubt", ["hold", "resend"])
def test_nobody_looks_while_switched_off_or_paused_and_the_doubt_stays(
    scene: Scene, settings: Any, why: str, on_doubt: str
) -> None:
    scene.has_filed()
    attempt = scene.doubtful(on_doubt=on_doubt)
    if why == "off":
        settings.BYO_EMAIL_ENABLED = "false"
    elif why == "paused":
        hold.pause(scene.account, reason="Holidays.", until=None)
    else:
        Mailbox.objects.create(account=scene.account, hold_code="auth", hold_reason="The login is refused.")
    for _ in range(8):
        scene.later(minutes=10)
    assert statuses(attempt.message)[0] == "in_doubt" and scene.server.connections == 0
    settings.BYO_EMAIL_ENABLED = "true"
    hold.resume(scene.account)
    Mailbox.objects.update(hold_code="")
    scene.file(attempt)
    scene.later(minutes=6)
    assert statuses(attempt.message)[0] == "sent"


def test_what_somebody_settled_meanwhile_is_left_alone(scene: Scene) -> None:
    from gobii_email.services.intervene import resolve_by_hand

    scene.has_filed()
    attempt = scene.doubtful()
    scene.later(seconds=31)
    resolve_by_hand(attempt.message, "failed")
    for _ in range(3):
        scene.later(minutes=10)
    assert statuses(attempt.message) == ["failed", "failed"]
    assert SentCopy.objects.get(pk=attempt.pk).look_at is None


def test_a_visit_that_never_comes_does_not_keep_a_message_from_being_sent_again(scene: Scene) -> None:
    attempt = scene.doubtful(on_doubt="resend")
    row = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
    moments = [timezone.now() + timedelta(minutes=minutes) for minutes in (1, 6, 14, 21)]
    assert [look_at_doubt(row, now) for now in moments] == [False, False, False, True]


# Handing out


def test_a_visit_is_rung_for_once_a_hints_lifetime(scene: Scene, doorbell: RecordingDoorbell) -> None:
    attempts = [scene.doubtful(), scene.doubtful()]
    OutboundMessageAttempt.objects.filter(status="in_doubt").update(due_at=timezone.now())
    assert dispatch_round().visits == 1
    assert dispatch_round().visits == 0
    (call,) = [call for call in doorbell.called if call.task == "gobii_email.visit_sent"]
    assert (call.subject, call.queue) == (str(scene.account.pk), "email.control")
    Mailbox.objects.update(sent_look_at=timezone.now())
    assert dispatch_round().visits == 1, "a hint that was lost is given again"
    for attempt in attempts:
        scene.file(attempt)
    scene.later(seconds=70)
    assert [statuses(attempt.message)[0] for attempt in attempts] == ["sent", "sent"]
    assert scene.server.connections == 1, "one connection for all that is due"


def test_a_bell_that_nobody_hears_is_rung_again(
    scene: Scene, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mailbox.objects.create(account=scene.account, sent_look_at=timezone.now())
    monkeypatch.setattr(doorbell, "call", lambda calls: False)
    dispatch_round()
    at = Mailbox.objects.get().sent_look_at
    assert at is not None and at - timezone.now() <= timedelta(seconds=5)
