"""A server's certificate as it is shown to people: whose it is, for which names, and until when.

Only for display. A certificate that failed is fetched once more on a connection that is closed before
anything is said on it; what is trusted is decided by the context in tls alone.
"""

import contextlib
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509

from gobii_email.adapters.dialer import Deadline
from gobii_email.domain.smtp_replies import safe_text

MAX_NAMES = 20
_MAX_NAME_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is in it; `names` are those of its subjectAltName, at most MAX_NAMES."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    is_self_signed: bool

    def is_for(self, host: str) -> bool:
        """Whether one of its names is `host`, or stands for it with a star (RFC 6125 section 6.4.3)."""
        parent = "*." + host.partition(".")[2]
        return any(name.lower() in (host, parent) for name in self.names)

    def as_facts(self) -> dict[str, object]:
        return {
            "subject": self.subject,
            "names": list(self.names),
            "issuer": self.issuer,
            "not_before": f"{self.not_before:%Y-%m-%d}",
            "not_after": f"{self.not_after:%Y-%m-%d}",
        }


def read_certificate(data: bytes | None) -> Certificate | None:
    """The certificate of these DER bytes; None for none, and for what cannot be read."""
    if not data:
        return None
    try:
        return _read(x509.load_der_x509_certificate(data))
    except Exception:  # the parser runs on a stranger's bytes, and has errors of many kinds
        return None


def _read(found: x509.Certificate) -> Certificate:
    return Certificate(
        _shown(found.subject.rfc4514_string()),
        _shown(found.issuer.rfc4514_string()),
        _names(found),
        found.not_valid_before_utc,
        found.not_valid_after_utc,
        found.issuer == found.subject,
    )


def _names(found: x509.Certificate) -> tuple[str, ...]:
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    texts = [
        *names.get_values_for_type(x509.DNSName),
        *(str(address) for address in names.get_values_for_type(x509.IPAddress)),
    ]
    return tuple(_shown(text) for text in texts[:MAX_NAMES])


def _shown(text: str) -> str:
    return safe_text(text, max_characters=_MAX_NAME_CHARACTERS)


def days_left(certificate: Certificate) -> int:
    return (certificate.not_after - datetime.now(UTC)).days


def fetch_unverified(sock: socket.socket, server_name: str, deadline: Deadline) -> Certificate | None:
    """What the server behind `sock` shows, without trusting it; closes the socket in any case."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.closing(sock), contextlib.suppress(OSError, ValueError):
        sock.settimeout(deadline.seconds_left())
        with context.wrap_socket(sock, server_hostname=server_name) as secured:
            return read_certificate(secured.getpeercert(binary_form=True))
    return None
