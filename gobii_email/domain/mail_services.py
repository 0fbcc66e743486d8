"""Which of a domain's announced mail servers to use.

Pure: takes SRV records (RFC 2782) as values, says which is best for a mail program (RFC 6186) and which way
of TLS it means (RFC 8314). Who asks DNS, and whether a server may be dialled at all, is decided elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gobii_email.domain.providers import Endpoint

FOR_SENDING = ("submissions", "submission")
FOR_READING = ("imaps", "imap")

_IMPLICIT_TLS = {"submissions", "imaps"}
_SECURITY_OF_PORT = {465: "ssl", 993: "ssl", 587: "starttls", 143: "starttls"}


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """That `service` is offered at `host`, a host name; empty where DNS says that it is not offered (".")."""

    service: str
    host: str
    port: int
    priority: int = 0
    weight: int = 0

    @property
    def endpoint(self) -> Endpoint:
        """The server; where its port has one meaning only, that wins over the name of the service."""
        by_name = "ssl" if self.service in _IMPLICIT_TLS else "starttls"
        return Endpoint(self.host, self.port, _SECURITY_OF_PORT.get(self.port, by_name))


def best_first(records: Iterable[ServiceRecord], services: Sequence[str]) -> list[Endpoint]:
    """The servers for `services`: TLS from the start before STARTTLS, then by priority, then by weight.

    RFC 2782 draws lots by weight; settings are kept for years and should be the same for the same question,
    so the heaviest comes first.
    """
    offered = [record for record in records if record.host and record.service in services]
    offered.sort(
        key=lambda found: (found.endpoint.security != "ssl", found.priority, -found.weight, found.host)
    )
    return list(dict.fromkeys(record.endpoint for record in offered))


def is_denied(records: Iterable[ServiceRecord], services: Sequence[str]) -> bool:
    """Whether the domain says outright that it offers none of `services`; silence is no denial."""
    told = [record for record in records if record.service in services]
    return bool(told) and not any(record.host for record in told)


def is_within(host: str, domain: str) -> bool:
    """Whether `host` is `domain` or a name below it."""
    return host == domain or host.endswith(f".{domain}")
