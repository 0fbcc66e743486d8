"""What a received report does to the mail that it names, and that it does nothing to any other."""

import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.inbound_mail import read_inbound
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    Suppression,
)
from gobii_email.services.bounce import MOST_NOTES, note_reply
from gobii_email.services.prove import StillSending
from gobii_email.services.settle import settle
from gobii_email.signals import recipient_bounced, recipient_complained
from tests.conftest import RecordingDoorbell, row_of, taken
from tests.services.measuring import Counted
from tests.services.returned import (
    SENDER,
    TAKEN,
    A,
    B,
    autoreply,
    complaint,
    doubtful,
    events,
    mark,
    note,
    repeated,
    report,
    sent,
    state,
    stored,
    submitted,
    told,
)

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint) -> None:
    pass


@pytest.mark.parametrize("by", ["attempt", "envelope", "message", "exchange"])
def test_a_failure_ends_the_attempt_by_each_id(by: str) -> None:
    attempt = sent()
    mail = stored(report(attempt, by=by))
    assert note(mail)
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    recipient = attempt.message.recipients.get()
    assert (recipient.smtp_code, recipient.enhanced_status) == (550, "5.1.1")
    assert "User unknown" in recipient.reply
    document = api.delivery_status(attempt.message_id)
    (row,) = document.attempts
    assert (row.error_code, row.smtp_code, row.enhanced_status) == ("bounced", 550, "5.1.1")
    assert "User unknown" in row.error_message
    mail.refresh_from_db()
    assert mail.about_id == attempt.pk


def test_a_report_is_counted_by_its_kind_where_it_fits_a_mail(settings: Any, tmp_path: Path) -> None:
    counted = Counted(settings, tmp_path)
    attempt = sent()
    assert told(report(attempt))
    assert told(complaint(attempt))
    assert not told(report(attempt, by="message", message_id="<nobody@x.example>"))
    kinds = {kind: counted.of("gobii_email_bounces_total", kind=kind) for kind in ("dsn-failed", "arf")}
    assert kinds == {"dsn-failed": 1, "arf": 1} and counted.of("gobii_email_bounces_total") == 2
    counted.begin_anew()


def test_the_timeline_tells_where_it_was_read_and_how_sure_that_is() -> None:
    attempt = sent()
    assert told(report(attempt))
    bounced = OutboundMessageEvent.objects.get(event="bounced")
    assert bounced.text.startswith(f"Bounced from {A}: 550 5.1.1")
    assert bounced.data["read_in"] == "report fields" and bounced.data["sureness"] == "sure"
    assert bounced.data["matched_by"] == "the header of the returned mail"


def test_what_is_told_twice_changes_nothing_more() -> None:
    attempt = sent()
    mail = stored(report(attempt))
    assert note(mail)
    before = events(attempt)
    assert note(mail) and told(report(attempt))
    assert events(attempt) == before


def test_one_of_two_bounces_and_then_the_other() -> None:
    attempt = sent(A, B)
    assert told(report(attempt, A))
    assert state(attempt) == ("sent", "partially_sent", {A: "bounced", B: "accepted"})
    assert told(report(attempt, B, diagnostic="smtp; 552 5.2.2 Mailbox full", status="5.2.2"))
    assert state(attempt) == ("failed", "failed", {A: "bounced", B: "bounced"})


def test_a_delivery_and_a_late_bounce_after_it() -> None:
    attempt = sent()
    assert told(report(attempt, action="delivered", status="2.0.0", diagnostic="smtp; 250 2.0.0 OK"))
    assert state(attempt) == ("delivered", "delivered", {A: "delivered"})
    assert told(report(attempt))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    assert told(report(attempt, action="delivered", status="2.0.0"))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


@pytest.mark.parametrize(
    ("action", "status"), [("delayed", "4.4.1"), ("relayed", "2.0.0"), ("expanded", "2.0.0")]
)
def test_what_is_no_end_is_an_event_once(action: str, status: str) -> None:
    attempt = sent()
    mail = stored(report(attempt, action=action, status=status, diagnostic="smtp; 451 4.4.1 No answer"))
    assert note(mail) and note(mail)
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt).count(action) == 1


def test_a_second_delay_is_told_again_but_not_for_ever() -> None:
    attempt = sent()
    for _ in range(MOST_NOTES + 5):
        assert told(report(attempt, action="delayed", status="4.4.1"))
    assert events(attempt).count("delayed") == MOST_NOTES


def unknown(attempt: OutboundMessageAttempt, by: str) -> bytes:
    return report(attempt, by=by).replace(str(attempt.pk).encode(), str(uuid.uuid4()).encode())


FORGED: dict[str, Callable[[OutboundMessageAttempt], bytes]] = {
    "an unknown attempt": lambda attempt: unknown(attempt, "attempt"),
    "an unknown envelope": lambda attempt: unknown(attempt, "envelope"),
    "an unknown Message-ID": lambda attempt: report(attempt, by="message", message_id="<x@sender.example>"),
    "no id, an unknown recipient": lambda attempt: report(attempt, "x@other.example", by="none"),
}  # fmt: skip


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED.keys())
def test_a_report_that_names_no_mail_of_ours_changes_nothing(
    forge: Callable[[OutboundMessageAttempt], bytes],
) -> None:
    attempt = sent()
    before = state(attempt), events(attempt)
    mail = stored(forge(attempt))
    assert not note(mail)
    assert (state(attempt), events(attempt)) == before
    mail.refresh_from_db()
    assert "names no mail" in mail.reason and mail.about_id is None
    assert not Suppression.objects.exists()


def test_a_report_in_another_mailbox_changes_nothing() -> None:
    attempt = sent()
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=attempt.message.from_endpoint.owner_agent, channel="email", address="other@sender.example"
    )
    for by in ("attempt", "envelope", "message"):
        assert not note(stored(report(attempt, by=by), other))
    assert state(attempt) == ("sent", "sent", {A: "accepted"})


def test_a_recipient_that_the_mail_was_not_for_is_a_note() -> None:
    attempt = sent(A)
    assert told(report(attempt, "stranger@other.example"))
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt)[-1] == "other_report" and not Suppression.objects.exists()


def test_a_report_that_names_nobody_is_about_the_only_recipient_and_suppresses_nobody() -> None:
    attempt = sent(A)
    raw = (
        "Return-Path: <>\nFrom: MAILER-DAEMON@mx.example\nSubject: Returned mail: see transcript\n\n"
        "It was not possible: 550 5.1.1 there is no such user.\n\n"
        f"Received: from here\nTo: {A}\nX-Gobii-Message-ID: {attempt.pk}\nSubject: Hello\n\nHi\n"
    )
    assert told(raw.encode())
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    assert not Suppression.objects.exists()


def test_where_an_alias_leads_the_original_recipient_counts() -> None:
    attempt = sent(A)
    assert told(report(attempt, "inner@host.example", original="A@RCPT.example"))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


def test_a_report_without_ids_is_a_note_and_proves_nothing() -> None:
    attempt = sent(A)
    assert told(report(attempt, by="none"))
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt)[-1] == "possible_report" and not Suppression.objects.exists()


def test_a_report_without_ids_fits_no_mail_where_two_might_be_meant() -> None:
    attempt, other = sent(A), sent(A)
    assert not told(report(attempt, by="none"))
    assert "possible_report" not in events(attempt) + events(other)


def test_a_report_without_ids_is_too_late_for_an_old_mail() -> None:
    attempt = sent(A)
    PersistentAgentMessage.objects.update(submitted_at=timezone.now() - timedelta(days=6))
    assert not told(report(attempt, by="none"))


def test_a_mail_that_is_not_handed_over_cannot_bounce() -> None:
    message = submitted()
    attempt = message.attempts.get()
    mail = stored(report(attempt))
    assert not note(mail)
    assert state(attempt)[0] == "queued" and "no server took" in mail.reason


def test_a_mail_that_was_refused_at_once_cannot_bounce() -> None:
    attempt = row_of(taken(submitted(A)))
    reply = Reply(550, "5.7.1", "Not from you")
    assert settle(attempt, Refused(Stage.RCPT, reply, {A: reply}), provider=Provider.SMTP, now=timezone.now())
    for by in ("attempt", "message"):
        assert not told(report(attempt, by=by))
    assert state(attempt) == ("failed", "failed", {A: "refused"})


def test_a_report_that_overtakes_our_own_note_is_read_again_later() -> None:
    work = taken(submitted())
    attempt = OutboundMessageAttempt.objects.get(pk=work.id)
    mail = stored(report(attempt))
    with pytest.raises(StillSending):
        note(mail)
    row = row_of(work)
    assert settle(row, TAKEN, provider=Provider.SMTP, now=timezone.now())
    assert note(mail)
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


@pytest.mark.parametrize("by", ["attempt", "message"])
def test_a_doubtful_mail_that_bounced_had_arrived(by: str) -> None:
    attempt = doubtful(A, B)
    assert told(report(attempt, A, by=by))
    assert state(attempt) == ("sent", "partially_sent", {A: "bounced", B: "accepted"})
    assert "doubt_found" in events(attempt)


def test_a_delay_of_a_doubtful_mail_proves_that_it_had_arrived() -> None:
    attempt = doubtful(A)
    assert told(report(attempt, A, action="delayed", status="4.4.1"))
    assert state(attempt) == ("sent", "sent", {A: "accepted"})


def test_an_automatic_answer_proves_that_a_doubtful_mail_had_arrived() -> None:
    attempt = doubtful(A)
    assert told(autoreply(attempt))
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt)[-1] == "autoreply"


def test_an_automatic_answer_is_no_failure() -> None:
    attempt = sent(A)
    mail = stored(autoreply(attempt))
    assert note(mail) and note(mail)
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt).count("autoreply") == 1


def test_an_answer_of_a_person_proves_that_a_doubtful_mail_had_arrived() -> None:
    attempt = doubtful(A)
    mail = stored(autoreply(attempt).replace(b"Auto-Submitted: auto-replied\n", b""))
    answer = PersistentAgentMessage.objects.create(is_outbound=False, body="Yes")
    assert note_reply(mail, answer, read_inbound(bytes(mail.raw or b"")).fields)
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt)[-1] == "replied"


def test_an_answer_does_not_wait_for_another_part_that_is_being_sent() -> None:
    later = Accepted(Reply(250, "2.0.0", "OK"), {B: Reply(451, "4.7.1", "Greylisted")})
    attempt = row_of(taken(submitted(A, B)))
    assert settle(attempt, later, provider=Provider.SMTP, now=timezone.now())
    now = timezone.now()
    OutboundMessageAttempt.objects.filter(status="queued").update(due_at=now, not_before=now)
    taken(attempt.message)
    assert told(autoreply(attempt)) and told(report(attempt, A, by="message"))
    assert state(attempt)[2] == {A: "bounced", B: "deferred"}
    mail = stored(report(attempt, B, by="message"))
    with pytest.raises(StillSending):
        note(mail)


def test_an_own_answer_proves_nothing() -> None:
    attempt = doubtful(A)
    mail = stored(autoreply(attempt, sender=SENDER))
    answer = PersistentAgentMessage.objects.create(is_outbound=False, body="Yes")
    assert not note_reply(mail, answer, read_inbound(bytes(mail.raw or b"")).fields)
    assert not note(mail)
    assert state(attempt)[0] == "in_doubt"


def test_a_bounce_of_a_mail_that_waits_to_be_repeated_withdraws_the_repetition() -> None:
    attempt = doubtful(A, B)
    again = repeated(attempt)
    assert again.addresses == [A, B]
    assert told(report(attempt, A))
    assert state(attempt) == ("sent", "partially_sent", {A: "bounced", B: "accepted"})
    again.refresh_from_db()
    assert again.status == "cancelled" and again.due_at is None


def test_the_repetition_still_goes_to_whom_the_server_had_put_off() -> None:
    attempt = row_of(taken(submitted(A, B)))
    mark(attempt)
    later = {B: Reply(451, "4.7.1", "Greylisted")}
    lost = Lost(Stage.DOT, Cause.CONNECTION_LOST, "The line went dead.", is_marked=True, refused=later)
    assert settle(attempt, lost, provider=Provider.SMTP, now=timezone.now())
    again = repeated(attempt)
    assert told(report(attempt, A))
    again.refresh_from_db()
    assert (again.status, again.addresses) == ("queued", [B])
    assert state(attempt) == ("failed", "queued", {A: "bounced", B: "deferred"})
    assert settle(row_of(taken(attempt.message)), TAKEN, provider=Provider.SMTP, now=timezone.now())
    assert state(attempt) == ("failed", "partially_sent", {A: "bounced", B: "accepted"})


def test_who_is_named_had_the_mail_though_a_server_had_put_them_off_before() -> None:
    first = row_of(taken(submitted(A)))
    later = Reply(451, "4.7.1", "Greylisted")
    assert settle(first, Refused(Stage.RCPT, later, {A: later}), provider=Provider.SMTP, now=timezone.now())
    now = timezone.now()
    OutboundMessageAttempt.objects.filter(status="queued").update(due_at=now, not_before=now)
    second = row_of(taken(first.message))
    mark(second)
    lost = Lost(Stage.DOT, Cause.CONNECTION_LOST, "The line went dead.", is_marked=True)
    assert settle(second, lost, provider=Provider.SMTP, now=timezone.now())
    again = repeated(second)
    assert told(report(second, A))
    again.refresh_from_db()
    assert again.status == "cancelled"
    assert state(second) == ("failed", "failed", {A: "bounced"})


def test_a_bounce_of_a_mail_that_is_being_repeated_waits_for_the_outcome() -> None:
    attempt = doubtful(A)
    repeated(attempt)
    work = taken(attempt.message)
    mail = stored(report(attempt))
    with pytest.raises(StillSending):
        note(mail)
    assert settle(row_of(work), TAKEN, provider=Provider.SMTP, now=timezone.now())
    assert note(mail)  # the second copy is out, and what becomes of it is to be seen
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt)[-1] == "other_report"
    assert told(report(row_of_number(attempt, 2)))
    assert state(attempt)[1:] == ("failed", {A: "bounced"})


def row_of_number(attempt: OutboundMessageAttempt, number: int) -> OutboundMessageAttempt:
    return OutboundMessageAttempt.objects.get(message_id=attempt.message_id, number=number)


def test_a_bounce_of_the_first_copy_ends_the_doubt_about_the_second() -> None:
    attempt = doubtful(A)
    repeated(attempt)
    work = row_of(taken(attempt.message))
    mark(work)
    lost = Lost(Stage.DOT, Cause.CONNECTION_LOST, "The line went dead.", is_marked=True)
    assert settle(work, lost, provider=Provider.SMTP, now=timezone.now())
    assert told(report(attempt))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    assert row_of_number(attempt, 2).status == "deferred" and row_of_number(attempt, 2).due_at is None
    assert told(report(row_of_number(attempt, 2)))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


def test_a_complaint_is_told_once_changes_no_status_and_is_remembered(
    django_capture_on_commit_callbacks: Any,
) -> None:
    attempt = sent()
    heard: list[str] = []

    def hear(address: str, **_: object) -> None:
        heard.append(address)

    recipient_complained.connect(hear)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            assert told(complaint(attempt)) and told(complaint(attempt))
    finally:
        recipient_complained.disconnect(hear)
    assert heard == [A]
    assert state(attempt) == ("sent", "sent", {A: "accepted"})
    assert events(attempt).count("complained") == 1
    assert Suppression.objects.get().cause == "complained"


def test_a_complaint_that_hides_its_recipient_is_of_the_only_one() -> None:
    attempt = sent()
    assert told(complaint(attempt, "redacted@isp.invalid"))
    assert Suppression.objects.get().address == A


def test_others_are_told_of_a_bounce_once_it_is_committed(django_capture_on_commit_callbacks: Any) -> None:
    attempt = sent()
    heard: list[tuple[str, str]] = []

    def hear(address: str, attempt_id: str, **_: object) -> None:
        heard.append((address, attempt_id))

    recipient_bounced.connect(hear)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            assert told(report(attempt))
            assert heard == []
    finally:
        recipient_bounced.disconnect(hear)
    assert heard == [(A, str(attempt.pk))]
