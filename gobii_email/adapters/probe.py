"""A connection test: its steps one after the other, up to the first that fails.

What a step does is left to the protocols, which take their steps with the adapters that send and read.
Which hosts may be asked for is the dialer's business; a host that may not, and one that does not exist,
get the same answer after the same time.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from gobii_email.adapters.certificate import Certificate, days_left
from gobii_email.adapters.dialer import (
    Address,
    Deadline,
    DialFailed,
    DialPolicy,
    VettedAddresses,
    ascii_host,
    is_public,
    require_port,
)
from gobii_email.domain.advice import advice_for
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.findings import UNREACHABLE_NAME, UNTOLD
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import ProbeFailure

SLOW_GREETING_SECONDS = 5.0
"""A greeting that takes longer is warned of."""
SOON_DAYS = 14

OnStep = Callable[[Step], None]
OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a step that was taken found. With `advice`, and where `status` says so, it warns."""

    text: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    advice: str = ""
    raw: str = ""
    status: StepStatus = StepStatus.OK


@dataclass(frozen=True, slots=True)
class Missed:
    """What kept a step from being taken: why, in the words for people, and in the server's own."""

    failure: ProbeFailure
    facts: Mapping[str, object] = field(default_factory=dict)
    raw: str = ""


Act = Callable[[], Found]
Explain = Callable[[str, Exception], "Missed | Found"]


def unfollowed(step: Step) -> None:
    """For tests that nobody watches."""


def warned(key: str, text: str, **facts: object) -> Found:
    return Found(text, facts, advice_for(key), status=StepStatus.WARN)


def walk(
    plan: Sequence[tuple[str, Act]],
    explain: Explain,
    expected: tuple[type[Exception], ...],
    *,
    until: str = "",
    on_step: OnStep = unfollowed,
) -> tuple[list[Step], ProbeFailure | None]:
    """Takes the steps of `plan` up to the first failure, or to `until`; the others are skipped.

    `explain` tells what one of the `expected` exceptions means for the step it ended.
    """
    steps: list[Step] = []
    failure: ProbeFailure | None = None
    for name, act in plan:
        if failure is not None:
            step = Step(name, StepStatus.SKIPPED, text="Not reached.")
        elif until in [taken.id for taken in steps]:
            step = Step(name, StepStatus.SKIPPED, text="Not asked for.")
        else:
            step, failure = _taken(name, act, explain, expected)
        steps.append(step)
        on_step(step)
    return steps, failure


def _taken(
    name: str, act: Act, explain: Explain, expected: tuple[type[Exception], ...]
) -> tuple[Step, ProbeFailure | None]:
    began = time.monotonic()
    try:
        found: Found | Missed = act()
    except expected as ended:
        found = explain(name, ended)
    spent = round((time.monotonic() - began) * 1000)
    if isinstance(found, Missed):
        return _failed(name, spent, found), found.failure
    facts = dict(found.facts)
    return Step(name, found.status, spent, found.text, facts, found.advice, found.raw), None


def _failed(name: str, spent: int, missed: Missed) -> Step:
    failure = missed.failure
    if failure.is_untold:
        return Step(name, StepStatus.FAIL, 0, failure.text)
    facts = dict(missed.facts)
    return Step(name, StepStatus.FAIL, spent, failure.text, facts, failure.finding.advice, missed.raw)


@dataclass(slots=True)
class Target:
    """The server under test, looked up once; every connection of the test goes to what was vetted then."""

    host: str
    port: int
    policy: DialPolicy
    deadline: Deadline
    blocked: timedelta
    known: VettedAddresses = field(default_factory=lambda: VettedAddresses(timedelta(minutes=10)))

    def check_policy(self) -> Found:
        require_port(self.port, self.policy)
        return Found(f"Port {self.port} may be used for mail.", {"port": self.port})

    def look_up(self) -> Found:
        """Raises DialFailed; for what is not to be told, after exactly `blocked`."""
        until = time.monotonic() + self.blocked.total_seconds()
        within = Deadline(self.blocked, within=self.deadline)
        try:
            addresses = self.known.of(self.host, self.port, self.policy, within)
        except DialFailed as ended:
            if ended.cause in UNTOLD | {Cause.DNS_FAILED}:
                time.sleep(max(0.0, until - time.monotonic()))
            if ended.cause in UNTOLD:
                raise DialFailed(ended.cause, UNREACHABLE_NAME) from None
            raise
        return Found(_addresses_text(addresses), _addresses_facts(self.host, addresses))


def _addresses_text(addresses: Sequence[Address]) -> str:
    return "One address." if len(addresses) == 1 else f"{len(addresses)} addresses."


def _addresses_facts(host: str, addresses: Sequence[Address]) -> dict[str, object]:
    """Public addresses only: who may connect to an opened network need not learn what lies in it."""
    shown = [str(address) for address in addresses if is_public(address)]
    return {"name": ascii_host(host), "count": len(addresses)} | ({"addresses": shown} if shown else {})


def encrypted(version: str, cipher: str, certificate: Certificate | None) -> Found:
    """What a verified TLS connection found, with a warning before the certificate ends."""
    facts: dict[str, object] = {"version": version, "cipher": cipher, "chain": "trusted", "name": "matches"}
    text = f"{version}, and the certificate is good."
    if certificate is None:
        return Found(text, facts)
    left = days_left(certificate)
    facts |= certificate.as_facts() | {"days_left": left}
    if left < SOON_DAYS:
        text = f"{version}, and the certificate ends on {certificate.not_after:%Y-%m-%d}."
        return Found(text, facts, advice_for("certificate-ends-soon"), status=StepStatus.WARN)
    return Found(text, facts)


_CHAINS = {
    Cause.CERTIFICATE_EXPIRED: "expired",
    Cause.CERTIFICATE_NOT_YET_VALID: "not valid yet",
    Cause.CERTIFICATE_UNTRUSTED: "not trusted",
    Cause.CERTIFICATE_WRONG_NAME: "not judged",
}


def is_about_the_certificate(cause: Cause) -> bool:
    return cause in _CHAINS


def certificate_missed(missed: Missed, cause: Cause, host: str, certificate: Certificate | None) -> Missed:
    """`missed` with what the refused certificate says of itself."""
    if certificate is None:
        return missed
    facts = {"chain": _CHAINS[cause], **certificate.as_facts()}
    facts["name"] = "matches" if certificate.is_for(host) else "does not match"
    text = _certificate_text(cause, host, certificate)
    return replace(missed, failure=replace(missed.failure, text=text), facts=facts)


def _certificate_text(cause: Cause, host: str, certificate: Certificate) -> str:
    match cause:
        case Cause.CERTIFICATE_EXPIRED:
            return f"The server's certificate expired on {certificate.not_after:%Y-%m-%d}."
        case Cause.CERTIFICATE_NOT_YET_VALID:
            return f"The server's certificate is not valid before {certificate.not_before:%Y-%m-%d}."
        case Cause.CERTIFICATE_WRONG_NAME:
            names = ", ".join(certificate.names) or "no host at all"
            return f"The server's certificate is for {names}, not for {host}."
    if certificate.is_self_signed:
        return f"The server's certificate is self-signed ({certificate.subject})."
    return f"The server's certificate is from {certificate.issuer}, which is not trusted here."
