"""Reports that machines write for machines: delivery status notifications and complaints.

Reads the fields of RFC 3464 (with RFC 6533's international addresses) and of feedback reports (ARF, RFC
5965) as leniently as the systems that write them are careless. Which part of a mail is a report, and what
prose says where there is none, is decided in returned_mail and bounce_prose.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gobii_email.domain.inbound_mail import Fields
from gobii_email.domain.smtp_replies import safe_text

MAX_RECIPIENTS = 1_000
_MAX_LINES = 20_000


class Action(StrEnum):
    """What became of a recipient (RFC 3464 section 2.3.3), or that they complained."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"
    COMPLAINED = "complained"


class Source(StrEnum):
    """Where in a mail something was read."""

    REPORT = "report fields"
    FEEDBACK = "feedback report"
    NOTIFICATION = "JSON notification"
    HEADER = "own header"
    COPY = "returned copy"
    PROSE = "prose"
    TRANSCRIPT = "transcript in prose"


class Sureness(StrEnum):
    """How far a reading can be relied on; none proves that the mail is genuine."""

    SURE = "sure"
    LIKELY = "likely"
    WEAK = "weak"


@dataclass(frozen=True, slots=True)
class Evidence:
    source: Source
    sureness: Sureness


@dataclass(frozen=True, slots=True)
class ReturnedRecipient:
    """What a report says of one recipient.

    `address` is the final one, `original` the one that was given at submission where the report names it,
    else "". `status` is an enhanced status code (RFC 3463); where none is written it is the bare class,
    such as "5.0.0", and `is_status_written` is False. `diagnostic` is what the refusing server said, safe
    to show.
    """

    address: str
    action: Action
    status: str
    evidence: Evidence
    original: str = ""
    diagnostic: str = ""
    is_status_written: bool = True


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """A whole message/delivery-status: its recipients, and the envelope id that we gave (RFC 3461)."""

    recipients: tuple[ReturnedRecipient, ...]
    envelope_id: str = ""
    original_message_id: str = ""


@dataclass(frozen=True, slots=True)
class FeedbackReport:
    """A message/feedback-report: its kind, such as "abuse", and who complained; () where hidden."""

    kind: str
    recipients: tuple[ReturnedRecipient, ...]


_STATUS = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?![\d]|\.\d)")
_SMTP_CODE = re.compile(r"(?<![\d.])([245])[0-7]\d(?=[ \t:;,\-)\]'\"]|$)")
# In prose, scripts without blanks stand right beside an address; in a field nothing does.
_ADDRESS = re.compile(
    r"(?<![A-Za-z0-9!#$%&*+/?^_{}~.@-])[A-Za-z0-9!#$%&*+/?^_{}~.-][A-Za-z0-9!#$%&'*+/=?^_{}~.-]{0,127}"
    r"@[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9])?"
)
_INTERNATIONAL = re.compile(r"[^\s<>()\[\]:;,\"|@\\]{1,128}@[^\W_](?:[\w.-]{0,253}\w)?")
_TYPED = re.compile(r"[A-Za-z0-9-]{1,20}\s*;\s*(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\\x\{([0-9A-Fa-f]{1,6})\}")
_ABOUT_RECIPIENT = ("final-recipient", "original-recipient", "x-actual-recipient", "action", "status")
_OWN_FIELD = re.compile(r"([A-Za-z][A-Za-z0-9-]{1,60})[ \t]*:(.*)", re.DOTALL)
_ACTIONS = (
    ("deliver", Action.DELIVERED), ("relay", Action.RELAYED), ("expand", Action.EXPANDED),
    ("delay", Action.DELAYED), ("fail", Action.FAILED), ("expire", Action.FAILED), ("error", Action.FAILED),
)  # fmt: skip
_BY_CLASS = {"5": Action.FAILED, "4": Action.DELAYED, "2": Action.DELIVERED}
_CLASSES = {Action.FAILED: "5", Action.DELAYED: "4", Action.COMPLAINED: "2"}


def read_delivery_status(text: str) -> DeliveryReport:
    """The recipients and ids in the body of a message/delivery-status part; never raises.

    Blocks may lack their blank lines, and a block may have blank lines inside: a recipient ends where a field
    that it has already is said again.
    """
    collected = _Collector()
    for name, value in _own_fields(text):
        collected.add(name, value)
    recipients = tuple(filter(None, map(_recipient, collected.blocks)))
    message = collected.message
    return DeliveryReport(
        recipients,
        untyped(message.get("original-envelope-id", "")),
        message.get("x-original-message-id", ""),
    )


def read_feedback(text: str) -> FeedbackReport:
    """The kind and recipients in the body of a message/feedback-report part; never raises."""
    fields = list(_own_fields(text))
    kind = next((value for name, value in fields if name == "feedback-type"), "")
    named = [value for name, value in fields if name in ("original-rcpt-to", "removal-recipient")]
    addresses = dict.fromkeys(filter(None, map(clean_address, named)))
    return FeedbackReport(
        kind.strip().lower(), tuple(complained(address, Source.FEEDBACK) for address in addresses)
    )


def complained(address: str, source: Source, sureness: Sureness = Sureness.SURE) -> ReturnedRecipient:
    return ReturnedRecipient(
        address, Action.COMPLAINED, "", Evidence(source, sureness), is_status_written=False
    )


def status_in(text: str) -> str:
    """The first enhanced status code in `text` that has a detail, else a subject, else any; or ""."""
    found = [match[0] for match in _STATUS.finditer(text[:20_000])]
    return max(found, key=_telling, default="")


def _telling(status: str) -> int:
    return 2 - (status.endswith(".0") + status.endswith(".0.0"))


def class_in(text: str) -> str:
    """The class of the first SMTP reply code in `text`: "2", "4", "5" or ""."""
    found = _SMTP_CODE.search(text[:20_000])
    return found[1] if found else ""


def bare_status(action: Action, text: str = "") -> str:
    """The code that says no more than a class: of the reply code in `text`, else of `action`."""
    if action is Action.COMPLAINED:
        return ""
    return f"{class_in(text) or _CLASSES.get(action, '2')}.0.0"


def addresses_in(text: str) -> list[str]:
    """All that looks like a mail address in `text`, in order, each once."""
    return list(dict.fromkeys(_ADDRESS.findall(text)))


def clean_address(value: str) -> str:
    """The address in a field such as `rfc822; <a@b>`; what is no mail address stays if it is one word."""
    bare = untyped(value)
    if found := _INTERNATIONAL.search(bare[:2_000]):
        return found[0].strip("'`")
    word = bare.strip("<>\"' ")
    return word if word and len(word) <= 254 and not re.search(r"\s", word) else ""


def untyped(value: str) -> str:
    """`value` without its type ("rfc822;"), and with RFC 6533's escapes as characters."""
    typed = _TYPED.fullmatch(value.strip())
    return _ESCAPED.sub(_character, typed[1] if typed else value).strip()


class _Collector:
    """Sorts fields into the message's own and one block for each recipient."""

    def __init__(self) -> None:
        self.message: dict[str, str] = {}
        self.blocks: list[dict[str, str]] = []
        self._is_inside = False

    def add(self, name: str, value: str) -> None:
        if not name:  # a blank line
            self._is_inside = False
        elif name in _ABOUT_RECIPIENT:
            self._add_about_recipient(name, value)
        elif self.blocks and self._is_inside:
            self.blocks[-1].setdefault(name, value)
        else:
            (self.blocks[-1] if self.blocks else self.message).setdefault(name, value)

    def _add_about_recipient(self, name: str, value: str) -> None:
        is_new = not self.blocks or name in self.blocks[-1] or self._begins(name)
        if is_new and len(self.blocks) < MAX_RECIPIENTS:
            self.blocks.append({})
        self._is_inside = True
        self.blocks[-1].setdefault(name, value)

    def _begins(self, name: str) -> bool:
        """Whether `name`, after a blank line, tells that the next recipient begins."""
        return (
            not self._is_inside
            and name.endswith("-recipient")
            and not {"final-recipient", "original-recipient"}.isdisjoint(self.blocks[-1])
        )


def _own_fields(text: str) -> Iterator[tuple[str, str]]:
    """(name in lower case, unfolded value) of each field, and ("", "") for blank lines."""
    name, lines = "", [""]
    for line in text.splitlines()[:_MAX_LINES]:
        if line[:1] in (" ", "\t") and name and not _is_recipient_field(line):
            lines.append(line.strip())
            continue
        if name:
            yield name, " ".join(lines).strip()
            name = ""
        if found := _OWN_FIELD.match(line.strip()[:2_000]):
            name, lines = found[1].lower(), [found[2].strip()]
        elif not line.strip():
            yield "", ""
    if name:
        yield name, " ".join(lines).strip()


def _is_recipient_field(line: str) -> bool:
    """Whether an indented line is a field all the same: some systems indent the whole report."""
    return line.strip().lower().startswith(("final-recipient:", "original-recipient:", "action:", "status:"))


def _recipient(block: Mapping[str, str]) -> ReturnedRecipient | None:
    original = clean_address(block.get("original-recipient", ""))
    address = clean_address(block.get("final-recipient", "")) or original
    address = address or clean_address(block.get("x-actual-recipient", ""))
    if not address:
        return None
    diagnostic = untyped(block.get("diagnostic-code", ""))
    written = status_in(block.get("status", "")) or status_in(diagnostic)
    action = _action(block.get("action", ""), written or bare_status(Action.FAILED, diagnostic))
    return ReturnedRecipient(
        address=address,
        action=action,
        status=written or bare_status(action, diagnostic),
        evidence=Evidence(Source.REPORT, Sureness.SURE if "action" in block else Sureness.LIKELY),
        original=original,
        diagnostic=safe_text(diagnostic),
        is_status_written=bool(written),
    )


def _action(value: str, status: str) -> Action:
    word = value.strip().lower()
    named = next((action for beginning, action in _ACTIONS if word.startswith(beginning)), None)
    return named or _BY_CLASS.get(status[:1], Action.FAILED)


def _character(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 else "\ufffd"


@dataclass(frozen=True, slots=True)
class OriginalMail:
    """What a returned copy, or the header of one, says of the mail itself; "" where it is silent."""

    message_id: str = ""
    attempt_id: str = ""
    microsoft_message_id: str = ""
    recipients: Sequence[str] = field(default_factory=tuple)


def read_copy(fields: Fields) -> OriginalMail:
    """The ids in the header of a returned copy. Rewritten ids stand beside the one that was ours."""
    to = fields.raw("x-hmxmroriginalrecipient") or fields.get("to")
    return OriginalMail(
        message_id=message_id_in(fields.raw("message-id")),
        attempt_id=fields.raw("x-gobii-message-id").strip()[:100],
        microsoft_message_id=message_id_in(fields.raw("x-microsoft-original-message-id")),
        recipients=tuple(addresses_in(to)[:MAX_RECIPIENTS]),
    )


def message_id_in(value: str) -> str:
    """The first message id in a field with its angle brackets; an id that was written without has none."""
    opened = value.find("<")
    closed = value.find(">", opened)
    found = value[opened : closed + 1] if 0 <= opened < closed else value
    bare = "".join(found.split())
    return bare if bare.strip("<>") and len(bare) <= 998 else ""
