"""The same thing told, or asked for, by many at the same time happens once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Move, Provider
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    Suppression,
)
from gobii_email.services.prove import StillSending
from gobii_email.services.resolve import resolve
from gobii_email.services.settle import settle
from tests.conftest import RecordingDoorbell, row_of, taken
from tests.services.returned import SENDER, TAKEN, A, B, doubtful, note, report, sent, state, stored

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, endpoint: PersistentAgentCommsEndpoint) -> None:
    pass


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What each of `acts` answers or raises, all begun together, each on a connection of its own."""
    gate, found = threading.Barrier(len(acts)), {}

    def run(number: int, act: Callable[[], object]) -> None:
        gate.wait(30)
        try:
            found[number] = act()
        except Exception as problem:
            found[number] = problem
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number, act)) for number, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == len(acts)
    return [found[number] for number in range(len(acts))]


def count(attempt: OutboundMessageAttempt, name: str) -> int:
    return OutboundMessageEvent.objects.filter(message_id=attempt.message_id, event=name).count()


def test_one_bounce_that_many_read_is_written_once() -> None:
    attempt = sent(A)
    mails = [stored(report(attempt)) for _ in range(6)]
    assert at_once(*(lambda mail=mail: note(mail) for mail in mails)) == [True] * 6
    assert state(attempt) == ("failed", "failed", {A: "bounced"})
    assert count(attempt, "bounced") == 1 and Suppression.objects.count() == 1


def test_bounces_of_two_recipients_meet_in_one_message() -> None:
    for _ in range(3):
        attempt = sent(A, B)
        first, second = stored(report(attempt, A)), stored(report(attempt, B, status="5.7.1", diagnostic=""))
        assert at_once(lambda: note(first), lambda: note(second)) == [True, True]
        assert state(attempt) == ("failed", "failed", {A: "bounced", B: "bounced"})
        Suppression.objects.all().delete()


def test_a_bounce_and_the_outcome_of_a_repetition_are_both_written() -> None:
    """Whichever comes first: the bounce waits for the outcome, or is written after it."""
    for _ in range(3):
        attempt = doubtful(A)
        row = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
        assert resolve(row, Move.ABSENT, evidence="Nobody knows.", now=timezone.now(), is_proven=False)
        again = row_of(taken(attempt.message))
        mail = stored(report(attempt))
        bounced, settled = at_once(
            lambda mail=mail: note(mail),
            lambda again=again: settle(again, TAKEN, provider=Provider.SMTP, now=timezone.now()),
        )
        assert settled is True and (bounced is True or isinstance(bounced, StillSending)), bounced
        assert note(mail)
        assert state(attempt)[1:] == ("sent", {A: "accepted"})
        assert count(attempt, "other_report") == 1
        Suppression.objects.all().delete()


def test_of_many_automatic_answers_at_once_one_goes_out(endpoint: PersistentAgentCommsEndpoint) -> None:
    letter = PersistentAgentMessage.objects.create(
        is_outbound=False,
        to_endpoint=endpoint,
        from_address=A,
        body="Well?",
        rfc_message_id="<letter@rcpt.example>",
        raw_payload={"headers": {"From": A}},
    )

    def answer() -> Any:
        return api.send_agent_email(from_endpoint=SENDER, to=A, subject="Re", body="Yes", in_reply_to=letter)

    found = at_once(*[answer] * 5)
    refused = [one for one in found if isinstance(one, api.AutomaticAnswerRefused)]
    assert len(refused) == 4, found
    assert PersistentAgentMessage.objects.filter(is_automatic=True).count() == 1
