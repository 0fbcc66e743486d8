"""What a look into Sent shows about one attempt: it is there, it is not, or nobody can tell.

A copy is known by its header, compared for equality: what a server's SEARCH answers is only where to look.
Attempts of one message share a Message-ID, so where several may have reached the server, only the header
that names the attempt tells whose copy it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gobii_email.domain.inbound_mail import Fields

MESSAGE_IDS = ("message-id", "x-microsoft-original-message-id", "x-google-original-message-id")
"""Header fields that may hold our Message-ID: where a server writes one of its own, ours is in another."""
ATTEMPT = "x-gobii-message-id"


@dataclass(frozen=True, slots=True)
class Copy:
    """A mail with our Message-ID: where it lies, since when, and which attempt it names ("" for none)."""

    folder: str
    uid_validity: int
    uid: int
    filed_at: datetime
    attempt_id: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """What a look that could see everything found. `places` are all folders it saw, with UIDVALIDITY."""

    copies: Sequence[Copy]
    places: Mapping[str, int]


class Sight(StrEnum):
    FOUND = "found"
    ABSENT = "absent"
    UNCLEAR = "unclear"


def copy_of(looked: Looked, attempt_id: str, *, is_alone: bool) -> Copy | None:
    """The copy of the attempt; None when there is none for certain.

    `is_alone` says that no other attempt of its message can have reached the server: then a copy that names
    no attempt is its own as well.
    """
    own = (copy for copy in looked.copies if copy.attempt_id == attempt_id)
    nameless = (copy for copy in looked.copies if is_alone and not copy.attempt_id)
    return next(own, None) or next(nameless, None)


def seen(looked: Looked, attempt_id: str, *, is_alone: bool) -> Sight:
    """A copy of another attempt leaves it open: some servers keep one copy of a Message-ID."""
    if copy_of(looked, attempt_id, is_alone=is_alone) is not None:
        return Sight.FOUND
    return Sight.UNCLEAR if looked.copies else Sight.ABSENT


def is_same_message(fields: Fields, message_id: str) -> bool:
    """Whether a field of the header is exactly this Message-ID."""
    return any(name in MESSAGE_IDS and value.strip() == message_id for name, value in fields.items)
