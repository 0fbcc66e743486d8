"""What a test of an account means for it: vouched for, held, or only noted.

A test vouches for the settings it began with and no others: its result is dropped when they were edited
meanwhile. A lasting failure holds the account where sending is enabled, and withdraws the former test where
it is not; a passing one (a busy server, a lost connection) says nothing about the settings.
"""

from dataclasses import dataclass, replace

from django.db import transaction
from django.utils import timezone

from gobii_email.domain.classification import AccountState, Reading
from gobii_email.domain.diagnosis import Diagnosis
from gobii_email.domain.findings import Finding
from gobii_email.models import AgentEmailAccount
from gobii_email.models.connections import ConnectionTest
from gobii_email.services import hold
from gobii_email.services.poll_schedule import poll_now

SMTP, IMAP = ConnectionTest.Protocol.SMTP, ConnectionTest.Protocol.IMAP

_LASTING = {AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED, AccountState.BLOCKED}


@dataclass(frozen=True, slots=True)
class Result:
    """What a test came to, and how a failure is to be taken."""

    diagnosis: Diagnosis
    finding: Finding | None = None
    is_whole: bool = True


def fingerprint(account: AgentEmailAccount, protocol: str) -> str:
    return account.smtp_fingerprint() if protocol == SMTP else account.imap_fingerprint()


def conclude(tested: AgentEmailAccount, protocol: str, result: Result) -> Diagnosis:
    """Writes the result, if the settings still are those that were tested."""
    with transaction.atomic():
        account = AgentEmailAccount.objects.select_for_update().filter(pk=tested.pk).first()
        if account is None or fingerprint(account, protocol) != fingerprint(tested, protocol):
            text = "The settings were changed while the test ran, so its result says nothing about them."
            return replace(result.diagnosis, ok=False, text=text, advice="Test again.")
        if result.finding is not None:
            return _note_failure(account, protocol, result.diagnosis, result.finding)
        if result.is_whole:
            _vouch(account, protocol)
        return result.diagnosis


def _vouch(account: AgentEmailAccount, protocol: str) -> None:
    now = timezone.now()
    setattr(account, f"{protocol}_last_ok_at", now)
    account.connection_last_ok_at = now
    setattr(account, f"{protocol}_error", "")
    account.connection_error = ""
    setattr(account, f"{protocol}_tested_fingerprint", fingerprint(account, protocol))
    if protocol == SMTP and account.state in _LASTING:
        account.state, account.state_reason, account.state_until = AccountState.ACTIVE, "", None
    _save(account, protocol, f"{protocol}_last_ok_at", "connection_last_ok_at")
    if protocol == SMTP and account.is_outbound_enabled and account.state_at(now) is AccountState.ACTIVE:
        hold.wake(account.endpoint_id)
    if protocol == IMAP:
        poll_now(account)


def _note_failure(
    account: AgentEmailAccount, protocol: str, diagnosis: Diagnosis, finding: Finding
) -> Diagnosis:
    sentence = " ".join(part for part in (diagnosis.text, diagnosis.advice) if part)
    setattr(account, f"{protocol}_error", sentence)
    account.connection_error = sentence
    if finding.is_lasting and protocol == SMTP and account.is_outbound_enabled:
        # Held, not switched off: what is submitted meanwhile must wait, not take another transport.
        diagnosis = replace(diagnosis, advice=f"{diagnosis.advice} Its mail waits.".strip())
        _hold(account, finding.reading)
    elif finding.is_lasting and not (protocol == IMAP and account.is_inbound_enabled):
        setattr(account, f"{protocol}_tested_fingerprint", "")
    _save(account, protocol)
    return diagnosis


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


def _save(account: AgentEmailAccount, protocol: str, *others: str) -> None:
    account.save(
        update_fields=[
            f"{protocol}_error",
            f"{protocol}_tested_fingerprint",
            "connection_error",
            "state",
            "state_reason",
            "state_until",
            "updated_at",
            *others,
        ]
    )
