"""What Postmark reports later moves recipients, attempt and message, once."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent, PersistentAgentCommsEndpoint
from gobii_email.services.prove import StillSending
from gobii_email.services.settle import settle
from gobii_email.services.track import Sighting, What, track
from gobii_email.signals import recipient_bounced
from tests.conftest import RecordingDoorbell, row_of, taken

pytestmark = pytest.mark.django_db

A, B = "a@rcpt.example", "b@rcpt.example"
TAKEN = Accepted(Reply(250, "2.0.0", "OK"), provider_message_id="pm-1")


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint) -> None:
    pass


def claimed(*recipients: str) -> OutboundMessageAttempt:
    message = api.send_agent_email(
        from_endpoint="agent@sender.example", to=recipients or (A,), subject="Hello", body="Hi"
    )
    return row_of(taken(message))


def ended(outcome: Any, *recipients: str, provider: Provider = Provider.POSTMARK) -> OutboundMessageAttempt:
    attempt = claimed(*recipients)
    assert settle(attempt, outcome, provider=provider, now=timezone.now())
    return attempt


def sighting(attempt: OutboundMessageAttempt, what: What, recipient: str = A, **values: Any) -> Sighting:
    facts = {"attempt_id": str(attempt.pk), "provider_message_id": "pm-1"} | values
    return Sighting(what, recipient, **facts)


def state(attempt: OutboundMessageAttempt) -> tuple[str, str, dict[str, str]]:
    attempt = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
    recipients = {row.address: row.status for row in attempt.message.recipients.all()}
    return attempt.status, attempt.message.latest_status, recipients


def test_delivered_to_all_makes_the_message_delivered() -> None:
    attempt = ended(TAKEN, A, B)
    assert track(sighting(attempt, What.DELIVERED, A))
    assert state(attempt) == ("sent", "sent", {A: "delivered", B: "accepted"})
    assert track(sighting(attempt, What.DELIVERED, B))
    assert state(attempt) == ("delivered", "delivered", {A: "delivered", B: "delivered"})
    attempt.refresh_from_db()
    assert attempt.delivered_at is not None
    assert attempt.message.__class__.objects.get(pk=attempt.message_id).latest_delivered_at is not None


def test_a_bounce_of_all_makes_the_message_failed_with_the_reason() -> None:
    attempt = ended(TAKEN)
    assert track(sighting(attempt, What.BOUNCED, said="smtp;550 5.1.1 The account does not exist"))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    recipient = attempt.message.recipients.get()
    assert (recipient.smtp_code, recipient.enhanced_status, recipient.reply) == (
        550,
        "5.1.1",
        "The account does not exist",
    )
    document = api.delivery_status(attempt.message_id)
    assert "does not exist" in document.attempts[0].error_message
    assert document.attempts[0].error_code == "bounced"


def test_a_bounce_of_some_leaves_the_message_partially_sent() -> None:
    attempt = ended(TAKEN, A, B)
    track(sighting(attempt, What.DELIVERED, A))
    track(sighting(attempt, What.BOUNCED, B))
    assert state(attempt) == ("sent", "partially_sent", {A: "delivered", B: "bounced"})


def test_a_bounce_after_the_delivery_turns_it_into_a_failure() -> None:
    attempt = ended(TAKEN)
    track(sighting(attempt, What.DELIVERED))
    track(sighting(attempt, What.BOUNCED))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


def test_a_delivery_that_is_told_after_the_bounce_changes_nothing() -> None:
    attempt = ended(TAKEN)
    track(sighting(attempt, What.BOUNCED))
    assert not track(sighting(attempt, What.DELIVERED))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


@pytest.mark.parametrize("what", list(What))
def test_what_is_told_twice_is_written_once(what: What) -> None:
    attempt = ended(TAKEN)
    assert track(sighting(attempt, what))
    before = state(attempt), OutboundMessageEvent.objects.count()
    assert not track(sighting(attempt, what))
    assert (state(attempt), OutboundMessageEvent.objects.count()) == before


def test_a_complaint_is_told_and_changes_no_status() -> None:
    attempt = ended(TAKEN)
    track(sighting(attempt, What.DELIVERED))
    assert track(sighting(attempt, What.COMPLAINED))
    assert state(attempt) == ("delivered", "delivered", {A: "delivered"})
    assert "reported it as spam" in api.delivery_status(attempt.message_id).timeline[-1].text


def test_a_refused_recipient_does_not_keep_the_others_from_being_delivered() -> None:
    refused = Accepted(TAKEN.reply, {B: Reply(550, "", "inactive")}, "pm-1")
    attempt = ended(refused, A, B)
    track(sighting(attempt, What.DELIVERED, A))
    assert state(attempt) == ("delivered", "partially_sent", {A: "delivered", B: "refused"})


def test_postmarks_own_id_is_enough() -> None:
    attempt = ended(TAKEN)
    assert track(Sighting(What.DELIVERED, A.upper(), provider_message_id="pm-1"))
    assert state(attempt)[0] == "delivered"


def test_a_report_proves_that_postmark_has_a_doubtful_mail() -> None:
    lost = Lost(Stage.DOT, Cause.TIMEOUT, "Postmark did not answer in time.", is_marked=True)
    attempt = ended(lost, A, B)
    assert state(attempt)[:2] == ("in_doubt", "in_doubt")
    assert track(sighting(attempt, What.DELIVERED, A, provider_message_id="pm-9"))
    assert state(attempt) == ("sent", "sent", {A: "delivered", B: "accepted"})
    attempt.refresh_from_db()
    assert attempt.provider_message_id == "pm-9"
    assert attempt.due_at is None


def test_a_rescued_attempt_without_a_provider_is_found_too() -> None:
    attempt = ended(Lost(Stage.DOT, Cause.WORKER_LOST, "lost", is_marked=True))
    OutboundMessageAttempt.objects.update(provider="", marked_at=timezone.now())
    assert track(sighting(attempt, What.BOUNCED))
    assert state(attempt) == ("failed", "failed", {A: "bounced"})


def test_a_report_that_overtakes_our_own_note_is_asked_for_again() -> None:
    attempt = claimed()
    OutboundMessageAttempt.objects.update(marked_at=timezone.now())
    with pytest.raises(StillSending):
        track(sighting(attempt, What.DELIVERED))
    settle(attempt, TAKEN, provider=Provider.POSTMARK, now=timezone.now())
    assert track(sighting(attempt, What.DELIVERED)) is True
    assert state(attempt)[0] == "delivered"


STRANGERS = {
    "unknown attempt": {"attempt_id": "6a4ab8f2-0a4e-4f1c-9f0e-000000000000"},
    "no id at all": {"attempt_id": "", "provider_message_id": ""},
    "an id that is none": {"attempt_id": "'; DROP TABLE"},
    "unknown provider id": {"attempt_id": "", "provider_message_id": "pm-404"},
    "ids that contradict": {"provider_message_id": "pm-2"},
    "somebody else": {"recipient": "stranger@rcpt.example"},
    "nobody": {"recipient": ""},
}


@pytest.mark.parametrize("values", STRANGERS.values(), ids=STRANGERS.keys())
def test_a_report_of_something_else_is_logged_and_changes_nothing(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = ended(TAKEN)
    before = state(attempt), OutboundMessageEvent.objects.count()
    assert not track(sighting(attempt, What.BOUNCED, **values))
    assert (state(attempt), OutboundMessageEvent.objects.count()) == before
    assert "tracking.ignored" in caplog.text


def test_mail_of_an_agents_own_server_is_not_postmarks_to_report() -> None:
    attempt = ended(TAKEN, provider=Provider.SMTP)
    assert not track(sighting(attempt, What.BOUNCED))
    assert state(attempt)[0] == "sent"


def test_what_a_server_says_is_made_safe() -> None:
    attempt = ended(TAKEN)
    track(sighting(attempt, What.BOUNCED, said="550 5.1.1 no\r\nBcc: x\u202e\x1b[31m" + "y" * 5000))
    reply = attempt.message.recipients.get().reply
    assert "\n" not in reply
    assert "\u202e" not in reply
    assert "\x1b" not in reply
    assert len(reply) <= 1024


def test_others_are_told_of_a_bounce_once_it_is_committed(
    django_capture_on_commit_callbacks: Any,
) -> None:
    heard: list[Any] = []

    def hear(address: str, **_: object) -> None:
        heard.append(address)
        raise RuntimeError("a receiver's own problem")

    recipient_bounced.connect(hear)
    try:
        attempt = ended(TAKEN)
        with django_capture_on_commit_callbacks(execute=True):
            track(sighting(attempt, What.BOUNCED))
        assert heard == [A]
    finally:
        recipient_bounced.disconnect(hear)
    assert state(attempt)[0] == "failed"


def test_a_refused_token_lets_the_mail_be_tried_again_by_the_schedule(settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"
    attempt = ended(Refused(Stage.AUTH, Reply(535, "5.7.8", "Postmark error 10: bad token")))
    following = attempt.message.attempts.get(number=2)
    assert attempt.status == "deferred"
    assert following.held_code == ""
    assert following.due_at <= timezone.now() + timedelta(seconds=90)
    waiting_for = api.delivery_status(attempt.message_id).waiting_for
    assert waiting_for is not None
    assert "bad token" in waiting_for
