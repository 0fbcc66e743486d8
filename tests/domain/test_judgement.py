"""What one ending means for the attempt and for each of its recipients."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.judgement import judge, may_retry
from gobii_email.domain.lifecycle import AttemptStatus, RecipientStatus, after
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.readings import Scope, Verdict
from gobii_email.domain.smtp_replies import Reply, Stage, parse_reply

A, B, C = "a@rcpt.example", "b@rcpt.example", "c@rcpt.example"
OK = parse_reply("250 2.0.0 Ok: queued as 7")
NO = parse_reply("550 5.1.1 No such user")
LATER = parse_reply("451 4.7.1 Greylisted, try again later")
LOGIN = parse_reply("535 5.7.8 Username and Password not accepted")
QUOTA = parse_reply("550 5.4.5 Daily user sending quota exceeded")


def lost(stage: Stage = Stage.MAIL, cause: Cause = Cause.CONNECTION_LOST, **values: object) -> Lost:
    return Lost(stage, cause, "The connection was lost.", **values)  # type: ignore[arg-type]


CASES: list[tuple[str, Outcome, str, str]] = [
    ("accepted by all", Accepted(OK), "accepted", "accepted accepted accepted"),
    ("one refused", Accepted(OK, {B: NO}), "accepted", "accepted refused accepted"),
    ("one for later", Accepted(OK, {C: LATER}), "accepted", "accepted accepted deferred"),
    ("one of each", Accepted(OK, {B: NO, C: LATER}), "accepted", "accepted refused deferred"),
    ("all refused", Refused(Stage.RCPT, NO, {A: NO, B: NO, C: NO}), "permanent", "refused refused refused"),
    (
        "all for later",
        Refused(Stage.RCPT, LATER, {A: LATER, B: LATER, C: LATER}),
        "temporary",
        "deferred deferred deferred",
    ),
    (
        "some for later",
        Refused(Stage.RCPT, NO, {A: LATER, B: NO, C: NO}),
        "temporary",
        "deferred refused refused",
    ),
    (
        "refused at the dot",
        Refused(Stage.DOT, parse_reply("554 5.7.1 Spam")),
        "permanent",
        "refused refused refused",
    ),
    (
        "for later at the dot, one refused before",
        Refused(Stage.DOT, parse_reply("451 4.3.0 Try later"), {B: NO}),
        "temporary",
        "deferred refused deferred",
    ),
    ("a refused login", Refused(Stage.AUTH, LOGIN), "temporary", "deferred deferred deferred"),
    ("a quota behind a 5xx", Refused(Stage.DOT, QUOTA), "temporary", "deferred deferred deferred"),
    ("lost before the mark", lost(), "lost before the mark", "deferred deferred deferred"),
    (
        "lost before the mark, one refused",
        lost(refused={A: NO}),
        "lost before the mark",
        "refused deferred deferred",
    ),
    (
        "lost after the mark",
        lost(Stage.DOT, is_marked=True),
        "lost after the mark",
        "pending pending pending",
    ),
    (
        "lost after the mark, two spoken of",
        lost(Stage.DOT, is_marked=True, refused={A: NO, B: LATER}),
        "lost after the mark",
        "refused deferred pending",
    ),
    ("too large", lost(cause=Cause.MESSAGE_TOO_LARGE), "permanent", "refused refused refused"),
    (
        "a password that cannot be read",
        lost(cause=Cause.SECRET_UNREADABLE),
        "lost before the mark",
        "deferred deferred deferred",
    ),
]


@pytest.mark.parametrize(
    ("outcome", "move", "statuses"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_each_ending_is_judged(outcome: Outcome, move: str, statuses: str) -> None:
    judgement = judge(outcome, [A, B, C])
    assert judgement.move == move
    assert [str(judgement.recipients[address].status) for address in (A, B, C)] == statuses.split()


def test_each_recipient_keeps_the_reply_that_spoke_of_it() -> None:
    found = judge(Accepted(OK, {B: NO}), [A, B]).recipients
    assert (found[A].reply, found[B].reply) == (OK, NO)
    assert judge(lost(Stage.DOT, is_marked=True), [A]).recipients[A].reply is None


def test_the_account_is_held_for_its_own_fault_also_when_only_one_recipient_heard_of_it() -> None:
    assert judge(Refused(Stage.AUTH, LOGIN), [A]).hold is not None
    singled_out = judge(Accepted(OK, {B: parse_reply("452 4.5.3 Too many recipients this hour")}), [A, B])
    assert singled_out.accepted == (A,)
    assert judge(Accepted(OK, {B: NO}), [A, B]).hold is None
    assert judge(lost(), [A]).hold is None


def test_the_longest_wish_to_wait_counts() -> None:
    short, long = parse_reply("451 4.7.1 Retry in 2 minutes"), parse_reply("451 4.7.1 Retry in 9 minutes")
    assert judge(Accepted(OK, {A: short, B: long}), [A, B, C]).retry_after == timedelta(minutes=9)
    assert judge(Accepted(OK), [A]).retry_after is None


def test_an_ending_after_the_mark_speaks_of_doubt() -> None:
    reading = judge(lost(Stage.DOT, is_marked=True), [A]).reading
    assert (reading.verdict, reading.scope) == (Verdict.IN_DOUBT, Scope.MESSAGE)


addresses = st.lists(
    st.from_regex(r"[a-z]{1,4}@rcpt\.example", fullmatch=True), min_size=1, max_size=6, unique=True
)
replies = st.builds(
    Reply,
    st.integers(200, 599),
    st.sampled_from(["", "5.1.1", "4.2.2", "5.7.1", "4.7.0", "5.4.5"]),
    st.sampled_from(
        ["Ok", "No such user", "Try again later", "quota exceeded", "spam", "Retry in 5 minutes"]
    ),
)
negative = replies.filter(lambda reply: reply.code >= 400)


@st.composite
def endings(draw: st.DrawFn) -> tuple[Outcome, list[str]]:
    """An outcome as a transport may give it, and the addresses it was for."""
    people = draw(addresses)
    refused = {
        address: draw(negative)
        for address in draw(st.lists(st.sampled_from(people), unique=True, max_size=len(people)))
    }
    kind = draw(st.sampled_from(["accepted", "refused", "lost", "marked"]))
    if kind == "accepted":
        if len(refused) == len(people):
            refused.pop(people[0])
        return Accepted(draw(replies.filter(lambda reply: reply.code < 300)), refused), people
    if kind == "refused":
        return Refused(draw(st.sampled_from(Stage)), draw(negative), refused), people
    stage = Stage.DOT if kind == "marked" else draw(st.sampled_from(Stage))
    return Lost(
        stage, draw(st.sampled_from(Cause)), "gone", is_marked=kind == "marked", refused=refused
    ), people


@given(endings())
def test_every_address_gets_exactly_one_judgement(ending: tuple[Outcome, list[str]]) -> None:
    outcome, people = ending
    judgement = judge(outcome, people)
    assert list(judgement.recipients) == people
    assert all(found.status in RecipientStatus for found in judgement.recipients.values())


@given(endings())
def test_nobody_whom_the_server_may_have_the_mail_for_is_tried_again(
    ending: tuple[Outcome, list[str]],
) -> None:
    outcome, people = ending
    judgement = judge(outcome, people)
    reached = isinstance(outcome, Accepted) or (isinstance(outcome, Lost) and outcome.is_marked)
    if reached:
        assert set(judgement.to_retry) <= set(outcome.refused)
    assert not set(judgement.accepted) & set(judgement.to_retry)
    assert bool(judgement.accepted) is isinstance(outcome, Accepted)


@given(endings())
def test_every_judgement_is_a_move_that_the_table_knows(ending: tuple[Outcome, list[str]]) -> None:
    outcome, people = ending
    judgement = judge(outcome, people)
    status = after(AttemptStatus.SENDING, judgement.move)
    assert (status is AttemptStatus.SENT) is isinstance(outcome, Accepted)
    assert (status is AttemptStatus.IN_DOUBT) is (isinstance(outcome, Lost) and outcome.is_marked)
    if status is AttemptStatus.DEFERRED:
        assert judgement.to_retry
    if status is AttemptStatus.FAILED:
        assert not judgement.to_retry


@given(endings())
def test_a_reading_that_holds_the_account_never_fails_the_mail(ending: tuple[Outcome, list[str]]) -> None:
    outcome, people = ending
    judgement = judge(outcome, people)
    if judgement.reading.hold is not None and not isinstance(outcome, Accepted):
        assert may_retry(judgement.reading)
        assert all(
            judgement.recipients[address].status is not RecipientStatus.REFUSED
            for address in people
            if address not in outcome.refused
        )
