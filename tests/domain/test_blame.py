"""Whose doing a failure was: a table, because the error budgets rest on it."""

import pytest

from gobii_email.domain.blame import Blame, blame_of, blame_of_mailbox, blame_of_wait
from gobii_email.domain.classification import read_loss, read_reply
from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.readings import AccountState
from gobii_email.domain.smtp_replies import Reply, Stage, reply_from

REFUSALS = [
    (Stage.AUTH, 535, "5.7.8 Authentication credentials invalid", "user"),
    (Stage.AUTH, 534, "5.7.9 Application-specific password required", "user"),
    (Stage.AUTH, 454, "4.7.0 Temporary authentication failure", "provider"),
    (Stage.CONNECT, 421, "4.3.2 Service not available, try again later", "provider"),
    (Stage.CONNECT, 554, "5.3.2 No SMTP service here", "provider"),
    (Stage.MAIL, 451, "4.3.0 Local error in processing", "provider"),
    (Stage.DOT, 452, "4.3.1 Insufficient system storage", "provider"),
    (Stage.DOT, 554, "5.7.1 Message rejected as spam", "user"),
    (Stage.DOT, 552, "5.3.4 Message size exceeds fixed limit", "user"),
    (Stage.RCPT, 550, "5.1.1 No such user", "recipient"),
    (Stage.RCPT, 450, "4.2.0 Greylisted, try again", "recipient"),
    (Stage.RCPT, 452, "4.2.2 Mailbox full", "recipient"),
    (Stage.MAIL, 550, "5.4.5 Daily user sending quota exceeded", "user"),
]
LOSSES = {
    "system": {Cause.LEASE_LOST, Cause.WORKER_LOST, Cause.SUSPENDED, Cause.SECRET_UNREADABLE},
    "user": {
        Cause.ADDRESS_NOT_ALLOWED, Cause.PORT_NOT_ALLOWED, Cause.HOST_UNKNOWN, Cause.STARTTLS_NOT_OFFERED,
        Cause.AUTH_NOT_OFFERED, Cause.AUTH_WITHOUT_TLS, Cause.MESSAGE_TOO_LARGE,
    },
    "recipient": {Cause.SMTPUTF8_REQUIRED},
    "provider": {
        Cause.DNS_FAILED, Cause.CONNECTION_REFUSED, Cause.CONNECTION_LOST, Cause.TIMEOUT,
        Cause.CERTIFICATE_EXPIRED, Cause.CERTIFICATE_NOT_YET_VALID, Cause.CERTIFICATE_WRONG_NAME,
        Cause.CERTIFICATE_UNTRUSTED, Cause.TLS_FAILED, Cause.STARTTLS_INJECTION, Cause.PROTOCOL_ERROR,
        Cause.REPLY_TOO_LARGE, Cause.TOKEN_UNAVAILABLE, Cause.API_ERROR,
    },
}  # fmt: skip
WAITS = {
    "": "system",
    "limiter_away": "system",
    "suspended": "system",
    "byo_email_off": "system",
    "not_in_rollout": "system",
    "host_backoff": "provider",
    "token_unavailable": "provider",
    "limited": "provider",
    "rate_limit": "user",
    "account_disabled": "user",
    "account_missing": "user",
    "auth_needed": "user",
    "paused": "user",
}


@pytest.mark.parametrize(("stage", "code", "text", "blame"), REFUSALS, ids=[row[2] for row in REFUSALS])
def test_a_refusal_is_somebodys_doing(stage: Stage, code: int, text: str, blame: str) -> None:
    reply = reply_from(code, text)
    assert blame_of(Refused(stage, reply), read_reply(stage, reply)) == blame


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("is_marked", [False, True], ids=["before the mark", "in doubt"])
def test_every_loss_is_somebodys_doing_also_where_it_leaves_a_doubt(cause: Cause, is_marked: bool) -> None:
    lost = Lost(Stage.DOT, cause, "it broke off", is_marked)
    (blame,) = [who for who, causes in LOSSES.items() if cause in causes]
    assert blame_of(lost, read_loss(lost)) == blame


def test_nobody_is_to_blame_for_what_was_accepted() -> None:
    reply = Reply(250, text="queued")
    refused = {"b@example.com": Reply(550, text="no such user")}
    assert blame_of(Accepted(reply, refused), read_reply(Stage.DOT, reply)) is Blame.NOBODY


@pytest.mark.parametrize(("code", "blame"), WAITS.items(), ids=[code or "nothing" for code in WAITS])
def test_mail_that_expired_is_charged_to_what_it_waited_for(code: str, blame: str) -> None:
    assert blame_of_wait(code) == blame


@pytest.mark.parametrize(
    ("failure", "blame"),
    [
        (MailboxFailure("authenticationfailed", "no", hold=AccountState.AUTH_NEEDED, is_login=True), "user"),
        (MailboxFailure("reconnect_needed", "no", hold=AccountState.AUTH_NEEDED), "user"),
        (MailboxFailure("nonexistent", "no", hold=AccountState.CONFIG_NEEDED), "user"),
        (MailboxFailure("secret_unreadable", "no", hold=AccountState.AUTH_NEEDED), "system"),
        (MailboxFailure("timeout", "no"), "provider"),
        (MailboxFailure("unavailable", "no"), "provider"),
        (MailboxFailure("host_unknown", "no"), "user"),
        (MailboxFailure("ZeroDivisionError", "no"), "system"),
    ],
    ids=lambda value: value.error if isinstance(value, MailboxFailure) else value,
)
def test_a_mailbox_that_could_not_be_read_is_somebodys_doing(failure: MailboxFailure, blame: str) -> None:
    assert blame_of_mailbox(failure) == blame
