"""The life of an attempt, of a recipient and of a message: everything that affects it lives in this file.

One table says which move leads from which status to which; nothing else changes a status. The message's
status follows from its recipients. The diagram in docs/lifecycle.md is drawn from the table.
"""

from collections.abc import Iterable
from enum import IntEnum, StrEnum


class MessageStatus(StrEnum):
    PENDING_APPROVAL = "pending_approval"
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    PARTIALLY_SENT = "partially_sent"
    DELIVERED = "delivered"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    CANCELLED = "cancelled"


class AttemptStatus(StrEnum):
    QUEUED = "queued"
    SENDING = "sending"
    SENT = "sent"
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    IN_DOUBT = "in_doubt"
    CANCELLED = "cancelled"


class RecipientStatus(StrEnum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    DEFERRED = "deferred"
    REFUSED = "refused"
    BOUNCED = "bounced"
    DELIVERED = "delivered"


class Provider(StrEnum):
    SMTP = "smtp"
    POSTMARK = "postmark"
    SIMULATION = "postmark_simulation"


class Priority(IntEnum):
    """Whose turn it is first within one sender's mail."""

    INTERACTIVE = 0
    BULK = 1


class OnDoubt(StrEnum):
    HOLD = "hold"
    RESEND = "resend"


class Move(StrEnum):
    """What happens to an attempt. Each value is the word that the diagram and the timeline use."""

    CLAIMED = "claimed"
    POSTPONED = "postponed"  # nothing was said to any server: no attempt is used up
    RELEASED = "released"  # its worker was lost before the connection was opened
    ACCEPTED = "accepted"
    TEMPORARY = "temporary"
    LOST_BEFORE_MARK = "lost before the mark"
    LOST_AFTER_MARK = "lost after the mark"
    PERMANENT = "permanent"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    CONFIRMED = "confirmed"
    BOUNCED = "bounced"
    FOUND = "found"
    ABSENT = "absent"
    GIVEN_UP = "given up"
    STILL_IN_DOUBT = "still in doubt"  # it was sent again without proof, and that came to nothing


S = AttemptStatus
MOVES: dict[tuple[AttemptStatus, Move], AttemptStatus] = {
    (S.QUEUED, Move.CLAIMED): S.SENDING,
    (S.QUEUED, Move.POSTPONED): S.QUEUED,
    (S.QUEUED, Move.CANCELLED): S.CANCELLED,
    (S.QUEUED, Move.EXPIRED): S.FAILED,
    (S.SENDING, Move.POSTPONED): S.QUEUED,
    (S.SENDING, Move.RELEASED): S.QUEUED,
    (S.SENDING, Move.ACCEPTED): S.SENT,
    (S.SENDING, Move.CONFIRMED): S.DELIVERED,
    (S.SENDING, Move.TEMPORARY): S.DEFERRED,
    (S.SENDING, Move.LOST_BEFORE_MARK): S.DEFERRED,
    (S.SENDING, Move.LOST_AFTER_MARK): S.IN_DOUBT,
    (S.SENDING, Move.PERMANENT): S.FAILED,
    (S.SENDING, Move.EXPIRED): S.FAILED,
    (S.SENDING, Move.CANCELLED): S.CANCELLED,
    (S.SENT, Move.CONFIRMED): S.DELIVERED,
    (S.SENT, Move.BOUNCED): S.FAILED,
    (S.DELIVERED, Move.BOUNCED): S.FAILED,
    (S.IN_DOUBT, Move.FOUND): S.SENT,
    (S.IN_DOUBT, Move.CONFIRMED): S.DELIVERED,
    (S.IN_DOUBT, Move.ABSENT): S.DEFERRED,
    (S.IN_DOUBT, Move.BOUNCED): S.FAILED,
    (S.IN_DOUBT, Move.GIVEN_UP): S.FAILED,
    (S.DEFERRED, Move.STILL_IN_DOUBT): S.IN_DOUBT,
}

OPEN = frozenset({S.QUEUED, S.SENDING, S.IN_DOUBT})
"""An attempt that may still change by itself; a message has at most one of these."""

REACHED = frozenset({RecipientStatus.ACCEPTED, RecipientStatus.DELIVERED})
UNSENT = frozenset({RecipientStatus.PENDING, RecipientStatus.DEFERRED})


class ImpossibleMove(Exception):
    """The table has no such move: a bug in the caller, or a row that somebody else moved."""


def after(status: AttemptStatus, move: Move) -> AttemptStatus:
    """The status that `move` leads to. Raises ImpossibleMove when the table has no such row."""
    try:
        return MOVES[status, move]
    except KeyError:
        raise ImpossibleMove(f"an attempt that is {status} cannot be {move}") from None


def before(move: Move) -> frozenset[AttemptStatus]:
    """The statuses from which `move` is possible."""
    return frozenset(source for source, possible in MOVES if possible is move)


def message_status(
    recipients: Iterable[RecipientStatus], *, open_attempt: AttemptStatus | None, was_withdrawn: bool = False
) -> MessageStatus:
    """A message's status, from its recipients and the attempt that is still open, if any.

    `was_withdrawn` says that somebody cancelled it; it counts only where nothing was accepted.
    """
    statuses = set(recipients)
    if open_attempt is AttemptStatus.IN_DOUBT:
        return MessageStatus.IN_DOUBT
    if open_attempt is AttemptStatus.SENDING:
        return MessageStatus.SENDING
    if open_attempt is AttemptStatus.QUEUED:
        return MessageStatus.QUEUED
    if was_withdrawn and not statuses & (REACHED | {RecipientStatus.BOUNCED}):
        return MessageStatus.CANCELLED
    if not statuses & REACHED:
        return MessageStatus.FAILED
    if statuses == {RecipientStatus.DELIVERED}:
        return MessageStatus.DELIVERED
    return MessageStatus.SENT if statuses <= REACHED else MessageStatus.PARTIALLY_SENT


def diagram() -> str:
    """The table as a Mermaid state diagram, one line a move."""
    lines = [f"    {source} --> {target}: {move}" for (source, move), target in MOVES.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> queued", *lines])
