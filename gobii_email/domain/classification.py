"""What a reply, or its absence, means: verdict, scope and reaction.

Pure. The general rule is here: the first digit decides between temporary and permanent, the stage
how far it reaches (RFC 5321 section 4.2.1, RFC 3463). What providers mean beyond that is data, in
reply_rules; first match wins.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType

from gobii_email.domain.advice import advice_for
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.readings import AccountState, Reaction, Reading, Scope, Verdict
from gobii_email.domain.reply_rules import RULES, Rule
from gobii_email.domain.smtp_replies import MAX_TEXT_CHARACTERS, Reply, Stage

__all__ = [
    "SIGN_IN_OVER",
    "AccountState",
    "Reaction",
    "Reading",
    "Scope",
    "Verdict",
    "read_loss",
    "read_reply",
]

LIMITED_FOR = timedelta(minutes=2)
QUOTA_PROBE = timedelta(hours=1)  # rolling windows free a little all the time
LOOK_AGAIN = timedelta(hours=1)
_LONGEST_HINT = timedelta(hours=24)

_SCOPE_OF_STAGE = MappingProxyType(
    {
        Stage.CONNECT: Scope.HOST,
        Stage.TLS: Scope.HOST,
        Stage.EHLO: Scope.HOST,
        Stage.AUTH: Scope.ACCOUNT,
        Stage.MAIL: Scope.MESSAGE,
        Stage.RCPT: Scope.RECIPIENT,
        Stage.DATA: Scope.MESSAGE,
        Stage.DOT: Scope.MESSAGE,
    }
)
_HIDDEN_ENHANCED = re.compile(r"(?:^|#)([245]\.\d{1,3}\.\d{1,3})(?![\d.])")
# Servers echo addresses that anybody may have chosen; the words in them say nothing.
_ADDRESS = re.compile(r"""[^\s<>()\[\]:;,"'@]{1,64}@[^\s<>()\[\]:;,"'@]{1,255}""")
_HINT = re.compile(
    r"\b(?:in|after|for|wait)\s+(?:at least |about |another |the next )?"
    r"(\d{1,5})\s?(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?)\b"
)
_UNITS = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}


def read_reply(stage: Stage, reply: Reply) -> Reading:
    """How `reply` at `stage` is understood. Never raises; server text is treated as hostile."""
    verdict = _verdict(reply.code)
    if verdict is Verdict.ACCEPTED:
        return Reading(
            verdict, _SCOPE_OF_STAGE[stage], None, "accepted", advice_for("accepted"), source="RFC 5321 4.2.1"
        )
    text = _ADDRESS.sub("x@x", reply.text[:MAX_TEXT_CHARACTERS].lower())
    enhanced = reply.enhanced or _hidden_enhanced(text)
    rule = next(rule for rule in RULES if rule.matches(stage, reply.code, enhanced, text))
    return _with_hint(_apply(rule, stage, verdict), text)


def _verdict(code: int) -> Verdict:
    if 200 <= code < 400:
        return Verdict.ACCEPTED
    return Verdict.PERMANENT if 500 <= code < 600 else Verdict.TEMPORARY


def _hidden_enhanced(text: str) -> str:
    """The enhanced code where the parser does not look: `(#5.7.1)`, or a class unlike the code's."""
    found = _HIDDEN_ENHANCED.search(text)
    return found.group(1) if found else ""


def _apply(rule: Rule, stage: Stage, verdict: Verdict) -> Reading:
    is_temporary = verdict is Verdict.TEMPORARY
    reaction = rule.reaction or (Reaction.RETRY if is_temporary else Reaction.GIVE_UP)
    hold, hold_for = rule.hold, rule.hold_for
    if reaction is Reaction.SLOW_DOWN and hold is None and not (is_temporary and rule.retry_after):
        hold, hold_for = (
            (AccountState.LIMITED, LIMITED_FOR) if is_temporary else (AccountState.QUOTA, QUOTA_PROBE)
        )
    return Reading(
        verdict,
        rule.scope or _SCOPE_OF_STAGE[stage],
        reaction,
        rule.category,
        advice_for(rule.advice or rule.category),
        hold,
        hold_for,
        rule.source,
        rule.retry_after if hold is None else None,
    )


def _with_hint(reading: Reading, text: str) -> Reading:
    """`reading` with the server's own "try again in 5 minutes", where we would wait by a timer anyway."""
    found = _HINT.search(text)
    if not found:
        return reading
    hint = min(max(int(found.group(1)), 1) * _UNITS[found.group(2)[0]], _LONGEST_HINT)
    if reading.hold_for is not None:
        return replace(reading, hold_for=hint)
    if reading.verdict is Verdict.TEMPORARY and reading.hold is None:
        return replace(reading, retry_after=hint)
    return reading


def read_loss(lost: Lost) -> Reading:
    """How a dialogue without an answer is understood: in doubt once marked, by its cause before that."""
    if lost.is_marked:
        return Reading(
            Verdict.IN_DOUBT,
            Scope.MESSAGE,
            None,
            "in-doubt",
            advice_for("in-doubt"),
            source="RFC 5321 4.5.3.2.6, RFC 1047",
        )
    return _LOSSES[lost.cause]


def _unreachable(advice: str = "unreachable") -> Reading:
    return Reading(
        Verdict.TEMPORARY,
        Scope.HOST,
        Reaction.RETRY,
        "unreachable",
        advice_for(advice),
        source="RFC 5321 4.5.4.1",
    )


def _held(advice: str, hold_for: timedelta | None = None) -> Reading:
    return Reading(
        Verdict.TEMPORARY,
        Scope.ACCOUNT,
        Reaction.HOLD_ACCOUNT,
        "settings",
        advice_for(advice),
        AccountState.CONFIG_NEEDED,
        hold_for,
        "our own rules of connection",
    )


def _unsendable(advice: str, source: str) -> Reading:
    return Reading(
        Verdict.PERMANENT, Scope.MESSAGE, Reaction.GIVE_UP, advice, advice_for(advice), source=source
    )


SIGN_IN_OVER = Reading(
    Verdict.PERMANENT,
    Scope.ACCOUNT,
    Reaction.HOLD_ACCOUNT,
    "auth",
    advice_for("auth-oauth"),
    AccountState.AUTH_NEEDED,
    source="RFC 6749 5.2",
)
"""What it means that a provider renews no access token any more."""


def _interrupted() -> Reading:
    return Reading(
        Verdict.TEMPORARY,
        Scope.MESSAGE,
        Reaction.RETRY,
        "interrupted",
        advice_for("interrupted"),
        source="nothing was handed over before the mark",
    )


_LOSSES: Mapping[Cause, Reading] = MappingProxyType(
    {
        Cause.ADDRESS_NOT_ALLOWED: _held("address-not-allowed"),
        Cause.PORT_NOT_ALLOWED: _held("port-not-allowed"),
        Cause.HOST_UNKNOWN: _held("host-unknown", LOOK_AGAIN),
        Cause.DNS_FAILED: _unreachable(),
        Cause.CONNECTION_REFUSED: _unreachable(),
        Cause.CONNECTION_LOST: _unreachable(),
        Cause.TIMEOUT: _unreachable(),
        Cause.CERTIFICATE_EXPIRED: _held("certificate", LOOK_AGAIN),
        Cause.CERTIFICATE_NOT_YET_VALID: _held("certificate", LOOK_AGAIN),
        Cause.CERTIFICATE_WRONG_NAME: _held("certificate", LOOK_AGAIN),
        Cause.CERTIFICATE_UNTRUSTED: _held("certificate", LOOK_AGAIN),
        Cause.TLS_FAILED: _unreachable("settings"),
        Cause.STARTTLS_NOT_OFFERED: _held("starttls-missing"),
        Cause.STARTTLS_INJECTION: _held("settings", LOOK_AGAIN),
        Cause.AUTH_NOT_OFFERED: _held("auth-missing"),
        Cause.AUTH_WITHOUT_TLS: _held("auth-without-tls"),
        Cause.PROTOCOL_ERROR: _unreachable("protocol"),
        Cause.REPLY_TOO_LARGE: _unreachable("protocol"),
        Cause.SMTPUTF8_REQUIRED: _unsendable("smtputf8", "RFC 6531 3.2"),
        Cause.MESSAGE_TOO_LARGE: _unsendable("size", "RFC 1870 6.1"),
        Cause.SECRET_UNREADABLE: _held("secret-unreadable"),
        Cause.TOKEN_UNAVAILABLE: Reading(
            Verdict.TEMPORARY,
            Scope.ACCOUNT,
            Reaction.RETRY,
            "auth",
            advice_for("token-unavailable"),
            source="RFC 6749 5.2",
        ),
        Cause.LEASE_LOST: _interrupted(),
        Cause.SUSPENDED: _interrupted(),
        Cause.API_ERROR: _unreachable(),
        Cause.WORKER_LOST: _interrupted(),
    }
)
