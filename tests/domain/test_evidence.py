"""What is proof: whose copy it is, when a habit is one, and where copies are looked for."""

from datetime import UTC, datetime, timedelta

import pytest

from gobii_email.domain.evidence import Copy, Looked, Sight, copy_of, is_same_message, seen
from gobii_email.domain.filing_habit import Habit, Observation, next_look, spoken
from gobii_email.domain.inbound_mail import read_fields
from gobii_email.domain.sent_folders import sent_folders

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEAST = timedelta(minutes=5)


def copies(*attempts: str) -> Looked:
    return Looked(
        [Copy("Sent", 7, number, NOW, name) for number, name in enumerate(attempts, 1)], {"Sent": 7}
    )


@pytest.mark.parametrize(
    ("found", "is_alone", "sight"),
    [
        (copies("mine"), True, Sight.FOUND),
        (copies("mine"), False, Sight.FOUND),
        (copies("other", "mine"), False, Sight.FOUND),
        (copies(""), True, Sight.FOUND),
        (copies(""), False, Sight.UNCLEAR),
        (copies("other"), True, Sight.UNCLEAR),
        (copies("other"), False, Sight.UNCLEAR),
        (copies(), True, Sight.ABSENT),
        (copies(), False, Sight.ABSENT),
    ],
)
def test_whose_copy_it_is(found: Looked, is_alone: bool, sight: Sight) -> None:
    assert seen(found, "mine", is_alone=is_alone) is sight
    assert (copy_of(found, "mine", is_alone=is_alone) is not None) == (sight is Sight.FOUND)


@pytest.mark.parametrize(
    ("header", "is_same"),
    [
        (b"Message-ID: <a@x>\r\n", True),
        (b"message-id:\r\n <a@x>\r\n", True),
        (b"Message-ID: <b@x>\r\nX-Microsoft-Original-Message-ID: <a@x>\r\n", True),
        (b"Message-ID: <b@x>\r\nReferences: <a@x>\r\nIn-Reply-To: <a@x>\r\n", False),
        (b"Message-ID: <a@x> <b@x>\r\n", False),
        (b"Message-ID: a@x\r\n", False),
        (b"", False),
    ],
)
def test_a_mail_is_known_by_its_whole_message_id(header: bytes, is_same: bool) -> None:
    assert is_same_message(read_fields(header + b"\r\n"), "<a@x>") is is_same


def habit(seen_lags: list[float], missed: int = 0, *, missed_first: bool = False) -> Habit:
    there = [Observation(True, timedelta(seconds=lag)) for lag in seen_lags]
    gone = [Observation(False)] * missed
    return Habit([*gone, *there] if missed_first else [*there, *gone])


@pytest.mark.parametrize(
    ("found", "files_itself"),
    [
        (habit([]), False),
        (habit([1, 1]), False),
        (habit([1, 1, 1]), True),
        (habit([1] * 19, missed=1), False),
        (habit([1] * 20, missed=5), True),
        (habit([1] * 99, missed=1, missed_first=True), False),
    ],
    ids=["none", "two", "three", "one missed", "missed long ago", "missed just now"],
)
def test_a_habit_is_three_seen_and_none_missed_lately(found: Habit, files_itself: bool) -> None:
    assert found.files_itself is files_itself


@pytest.mark.parametrize(
    ("found", "after"),
    [
        (habit([2, 2, 2]), LEAST),
        (habit([2, 2, 600]), timedelta(minutes=30)),
        (habit([2] * 99 + [600]), LEAST),
        (habit([2] * 97 + [600, 600, 600]), timedelta(minutes=30)),
    ],
    ids=["the least", "the longest of few", "one in a hundred", "three in a hundred"],
)
def test_proof_takes_three_times_the_lag(found: Habit, after: timedelta) -> None:
    assert found.proof_after(LEAST) == after


def test_a_habit_is_told_in_words() -> None:
    assert habit([2] * 20).sentence() == "files sent mail itself, usually within 2 s; 20 of 20 seen"
    assert habit([2]).sentence() == "not known yet whether it files sent mail itself; 1 of 1 seen"
    assert habit([2] * 4, missed=4).sentence() == "does not reliably file sent mail itself; 4 of 8 seen"
    spans = [timedelta(seconds=seconds) for seconds in (0, 1.2, 119, 121, 7200)]
    assert [spoken(span) for span in spans] == ["1 s", "2 s", "119 s", "3 min", "2 h"]


def test_looks_grow_rarer_and_end_after_a_day() -> None:
    ages, age = [], timedelta(seconds=30)
    while True:
        ages.append(age)
        pause = next_look(age)
        if pause is None:
            break
        age += pause
    minutes = [found / timedelta(minutes=1) for found in ages]
    assert minutes == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1440]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ([("INBOX", []), ("Sent", [])], ("Sent",)),
        ([("Sent", []), ("X", ["\\sent"])], ("X",)),
        ([("SENT ITEMS", []), ("sent", [])], ("sent", "SENT ITEMS")),
        ([("INBOX.Sent", []), ("INBOX/Gesendet", [])], ("INBOX.Sent", "INBOX/Gesendet")),
        ([("Projects/Sent", []), ("Unsent", []), ("Sent by others", [])], ()),
        ([("[Gmail]/All Mail", ["\\all"])], ()),
        ([("S", ["\\sent"]), ("A", ["\\all"])], ("S", "A")),
    ],
)
def test_where_copies_are_looked_for(listed: list[tuple[str, list[str]]], found: tuple[str, ...]) -> None:
    assert sent_folders(listed) == found
