"""How header fields are checked, encoded and folded, so that they say exactly what was meant.

Writes every field itself instead of letting a parser read and refold it: the `email` package of
Python 3.11.7 decodes encoded words on the way in and lets line breaks out again. Folding follows
RFC 5322 section 2.2.3, encoded words RFC 2047, parameters RFC 2231.
"""

import base64
import binascii
import quopri
import re
from collections.abc import Iterable, Mapping
from typing import AnyStr
from urllib.parse import quote

from gobii_email.domain.invalid_mail import InvalidMail

MAX_VALUE_CHARACTERS = 998
MAX_EXTRA_HEADERS = 50

_FOLD_AT = 76
_FOLD = "\r\n "
_ALLOWED = re.compile(
    r"(?:List-[A-Za-z]+(?:-[A-Za-z]+)*|Auto-Submitted|Precedence|Importance|X-[A-Za-z0-9-]{1,60})\Z",
    re.ASCII | re.IGNORECASE,
)
# Ours, and those by which providers take orders: X-SMTPAPI or X-MC-BccAddress would add recipients.
_RESERVED = (
    "x-gobii-", "x-smtpapi", "x-mc-", "x-mandrill-", "x-mailgun-", "x-pm-", "x-ses-", "x-mj-", "x-msys-",
    "x-sib-", "x-bcc", "x-envelope-", "x-rcpt-", "x-failed-recipients",
)  # fmt: skip
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?\s]*)\?=")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*\Z")
_PLAIN_IN_WORD = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """`headers` as they may be sent: allowed names, values with encoded words decoded.

    Allowed are List-*, Auto-Submitted, Precedence, Importance and X-* except X-Gobii-* and names by
    which providers are given orders. Raises InvalidMail for any other name, for a name given twice,
    and for a value that has control characters, be it only after decoding.
    """
    if len(headers) > MAX_EXTRA_HEADERS:
        raise InvalidMail("headers", f"there are more than {MAX_EXTRA_HEADERS}", "Give fewer")
    if len({name.lower() for name in headers}) < len(headers):
        raise InvalidMail("headers", "one is given twice", "Give each header once")
    return {_checked_name(name): _checked_value(name, value) for name, value in headers.items()}


def encode_text(text: str) -> str:
    """One line of free text as a folded field body that reads as exactly `text` once decoded."""
    if _is_plain(text):
        return fold(text.split(" "))
    return _FOLD.join(_encoded_words(text))


def encode_mailbox(name: str, address: str) -> str:
    """`name <address>` as a field body: the name plain, quoted or encoded, whichever it needs."""
    if not name:
        return address
    if not _is_plain(name):
        phrase = _FOLD.join(_encoded_words(name))
    elif _ATOMS.match(name):
        phrase = name
    else:
        phrase = '"' + re.sub(r'([\\"])', r"\\\1", name) + '"'
    return fold([phrase, f"<{address}>"])


def encode_parameter(name: str, value: str) -> str:
    """`; name=value` for a Content-Type or Content-Disposition, in RFC 2231 form where it must be."""
    if _is_plain(value) and not set(value) & set('"\\'):
        return f';{_FOLD}{name}="{value}"'
    pieces = _chunks(("utf-8''", *(quote(character, safe="") for character in value)), "", longest=55)
    if len(pieces) == 1:
        return f";{_FOLD}{name}*={pieces[0]}"
    return "".join(f";{_FOLD}{name}*{number}*={piece}" for number, piece in enumerate(pieces))


def fold(words: Iterable[str]) -> str:
    """`words` with blanks between them, and a line break before a blank wherever a line gets too long."""
    text, width = "", 0
    for word in words:
        if not text:
            text, width = word, 16 + len(word)  # room for the field's name
        elif width + 1 + len(word) <= _FOLD_AT:
            text, width = f"{text} {word}", width + 1 + len(word)
        else:
            text, width = f"{text}{_FOLD}{word}", 1 + len(word)
    return text


def decode_words(text: str) -> str:
    """`text` with its encoded words decoded, as often as it takes; ValueError if one cannot be."""
    while (decoded := _ENCODED_WORD.sub(_decoded_word, text)) != text:
        text = decoded
    return text


def _checked_name(name: str) -> str:
    if not _ALLOWED.match(name) or name.lower().startswith(_RESERVED):
        raise InvalidMail(
            "headers",
            f"{name[:80]!a} may not be set",
            "Allowed are Reply-To (as reply_to), List-*, Auto-Submitted, Precedence, Importance and X-* "
            "except reserved ones",
        )
    return name


def _checked_value(name: str, value: str) -> str:
    if len(value) > MAX_VALUE_CHARACTERS:
        raise InvalidMail(
            "headers", f"the value of {name} is longer than {MAX_VALUE_CHARACTERS}", "Shorten it"
        )
    try:
        decoded = decode_words(value)
    except ValueError:
        raise InvalidMail(
            "headers", f"the value of {name} cannot be decoded", "Write it in plain text"
        ) from None
    if _CONTROL.search(value) or _CONTROL.search(decoded):
        raise InvalidMail("headers", f"the value of {name} has control characters", "Write it on one line")
    if not decoded.strip():
        raise InvalidMail("headers", f"the value of {name} is empty", "Leave the header out")
    return " ".join(decoded.split())


def _decoded_word(found: re.Match[str]) -> str:
    charset, encoding, payload = found.groups()
    try:
        raw = payload.encode("ascii")
        raw = (
            base64.b64decode(raw, validate=True)
            if encoding in "bB"
            else quopri.decodestring(raw, header=True)
        )
        return raw.decode(charset.partition("*")[0])
    except (UnicodeError, LookupError, binascii.Error) as error:
        raise ValueError(f"an encoded word is damaged: {type(error).__name__}") from None


def _is_plain(text: str) -> bool:
    """Whether `text` can stand as it is: printable ASCII, nothing like an encoded word, foldable."""
    return (
        text.isascii()
        and text.isprintable()
        and "=?" not in text
        and max(map(len, text.split(" ")), default=0) <= 900
    )


def _encoded_words(text: str) -> list[str]:
    """`text` as encoded words of at most 75 characters, none of which splits a character."""
    quoted = [_quoted(character) for character in text]
    if sum(map(len, quoted)) <= len(text.encode()) * 4 / 3 + 4:
        return [f"=?utf-8?q?{payload}?=" for payload in _chunks(quoted, "", longest=50)]
    octets = [character.encode() for character in text]
    return [
        f"=?utf-8?b?{base64.b64encode(payload).decode()}?=" for payload in _chunks(octets, b"", longest=36)
    ]


def _quoted(character: str) -> str:
    if character == " ":
        return "_"
    return "".join(chr(octet) if octet in _PLAIN_IN_WORD else f"={octet:02X}" for octet in character.encode())


def _chunks(tokens: Iterable[AnyStr], empty: AnyStr, *, longest: int) -> list[AnyStr]:
    """`tokens` joined to pieces no longer than `longest`, none of them split."""
    chunks = [empty]
    for token in tokens:
        if len(chunks[-1]) + len(token) > longest:
            chunks.append(empty)
        chunks[-1] += token
    return chunks
