"""Up to where a folder was read: a UID, together with the generation of UIDs that it belongs to.

Kept as text in the platform's forms, `v:<uidvalidity>:<uid>` and the older bare `<uid>`. UIDs only grow
within one UIDVALIDITY, and mean nothing in another (RFC 9051 section 2.3.1.1).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

LAST_UID = 2**32 - 1
"""No UID, and no UIDVALIDITY, is larger."""

_WRITTEN = re.compile(r"(?:v:(\d{1,10}):)?(\d{1,10})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Cursor:
    """Every mail up to `uid` is dealt with; 0 before the first. `uid_validity` is None where unknown."""

    uid: int
    uid_validity: int | None = None

    def __str__(self) -> str:
        return str(self.uid) if self.uid_validity is None else f"v:{self.uid_validity}:{self.uid}"

    def is_of(self, uid_validity: int, uid_next: int | None) -> bool:
        """Whether it is of the generation that the folder has now; without a note, as far as one can see."""
        if self.uid_validity is not None:
            return self.uid_validity == uid_validity
        return uid_next is None or self.uid < uid_next

    def at(self, uid: int) -> "Cursor":
        return replace(self, uid=uid)


def read_cursor(text: str) -> Cursor | None:
    """The cursor in either form; None where there is none, or none that an IMAP server could have meant."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        return None
    uid_validity, uid = (None if part is None else int(part) for part in found.groups())
    if uid is None or max(uid, uid_validity or 0) > LAST_UID:
        return None
    return Cursor(uid, uid_validity)


def windows(first: int, last: int, width: int) -> Iterator[tuple[int, int]]:
    """The UIDs from `first` to `last` in ranges of at most `width`, both ends included."""
    while first <= last:
        end = min(first + width - 1, last)
        yield first, end
        first = end + 1
