"""What an SMTP server says: a stage, a code, an enhanced code, a text.

Knows the grammar of replies (RFC 5321 section 4.2, RFC 2034, RFC 3463) and how to make hostile
reply text safe to store. What a reply means is decided in classification.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

MAX_TEXT_CHARACTERS = 1024


class Stage(StrEnum):
    """How far the dialogue had come; `DOT` is the server's answer to the finished message."""

    CONNECT = "connect"
    TLS = "tls"
    EHLO = "ehlo"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    DOT = "dot"


_ENHANCED = re.compile(r"^\s*([245]\.\d{1,3}\.\d{1,3})\b")
_LINE = re.compile(r"^(\d{3})(?:[ -](.*))?$", re.DOTALL)
# Control and bidirectional formatting characters: a server must not paint on our screens.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete reply: `code` 200–599, `enhanced` such as "5.7.8" or "", `text` safe to show."""

    code: int
    enhanced: str = ""
    text: str = ""

    @property
    def is_positive(self) -> bool:
        return 200 <= self.code < 400

    @property
    def is_temporary(self) -> bool:
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        return 500 <= self.code < 600

    def __str__(self) -> str:
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def safe_text(raw: bytes | str, *, max_characters: int = MAX_TEXT_CHARACTERS) -> str:
    """Server text without control or bidi characters, on one line, at most `max_characters` long."""
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    text = " ".join(_UNSAFE.sub(" ", text).split())
    return text if len(text) <= max_characters else text[: max_characters - 1] + "…"


def reply_from(code: int, raw: bytes | str) -> Reply:
    """The reply of `code` and the text lines after it (joined by newlines, codes removed)."""
    text = safe_text(raw)
    found = _ENHANCED.match(text)
    if found and found.group(1)[0] == str(code)[0]:
        enhanced = found.group(1)
        rest = text[found.end() :].strip()
        rest = re.sub(rf"(?:^|(?<=\s)){re.escape(enhanced)}\s+", "", rest)
        return Reply(code, enhanced, rest)
    return Reply(code, "", text)


def parse_reply(text: str) -> Reply:
    """The reply written as `535 5.7.8 text`, also in its multi-line form `535-… 535 …`.

    Raises ValueError, naming what is missing, when `text` does not begin with a reply code.
    """
    first = _LINE.match(text.strip())
    if not first or not 200 <= int(first.group(1)) <= 599:
        raise ValueError(f"not an SMTP reply: {text[:60]!r}; expected three digits from 200 to 599 first")
    code = int(first.group(1))
    body = re.sub(rf"(?:^|(?<=\s)){code}[- ](?=\d\.\d|\S)", "", first.group(2) or "")
    return reply_from(code, body)
