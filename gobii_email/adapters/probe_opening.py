"""The steps of a test before the server's first line, and what its certificate is found to be.

The same for both protocols. Which hosts may be asked for is the dialer's business; a host that may not, and
one that does not exist, get the same answer after the same time.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_address
from typing import Any, Protocol, Self

from gobii_email.adapters.certificate import Certificate, days_left, read_certificate
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
from gobii_email.adapters.probe import Act, Found, Missed, warned
from gobii_email.adapters.wire import Wire
from gobii_email.domain.advice import advice_for
from gobii_email.domain.diagnosis import StepStatus
from gobii_email.domain.findings import UNREACHABLE_NAME, UNTOLD
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import MailServer, Security

SOON_DAYS = 14
"""A certificate that ends within so many days is warned of."""


class ProbeDeadlines(Protocol):
    """What the deadlines of both protocols have for a test: its whole, and when it answers about a host that
    may not be asked for.
    """

    @property
    def probe(self) -> timedelta: ...

    @property
    def blocked(self) -> timedelta: ...


@dataclass(slots=True)
class Target:
    """The server under test, looked up once; every connection of the test goes to what was vetted then."""

    host: str
    port: int
    policy: DialPolicy
    deadline: Deadline
    blocked: timedelta
    known: VettedAddresses = field(default_factory=lambda: VettedAddresses(timedelta(minutes=10)))

    @classmethod
    def of(cls, server: MailServer, policy: DialPolicy, deadlines: ProbeDeadlines) -> Self:
        """The target of a test that begins now."""
        return cls(server.host, server.port, policy, Deadline(deadlines.probe), deadlines.blocked)

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


class Dialled(Protocol):
    """What the dialogues of both protocols do before anybody speaks."""

    @property
    def session(self) -> Wire: ...

    def dial(self) -> object: ...

    def encrypt(self) -> str: ...


def opening(target: Target, security: Security, dialogue: Dialled) -> Iterator[tuple[str, Act]]:
    """The steps before the server's first line."""
    yield "policy", target.check_policy
    yield "dns", target.look_up
    yield "tcp", lambda: _connected(dialogue, target.port)
    if security is Security.SSL:
        yield "tls", lambda: encrypted(dialogue)
    if security is Security.NONE:
        yield "tls", lambda: warned("not-encrypted", "The connection is not encrypted.")


def _connected(dialogue: Dialled, port: int) -> Found:
    dialogue.dial()
    sock: Any = dialogue.session.sock
    address = ip_address(sock.getpeername()[0])
    facts = {"address": str(address), "family": f"IPv{address.version}"} if is_public(address) else {}
    return Found(f"Connected on port {port}.", facts)


def encrypted(dialogue: Dialled) -> Found:
    """The handshake, and what it found."""
    version = dialogue.encrypt()
    sock: Any = dialogue.session.sock
    certificate = read_certificate(sock.getpeercert(binary_form=True))
    return _encrypted(dialogue.session.peer_name, version, sock.cipher()[0], certificate)


def _encrypted(host: str, version: str, cipher: str, certificate: Certificate | None) -> Found:
    """What a verified connection is, with a warning before its certificate ends."""
    facts: dict[str, object] = {"version": version, "cipher": cipher, "chain": "trusted", "name": "matches"}
    text = f"{version}, and the certificate is good."
    if certificate is None:
        return Found(text, facts)
    left = days_left(certificate)
    facts |= certificate.as_facts() | {"days_left": left}
    if left < SOON_DAYS:
        text = f"{version}, and the certificate ends on {certificate.not_after:%Y-%m-%d}."
        return Found(text, facts, advice_for("certificate-ends-soon"), status=StepStatus.WARN)
    text = f"{version}; the certificate is for {host}, and good until {certificate.not_after:%Y-%m-%d}."
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
