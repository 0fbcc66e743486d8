"""Testing an account against its own servers, and writing down what came of it.

Goes through the very adapters that send and read. How often that may be done is decided in ration, what the
result means for the account in conclude.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from django.db import connections, transaction
from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.advice import BLAMES_TOKEN, advice_for
from gobii_email.domain.classification import SIGN_IN_OVER
from gobii_email.domain.diagnosis import IMAP_STEPS, SMTP_STEPS, Diagnosis, Step, StepStatus
from gobii_email.domain.findings import UNREACHABLE_NAME, Finding, oddities
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.models.connections import INTERRUPTED, LONGEST, TEST_AGAIN, ConnectionTest
from gobii_email.ports import Probe
from gobii_email.services.conclude import IMAP, SMTP, Result, conclude
from gobii_email.services.mail_itself import mail_itself
from gobii_email.services.ration import AT_ONCE, TooManyTests, begun, give_back, take_place
from gobii_email.services.record import release_connection
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token

__all__ = [
    "AT_ONCE",
    "LONGEST",
    "UNREACHABLE_NAME",
    "TooManyTests",
    "latest_test",
    "start_test",
    "test_imap",
    "test_smtp",
]

OnStep = Callable[[Step], None]
OnLine = Callable[[str], None]
LastStep = Callable[[AgentEmailAccount], Step]

_STEPS = {SMTP: SMTP_STEPS, IMAP: IMAP_STEPS}
_PASSED = {SMTP: "The server accepts mail from this account.", IMAP: "The mailbox can be read."}


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
    row = begun(account, SMTP, asked_by)
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
    return _tested(begun(account, IMAP, asked_by), step, on_step, on_line)


for _function in (test_smtp, test_imap):
    _function.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


def start_test(
    account: AgentEmailAccount,
    protocol: str,
    asked_by: str,
    *,
    sends_to_self: bool = False,
    is_one_of_many: bool = False,
) -> ConnectionTest:
    """Begins a test in the background, once the caller's transaction is committed; its row's steps grow as
    they end. `sends_to_self` as for `test_smtp`; `is_one_of_many` that an operator begins in one act, which
    no person's own limit is for. Raises TooManyTests.
    """
    place = take_place()
    last = mail_itself if sends_to_self and protocol == SMTP else None
    try:
        row = begun(account, protocol, asked_by, is_one_of_many=is_one_of_many)
        thread = threading.Thread(
            target=_in_the_background, args=(row, place, last), name="test", daemon=True
        )
        transaction.on_commit(thread.start)
    except BaseException:
        give_back(place)
        raise
    return row


def _in_the_background(row: ConnectionTest, place: object, last: LastStep | None) -> None:
    try:
        _tested(row, last=last)
    finally:
        connections.close_all()
        give_back(place)


def latest_test(account: AgentEmailAccount, protocol: str) -> ConnectionTest | None:
    """The newest test; one whose process died is told as interrupted."""
    row = ConnectionTest.objects.filter(account=account, protocol=protocol).order_by("-started_at").first()
    return row and row.as_of(timezone.now())


# The test itself


def _tested(
    row: ConnectionTest,
    until: str = "",
    on_step: OnStep | None = None,
    on_line: OnLine | None = None,
    last: LastStep | None = None,
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
        diagnosis = conclude(account, row.protocol, result)
        if last is not None and diagnosis.ok and result.is_whole:
            release_connection()
            note(last(account))
            diagnosis = _with_last(diagnosis, steps)
    except BaseException:
        ConnectionTest.objects.filter(pk=row.pk).update(
            finished_at=timezone.now(), text=INTERRUPTED, advice=TEST_AGAIN
        )
        raise
    _finish(row, diagnosis)
    return diagnosis


def _with_last(diagnosis: Diagnosis, steps: Sequence[Step]) -> Diagnosis:
    """`diagnosis` with the last of `steps`, whose failure leaves what the test vouched for as it is."""
    step = steps[-1]
    if step.status is StepStatus.OK:
        return replace(diagnosis, steps=[*steps], text=f"{diagnosis.text} {step.text}")
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
) -> Result:
    began = _settings_step(account, protocol)
    note(began)
    if began.status is StepStatus.FAIL:
        finding = Finding(began.advice, True)
        return Result(Diagnosis(protocol, False, [began], began.text, began.advice), finding)
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


def _without_secret(protocol: str, began: Step, text: str, finding: Finding) -> Result:
    failed = replace(began, status=StepStatus.FAIL, text=text, advice=finding.advice)
    return Result(Diagnosis(protocol, False, [failed], text, finding.advice), finding)


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


def _read(protocol: str, until: str, steps: Sequence[Step], probe: Probe) -> Result:
    failure = probe.failure
    if failure is not None:
        diagnosis = Diagnosis(protocol, False, steps, failure.text, failure.finding.advice)
        return Result(diagnosis, failure.finding)
    if until in [step.id for step in steps[:-1]]:
        text = f"All is well up to {until}. Only a whole test vouches for the settings."
        return Result(Diagnosis(protocol, True, steps, text), is_whole=False)
    return Result(Diagnosis(protocol, True, steps, _PASSED[ConnectionTest.Protocol(protocol)]))


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
