"""The one table of moves, and what it makes of a message."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.lifecycle import (
    MOVES,
    OPEN,
    REACHED,
    UNSENT,
    AttemptStatus,
    ImpossibleMove,
    MessageStatus,
    Move,
    RecipientStatus,
    after,
    before,
    diagram,
    message_status,
)

# Written out again on purpose: a change of the table has to be made twice.
EXPECTED = """
queued    claimed               sending
queued    postponed             queued
queued    cancelled             cancelled
queued    expired               failed
sending   postponed             queued
sending   released              queued
sending   accepted              sent
sending   confirmed             delivered
sending   temporary             deferred
sending   lost before the mark  deferred
sending   lost after the mark   in_doubt
sending   permanent             failed
sending   expired               failed
sending   cancelled             cancelled
sent      confirmed             delivered
sent      bounced               failed
delivered bounced               failed
in_doubt  found                 sent
in_doubt  confirmed             delivered
in_doubt  absent                deferred
in_doubt  bounced               failed
in_doubt  given up              failed
deferred  still in doubt        in_doubt
"""


def row(line: str) -> tuple[AttemptStatus, Move, AttemptStatus]:
    source, *words, target = line.split()
    return AttemptStatus(source), Move(" ".join(words)), AttemptStatus(target)


POSSIBLE = {(source, move): target for source, move, target in map(row, EXPECTED.strip().splitlines())}


@pytest.mark.parametrize(
    ("status", "move"), product(AttemptStatus, Move), ids=lambda value: str(value).replace(" ", "-")
)
def test_each_status_allows_exactly_the_moves_of_the_table(status: AttemptStatus, move: Move) -> None:
    if (status, move) in POSSIBLE:
        assert after(status, move) is POSSIBLE[status, move]
        assert status in before(move)
    else:
        with pytest.raises(ImpossibleMove, match=f"{status} cannot be {move}"):
            after(status, move)
        assert status not in before(move)


def test_what_failed_or_was_cancelled_never_moves_again() -> None:
    ended = set(AttemptStatus) - {source for source, _ in MOVES}
    assert ended == {AttemptStatus.FAILED, AttemptStatus.CANCELLED}
    assert not ended & OPEN


def test_what_was_deferred_can_only_become_doubtful_again() -> None:
    moves = {target for (source, _), target in MOVES.items() if source is AttemptStatus.DEFERRED}
    assert moves == {AttemptStatus.IN_DOUBT}


def test_every_open_status_can_end() -> None:
    for status in OPEN:
        assert any(source is status and target not in OPEN for (source, _), target in MOVES.items())


def test_what_may_have_reached_a_server_is_never_queued_again() -> None:
    marked = {AttemptStatus.SENT, AttemptStatus.DELIVERED, AttemptStatus.IN_DOUBT}
    assert not [
        move
        for (source, move), target in MOVES.items()
        if source in marked and target in {"queued", "sending"}
    ]


def test_the_diagram_has_one_line_a_move() -> None:
    head, start, *lines = diagram().splitlines()
    assert (head, start.strip()) == ("stateDiagram-v2", "[*] --> queued")
    assert sorted(line.strip() for line in lines) == sorted(
        f"{source} --> {target}: {move}" for (source, move), target in POSSIBLE.items()
    )


R = RecipientStatus


@pytest.mark.parametrize(
    ("recipients", "open_attempt", "was_withdrawn", "expected"),
    [
        ([R.PENDING], "in_doubt", False, "in_doubt"),
        ([R.ACCEPTED, R.PENDING], "in_doubt", False, "in_doubt"),
        ([R.PENDING], "queued", False, "queued"),
        ([R.PENDING], "sending", False, "sending"),
        ([R.ACCEPTED, R.DEFERRED], "queued", False, "queued"),
        ([R.ACCEPTED, R.DEFERRED], "sending", False, "sending"),
        ([R.ACCEPTED], None, False, "sent"),
        ([R.ACCEPTED, R.DELIVERED], None, False, "sent"),
        ([R.DELIVERED, R.DELIVERED], None, False, "delivered"),
        ([R.ACCEPTED, R.REFUSED], None, False, "partially_sent"),
        ([R.DELIVERED, R.BOUNCED], None, False, "partially_sent"),
        ([R.ACCEPTED, R.BOUNCED, R.REFUSED], None, False, "partially_sent"),
        ([R.REFUSED], None, False, "failed"),
        ([R.BOUNCED, R.REFUSED], None, False, "failed"),
        ([R.PENDING, R.PENDING], None, True, "cancelled"),
        ([R.PENDING, R.REFUSED], None, True, "cancelled"),
        ([R.DEFERRED], None, True, "cancelled"),
        ([R.ACCEPTED, R.DEFERRED], None, True, "partially_sent"),
        ([R.BOUNCED, R.DEFERRED], None, True, "failed"),
    ],
)
def test_a_messages_status_follows_from_its_recipients(
    recipients: list[RecipientStatus], open_attempt: str | None, was_withdrawn: bool, expected: str
) -> None:
    status = None if open_attempt is None else AttemptStatus(open_attempt)
    assert message_status(recipients, open_attempt=status, was_withdrawn=was_withdrawn) == expected


@given(
    st.lists(st.sampled_from(RecipientStatus), min_size=1, max_size=6),
    st.one_of(st.none(), st.sampled_from(sorted(OPEN))),
    st.booleans(),
)
def test_a_message_is_over_only_when_its_attempts_are(
    recipients: list[RecipientStatus], open_attempt: AttemptStatus | None, was_withdrawn: bool
) -> None:
    found = message_status(recipients, open_attempt=open_attempt, was_withdrawn=was_withdrawn)
    if open_attempt is not None:
        assert found == MessageStatus(str(open_attempt))
    elif set(recipients) & REACHED:
        assert found in {MessageStatus.SENT, MessageStatus.DELIVERED, MessageStatus.PARTIALLY_SENT}
    else:
        assert found in {MessageStatus.FAILED, MessageStatus.CANCELLED}
    if found is MessageStatus.CANCELLED:
        assert was_withdrawn
    if found is MessageStatus.SENT or found is MessageStatus.DELIVERED:
        assert not set(recipients) & (UNSENT | {RecipientStatus.REFUSED, RecipientStatus.BOUNCED})
