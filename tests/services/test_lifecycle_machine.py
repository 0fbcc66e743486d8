"""Two workers, a dispatcher and a person at the same mails, in any order that Hypothesis can think of.

Works on the real rows through the services' own functions. What a server would have done is kept beside the
rows, so that a lost or doubled mail is seen; the rules of the life of an attempt are checked after each step.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
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
from gobii_email.models.attempts import AttemptQuerySet
from gobii_email.models.queue import Claim, Mark, Work
from gobii_email.services import intervene
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.settle import acceptance_of, settle
from tests.chaos import breakage
from tests.conftest import RecordingDoorbell, taken

pytestmark = pytest.mark.django_db

OK = Reply(250, "2.0.0", "Ok: queued as 1")
LATER = Reply(451, "4.3.0", "Not now")
NEVER = Reply(554, "5.6.0", "Content rejected")
ENDED = {"sent", "delivered", "failed", "cancelled"}
LEASE = timedelta(seconds=60)
# A retry, a lease, a doubt and, seldom, a life.
SPANS = [31, 31, 61, 61, 61, 901, 86_401]
ENDS = [
    "accepted",
    "accepted",
    "accepted in part",
    "refused for now",
    "refused for now",
    "refused for good",
    "broken off",
    "given back",
    "worker dead",
]
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
        self.vouched: set[Any] = set()
        self.served: set[tuple[Any, str]] = set()

    def teardown(self) -> None:
        self.clock.stop()
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)

    # What callers and people do

    @initialize(target=messages, on_doubt=st.sampled_from(["hold", "resend"]))
    def begin(self, on_doubt: str) -> Any:
        return self._submit(on_doubt, 1, is_second=True)

    @precondition(lambda self: self.count < 3)
    @rule(
        target=messages,
        on_doubt=st.sampled_from(["hold", "resend"]),
        people=st.integers(1, 2),
        is_second=st.booleans(),
    )
    def submit(self, on_doubt: str, people: int, is_second: bool) -> Any:
        return self._submit(on_doubt, people, is_second=is_second)

    def _submit(self, on_doubt: str, people: int, *, is_second: bool) -> Any:
        """Most of what is hard is about second attempts, so some mails begin with a first one behind them."""
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
        if is_second and on_doubt == "resend":
            self._doubt(message)
        elif is_second:
            self._defer(message)
        return message.pk

    def _doubt(self, message: PersistentAgentMessage) -> None:
        """It arrives, its worker dies, and its policy sends it again."""
        for work in statements.claim(Claim(self.endpoint.pk, 9, "one", self.now, self.now + LEASE)):
            if work.message_id == message.pk:
                self._mark(Held(work), connects=True)
                self._arrives(Held(work), work.addresses)
            else:
                statements.release([work])
        for seconds in (61, 901):
            self.now += timedelta(seconds=seconds)
            dispatch_round()

    def _defer(self, message: PersistentAgentMessage) -> None:
        for work in statements.claim(Claim(self.endpoint.pk, 9, "one", self.now, self.now + LEASE)):
            if work.message_id == message.pk:
                self._ends(Held(work), Refused(Stage.DATA, LATER))
            else:
                statements.release([work])
        self.now += timedelta(seconds=40)

    @rule(message=messages, act=st.sampled_from(["cancel", "retry", "sent", "resend", "failed"]))
    def somebody_acts(self, message: Any, act: str) -> None:
        row = PersistentAgentMessage.objects.get(pk=message)
        try:
            match act:
                case "cancel":
                    self._cancel(row)
                case "retry":
                    intervene.retry(row)
                case _:
                    doubtful = [(message, address) for address in row.attempts.last().addresses]
                    intervene.resolve_by_hand(row, act)
                    self.served.update(doubtful if act == "sent" else ())
                    # A person may be wrong about what the server has; that is theirs to answer for.
                    self.vouched.add(message)
                    if act != "sent":
                        self.may_double.add(message)
        except intervene.NotPossible:
            return

    def _cancel(self, message: PersistentAgentMessage) -> None:
        marked = message.attempts.filter(status__in=sorted(OPEN), marked_at__isnull=False).exists()
        was_withdrawn = intervene.cancel(message)
        assert not (was_withdrawn and marked), "withdrawn, though a server may have it"

    # What time, workers and dispatchers do

    @rule(seconds=st.sampled_from(SPANS), looks=st.sampled_from([True, True, False]))
    def time_passes(self, seconds: float, looks: bool) -> None:
        """With or without a dispatcher that looks at what has become due."""
        self.now += timedelta(seconds=seconds)
        if looks:
            sending = OutboundMessageAttempt.objects.filter(status="sending", marked_at__isnull=False)
            marked = set(sending.values_list("pk", flat=True))
            dispatch_round()
            after = OutboundMessageAttempt.objects.filter(pk__in=marked).values_list("status", flat=True)
            assert set(after) <= {"sending", "in_doubt"}, "marked, and yet sent again without evidence"

    @rule(target=held, owner=st.sampled_from(["one", "other"]), limit=st.integers(1, 3), marks=st.booleans())
    def claim(self, owner: str, limit: int, marks: bool) -> Any:
        """With `marks` it goes on at once, up to the dot of the first."""
        wanted = Claim(self.endpoint.pk, limit, owner, self.now, self.now + LEASE)
        found = [Held(work) for work in statements.claim(wanted)]
        if marks and found:
            self._mark(found[0], connects=True)
        return multiple(*found)

    @rule(one=held, connects=st.booleans())
    def marks(self, one: Held, connects: bool) -> None:
        """On a connection of its own, or on one that was open already."""
        self._mark(one, connects)

    def _mark(self, one: Held, connects: bool) -> None:
        if one.is_marked:
            return
        is_ours = self._is_held(one)
        for stage in ["connect", "dot"] if connects else ["dot"]:
            mark = Mark(one.work.id, one.work.token, str(Provider.SMTP), stage)
            found = statements.mark([mark], now=self.now)
            assert bool(found) == is_ours, "the fence lets the wrong one through"
        one.is_marked = is_ours

    @rule(one=consumes(held), end=st.sampled_from(ENDS), arrives=st.booleans())
    def its_turn_ends(self, one: Held, end: str, arrives: bool) -> None:
        """However late. `arrives` says what became of a message that nobody answered for."""
        first, *others = one.work.addresses
        match end:
            case "accepted" if one.is_marked:
                self._arrives(one, one.work.addresses)
                self._ends(one, Accepted(OK))
            case "accepted in part" if one.is_marked and others:
                self._arrives(one, others)
                self._ends(one, Accepted(OK, {first: LATER if arrives else NEVER}))
            case "refused for now" | "refused for good":
                stage, reply = Stage.DOT if one.is_marked else Stage.DATA, LATER if "now" in end else NEVER
                self._ends(one, Refused(stage, reply))
            case "broken off":
                self._arrives(one, one.work.addresses if one.is_marked and arrives else ())
                stage = Stage.DOT if one.is_marked else Stage.RCPT
                self._ends(one, Lost(stage, Cause.CONNECTION_LOST, "It broke off.", one.is_marked))
            case "given back":
                row = OutboundMessageAttempt.objects.get(pk=one.work.id)
                if not one.is_marked and not row.stage:
                    statements.release([one.work])
            case _:
                # Its worker is dead: not another word, and what it sent may have arrived.
                self._arrives(one, one.work.addresses if one.is_marked and arrives else ())

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
    def who_is_known_to_be_served_is_in_no_queue(self) -> None:
        for attempt in OutboundMessageAttempt.objects.filter(status="queued"):
            served = {(attempt.message_id, address) for address in attempt.addresses} & self.served
            assert not served or attempt.message_id in self.may_double

    @invariant()
    def what_is_called_failed_never_arrived(self) -> None:
        for message in PersistentAgentMessage.objects.filter(
            latest_status__in=[MessageStatus.FAILED, MessageStatus.CANCELLED]
        ).exclude(pk__in=self.vouched):
            arrived = [key for key in self.copies if key[0] == message.pk]
            assert not arrived, f"{message.latest_status}, and the server has it"

    @invariant()
    def what_is_called_sent_arrived(self) -> None:
        rows = PersistentAgentMessage.objects.exclude(pk__in=self.vouched).prefetch_related("recipients")
        for message in rows:
            for row in message.recipients.all():
                assert row.status != RecipientStatus.ACCEPTED or self.copies[message.pk, row.address]

    @invariant()
    def doubts_end_by_evidence_alone(self) -> None:
        doubted = set(_attempts_with("in_doubt"))
        over = OutboundMessageAttempt.objects.filter(pk__in=doubted).exclude(status="in_doubt")
        assert set(over.values_list("pk", flat=True)) <= set(_attempts_with(*BY_EVIDENCE))

    def _arrives(self, one: Held, addresses: Sequence[str]) -> None:
        for address in addresses:
            self.copies[one.work.message_id, address] += 1

    def _ends(self, one: Held, outcome: Outcome) -> None:
        """As a turn settles: ordinary acceptances by their own statement, all else row by row."""
        if isinstance(outcome, Accepted):
            served = set(one.work.addresses) - set(outcome.refused)
            self.served.update((one.work.message_id, address) for address in served)
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


def _attempts_with(*names: str) -> Iterator[Any]:
    yield from OutboundMessageEvent.objects.filter(event__in=names).values_list("attempt_id", flat=True)


def _reachable(status: str) -> set[str]:
    """Every status that moves of the table lead to from `status`, itself included."""
    found = {str(status)}
    while more := {str(to) for (source, _), to in MOVES.items() if str(source) in found} - found:
        found |= more
    return found


def take(endpoint: PersistentAgentCommsEndpoint) -> Work:
    """The one mail that waits, whenever it is due."""
    now = timezone.now()
    OutboundMessageAttempt.objects.filter(status="queued").update(due_at=now, not_before=now)
    (work,) = statements.claim(Claim(endpoint.pk, 1, "one", now, now + LEASE))
    return work


def row_of(work: Work) -> OutboundMessageAttempt:
    attempt = OutboundMessageAttempt.objects.for_delivery(str(work.id))
    attempt.lease_token = work.token
    return attempt


@pytest.mark.parametrize("evidence", ["its own late answer", "a person's word"])
def test_a_doubt_about_a_second_attempt_that_ends_as_sent_is_not_sent_again(
    endpoint: PersistentAgentCommsEndpoint, doorbell: RecordingDoorbell, evidence: str
) -> None:
    message = api.send_agent_email(from_endpoint=endpoint, to="to@rcpt.example", subject="one", body="Hello")
    refused = Refused(Stage.DATA, LATER)
    settle(row_of(take(endpoint)), refused, provider=Provider.SMTP, now=timezone.now())
    work = take(endpoint)
    late = row_of(work)
    assert statements.mark([Mark(work.id, work.token, str(Provider.SMTP))], now=timezone.now())
    OutboundMessageAttempt.objects.filter(pk=work.id).update(due_at=timezone.now())
    dispatch_round()
    assert message.attempts.get(number=2).status == "in_doubt"
    if evidence == "a person's word":
        intervene.resolve_by_hand(message, "sent")
    else:
        settle(late, Accepted(OK), provider=Provider.SMTP, now=timezone.now())
    assert [one.status for one in message.attempts.order_by("number")] == ["deferred", "sent"]
    assert message.recipients.get().status == "accepted"


def play() -> None:
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=40,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture(autouse=True)
def soon(doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBII_RETRY_SCHEDULE", "30s")
    config.cache_clear()


def test_no_order_of_events_loses_doubles_or_miscalls_a_mail() -> None:
    play()


@pytest.mark.parametrize("is_fenced", [True, False])
def test_it_is_the_fence_that_keeps_a_late_worker_from_its_dot(
    endpoint: PersistentAgentCommsEndpoint, monkeypatch: pytest.MonkeyPatch, is_fenced: bool
) -> None:
    """The first worker is taken for dead, the second one's mail is refused, then the first one wakes up."""
    if not is_fenced:
        # Set to what they are, so that they are set back.
        monkeypatch.setattr(AttemptQuerySet, "held_by", AttemptQuerySet.held_by)
        monkeypatch.setattr(statements, "mark", statements.mark)
        breakage.fence()
    message = api.send_agent_email(from_endpoint=endpoint, to="a@rcpt.example", subject="S", body="B")
    late = taken(message)
    OutboundMessageAttempt.objects.update(due_at=timezone.now())
    dispatch_round()
    refused = Refused(Stage.DOT, Reply(550, "5.7.1", "no"))
    settle(row_of(taken(message)), refused, provider=Provider.SMTP, now=timezone.now())
    marked = statements.mark([Mark(late.id, late.token, "smtp")], now=timezone.now())
    assert marked == (set() if is_fenced else {late.id})
