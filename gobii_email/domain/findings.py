"""What a failed step of a test says about a mailbox: what to do, and whether it passes by itself.

Follows the readings that mail gets, with words of its own where somebody sits before the screen. What is
done to the account is left to the services.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gobii_email.domain.advice import BLAMES_PASSWORD, BLAMES_TOKEN, advice_for, for_token
from gobii_email.domain.classification import read_loss, read_reply
from gobii_email.domain.imap_replies import Refusal, category_of
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.providers import Provider, provider_of_host
from gobii_email.domain.readings import AccountState, Reading, Scope, Verdict
from gobii_email.domain.smtp_replies import Reply, Stage

SMTP, IMAP = "smtp", "imap"

UNREACHABLE_NAME = (
    "No mail server that may be reached from here has this host name. Check it for a typing error, and use "
    "the provider's public mail server."
)
"""One sentence for a name that does not exist and one that leads to a forbidden network: a test must not
be a way to find out which names and machines a private network has."""
UNTOLD = frozenset({Cause.ADDRESS_NOT_ALLOWED, Cause.HOST_UNKNOWN})

_LASTING = {AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED, AccountState.BLOCKED}
_NO_RELAY = "relay-denied"
_SAYS_LITTLE = {"refused", "policy/spam"}
_OF_A_CAUSE = {
    Cause.DNS_FAILED: "dns-failed",
    Cause.CONNECTION_REFUSED: "port-closed",
    Cause.CONNECTION_LOST: "hung-up",
    Cause.TIMEOUT: "too-slow",
    Cause.CERTIFICATE_EXPIRED: "certificate-expired",
    Cause.CERTIFICATE_NOT_YET_VALID: "certificate-not-yet-valid",
    Cause.CERTIFICATE_WRONG_NAME: "certificate-wrong-name",
    Cause.CERTIFICATE_UNTRUSTED: "certificate-untrusted",
    Cause.TLS_FAILED: "tls-failed",
    Cause.STARTTLS_NOT_OFFERED: "starttls-missing",
    Cause.STARTTLS_INJECTION: "starttls-injection",
    Cause.AUTH_NOT_OFFERED: "auth-missing",
    Cause.PROTOCOL_ERROR: "not-the-protocol",
    Cause.REPLY_TOO_LARGE: "flood",
    Cause.PORT_NOT_ALLOWED: "port-not-allowed",
}
_PROMISES = {
    " We look again every hour.": "",
    " We try again": " Test again later",
    " We wait and go on by ourselves.": " Test again in a few minutes.",
    " We wait before the next one.": " Test again in a few minutes.",
    " We use fewer and go on by ourselves.": " Test again in a few minutes.",
    " We pause this account and go on by ourselves when the limit allows it; nothing needs to be done.": (
        " Test again when the limit allows it."
    ),
    " We do.": " Test again in a few minutes.",
}
_MICROSOFT = {"microsoft365", "outlook"}


@dataclass(frozen=True, slots=True)
class Finding:
    """`is_lasting`: settings, or the account at its provider, must change before a test can succeed.

    `reading` is how mail that met the same would have been read; None where mail meets no such thing.
    """

    advice: str
    is_lasting: bool
    reading: Reading | None = None


def of_reply(host: str, stage: Stage, reply: Reply, *, by_token: bool = False) -> Finding:
    """What a refusal by the SMTP server `host` means; `by_token` where an access token was shown to it."""
    reading = read_reply(stage, reply)
    if by_token:
        reading = replace(reading, advice=for_token(reading.advice))
    advice = _in_a_test(reading.advice)
    if stage is Stage.MAIL and reading.category in _SAYS_LITTLE:
        advice = advice_for("mail-refused")
    if reading.category == "auth" and reading.advice == advice_for("auth"):
        advice = _with_provider(advice, host)
    return Finding(advice, _is_lasting(reading), reading)


def of_loss(protocol: str, lost: Lost) -> Finding:
    """What the absence of an answer means; the words depend on `protocol`."""
    reading = read_loss(lost)
    if lost.cause in UNTOLD:
        return Finding("", True, reading)
    key = _OF_A_CAUSE.get(lost.cause)
    if key == "hung-up" and lost.stage is Stage.TLS:
        key = "tls-hung-up"
    advice = _of_protocol(key, protocol) if key else _in_a_test(reading.advice)
    return Finding(advice, _is_lasting(reading), reading)


def of_wrong_security(protocol: str, speaks: str) -> Finding:
    """A server that `speaks` "tls" from its first byte, or "starttls", where the other one was set."""
    return Finding(_of_protocol(f"speaks-{speaks}", protocol), True)


def of_refusal(host: str, refusal: Refusal, *, by_token: bool = False) -> Finding:
    """What a refusal by the IMAP server `host` means; `by_token` as for `of_reply`."""
    category = category_of(refusal, _provider_id(host))
    if by_token and category in BLAMES_PASSWORD:
        category = BLAMES_TOKEN
    advice = _in_a_test(_of_protocol(category, IMAP))
    if category == "auth":
        advice = _with_provider(advice, host)
    return Finding(advice, category not in {"temporary", "login-limit"})


def is_about_the_sender(reply: Reply | None, reading: Reading) -> bool:
    """Whether a refusal at RCPT is one that mail to anybody else would meet as well."""
    if reply is None or not reply.is_permanent:
        return False
    return reading.hold is not None or reading.category == _NO_RELAY or reading.scope is Scope.ACCOUNT


def oddities(protocol: str, host: str, port: int, security: str, auth: str) -> Sequence[str]:
    """Advice about settings that fit no server, or will not for long; empty when nothing is odd."""
    found = []
    if (port, security) in _ODD_PAIRS:
        found.append(_of_protocol(_ODD_PAIRS[port, security], protocol))
    if protocol == SMTP and auth in ("plain", "login") and _provider_id(host) in _MICROSOFT:
        found.append(advice_for("microsoft-passwords-end"))
    return found


_ODD_PAIRS = {
    (465, "starttls"): "pair-wants-ssl",
    (465, "none"): "pair-wants-ssl",
    (993, "starttls"): "pair-wants-ssl",
    (993, "none"): "pair-wants-ssl",
    (587, "ssl"): "pair-wants-starttls",
    (143, "ssl"): "pair-wants-starttls",
}


def _of_protocol(key: str, protocol: str) -> str:
    """The advice for `key` in the words of `protocol` where it has its own."""
    try:
        return advice_for(f"{key}/{protocol}")
    except KeyError:
        return advice_for(key)


def _with_provider(advice: str, host: str) -> str:
    provider = provider_of_host(host)
    return f"{advice} {provider.name}: {provider.advice}" if provider and provider.advice else advice


def _provider_id(host: str) -> str:
    provider: Provider | None = provider_of_host(host)
    return provider.id if provider else ""


def _is_lasting(reading: Reading) -> bool:
    if reading.hold is not None:
        return reading.hold in _LASTING
    return reading.verdict is Verdict.PERMANENT


def _in_a_test(advice: str) -> str:
    """Without what only mail does by itself: nobody repeats a test."""
    for promise, instead in _PROMISES.items():
        advice = advice.replace(promise, instead)
    return advice
