"""How far a folder was read, in both forms of the platform."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.mailbox_cursor import LAST_UID, Cursor, read_cursor, windows

UIDS = st.integers(0, LAST_UID)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("v:1795292296:7", Cursor(7, 1795292296)),
        ("7", Cursor(7)),
        (" 7 ", Cursor(7)),
        ("0", Cursor(0)),
        ("", None),
        ("v:1:", None),
        ("v::1", None),
        ("h:123456", None),
        ("-1", None),
        ("7.0", None),
        ("٧", None),
        ("4294967296", None),
        ("v:4294967296:1", None),
        ("9" * 5000, None),
    ],
)
def test_both_forms_are_read_and_nothing_else_is(text: str, found: Cursor | None) -> None:
    assert read_cursor(text) == found


@given(UIDS, st.none() | UIDS)
def test_what_is_written_is_read_as_it_was(uid: int, uid_validity: int | None) -> None:
    cursor = Cursor(uid, uid_validity)
    assert read_cursor(str(cursor)) == cursor


def test_a_cursor_belongs_to_its_generation_alone() -> None:
    assert Cursor(7, 3).is_of(3, 8) and not Cursor(7, 3).is_of(4, 100)
    assert Cursor(7).is_of(3, 8) and Cursor(7).is_of(3, None)
    assert not Cursor(7).is_of(3, 7), "there never was such a mail in this generation"


@given(st.integers(1, 2000), st.integers(0, 2000), st.integers(1, 300))
def test_windows_cover_every_uid_once(first: int, last: int, width: int) -> None:
    found = list(windows(first, last, width))
    covered = [uid for start, end in found for uid in range(start, end + 1)]
    assert covered == list(range(first, last + 1))
    assert all(end - start < width for start, end in found)
