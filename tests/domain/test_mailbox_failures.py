"""What a mailbox that could not be read waits for: a person, or time."""

import pytest

from gobii_email.domain.findings import UNREACHABLE_NAME
from gobii_email.domain.imap_replies import refusal_from
from gobii_email.domain.mailbox_failures import failure_of_loss, failure_of_refusal
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.readings import AccountState

AUTH, CONFIG = AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED
HOST = "imap.sender.example"


@pytest.mark.parametrize(
    ("command", "status", "said", "hold", "is_sure"),
    [
        ("LOGIN", "NO", "[AUTHENTICATIONFAILED] Invalid credentials", AUTH, True),
        ("LOGIN", "NO", "LOGIN failed", AUTH, True),
        ("AUTHENTICATE", "BAD", "no", AUTH, True),
        ("LOGIN", "NO", "[UNAVAILABLE] backend is down", None, False),
        ("LOGIN", "NO", "[LIMIT] Too many simultaneous connections", None, False),
        ("LOGIN", "NO", "IMAP access is disabled for your domain", CONFIG, True),
        ("LOGIN", "NO", "[CONTACTADMIN] blocked", AUTH, True),
        ("EXAMINE", "NO", "[NONEXISTENT] Unknown Mailbox", CONFIG, True),
        ("EXAMINE", "NO", "busy", CONFIG, False),
        ("EXAMINE", "NO", "[INUSE] locked", None, False),
        ("UID", "NO", "search failed", None, False),
        ("FETCH", "BYE", "shutting down", None, False),
        ("LOGIN", "BYE", "too busy", None, False),
    ],
)
def test_a_refusal_holds_the_mailbox_only_where_a_person_has_to_act(
    command: str, status: str, said: str, hold: AccountState | None, is_sure: bool
) -> None:
    failure = failure_of_refusal(HOST, refusal_from(command, status, said))
    assert failure.hold == hold
    assert failure.holds(1) is is_sure
    assert failure.holds(3) is (hold is not None)
    assert failure.advice or hold is None


def test_a_refused_token_asks_for_a_sign_in_and_no_password() -> None:
    refusal = refusal_from("AUTHENTICATE", "NO", "[AUTHENTICATIONFAILED] Invalid credentials")
    failure = failure_of_refusal(HOST, refusal, by_token=True)
    assert failure.is_login and "Connect the account again" in failure.advice


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause != Cause.WORKER_LOST])
def test_every_loss_has_a_sentence_and_most_pass(cause: Cause) -> None:
    failure = failure_of_loss(cause, "It ended.")
    assert failure.sentence and failure.error == str(cause)
    is_lasting = cause in {Cause.SECRET_UNREADABLE, Cause.AUTH_NOT_OFFERED, Cause.AUTH_WITHOUT_TLS}
    assert (failure.hold is not None) is is_lasting


@pytest.mark.parametrize("cause", [Cause.ADDRESS_NOT_ALLOWED, Cause.HOST_UNKNOWN])
def test_a_forbidden_host_is_told_like_one_that_does_not_exist(cause: Cause) -> None:
    assert failure_of_loss(cause, "10.0.0.7 is private.").sentence == UNREACHABLE_NAME


def test_a_finer_advice_wins_over_the_cause() -> None:
    assert failure_of_loss(Cause.PROTOCOL_ERROR, "x", "folder-name").hold == CONFIG
    assert failure_of_loss(Cause.AUTH_NOT_OFFERED, "x", "password-not-ascii").hold == AUTH
    assert failure_of_loss(Cause.PROTOCOL_ERROR, "x", "preauth").hold is None
