"""Which strings are mail addresses, and how they and the names beside them are written down.

Deliberately stricter than RFC 5321 and RFC 5322: no quoted local parts, comments, routes or
address literals, because each has been a way to smuggle recipients past a parser. Lengths follow
RFC 5321 section 4.5.3.1, internationalised addresses RFC 5890 and RFC 6531.
"""

import re
import unicodedata
from dataclasses import dataclass

import idna

from gobii_email.domain.invalid_mail import InvalidMail

MAX_LOCAL_OCTETS = 64
MAX_ADDRESS_OCTETS = 254
MAX_NAME_CHARACTERS = 128

_LOCAL_SYMBOLS = frozenset("!#$%&'*+-/=?^_`{|}~.")
_PLAIN_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+\Z")
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*\Z"
)
# Unassigned to any script, private or half characters, controls, and what turns the direction of text.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]+"
)


_MOST_KNOWN = 4096


@dataclass(frozen=True, slots=True)
class MailAddress:
    """A valid address: `local` as written, `domain` in lower case and as A-labels ("xn--…")."""

    local: str
    domain: str

    @property
    def needs_smtputf8(self) -> bool:
        """Whether only a server that offers SMTPUTF8 (RFC 6531) can be told this address."""
        return not self.local.isascii()

    def __str__(self) -> str:
        return f"{self.local}@{self.domain}"


_KNOWN: dict[str, MailAddress] = {}
"""Addresses that were parsed before: each is asked about several times on its way into a mail."""


def parse_address(text: str, *, field: str = "address") -> MailAddress:
    """The address in `text`, a bare addr-spec; blanks around it are ignored.

    Raises InvalidMail, naming `field`, for everything that is not exactly one plain address.
    """
    known = _KNOWN.get(text)
    if known is not None:
        return known
    parsed = _parsed(text, field)
    if len(_KNOWN) >= _MOST_KNOWN:
        _KNOWN.clear()
    _KNOWN[text] = parsed
    return parsed


def _parsed(text: str, field: str) -> MailAddress:
    address = text.strip(" ")
    if len(address.encode("utf-8", "replace")) > MAX_ADDRESS_OCTETS:
        raise _invalid(field, text, f"is longer than {MAX_ADDRESS_OCTETS} octets")
    if address.count("@") != 1:
        raise _invalid(field, text, "does not have exactly one @")
    local, _, domain = address.partition("@")
    parsed = MailAddress(_checked_local(local, field, text), _checked_domain(domain, field, text))
    if len(str(parsed).encode()) > MAX_ADDRESS_OCTETS:
        raise _invalid(field, text, f"is longer than {MAX_ADDRESS_OCTETS} octets")
    return parsed


def normalise(address: str) -> str:
    """The form under which an address is stored and compared: stripped, in lower case. Validates nothing."""
    return address.strip().lower()


def parse_mailbox(text: str, *, field: str = "address") -> tuple[str, str]:
    """(display name, address) of `Name <a@b>`, `"Name" <a@b>` or `a@b`; the name is "" when there is none."""
    mailbox = text.strip()
    if not mailbox.endswith(">"):
        return "", str(parse_address(mailbox, field=field))
    name, opened, address = mailbox[:-1].rpartition("<")
    if not opened:
        raise _invalid(field, text, "has > without <")
    return clean_display_name(_unquoted(name.strip())), str(parse_address(address, field=field))


def clean_display_name(name: str) -> str:
    """`name` on one line, without control or direction characters, at most 128 characters long."""
    return one_line(name)[:MAX_NAME_CHARACTERS].rstrip()


def one_line(text: str) -> str:
    """`text` safe to put on one line: line breaks and tabs become blanks, other controls vanish.

    Direction overrides and half characters vanish as well; runs of blanks become one.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    return " ".join(_UNPRINTABLE.sub("", re.sub(r"[\t\r\n\v\f\x85\u2028\u2029]+", " ", text)).split())


def _checked_local(local: str, field: str, text: str) -> str:
    if not local:
        raise _invalid(field, text, "has nothing before the @")
    if len(local.encode("utf-8", "replace")) > MAX_LOCAL_OCTETS:
        raise _invalid(field, text, f"has more than {MAX_LOCAL_OCTETS} octets before the @")
    if local.startswith(".") or local.endswith(".") or ".." in local:
        raise _invalid(field, text, "has a dot at the wrong place before the @")
    if not _PLAIN_LOCAL.match(local) and not all(map(_is_local_character, local)):
        raise _invalid(field, text, "has a character before the @ that is not allowed there")
    return local


def _is_local_character(character: str) -> bool:
    if character.isascii():
        return character.isalnum() or character in _LOCAL_SYMBOLS
    return unicodedata.category(character)[0] in "LMN"  # letters, marks, numbers of any script


def is_host_name(labels: str) -> bool:
    """Whether `labels`, in lower case and ASCII, is a host name (RFC 1123) and no address spelt out."""
    return bool(_HOSTNAME.match(labels)) and not labels.rpartition(".")[2].isdigit()


def _checked_domain(domain: str, field: str, text: str) -> str:
    labels = domain.lower()
    if not labels.isascii() or "xn--" in labels:
        try:
            labels = idna.encode(domain, uts46=True).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError):
            raise _invalid(field, text, "has a domain that is not a valid international name") from None
    if not is_host_name(labels):
        raise _invalid(field, text, "has a domain that is not a host name")
    if "." not in labels and labels != "localhost":
        raise _invalid(field, text, "has a domain without a dot")
    return labels


def _unquoted(name: str) -> str:
    if len(name) >= 2 and name.startswith('"') and name.endswith('"'):
        return re.sub(r"\\(.)", r"\1", name[1:-1])
    return name


def _invalid(field: str, text: str, reason: str) -> InvalidMail:
    shown = text if len(text) <= 80 else text[:79] + "…"
    return InvalidMail(field, f"{shown!a} {reason}", "Give an address like name@example.com")
