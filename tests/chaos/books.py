"""The books of a run: what was submitted, what the server has, and what the database says of it.

Pure, once the rows are read: compares three records that were kept apart, and lists every sentence of the
database that the server's journal does not bear out. Copies are counted by Message-ID and recipient, since a
later attempt may go to the recipients that an earlier one was refused for.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SETTLED = {"sent", "partially_sent", "delivered", "failed", "cancelled"}
_REACHED = {"accepted", "delivered"}
_TAKEN = {"sent", "delivered", "in_doubt"}
_TURNED_DOWN = {"deferred", "failed", "in_doubt"}


@dataclass(frozen=True, slots=True)
class Rows:
    """The database as it stands. Messages and attempts by id; doubts are ids of attempts ever in doubt."""

    messages: Mapping[str, Mapping[str, Any]]
    attempts: Mapping[str, Mapping[str, Any]]
    recipients: Sequence[Mapping[str, Any]]
    doubts: frozenset[str] = frozenset()


@dataclass(slots=True)
class Books:
    """What does not balance, in sentences by kind; all empty when all is well."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    false_sent: list[str] = field(default_factory=list)
    false_failed: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    ghosts: list[str] = field(default_factory=list)
    unmarked_doubts: list[str] = field(default_factory=list)
    dots: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    submitted: int = 0
    copies: int = 0
    allowed_doubles: int = 0
    doubts_taken: int = 0

    def violations(self) -> list[str]:
        kinds = (
            "lost",
            "doubled",
            "false_sent",
            "false_failed",
            "stuck",
            "ghosts",
            "unmarked_doubts",
            "dots",
        )
        found = [f"{kind}: {text}" for kind in kinds for text in getattr(self, kind)]
        if sum(self.statuses.values()) != self.submitted:
            found.append(f"equation: {self.submitted} submitted, {dict(self.statuses)} found")
        return found


def balance(
    submissions: Iterable[Mapping[str, Any]], journal: Iterable[Mapping[str, Any]], rows: Rows
) -> Books:
    """Compares the caller's journal, the server's, and the database's rows."""
    books = Books()
    lines = list(journal)
    known = {str(row["message_id"]).replace("-", ""): row for row in submissions if row["what"] == "accepted"}
    withdrawn = {row["subject"] for row in submissions if row["what"] == "rolled_back"}
    copies = Counter(
        (line["message_id"], recipient)
        for line in lines
        if line["what"] == "copy"
        for recipient in line["recipients"]
    )
    books.submitted, books.copies = len(known), sum(copies.values())
    _judge_messages(books, known, rows)
    _judge_recipients(books, copies, rows)
    _judge_ghosts(books, lines, withdrawn, rows)
    _judge_dots(books, lines, rows)
    return books


def _judge_messages(books: Books, known: Mapping[str, Any], rows: Rows) -> None:
    for message_id, submission in known.items():
        row = rows.messages.get(message_id)
        if row is None:
            books.lost.append(f"{submission['subject']} was accepted and is not in the database")
            continue
        books.statuses[row["status"]] += 1
        if row["status"] not in SETTLED | {"in_doubt"}:
            books.stuck.append(f"{row['subject']} is still {row['status']}")
        # Withdrawn in the middle: some of its recipients had been served already, or perhaps.
        if submission.get("cancelled") and row["status"] not in {"cancelled", "partially_sent", "in_doubt"}:
            books.false_failed.append(f"{row['subject']} was withdrawn and is {row['status']}")
    for message_id in rows.messages.keys() - known.keys():
        books.ghosts.append(f"{rows.messages[message_id]['subject']} was never accepted from a caller")
    for attempt in rows.attempts.values():
        if attempt["status"] == "in_doubt" and attempt["marked_at"] is None:
            books.unmarked_doubts.append(f"attempt {attempt['id']} is in doubt and was never marked")


def _judge_recipients(books: Books, copies: Counter[tuple[str, str]], rows: Rows) -> None:
    doubts: Counter[str] = Counter(
        rows.attempts[attempt]["message_id"] for attempt in rows.doubts if attempt in rows.attempts
    )
    for recipient in rows.recipients:
        message = rows.messages[recipient["message_id"]]
        count = copies[message["rfc_message_id"], recipient["address"]]
        name = f"{message['subject']} to {recipient['address']}"
        if count > 1 and message["on_doubt"] == "resend" and count <= 1 + doubts[recipient["message_id"]]:
            books.allowed_doubles += count - 1
        elif count > 1:
            books.doubled.append(f"{name}: {count} copies, on_doubt={message['on_doubt']}")
        if recipient["status"] in _REACHED and not count:
            books.false_sent.append(f"{name} is {recipient['status']}; no server has it")
        if recipient["status"] not in _REACHED and message["status"] in SETTLED and count:
            books.false_failed.append(f"{name} is {recipient['status']}; the server has it")


def _judge_ghosts(books: Books, lines: Iterable[Mapping[str, Any]], withdrawn: set[str], rows: Rows) -> None:
    ours = {row["rfc_message_id"] for row in rows.messages.values()}
    for line in lines:
        if line["what"] == "copy" and line["message_id"] not in ours:
            kind = "rolled back" if line["subject"] in withdrawn else "unknown"
            books.ghosts.append(f"{line['subject']} ({kind}) was sent")


def _judge_dots(books: Books, lines: Sequence[Mapping[str, Any]], rows: Rows) -> None:
    """Every dot that the server saw ended as sent, as refused, or in doubt."""
    stories: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        if line.get("attempt_id"):
            stories[line["attempt_id"].replace("-", "")].append(line)
    for attempt_id, story in stories.items():
        attempt = rows.attempts.get(attempt_id)
        if attempt is None:
            books.dots.append(f"attempt {attempt_id} sent a dot and has no row")
            continue
        was_in_doubt = attempt_id in rows.doubts
        allowed = _TAKEN if _has(story, "copy") else _TURNED_DOWN if _was_refused(story) else {"in_doubt"}
        if attempt["status"] not in allowed and not was_in_doubt:
            told = [line["what"] for line in story]
            books.dots.append(f"attempt {attempt_id} is {attempt['status']}; the server's story: {told}")
        if attempt["status"] == "in_doubt" and _has(story, "copy"):
            books.doubts_taken += 1


def _has(story: Iterable[Mapping[str, Any]], what: str) -> bool:
    return any(line["what"] == what for line in story)


def _was_refused(story: Iterable[Mapping[str, Any]]) -> bool:
    return any(line["what"] == "fault" and line["do"] == "reply" and line["stage"] == "dot" for line in story)
