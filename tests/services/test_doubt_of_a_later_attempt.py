"""A doubt about attempt 2, whose recipient had been deferred by attempt 1, must end as it is told to."""

from datetime import timedelta

import pytest
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import OutboundMessageAttempt, PersistentAgentCommsEndpoint
from gobii_email.models.queue import Claim, Mark, Work, claim, mark
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.intervene import resolve_by_hand
from gobii_email.services.settle import settle

pytestmark = pytest.mark.django_db


def take(endpoint: PersistentAgentCommsEndpoint) -> tuple[Work, OutboundMessageAttempt]:
    now = timezone.now()
    OutboundMessageAttempt.objects.filter(status="queued").update(due_at=now, not_before=now)
    (work,) = claim(Claim(endpoint.pk, 1, "worker", timezone.now(), now + timedelta(minutes=1)))
    attempt = OutboundMessageAttempt.objects.for_delivery(str(work.id))
    return work, attempt


@pytest.mark.parametrize("evidence", ["by hand", "late answer"])
def test_a_doubt_that_ends_as_sent_is_not_sent_again(endpoint, doorbell, evidence):
    message = api.send_agent_email(from_endpoint=endpoint, to="a@rcpt.example", subject="S", body="B")
    _, attempt = take(endpoint)
    refused = Refused(Stage.DATA, Reply(451, "4.3.0", "not now"))
    settle(attempt, refused, provider=Provider.SMTP, now=timezone.now())
    work, attempt = take(endpoint)
    assert mark([Mark(work.id, work.token, "smtp")], now=timezone.now())
    OutboundMessageAttempt.objects.filter(pk=work.id).update(due_at=timezone.now())
    dispatch_round()
    assert message.attempts.get(number=2).status == "in_doubt"
    if evidence == "by hand":
        resolve_by_hand(message, "sent")
    else:
        accepted = Accepted(Reply(250, "2.0.0", "Ok"))
        settle(attempt, accepted, provider=Provider.SMTP, now=timezone.now())
    assert [found.status for found in message.attempts.order_by("number")] == ["deferred", "sent"]
    assert message.recipients.get().status == "accepted"
