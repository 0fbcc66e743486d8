"""A doubtful mail that was sent again by policy: what the second copy's end says, and what it does not."""

from datetime import timedelta

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import OutboundMessageAttempt, PersistentAgentCommsEndpoint, PersistentAgentMessage
from gobii_email.models.queue import Mark, mark
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.intervene import resolve_by_hand
from gobii_email.services.settle import settle
from tests.services.test_doubt_of_a_later_attempt import take

Endpoint = PersistentAgentCommsEndpoint

pytestmark = pytest.mark.django_db

NO = Refused(Stage.DOT, Reply(554, "5.6.0", "I do not like it"))


@pytest.fixture
def message(endpoint: Endpoint, doorbell: object) -> PersistentAgentMessage:
    """In doubt for two people; attempt 2 has just been queued by its policy."""
    message = api.send_agent_email(
        from_endpoint=endpoint,
        to=["a@rcpt.example", "b@rcpt.example"],
        subject="S",
        body="B",
        on_doubt="resend",
    )
    make_doubtful(endpoint)
    look_again(message)
    return message


def make_doubtful(endpoint: Endpoint) -> OutboundMessageAttempt:
    work, attempt = take(endpoint)
    assert mark([Mark(work.id, work.token, "smtp")], now=timezone.now())
    OutboundMessageAttempt.objects.filter(pk=work.id).update(due_at=timezone.now())
    dispatch_round()
    return attempt


def look_again(message: PersistentAgentMessage) -> None:
    """As if the policy's patience were over."""
    message.attempts.filter(status="in_doubt").update(due_at=timezone.now())
    dispatch_round()


def statuses(message: PersistentAgentMessage) -> list[str]:
    message.refresh_from_db()
    attempts = message.attempts.order_by("number").values_list("status", flat=True)
    people = message.recipients.values_list("status", flat=True)
    return [message.latest_status, *attempts, *people]


def end(endpoint: Endpoint, outcome: Refused | Accepted) -> None:
    _, attempt = take(endpoint)
    settle(attempt, outcome, provider=Provider.SMTP, now=timezone.now())


def test_a_refused_second_copy_leaves_the_first_in_doubt(endpoint: Endpoint, message) -> None:
    end(endpoint, NO)
    assert statuses(message) == ["in_doubt", "in_doubt", "failed", "pending", "pending"]
    assert "attempt 1 may have arrived" in message.events.last().text
    resolve_by_hand(message, "sent")
    assert statuses(message) == ["sent", "sent", "failed", "accepted", "accepted"]


def test_a_doubt_that_came_back_can_be_sent_again_by_hand(endpoint: Endpoint, message) -> None:
    end(endpoint, NO)
    resolve_by_hand(message, "resend")
    end(endpoint, Accepted(Reply(250, "", "Ok")))
    assert statuses(message) == ["sent", "deferred", "failed", "sent", "accepted", "accepted"]


def test_whom_the_second_copy_reached_is_out_of_doubt(endpoint: Endpoint, message) -> None:
    end(endpoint, Accepted(Reply(250, "", "Ok"), refused={"b@rcpt.example": Reply(550, "5.1.1", "Nobody")}))
    assert statuses(message) == ["in_doubt", "in_doubt", "sent", "accepted", "pending"]
    resolve_by_hand(message, "failed")
    assert statuses(message) == ["partially_sent", "failed", "sent", "accepted", "refused"]


def test_a_second_copy_that_expires_leaves_the_first_in_doubt(endpoint: Endpoint, message) -> None:
    message.attempts.filter(number=2).update(expires_at=timezone.now() - timedelta(seconds=1))
    dispatch_round()
    assert statuses(message) == ["in_doubt", "in_doubt", "failed", "pending", "pending"]


def test_a_second_copy_that_is_withdrawn_leaves_the_first_in_doubt(endpoint: Endpoint, message) -> None:
    assert api.cancel_agent_email(message).status == "in_doubt"
    assert statuses(message) == ["in_doubt", "in_doubt", "cancelled", "pending", "pending"]


def test_an_accepted_second_copy_ends_it(endpoint: Endpoint, message) -> None:
    end(endpoint, Accepted(Reply(250, "", "Ok")))
    assert statuses(message) == ["sent", "deferred", "sent", "accepted", "accepted"]


def test_a_doubt_that_a_person_ended_does_not_come_back(endpoint: Endpoint, message) -> None:
    make_doubtful(endpoint)
    resolve_by_hand(message, "failed")
    assert statuses(message) == ["failed", "deferred", "failed", "refused", "refused"]


def test_what_a_person_said_was_not_sent_may_fail(endpoint: Endpoint, doorbell) -> None:
    message = api.send_agent_email(from_endpoint=endpoint, to="a@rcpt.example", subject="S", body="B")
    make_doubtful(endpoint)
    resolve_by_hand(message, "resend")
    end(endpoint, NO)
    assert statuses(message) == ["failed", "deferred", "failed", "refused"]
