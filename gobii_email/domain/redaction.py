"""Taking secrets and addresses out of text that was not written by us.

Knows the shapes in which credentials appear in mail dialogues, URLs and headers. The second line of
defence: transports mask the very secrets they used, and here only shapes are known.
"""

import re
from collections.abc import Iterable

MASK = "********"

_SHAPES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?i)\b(AUTH\s+[A-Z][A-Z0-9-]*\s+)\S+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(Bearer\s+)\S+"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@]+@"), rf"\1{MASK}@"),
    (
        re.compile(r"(?i)(\"?\b(?:password|passwd|secret|access_token|refresh_token)\"?\s*[:=]\s*)\S+"),
        rf"\1{MASK}",
    ),
    (re.compile(r"\b(334[ -])[A-Za-z0-9+/]{4,}={0,2}"), rf"\1{MASK}"),
    # Google's access tokens, and JSON web tokens.
    (re.compile(r"\bya29\.[\w.-]+"), MASK),
    (re.compile(r"\beyJ[\w-]{6,}(?:\.[\w-]*)*"), MASK),
    # The base64 of what SASL PLAIN (a NUL first) and XOAUTH2 ("user=" first) send.
    (re.compile(r"\bA[A-P][A-Za-z0-9+/]{10,}={0,2}"), MASK),
    (re.compile(r"\bdXNlcj[A-Za-z0-9+/]{4,}={0,2}"), MASK),
)
_ADDRESS = re.compile(r"(?:\"[^\"\s]*\"|[^\s<>@\"'(),:;\[\]]+)@(?:\[[^\]\s]+\]|[\w.-]*\w)")


def without_credentials(text: str) -> str:
    """`text` with everything masked that has the shape of a password, a token or a login."""
    for shape, replacement in _SHAPES:
        text = shape.sub(replacement, text)
    return text


def without_addresses(text: str) -> str:
    """`text` with each mail address replaced by `<address>`."""
    return _ADDRESS.sub("<address>", text)


def without(text: str, words: Iterable[str]) -> str:
    """`text` with each of `words` of three characters or more masked, in upper or lower case."""
    for word in words:
        if len(word) >= 3:
            text = re.sub(re.escape(word), MASK, text, flags=re.IGNORECASE)
    return text
