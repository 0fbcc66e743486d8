"""Testing an account against its own server, and writing down what came of it.

Goes through the very adapter that sends. A test vouches for the settings it began with and no others:
its result is dropped when they were edited meanwhile. A lasting failure holds the account where sending is
enabled, and withdraws the former test where it is not; a passing one (a busy server, a lost connection)
says nothing about the settings, so it is only noted.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from django.db import transaction
from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.classification import AccountState, Reading, Scope, Verdict, read_loss, read_reply
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.smtp_replies import Stage
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import Probe, ProbeFailure, ProbeStep
from gobii_email.services import hold
from gobii_email.services.record import release_connection

IMAP_NOT_YET = "IMAP test is not available yet."

UNREACHABLE_NAME = (
    "No mail server that may be reached from here has this host name. Check it for a typing error, and use "
    "the provider's public mail server."
)
"""One sentence for a name that does not exist and one that leads to a forbidden network: a test must not
be a way to find out which names and machines a private network has."""

_UNTOLD = {Cause.ADDRESS_NOT_ALLOWED, Cause.HOST_UNKNOWN}
_NO_RELAY = "relay-denied"
_LASTING = {AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED, AccountState.BLOCKED}


@dataclass(frozen=True, slots=True)
class SmtpTest:
    """What a test found: its steps, one sentence, and what to do when it failed."""

    ok: bool
    steps: Sequence[ProbeStep]
    text: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class _Finding:
    """A test's result, and whether a failure lies in the settings or will pass."""

    test: SmtpTest
    is_lasting: bool = False
    reading: Reading | None = None


def test_smtp(account: AgentEmailAccount) -> SmtpTest:
    """Connects, signs in and names the sender, without a message; stores the result. 20 seconds at most.

    Success vouches for the settings, ends a hold that waited for the owner, and wakes the mail.
    """
    account = AgentEmailAccount.objects.select_related("endpoint", "oauth_credential").get(pk=account.pk)
    finding = _gaps(account) or _probed(account)
    return _store(account, finding)


test_smtp.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


def _gaps(account: AgentEmailAccount) -> _Finding | None:
    """What has to be filled in before there is anything to test."""
    signs_in = account.smtp_auth != account.AuthMode.NONE
    has_secret = account.smtp_password_encrypted is not None or hasattr(account, "oauth_credential")
    missing = [
        name
        for name, is_there in (
            ("host", account.smtp_host),
            ("port", account.smtp_port),
            ("user name", account.smtp_username or not signs_in),
            ("password or sign-in", has_secret or not signs_in),
        )
        if not is_there
    ]
    if not missing:
        return None
    text = f"The settings for sending are not complete: {' and '.join(missing)} missing."
    return _Finding(SmtpTest(False, (), text, "Fill them in, then test again."), is_lasting=True)


def _probed(account: AgentEmailAccount) -> _Finding:
    try:
        server = account.smtp_server()
    except SecretUnreadable as problem:
        return _Finding(SmtpTest(False, (), str(problem), "Enter the password again."), is_lasting=True)
    release_connection()
    # Many servers judge the sender only once they know a recipient, so it names itself as one.
    address = account.endpoint.address
    return _read(wiring.smtp_transport().probe(server, address, recipient=address))


def _read(probe: Probe) -> _Finding:
    failure = probe.failure
    if failure is None:
        return _Finding(SmtpTest(True, probe.steps, "The server accepts mail from this account."))
    reading = _reading(failure)
    if failure.stage is Stage.RCPT and not _is_about_the_sender(failure, reading):
        # The sender was accepted; whether this one address takes mail does not keep it from sending.
        return _Finding(SmtpTest(True, _warnings(probe.steps), "The server accepts mail from this account."))
    if failure.lost is not None and failure.lost.cause in _UNTOLD:
        return _Finding(SmtpTest(False, _discreet(probe.steps), UNREACHABLE_NAME, ""), is_lasting=True)
    said = failure.lost.text if failure.lost else f"The server answered {failure.reply} (at {failure.stage})."
    test = SmtpTest(False, probe.steps, said, _for_a_test(reading))
    return _Finding(test, _is_lasting(reading), reading)


def _reading(failure: ProbeFailure) -> Reading:
    if failure.lost is not None:
        return read_loss(failure.lost)
    assert failure.reply is not None
    return read_reply(failure.stage, failure.reply)


def _is_about_the_sender(failure: ProbeFailure, reading: Reading) -> bool:
    """Whether a refusal at RCPT is one that mail to anybody else would meet as well."""
    if failure.reply is None or not failure.reply.is_permanent:
        return False
    return reading.hold is not None or reading.category == _NO_RELAY or reading.scope is Scope.ACCOUNT


def _is_lasting(reading: Reading) -> bool:
    """Whether the settings, or the account at its provider, must change before a test can succeed."""
    if reading.hold is not None:
        return reading.hold in _LASTING
    return reading.verdict is Verdict.PERMANENT


def _for_a_test(reading: Reading) -> str:
    """The advice, without what only mail does by itself: nobody repeats a test."""
    return reading.advice.replace(" We try again.", " Test again later.").replace(
        " We look again every hour.", ""
    )


def _discreet(steps: Sequence[ProbeStep]) -> Sequence[ProbeStep]:
    return [
        replace(step, text=UNREACHABLE_NAME, milliseconds=0) if step.status == "fail" else step
        for step in steps
    ]


def _warnings(steps: Sequence[ProbeStep]) -> Sequence[ProbeStep]:
    return [replace(step, status="warn") if step.status == "fail" else step for step in steps]


def _store(tested: AgentEmailAccount, finding: _Finding) -> SmtpTest:
    """Writes the result, if the settings still are those that were tested."""
    with transaction.atomic():
        account = AgentEmailAccount.objects.select_for_update().filter(pk=tested.pk).first()
        if account is None or account.smtp_fingerprint() != tested.smtp_fingerprint():
            text = "The settings were changed while the test ran, so its result says nothing about them."
            return SmtpTest(False, finding.test.steps, text, "Test again.")
        if finding.test.ok:
            _vouch(account)
            return finding.test
        return _note_failure(account, finding)


def _vouch(account: AgentEmailAccount) -> None:
    now = timezone.now()
    account.smtp_last_ok_at = account.connection_last_ok_at = now
    account.smtp_error = account.connection_error = ""
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    if account.state in _LASTING:
        account.state, account.state_reason, account.state_until = AccountState.ACTIVE, "", None
    _save(account, "smtp_last_ok_at", "connection_last_ok_at", "state", "state_reason", "state_until")
    if account.is_outbound_enabled and account.state_at(now) is AccountState.ACTIVE:
        hold.wake(account.endpoint_id)


def _note_failure(account: AgentEmailAccount, finding: _Finding) -> SmtpTest:
    test = finding.test
    account.smtp_error = account.connection_error = " ".join(
        part for part in (test.text, test.advice) if part
    )
    if finding.is_lasting and account.is_outbound_enabled:
        # Held, not switched off: what is submitted meanwhile must wait, not take another transport.
        test = replace(test, advice=f"{test.advice} Its mail waits.".strip())
        _hold(account, finding.reading)
    elif finding.is_lasting:
        account.smtp_tested_fingerprint = ""
    _save(account, "state", "state_reason", "state_until")
    return test


def _hold(account: AgentEmailAccount, reading: Reading | None) -> None:
    """As a send that met the same would have held it; a pause by a person stays."""
    now = timezone.now()
    if account.state_at(now) is AccountState.PAUSED:
        return
    if reading is not None and reading.hold is not None:
        account.state, account.state_until = reading.hold, hold.ends_at(reading, now)
    else:
        account.state, account.state_until = AccountState.CONFIG_NEEDED, None
    account.state_reason = account.smtp_error


def _save(account: AgentEmailAccount, *others: str) -> None:
    account.save(
        update_fields=["smtp_error", "connection_error", "smtp_tested_fingerprint", "updated_at", *others]
    )
