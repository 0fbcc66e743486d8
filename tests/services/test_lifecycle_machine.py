"""Two workers, a dispatcher and a person at the same mails, in any order that Hypothesis can think of.

Works on the real rows through the services' own functions. What a server would have done is kept beside the
rows, so that a lost or doubled mail is seen; the rules of the life of an attempt are checked after each step.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from gobii_email import api
from gobii_email.conf import config
from gobii_email.domain.lifecycle import (
    MOVES,
    OPEN,
    AttemptStatus,
    MessageStatus,
    Provider,
    RecipientStatus,
    message_status,
)
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models import queue as statements
from gobii_email.models.queue import Claim, Mark, Work
from gobii_email.services import intervene
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.settle import acceptance_of, settle
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db

OK = Reply(250, "2.0.0", "Ok: queued as 1")
LATER = Reply(451, "4.3.0", "Not now")
NEVER = Reply(554, "5.6.0", "Content rejected")
ENDED = {str(status) for status in AttemptStatus} - {str(status) for status in OPEN}
BY_EVIDENCE = {"doubt_absent", "doubt_found", "doubt_given_up"}


@dataclass
class Held:
    """An attempt as a worker believes to hold it, whether or not it still does."""

    work: Work
    is_marked: bool = False


class Lives(RuleBasedStateMachine):
    """Time passes by rules alone."""

    messages = Bundle("messages")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.now = timezone.now()
        self.clock = mock.patch("django.utils.timezone.now", lambda: self.now)
        self.clock.start()
        self.endpoint = PersistentAgentCommsEndpoint.objects.create(
            owner_agent=PersistentAgent.objects.create(name="Ada"),
            channel="email",
            address="agent@sender.example",
        )
        self.count = 0
        self.before: dict[str, str] = {}
        self.copies: Counter[tuple[Any, str]] = Counter()
        self.may_double: set[Any] = set()

    def teardown(self) -> None:
        self.clock.stop()
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)

    # What callers and people do

    @initialize(target=messages)
    def begin(self) -> Any:
        return self._submit("hold", 1)

    @rule(target=messages, on_doubt=st.sampled_from(["hold", "resend"]), people=st.integers(1, 2))
    def submit(self, on_doubt: str, people: int) -> Any:
        return self._submit(on_doubt, people)

    def _submit(self, on_doubt: str, people: int) -> Any:
        self.count += 1
        message = api.send_agent_email(
            from_endpoint=self.endpoint,
            to=[f"p{person}.{self.count}@rcpt.example" for person in range(people)],
            subject=f"mail {self.count}",
            body="Hello",
            on_doubt=on_doubt,
        )
        if on_doubt == "resend":
            self.may_double.add(message.pk)
        return message.pk

    @rule(message=messages)
    def cancel(self, message: Any) -> None:
        marked = self._open(message, marked_at__isnull=False)
        was_withdrawn = intervene.cancel(PersistentAgentMessage.objects.get(pk=message))
        assert not (was_withdrawn and marked), "withdrawn, though a server may have it"

    @rule(message=messages)
    def retry(self, message: Any) -> None:
        try:
            intervene.retry(PersistentAgentMessage.objects.get(pk=message))
        except intervene.NotPossible:
            return

    @rule(message=messages, how=st.sampled_from(["sent", "resend", "failed"]))
    def resolve(self, message: Any, how: str) -> None:
        try:
            intervene.resolve_by_hand(PersistentAgentMessage.objects.get(pk=message), how)
        except intervene.NotPossible:
            return
        # A person may be wrong about what the server has; that is theirs to answer for.
        self.may_double.add(message)

    @rule(
        seconds=st.sampled_from(
            [
                1,
                30,
                config().lease.total_seconds() + 1,
                config().doubt_resend_after.total_seconds() + 1,
                86_400,
            ]
        )
    )
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # What workers do

    @rule(target=held, owner=st.sampled_from(["one", "other"]), limit=st.integers(1, 3))
    def claim(self, owner: str, limit: int) -> Any:
        found = statements.claim(Claim(self.endpoint.pk, limit, owner, self.now, self.now + config().lease))
        return multiple(*(Held(work) for work in found))

    @rule(one=held)
    def connect(self, one: Held) -> None:
        is_ours = self._is_held(one)
        assert statements.begin(one.work) == is_ours

    @rule(one=held)
    def mark(self, one: Held) -> None:
        is_ours = self._is_held(one)
        mark = Mark(one.work.id, one.work.token, str(Provider.SMTP))
        assert bool(statements.mark([mark], now=self.now)) == is_ours, "the fence lets the wrong one through"
        one.is_marked = one.is_marked or is_ours

    @rule(one=consumes(held), takes=st.booleans())
    def answer_comes(self, one: Held, takes: bool) -> None:
        """The server says what it did with the finished message, however late."""
        if not one.is_marked:
            return
        if takes:
            self._arrives(one)
        self._ends(one, Accepted(OK) if takes else Refused(Stage.DOT, LATER))

    @rule(one=consumes(held), reply=st.sampled_from([LATER, NEVER]))
    def server_refuses(self, one: Held, reply: Reply) -> None:
        stage = Stage.DOT if one.is_marked else Stage.DATA
        self._ends(one, Refused(stage, reply))

    @rule(one=consumes(held), arrived=st.booleans())
    def connection_breaks(self, one: Held, arrived: bool) -> None:
        if one.is_marked and arrived:
            self._arrives(one)
        stage = Stage.DOT if one.is_marked else Stage.RCPT
        self._ends(one, Lost(stage, Cause.CONNECTION_LOST, "It broke off.", one.is_marked))

    @rule(one=consumes(held), arrived=st.booleans())
    def worker_dies(self, one: Held, arrived: bool) -> None:
        """Not another word from it; what it sent may have arrived."""
        if one.is_marked and arrived:
            self._arrives(one)

    @rule(one=consumes(held))
    def worker_gives_back(self, one: Held) -> None:
        """As at the end of a turn, which never gives back what it began."""
        row = OutboundMessageAttempt.objects.get(pk=one.work.id)
        if not one.is_marked and not row.stage:
            statements.release([one.work])

    @rule()
    def dispatch(self) -> None:
        marked = set(
            OutboundMessageAttempt.objects.filter(status="sending", marked_at__isnull=False).values_list(
                "pk", flat=True
            )
        )
        dispatch_round()
        after = OutboundMessageAttempt.objects.filter(pk__in=marked).values_list("status", flat=True)
        assert set(after) <= {"sending", "in_doubt"}, "marked, and yet sent again without evidence"

    # What must always be true

    @invariant()
    def a_message_has_one_open_attempt_at_most(self) -> None:
        open_ones = OutboundMessageAttempt.objects.filter(status__in=sorted(OPEN))
        counts = Counter(open_ones.values_list("message_id", flat=True))
        assert not counts or max(counts.values()) == 1

    @invariant()
    def the_messages_status_follows_from_its_recipients(self) -> None:
        for message in PersistentAgentMessage.objects.prefetch_related("recipients", "attempts"):
            attempts = sorted(message.attempts.all(), key=lambda attempt: attempt.number)
            open_status = next((AttemptStatus(one.status) for one in attempts if one.status in OPEN), None)
            expected = message_status(
                [RecipientStatus(row.status) for row in message.recipients.all()],
                open_attempt=open_status,
                was_withdrawn=attempts[-1].status == AttemptStatus.CANCELLED,
            )
            assert message.latest_status == expected, [one.status for one in attempts]

    @invariant()
    def attempts_move_by_the_table_alone(self) -> None:
        present = {
            str(pk): status for pk, status in OutboundMessageAttempt.objects.values_list("pk", "status")
        }
        for pk, status in present.items():
            earlier = self.before.get(pk, AttemptStatus.QUEUED)
            assert status in _reachable(earlier), f"{earlier} became {status}"
            assert earlier not in ENDED or status == earlier, f"{earlier} was the end, and became {status}"
        assert present.keys() >= self.before.keys(), "an attempt is gone"
        self.before = present

    @invariant()
    def nobody_gets_a_second_copy_unasked(self) -> None:
        doubled = {key for key, count in self.copies.items() if count > 1 and key[0] not in self.may_double}
        assert not doubled

    @invariant()
    def what_is_called_failed_never_arrived(self) -> None:
        for message in PersistentAgentMessage.objects.filter(
            latest_status__in=[MessageStatus.FAILED, MessageStatus.CANCELLED]
        ).exclude(pk__in=self.may_double):
            arrived = [key for key in self.copies if key[0] == message.pk]
            assert not arrived, f"{message.latest_status}, and the server has it"

    @invariant()
    def what_is_called_sent_arrived(self) -> None:
        rows = PersistentAgentMessage.objects.exclude(pk__in=self.may_double).prefetch_related("recipients")
        for message in rows:
            for row in message.recipients.all():
                assert row.status != RecipientStatus.ACCEPTED or self.copies[message.pk, row.address]

    @invariant()
    def doubts_end_by_evidence_alone(self) -> None:
        doubted = set(_attempts_with("in_doubt"))
        over = OutboundMessageAttempt.objects.filter(pk__in=doubted).exclude(status="in_doubt")
        assert set(over.values_list("pk", flat=True)) <= set(_attempts_with(*BY_EVIDENCE))

    def _arrives(self, one: Held) -> None:
        for address in one.work.addresses:
            self.copies[one.work.message_id, address] += 1

    def _ends(self, one: Held, outcome: Outcome) -> None:
        """As a turn settles: ordinary acceptances by their own statement, all else row by row."""
        is_ours = self._is_held(one)
        row = acceptance_of(one.work, outcome, Provider.SMTP, is_part=False, now=self.now)
        if row is not None:
            is_written = bool(statements.write_acceptances([row]))
            assert is_written == is_ours
            if is_written:
                return
        attempt = OutboundMessageAttempt.objects.for_delivery(str(one.work.id))
        attempt.lease_token, attempt.status = one.work.token, AttemptStatus.SENDING
        assert settle(attempt, outcome, provider=Provider.SMTP, now=self.now) == is_ours

    def _is_held(self, one: Held) -> bool:
        return OutboundMessageAttempt.objects.held_by(one.work.id, one.work.token).exists()

    def _open(self, message: Any, **facts: Any) -> bool:
        rows = OutboundMessageAttempt.objects.filter(message=message, status__in=sorted(OPEN), **facts)
        return rows.exists()


def _attempts_with(*names: str) -> Iterator[Any]:
    yield from OutboundMessageEvent.objects.filter(event__in=names).values_list("attempt_id", flat=True)


def _reachable(status: str) -> set[str]:
    """Every status that moves of the table lead to from `status`, itself included."""
    found = {str(status)}
    while more := {str(to) for (source, _), to in MOVES.items() if str(source) in found} - found:
        found |= more
    return found


def test_no_order_of_events_loses_doubles_or_miscalls_a_mail(
    doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOBII_RETRY_SCHEDULE", "30s")
    config.cache_clear()
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
