"""A certificate authority that lives as long as a test or a demonstration.

Makes server certificates, good ones and each kind of bad one, as contexts for servers in Python and
as `…_certificate` for others; whoever should trust them points `SSL_CERT_FILE` at `ca_file`. The
certificates are made by trustme.
"""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme

HOST = "localhost"


class ThrowAwayAuthority:
    """An authority whose certificate is written to `ca_file` in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._authority = trustme.CA()
        self.ca_file = directory / "throw-away-ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def good(self, *hosts: str) -> ssl.SSLContext:
        """For `hosts`, or for localhost and the loopback addresses."""
        return _serving(self.good_certificate(*hosts))

    def good_certificate(self, *hosts: str) -> trustme.LeafCert:
        return self._authority.issue_cert(*(hosts or (HOST, "127.0.0.1", "::1")))

    def expired(self) -> ssl.SSLContext:
        return _serving(self.expired_certificate())

    def expired_certificate(self) -> trustme.LeafCert:
        return self._authority.issue_cert(HOST, not_after=_now() - timedelta(days=2))

    def ends_soon(self) -> ssl.SSLContext:
        return _serving(self._authority.issue_cert(HOST, not_after=_now() + timedelta(days=5)))

    def not_yet_valid(self) -> ssl.SSLContext:
        return _serving(self._authority.issue_cert(HOST, not_before=_now() + timedelta(days=2)))

    def wrong_host(self) -> ssl.SSLContext:
        return _serving(self.wrong_host_certificate())

    def wrong_host_certificate(self) -> trustme.LeafCert:
        return self._authority.issue_cert("somebody-else.example")

    def self_signed(self) -> ssl.SSLContext:
        """For the right host, from an authority that nobody has heard of."""
        return _serving(self.self_signed_certificate())

    def self_signed_certificate(self) -> trustme.LeafCert:
        return trustme.CA().issue_cert(HOST)

    def old_tls_only(self) -> ssl.SSLContext:
        """A good certificate over TLS 1.1, which clients refuse."""
        context = self.good()
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        return context


def _now() -> datetime:
    return datetime.now(UTC).replace(tzinfo=None)


def _serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context
