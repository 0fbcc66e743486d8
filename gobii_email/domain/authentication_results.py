"""What the server of a mailbox found out about who really sent a mail: SPF, DKIM and DMARC (RFC 8601).

Anybody can write Authentication-Results into a mail, so only the topmost field counts, and only where its
authserv-id is the mailbox's own server: of the same organisation as the IMAP host, or known of its provider.
A field further down counts where a provider is known to write several. A server that neither writes the field
nor removes strangers' ones can be lied to: then nothing here proves anything.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from gobii_email.domain.inbound_mail import Fields

_FIELD = "authentication-results"
_MAX_CHARACTERS = 8_000
_MAX_FIELDS = 5
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_RESULT = re.compile(r"([a-z0-9-]{1,20})(?:\s*/\s*\d+)?\s*=\s*([a-z]{1,20})", re.IGNORECASE)
_PROPERTY = re.compile(r"(smtp|header|policy|body)\.([a-z-]{1,40})\s*=\s*([^\s;]{1,320})", re.IGNORECASE)

# IMAP host (or the end of it): the ids its provider writes, of which some write several fields a mail.
_PROVIDERS_IDS = {
    "imap.gmail.com": ("mx.google.com",),
    "imap.mail.me.com": ("icloud.com", "apple.com"),
    "imap.fastmail.com": ("messagingengine.com", "fastmail.com"),
    "imap.zoho.com": ("zohomail.com", "zoho.com"),
    "imap.zoho.eu": ("zohomail.eu", "zoho.eu"),
    "imap.aol.com": ("aol.com", "yahoo.com"),
}
_WITHOUT_ID = ("outlook.office365.com", "imap-mail.outlook.com", "outlook.office.com")
"""Microsoft's own field has no authserv-id; those of strangers are renamed on arrival."""
_SECOND_LEVEL = frozenset(["ac", "co", "com", "edu", "gob", "gov", "mil", "ne", "net", "or", "org"])


class Authentication(StrEnum):
    """As ReceivedMail.Authentication."""

    PASSED = "pass"
    FAILED = "fail"
    UNKNOWN = "none"


@dataclass(frozen=True, slots=True)
class Assessment:
    """Whether From is true. `domain` is the one that was proven, "" where none was; `text` is a sentence."""

    verdict: Authentication
    domain: str
    text: str


@dataclass(frozen=True, slots=True)
class _Result:
    method: str
    result: str
    properties: tuple[tuple[str, str], ...]

    def domains(self, *names: str) -> set[str]:
        """The domains in the properties `names`, such as header.d."""
        found = (
            value.rpartition("@")[2].strip("<>\"'.").lower()
            for name, value in self.properties
            if name in names
        )
        return set(filter(None, found))


NOTHING = Assessment(Authentication.UNKNOWN, "", "The mailbox's server says nothing of who sent it.")


def assess(fields: Fields, sender: str, imap_host: str) -> Assessment:
    """What the server at `imap_host` says of a mail from `sender`, the address in From."""
    domain = sender.rpartition("@")[2].lower()
    results = list(_trusted_results(fields, imap_host.strip().lower().rstrip(".")))
    if not results or not domain:
        return NOTHING
    dmarc = next((one for one in results if one.method == "dmarc"), None)
    if dmarc is not None and dmarc.result in ("pass", "fail"):
        return _by_dmarc(dmarc, domain)
    proven = next((one for one in results if one.result == "pass" and _vouches(one, domain)), None)
    if proven is not None:
        return Assessment(Authentication.PASSED, domain, f"{proven.method.upper()} proves {domain}.")
    refuted = next((one for one in results if one.result == "fail" and _refutes(one, domain)), None)
    if refuted is not None:
        text = f"{refuted.method.upper()} fails for {domain}: somebody else may have sent it."
        return Assessment(Authentication.FAILED, "", text)
    return Assessment(Authentication.UNKNOWN, "", f"The mailbox's server could not prove {domain}.")


def _by_dmarc(dmarc: _Result, domain: str) -> Assessment:
    of = dmarc.domains("header.from")
    if dmarc.result == "fail" or (of and of != {domain}):
        what = "fails" if dmarc.result == "fail" else f"is about {', '.join(sorted(of))}, not"
        return Assessment(
            Authentication.FAILED, "", f"DMARC {what} for {domain}: somebody else may have sent it."
        )
    return Assessment(Authentication.PASSED, domain, f"DMARC proves {domain}.")


def _vouches(one: _Result, domain: str) -> bool:
    """Whether a pass is of `domain` or one above it; of one below, somebody else may have charge."""
    return any(domain == of or domain.endswith(f".{of}") for of in _domains_of(one) if "." in of)


def _refutes(one: _Result, domain: str) -> bool:
    return one.method == "compauth" or domain in _domains_of(one)


def _domains_of(one: _Result) -> set[str]:
    match one.method:
        case "dkim":
            return one.domains("header.d") or one.domains("header.i")
        case "spf":
            return one.domains("smtp.mailfrom") or one.domains("smtp.helo")
    return set()


def _trusted_results(fields: Fields, imap_host: str) -> Iterator[_Result]:
    """Those of the topmost field if it is the server's own, and of what its provider wrote right below."""
    seen: set[str] = set()
    written = [value for name, value in fields.items if name == _FIELD][:_MAX_FIELDS]
    for number, value in enumerate(written):
        identity, results = _parsed(value)
        if identity in seen or not _is_own(identity, imap_host, is_topmost=number == 0):
            return
        seen.add(identity)
        yield from results


def _is_own(identity: str, imap_host: str, *, is_topmost: bool) -> bool:
    if not identity:
        return is_topmost and imap_host in _WITHOUT_ID
    if _is_below(identity, _PROVIDERS_IDS.get(imap_host, ())):
        return True
    return is_topmost and (identity == imap_host or organisation(identity) == organisation(imap_host) != "")


def _is_below(name: str, domains: tuple[str, ...]) -> bool:
    return any(name == domain or name.endswith(f".{domain}") for domain in domains)


def organisation(host: str) -> str:
    """The domain that `host` was registered under, by how such names are usually built; "" for an address."""
    labels = host.split(".")
    if len(labels) < 2 or labels[-1].isdigit():
        return ""
    is_country = len(labels[-1]) == 2 and labels[-2] in _SECOND_LEVEL
    return ".".join(labels[-3:] if is_country else labels[-2:]) if len(labels) > 2 or not is_country else ""


def _parsed(value: str) -> tuple[str, list[_Result]]:
    """The authserv-id, "" where there is none, and the results."""
    text = _QUOTED.sub(lambda found: found[1].replace(";", ","), _without_comments(value[:_MAX_CHARACTERS]))
    first, *rest = text.split(";")
    words = first.split()
    if "=" in first or not words:
        return "", _results([first, *rest])
    return words[0].lower().rstrip("."), _results(rest)


def _results(texts: list[str]) -> list[_Result]:
    found = []
    for text in texts:
        if begun := _RESULT.match(text.strip()):
            properties = tuple((f"{kind}.{name}".lower(), of) for kind, name, of in _PROPERTY.findall(text))
            found.append(_Result(begun[1].lower(), begun[2].lower(), properties))
    return found


def _without_comments(text: str) -> str:
    """`text` without what is in parentheses, except inside of quotes."""
    depth, is_quoted, kept = 0, False, []
    characters = iter(text)
    for character in characters:
        if character == "\\":
            kept.append(character + next(characters, "") if not depth else "")
            continue
        if character == '"' and not depth:
            is_quoted = not is_quoted
        depth += character == "(" and not is_quoted
        kept.append("" if depth else character)
        depth -= character == ")" and depth > 0
    return "".join(kept)
