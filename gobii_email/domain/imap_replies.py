"""What an IMAP server says when it says no: status, response code, text (RFC 9051 section 7.1, RFC 5530).

Knows which kind of trouble each is; the words of some providers win over the code, because most of them
send none. What to do about it stands in advice.
"""

import re
from dataclasses import dataclass

from gobii_email.domain.smtp_replies import safe_text

_CODE = re.compile(r"^\[([A-Z-]{2,40})(?: [^\]]{0,200})?\]\s*(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A tagged NO or BAD, or a BYE, in answer to `command`; `code` is the response code or ""."""

    command: str
    status: str
    code: str = ""
    text: str = ""

    def __str__(self) -> str:
        code = f"[{self.code}]" if self.code else ""
        return " ".join(part for part in (self.status, code, self.text) if part)


def refusal_from(command: str, status: str, raw: bytes | str) -> Refusal:
    """The refusal of `command` with what follows `status` on its line, made safe to show."""
    text = safe_text(raw)
    found = _CODE.match(text)
    return Refusal(command, status, *(found.groups() if found else ("", text)))


_OF_A_CODE = {
    "AUTHENTICATIONFAILED": "auth",
    "AUTHORIZATIONFAILED": "auth",
    "EXPIRED": "auth",
    "PRIVACYREQUIRED": "tls-required",
    "CONTACTADMIN": "account-suspended",
    "UNAVAILABLE": "temporary",
    "INUSE": "temporary",
    "SERVERBUG": "temporary",
    "LIMIT": "login-limit",
    "NONEXISTENT": "folder-missing",
    "TRYCREATE": "folder-missing",
    "NOPERM": "folder-missing",
}
_WORDS = (
    (re.compile("application-specific password|app(?:lication)? password"), "auth-app-password"),
    (re.compile("log in via your web browser|web login required"), "auth-web-login"),
    (re.compile("too many simultaneous connections|too many connections"), "login-limit"),
    (re.compile("imap.{0,40}(?:disabled|not enabled)|not enabled for imap"), "imap-disabled"),
    (re.compile("tls.{0,30}required|plaintext authentication"), "tls-required"),
)
_REFUSED_LOGINS = {
    "google": "auth-gmail",
    "microsoft365": "auth-microsoft-imap",
    "outlook": "auth-microsoft-imap",
}
_SIGN_IN = {"LOGIN", "AUTHENTICATE"}


def category_of(refusal: Refusal, provider: str = "") -> str:
    """The key of the advice that fits `refusal`; `provider` is the id of who runs the server."""
    text = refusal.text.lower()
    for words, category in _WORDS:
        if words.search(text):
            return category
    category = _OF_A_CODE.get(refusal.code) or _of_the_command(refusal)
    if category != "auth":
        return category
    return _REFUSED_LOGINS.get(provider, "auth")


def _of_the_command(refusal: Refusal) -> str:
    if refusal.status == "BYE":
        return "temporary"
    if refusal.command in _SIGN_IN:
        return "auth"
    return "folder-missing" if refusal.command in {"EXAMINE", "SELECT"} else "refused"
