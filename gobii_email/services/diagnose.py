"""Testing an account against its own servers, and writing down what came of it.

Goes through the very adapters that send and read. A test vouches for the settings it began with and no
others: its result is dropped when they were edited meanwhile. A lasting failure holds the account where
sending is enabled, and withdraws the former test where it is not; a passing one (a busy server, a lost
connection) says nothing about the settings, so it is only noted.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db import connections, transaction
from django.db.models import Q
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.advice import BLAMES_TOKEN, advice_for
from gobii_email.domain.classification import SIGN_IN_OVER, AccountState, Reading
from gobii_email.domain.diagnosis import IMAP_STEPS, SMTP_STEPS, Diagnosis, Step, StepStatus
from gobii_email.domain.findings import UNREACHABLE_NAME, Finding, oddities
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.models.connections import ConnectionTest
from gobii_email.ports import Probe
from gobii_email.services import hold
from gobii_email.services.mail_itself import mail_itself
from gobii_email.services.record import release_connection
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token
from gobii_email.services.tell import clock_time

__all__ = [
    "UNREACHABLE_NAME",
    "TooManyTests",
    "latest_test",
    "start_test",
    "test_imap",
    "test_smtp",
]

SMTP, IMAP = ConnectionTest.Protocol.SMTP, ConnectionTest.Protocol.IMAP
LONGEST = timedelta(minutes=3)
"""A test that has not ended by then was interrupted."""
KEPT = timedelta(days=30)
"""How long the tests of a mailbox are kept; the next one removes those that are older."""
AT_ONCE = 8
"""Tests in the background of one process."""

OnStep = Callable[[Step], None]
OnLine = Callable[[str], None]

_LASTING = {AccountState.AUTH_NEEDED, AccountState.CONFIG_NEEDED, AccountState.BLOCKED}
_STEPS = {SMTP: SMTP_STEPS, IMAP: IMAP_STEPS}
_PASSED = {SMTP: "The server accepts mail from this account.", IMAP: "The mailbox can be read."}
_entrance = threading.Lock()
_under_way: dict[object, float] = {}


class TooManyTests(Exception):
    """Somebody tests too often; the sentence says when the next test may begin."""


@dataclass(frozen=True, slots=True)
class _Result:
    """What a test came to, and how a failure is to be taken."""

    diagnosis: Diagnosis
    finding: Finding | None = None
    is_whole: bool = True


def test_smtp(
    account: AgentEmailAccount,
    *,
    until: str | None = None,
    asked_by: str = "",
    on_step: OnStep | None = None,
    on_line: OnLine | None = None,
    sends_to_self: bool = False,
) -> Diagnosis:
    """Connects, signs in and names the sender, without a message; stores the result.

    Success vouches for the settings, ends a hold that waited for the owner, and wakes the mail; a test
    that ends at the step `until` does neither. `on_line` hears the dialogue, redacted. After a success
    `sends_to_self` sends a small mail to the mailbox itself, which only a person may ask for. Raises
    TooManyTests, and ValueError where there is no such step.
    """
    step = _step_named(SMTP, until)
    row = _begun(account, SMTP, asked_by)
    return _tested(row, step, on_step, on_line, last=mail_itself if sends_to_self else None)


def test_imap(
    account: AgentEmailAccount,
    *,
    until: str | None = None,
    asked_by: str = "",
    on_step: OnStep | None = None,
    on_line: OnLine | None = None,
) -> Diagnosis:
    """Connects, signs in and looks into the configured folder, changing nothing; otherwise as `test_smtp`."""
    step = _step_named(IMAP, until)
    return _tested(_begun(account, IMAP, asked_by), step, on_step, on_line)


for _function in (test_smtp, test_imap):
    _function.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


def start_test(account: AgentEmailAccount, protocol: str, asked_by: str) -> ConnectionTest:
    """Begins a test in the background, once the caller's transaction is committed; its row's steps grow as
    they end. Raises TooManyTests.
    """
    place = _take_place()
    try:
        row = _begun(account, protocol, asked_by)
        thread = threading.Thread(target=_in_the_background, args=(row, place), name="test", daemon=True)
        transaction.on_commit(thread.start)
    except BaseException:
        _under_way.pop(place, None)
        raise
    return row


def _in_the_background(row: ConnectionTest, place: object) -> None:
    try:
        _tested(row)
    finally:
        connections.close_all()
        _under_way.pop(place, None)


def _take_place() -> object:
    """One of this process's places for tests; raises TooManyTests. A place that nobody gives back, because
    its transaction came to nothing, is free again after LONGEST.
    """
    with _entrance:
        oldest = time.monotonic() - LONGEST.total_seconds()
        for forgotten in [place for place, taken_at in _under_way.items() if taken_at < oldest]:
            _under_way.pop(forgotten, None)
        if len(_under_way) >= AT_ONCE:
            raise TooManyTests(f"{AT_ONCE} tests are under way here; begin this one in a minute.")
        place = object()
        _under_way[place] = time.monotonic()
        return place


def latest_test(account: AgentEmailAccount, protocol: str) -> ConnectionTest | None:
    """The newest test; one whose process died is told as interrupted."""
    row = ConnectionTest.objects.filter(account=account, protocol=protocol).order_by("-started_at").first()
    if row is not None and row.finished_at is None and row.started_at < timezone.now() - LONGEST:
        row.finished_at = row.started_at + LONGEST
        row.text, row.advice = "The test was interrupted before it ended.", "Test again."
        row.save(update_fields=["finished_at", "text", "advice"])
    return row


# How often


def _begun(account: AgentEmailAccount, protocol: str, asked_by: str) -> ConnectionTest:
    """The row of a test that begins now. Raises TooManyTests.

    Commands, which give no name, are not limited: who runs them can connect without us.
    """
    with transaction.atomic():
        found = AgentEmailAccount.objects.select_for_update().get(pk=account.pk)
        ConnectionTest.objects.filter(account=found, started_at__lt=timezone.now() - KEPT).delete()
        if asked_by:
            _require_room(found, asked_by)
        return ConnectionTest.objects.create(
            account=found,
            protocol=protocol,
            fingerprint=_fingerprint(found, protocol),
            started_at=timezone.now(),
            asked_by=asked_by,
        )


def _require_room(account: AgentEmailAccount, asked_by: str) -> None:
    now = timezone.now()
    settings = config()
    windows = (
        (timedelta(minutes=1), settings.tests_per_minute, "a minute"),
        (timedelta(hours=1), settings.tests_per_hour, "an hour"),
    )
    of_the_account, of_the_asker = Q(account=account), Q(asked_by=asked_by)
    for span, most, name in windows:
        for whose, owner in ((of_the_account, "a mailbox"), (of_the_asker, "one person")):
            until = _full_until(ConnectionTest.objects.filter(whose), span, most, now)
            if until is not None:
                when = clock_time(until, now)
                raise TooManyTests(
                    f"At most {most} tests {name} are run for {owner}; the next may begin at {when}."
                )


def _full_until(tests: Any, span: timedelta, most: int, now: datetime) -> datetime | None:
    """When there is room again in the last `span` for one of at most `most`; None when there is now."""
    newest = tests.filter(started_at__gt=now - span).order_by("-started_at")
    times = list(newest.values_list("started_at", flat=True)[:most])
    return times[-1] + span if len(times) >= most else None


# The test itself


def _tested(
    row: ConnectionTest,
    until: str = "",
    on_step: OnStep | None = None,
    on_line: OnLine | None = None,
    last: Callable[[AgentEmailAccount], Step] | None = None,
) -> Diagnosis:
    account = AgentEmailAccount.objects.select_related("endpoint", "oauth_credential").get(pk=row.account_id)
    steps: list[Step] = []

    def note(step: Step) -> None:
        steps.append(step)
        documents = [taken.as_document() for taken in steps]
        ConnectionTest.objects.filter(pk=row.pk).update(steps=documents)
        release_connection()
        if on_step is not None:
            on_step(step)

    try:
        result = _run(account, row.protocol, until, note, on_line)
        diagnosis = _store(account, row.protocol, result)
        if last is not None and diagnosis.ok and result.is_whole:
            release_connection()
            note(last(account))
            diagnosis = _with_last(diagnosis, steps)
    except BaseException:
        ConnectionTest.objects.filter(pk=row.pk).update(
            finished_at=timezone.now(), text="The test was interrupted before it ended.", advice="Test again."
        )
        raise
    _finish(row, diagnosis)
    return diagnosis


def _with_last(diagnosis: Diagnosis, steps: Sequence[Step]) -> Diagnosis:
    """`diagnosis` with the last of `steps`, whose failure leaves what the test vouched for as it is."""
    step = steps[-1]
    if step.status is StepStatus.OK:
        return replace(diagnosis, steps=[*steps])
    is_ok = step.status is not StepStatus.FAIL
    return replace(diagnosis, ok=is_ok, steps=[*steps], text=step.text, advice=step.advice)


def _finish(row: ConnectionTest, diagnosis: Diagnosis) -> None:
    ConnectionTest.objects.filter(pk=row.pk).update(
        finished_at=timezone.now(),
        is_ok=diagnosis.ok,
        text=diagnosis.text,
        advice=diagnosis.advice,
        steps=[step.as_document() for step in diagnosis.steps],
    )


_OTHER_NAMES = {"connect": "tcp", "login": "auth", "greeting": "banner", "capabilities": "ehlo"}


def _step_named(protocol: str, name: str | None) -> str:
    """The id of the step that is called `name`, also by the other protocol's word for it."""
    if not name:
        return ""
    wanted = name.strip().lower().replace("-", "_").replace(" ", "_")
    same = {wanted, _OTHER_NAMES.get(wanted), *(mine for mine, its in _OTHER_NAMES.items() if its == wanted)}
    found = next((step for step in _STEPS[ConnectionTest.Protocol(protocol)] if step in same), None)
    if found is None:
        steps = ", ".join(_STEPS[ConnectionTest.Protocol(protocol)])
        raise ValueError(f"A test of {protocol.upper()} has no step {name!r}; it has {steps}.")
    return found


def _run(
    account: AgentEmailAccount, protocol: str, until: str, note: OnStep, on_line: OnLine | None
) -> _Result:
    began = _settings_step(account, protocol)
    note(began)
    if began.status is StepStatus.FAIL:
        finding = Finding(began.advice, True)
        return _Result(Diagnosis(protocol, False, [began], began.text, began.advice), finding)
    try:
        is_by_token = getattr(account, f"{protocol}_auth") == account.AuthMode.OAUTH2
        probed = _probed_by_token if is_by_token else _probed
        probe = probed(account, protocol, until, note, on_line)
    except SecretUnreadable as problem:
        advice = "Enter the password again, or sign in with the provider."
        return _without_secret(protocol, began, str(problem), Finding(advice, True))
    except ReconnectNeeded as problem:
        return _without_secret(protocol, began, str(problem), Finding("", True, SIGN_IN_OVER))
    except TokenUnavailable as problem:
        return _without_secret(protocol, began, str(problem), Finding("Test again later.", False))
    return _read(protocol, until, [began, *probe.steps], probe)


def _without_secret(protocol: str, began: Step, text: str, finding: Finding) -> _Result:
    failed = replace(began, status=StepStatus.FAIL, text=text, advice=finding.advice)
    return _Result(Diagnosis(protocol, False, [failed], text, finding.advice), finding)


def _probed_by_token(
    account: AgentEmailAccount, protocol: str, until: str, note: OnStep, on_line: OnLine | None
) -> Probe:
    """As `_probed`, with a fresh access token; one that is refused is renewed once, as for mail."""
    token = access_token(account)
    told: set[str] = set()
    withheld: list[Step] = []

    def tell(step: Step) -> None:
        if withheld or (step.id == "auth" and step.status is StepStatus.FAIL):
            withheld.append(step)
        elif step.id not in told:
            told.add(step.id)
            note(step)

    probe = _probed(account, protocol, until, tell, on_line)
    is_refused = probe.failure is not None and probe.failure.finding.advice == advice_for(BLAMES_TOKEN)
    if is_refused and renewed_token(account, token) is not None:
        withheld.clear()
        probe = _probed(account, protocol, until, tell, on_line)
    for step in withheld:
        note(step)
    return probe


def _probed(
    account: AgentEmailAccount, protocol: str, until: str, note: OnStep, on_line: OnLine | None
) -> Probe:
    address = account.endpoint.address
    if protocol == IMAP:
        mailbox = account.imap_server()
        release_connection()
        return wiring.imap_mailboxes().probe(mailbox, until=until, on_step=note, on_line=on_line)
    server = account.smtp_server()
    release_connection()
    # Many servers judge the sender only once they know a recipient, so it names itself as one.
    return wiring.smtp_transport().probe(
        server, address, recipient=address, until=until, on_step=note, on_line=on_line
    )


def _read(protocol: str, until: str, steps: Sequence[Step], probe: Probe) -> _Result:
    failure = probe.failure
    if failure is not None:
        diagnosis = Diagnosis(protocol, False, steps, failure.text, failure.finding.advice)
        return _Result(diagnosis, failure.finding)
    if until and steps[-1].id != until:
        text = f"All is well up to {until}. Only a whole test vouches for the settings."
        return _Result(Diagnosis(protocol, True, steps, text), is_whole=False)
    return _Result(Diagnosis(protocol, True, steps, _PASSED[ConnectionTest.Protocol(protocol)]))


def _settings_step(account: AgentEmailAccount, protocol: str) -> Step:
    """Whether there is anything to test, and what looks odd before a connection is made."""
    missing = _missing(account, protocol)
    if missing:
        what = {SMTP: "sending", IMAP: "receiving"}[ConnectionTest.Protocol(protocol)]
        text = f"The settings for {what} are not complete: {' and '.join(missing)} missing."
        return Step("settings", StepStatus.FAIL, text=text, advice="Fill them in, then test again.")
    host, port, security, auth = (
        getattr(account, f"{protocol}_{name}") for name in ("host", "port", "security", "auth")
    )
    facts = {"host": host, "port": port, "security": security, "auth": auth}
    credential = getattr(account, "oauth_credential", None)
    if auth == account.AuthMode.OAUTH2 and credential is not None and credential.expires_at is not None:
        facts["token_expires_at"] = credential.expires_at.isoformat()
    odd = oddities(protocol, host, port, security, auth)
    text = f"{host}, port {port}, {security}."
    status = StepStatus.WARN if odd else StepStatus.OK
    return Step("settings", status, text=text, facts=facts, advice=" ".join(odd))


def _missing(account: AgentEmailAccount, protocol: str) -> list[str]:
    def value(name: str) -> Any:
        return getattr(account, f"{protocol}_{name}")

    signs_in = value("auth") != "none"
    has_secret = value("password_encrypted") is not None or hasattr(account, "oauth_credential")
    needed = (
        ("host", value("host")),
        ("port", value("port")),
        ("user name", value("username") or not signs_in),
        ("password or sign-in", has_secret or not signs_in),
    )
    return [name for name, is_there in needed if not is_there]


# What it means for the account


def _fingerprint(account: AgentEmailAccount, protocol: str) -> str:
    return account.smtp_fingerprint() if protocol == SMTP else account.imap_fingerprint()


def _store(tested: AgentEmailAccount, protocol: str, result: _Result) -> Diagnosis:
    """Writes the result, if the settings still are those that were tested."""
    with transaction.atomic():
        account = AgentEmailAccount.objects.select_for_update().filter(pk=tested.pk).first()
        if account is None or _fingerprint(account, protocol) != _fingerprint(tested, protocol):
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
    setattr(account, f"{protocol}_tested_fingerprint", _fingerprint(account, protocol))
    if protocol == SMTP and account.state in _LASTING:
        account.state, account.state_reason, account.state_until = AccountState.ACTIVE, "", None
    _save(account, protocol, f"{protocol}_last_ok_at", "connection_last_ok_at")
    if protocol == SMTP and account.is_outbound_enabled and account.state_at(now) is AccountState.ACTIVE:
        hold.wake(account.endpoint_id)


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
