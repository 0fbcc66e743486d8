"""Why a mailbox could not be read, and what follows: hold it until somebody acts, or come back later.

A refused login and a missing folder stay until a person changes something, and asking on may lock the
mailbox. All else (servers, networks, certificates) passes, however long it takes.
"""

from dataclasses import dataclass

from gobii_email.domain.advice import BLAMES_PASSWORD, BLAMES_TOKEN, advice_for
from gobii_email.domain.findings import IMAP, UNREACHABLE_NAME, UNTOLD, of_loss, of_refusal
from gobii_email.domain.imap_replies import Refusal, category_of
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.providers import provider_of_host
from gobii_email.domain.readings import AccountState
from gobii_email.domain.smtp_replies import Stage

SURE_AFTER = 3
"""Failures in a row after which one that may pass is taken for one that does not."""

_PASSING = {"temporary", "login-limit", "refused"}
_OF_SETTINGS = {"folder-missing", "imap-disabled", "tls-required"}
_SIGN_IN = {"LOGIN", "AUTHENTICATE"}
_HELD_CAUSES = {
    Cause.SECRET_UNREADABLE: AccountState.AUTH_NEEDED,
    Cause.AUTH_NOT_OFFERED: AccountState.CONFIG_NEEDED,
    Cause.AUTH_WITHOUT_TLS: AccountState.CONFIG_NEEDED,
}
_HELD_ADVICE = {
    "auth-required": AccountState.CONFIG_NEEDED,
    "folder-name": AccountState.CONFIG_NEEDED,
    "password-not-ascii": AccountState.AUTH_NEEDED,
}


@dataclass(frozen=True, slots=True)
class MailboxFailure:
    """`error` is a short word for spans and logs, `text` what happened, `advice` what its owner can do.

    `hold` is what the mailbox waits for, None where it is only left alone for a while; one that `may_pass`
    is believed when it has happened `SURE_AFTER` times in a row.
    """

    error: str
    text: str
    advice: str = ""
    hold: AccountState | None = None
    may_pass: bool = False
    is_login: bool = False

    def holds(self, failures: int) -> bool:
        """Whether the mailbox is to be held, this being one of `failures` in a row."""
        return self.hold is not None and (not self.may_pass or failures >= SURE_AFTER)

    @property
    def sentence(self) -> str:
        return f"{self.text} {self.advice}".strip()


def failure_of_refusal(host: str, refusal: Refusal, *, by_token: bool = False) -> MailboxFailure:
    """A NO, BAD or BYE of the server `host`; `by_token` where it had been shown an access token."""
    provider = provider_of_host(host)
    category = category_of(refusal, provider.id if provider else "")
    if by_token and category in BLAMES_PASSWORD:
        category = BLAMES_TOKEN
    is_login = refusal.command in _SIGN_IN
    return MailboxFailure(
        error=(refusal.code or refusal.status).lower(),
        text=f"The server answered {refusal} to {refusal.command}.",
        advice=of_refusal(host, refusal, by_token=by_token).advice,
        hold=_hold_for(category, is_login=is_login),
        may_pass=not is_login and not refusal.code,
        is_login=is_login,
    )


def _hold_for(category: str, *, is_login: bool) -> AccountState | None:
    if category in _PASSING:
        return None
    if category in _OF_SETTINGS:
        return AccountState.CONFIG_NEEDED
    return AccountState.AUTH_NEEDED if is_login else None


def failure_of_loss(cause: Cause, text: str, advice: str = "") -> MailboxFailure:
    """A dialogue that ended without an answer; `advice` is the key of one that fits better."""
    if cause in UNTOLD:
        return MailboxFailure(str(cause), UNREACHABLE_NAME)
    found = advice_for(advice) if advice else of_loss(IMAP, Lost(Stage.CONNECT, cause, text)).advice
    hold = _HELD_ADVICE.get(advice) or _HELD_CAUSES.get(cause)
    may_pass = cause is Cause.AUTH_NOT_OFFERED and not advice
    return MailboxFailure(str(cause), text, found, hold, may_pass)
