"""What a bounce says that is written for people only: who was not reached, and why.

For systems older than RFC 3464 or careless of it. Recipients are found by where they stand, not by who
wrote: alone or first on a line, behind a label, in a sentence that says failure, in a quoted SMTP dialogue;
the strongest of these kinds alone is believed. Words and languages are in bounce_phrases.
"""

import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice

from gobii_email.domain import bounce_phrases as phrases
from gobii_email.domain.dsn import (
    MAX_RECIPIENTS,
    Action,
    Evidence,
    ReturnedRecipient,
    Source,
    Sureness,
    addresses_in,
    bare_status,
    class_in,
    status_in,
)
from gobii_email.domain.smtp_replies import safe_text

MAX_LINES = 2_000
MAX_LINE_CHARACTERS = 600
_SENTENCE_CHARACTERS = 160
_MAX_MENTIONS = 3_000

_COPIED_FIELD = re.compile(
    r"(?:Received|Return-Path|Message-ID|MIME-Version|DKIM-Signature|X-[A-Za-z][\w-]*|Delivered-To):\s",
    re.IGNORECASE,
)
_MAILTO_ALONE = re.compile(r"[^@:]{1,80}[<\[(]mailto:([^\s>\])]{1,320})[>\])]\s*", re.IGNORECASE)
_OPENING = " \t\"'<([{>*•-:`“«"
_CLOSING = " \t\"'>)]}`”»"
_NAME_BEFORE = re.compile(r"[^@:]{1,80}[<(\[]\Z")
_DATE = re.compile(r"^(?:on|am|le|el|il|op|em|den|på|dne) .{0,20}\d|\d{1,4}[./-]\d{1,2}[./-]\d")
_LABEL_END = re.compile(r"\s*[:：=]?\s*[\"'<(\[`]*(?:smtp:|mailto:|rfc822[;:])?\s*<?\Z")
_REPLY = re.compile(r"rcpt to|(?:said|response|returned|error)\W{1,5}[45]\d\d\b|\b55\d [^\d]")
_TRANSCRIPT = re.compile(r"rcpt to|^\W{0,6}[245]\d\d[ -]|said:|responded|response")


class Position(IntEnum):
    """How an address stands in a report, strongest first."""

    LISTED = 1
    SENTENCE = 2
    TRANSCRIPT = 3
    ADDRESSED = 4


@dataclass(frozen=True, slots=True)
class Mention:
    address: str
    line: int
    position: Position


@dataclass(frozen=True, slots=True)
class Prose:
    """The text of a report and, apart from it, of the mail that it returns."""

    lines: tuple[str, ...]
    copy: str = ""

    @property
    def flat(self) -> str:
        """The report in lower case on one line."""
        return " ".join(" ".join(self.lines).lower().split())

    @property
    def says_failure(self) -> bool:
        """Whether words say so, or a code that needs none."""
        return (
            bool(phrases.FAILURE.search(self.flat))
            or self.says_delay
            or status_in(self.flat)[:1] in ("4", "5")
        )

    @property
    def has_reply(self) -> bool:
        """Whether it quotes what a mail server said."""
        return bool(status_in(self.flat) or _REPLY.search(self.flat))

    @property
    def says_delay(self) -> bool:
        return bool(phrases.DELAY.search(self.flat))


def split_prose(text: str) -> Prose:
    """`text` divided where the returned mail begins; only its first lines are looked at."""
    lines = [line[:MAX_LINE_CHARACTERS] for line in text.splitlines()[:MAX_LINES]]
    end = next((number for number, line in enumerate(lines) if _begins_copy(line, number)), len(lines))
    return Prose(tuple(lines[:end]), "\n".join(lines[end:]))


def recipients_in(
    prose: Prose, *, subject: str = "", named: Sequence[str] = (), strangers: Set[str] = frozenset()
) -> tuple[ReturnedRecipient, ...]:
    """Those who were not reached. `named` are known from a header already, and only looked up.

    `strangers` are addresses, in lower case, that belong to the report's own sender and reader: they are
    taken for recipients only where nobody else is named.
    """
    mentions = _strongest(list(islice(_mentions(prose.lines), _MAX_MENTIONS)), strangers)
    action = _action(prose, subject)
    if named:
        lines = {mention.address.lower(): mention.line for mention in mentions}
        mentions = [Mention(name, lines.get(name.lower(), -1), Position.LISTED) for name in named]
    return tuple(
        _recipient(prose, mention, mentions, action, is_named=bool(named))
        for mention in mentions[:MAX_RECIPIENTS]
    )


def is_report_subject(subject: str) -> bool:
    """Whether only programs write such a subject, about mail that did not arrive."""
    return not phrases.PEOPLES_SUBJECT.match(subject) and bool(
        phrases.FAILURE_SUBJECT.search(" ".join(subject.lower().split())[:1_000])
    )


def is_daemon(sender: str) -> bool:
    """Whether a From field names a program that carries mail."""
    return bool(phrases.DAEMON.search(sender.lower()[:1_000]))


def _begins_copy(line: str, number: int) -> bool:
    if number and _COPIED_FIELD.match(line):
        return True
    return bool(phrases.COPY.search(" ".join(line.lower().split())))


def _mentions(lines: Sequence[str]) -> Iterable[Mention]:
    before = ""
    for number, line in enumerate(lines):
        if "@" in line:
            yield from _mentions_on(line, before, number)
        before = line


def _mentions_on(line: str, before: str, number: int) -> Iterable[Mention]:
    if alone := _MAILTO_ALONE.fullmatch(line):
        line = alone[1]
    rest = line
    for address in addresses_in(line):
        at = rest.find(address)
        prefix, rest = rest[:at], rest[at + len(address) :]
        position = _position(prefix.lower(), rest.lower(), before.lower())
        if position:
            yield Mention(address, number, position)


def _position(prefix: str, suffix: str, before: str) -> Position | None:
    if phrases.NEVER.search(prefix):
        return None
    if _TRANSCRIPT.search(prefix):
        return Position.TRANSCRIPT
    if not prefix.strip(_OPENING) and _ends_entry(suffix):
        return Position.LISTED
    if _is_label(prefix):
        return Position.LISTED
    if _NAME_BEFORE.fullmatch(prefix) and not suffix.strip(_CLOSING):
        return Position.LISTED
    if prefix.strip() == "to:":
        return Position.ADDRESSED
    leading = f"{before} {prefix}"[-_SENTENCE_CHARACTERS:]
    if phrases.CONTACT.search(leading):
        return None
    sentence = f"{leading} {suffix[:_SENTENCE_CHARACTERS]}"
    return Position.SENTENCE if phrases.FAILURE.search(sentence) or phrases.DELAY.search(sentence) else None


def _ends_entry(suffix: str) -> bool:
    """Whether what follows an address at the beginning of a line is a reason, not the rest of a sentence."""
    rest = suffix.lstrip(_CLOSING)
    return (
        not rest
        or rest[0] in ":;,.[(-=|<#"
        or bool(_DATE.search(rest) or phrases.FAILURE.search(rest) or status_in(rest) or class_in(rest))
    )


def _is_label(prefix: str) -> bool:
    found = list(phrases.LABEL.finditer(prefix, max(0, len(prefix) - _SENTENCE_CHARACTERS)))[-1:]
    return bool(found and _LABEL_END.match(prefix, found[0].end()))


def _strongest(mentions: Sequence[Mention], strangers: Set[str]) -> list[Mention]:
    """One mention of each address in the strongest position that any has; helpers and strangers last."""
    first: dict[str, Mention] = {}
    for mention in sorted(mentions, key=lambda mention: (mention.position, mention.line)):
        first.setdefault(mention.address.lower(), mention)
    likely = [mention for key, mention in first.items() if not _is_helper(key) and key not in strangers]
    candidates = likely or [m for key, m in first.items() if key in strangers] or list(first.values())
    best = min((mention.position for mention in candidates), default=None)
    return [mention for mention in candidates if mention.position == best]


def _is_helper(address: str) -> bool:
    return bool(phrases.ROLE.match(address.partition("@")[0]))


def _action(prose: Prose, subject: str) -> Action:
    text = f"{subject.lower()} {prose.flat}"
    if phrases.SUCCESS.search(text) and not prose.says_failure:
        return Action.DELIVERED
    if phrases.POSTFIX_RETRIES in text or "warning message only" in text:
        return Action.DELAYED
    return Action.DELAYED if phrases.DELAY.search(text) and not phrases.FINAL.search(text) else Action.FAILED


def _recipient(
    prose: Prose, mention: Mention, all_mentions: Sequence[Mention], action: Action, *, is_named: bool
) -> ReturnedRecipient:
    block = _block(prose.lines, mention, all_mentions)
    dialogue = _lines_about(prose.lines, mention.address)
    everything = "\n".join(prose.lines)
    is_alone = len(all_mentions) == 1
    status = status_in(dialogue) or status_in(block) or (status_in(everything) if is_alone else "")
    return ReturnedRecipient(
        address=mention.address,
        action=action,
        status=status or bare_status(action, "" if action is Action.DELAYED else block or everything),
        evidence=_evidence(mention.position, is_named),
        diagnostic=safe_text(block or dialogue),
        is_status_written=bool(status),
    )


def _evidence(position: Position, is_named: bool) -> Evidence:
    if is_named:
        return Evidence(Source.HEADER, Sureness.SURE)
    match position:
        case Position.TRANSCRIPT:
            return Evidence(Source.TRANSCRIPT, Sureness.LIKELY)
        case Position.LISTED:
            return Evidence(Source.PROSE, Sureness.LIKELY)
    return Evidence(Source.PROSE, Sureness.WEAK)


def _block(lines: Sequence[str], mention: Mention, all_mentions: Sequence[Mention]) -> str:
    """The lines from a mention to the next one of somebody else."""
    if mention.line < 0:
        return ""
    end = min((other.line for other in all_mentions if other.line > mention.line), default=len(lines))
    return "\n".join(lines[mention.line : end])


def _lines_about(lines: Sequence[str], address: str) -> str:
    """The lines that name `address` together with a code."""
    wanted = address.lower()
    return "\n".join(line for line in lines if wanted in line.lower() and (status_in(line)))
