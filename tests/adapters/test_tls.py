"""The one TLS context: what it insists on, whom it trusts, and what it says of a failed handshake."""

import os
import socket
import ssl
import threading
from pathlib import Path

import pytest

from gobii_email.adapters.tls import client_context, tls_loss
from gobii_email.domain.outcomes import Cause
from gobii_email.testing.certificates import ThrowAwayAuthority


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "localhost") -> str:
    """The TLS version agreed on over a real socket pair; raises what the client's handshake raises."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=host) as secured:
            return secured.version() or ""
    finally:
        ours.close()
        thread.join(5)


def test_a_certificate_of_the_extra_authority_is_trusted(authority: ThrowAwayAuthority) -> None:
    assert handshake(authority.good(), client_context()) in ("TLSv1.2", "TLSv1.3")


def test_an_address_is_verified_like_a_name(authority: ThrowAwayAuthority) -> None:
    assert handshake(authority.good(), client_context(), "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        handshake(authority.good(), client_context(), "127.0.0.2")
    assert tls_loss(caught.value)[0] is Cause.CERTIFICATE_WRONG_NAME


@pytest.mark.parametrize(
    ("certificate", "cause", "word"),
    [
        ("expired", Cause.CERTIFICATE_EXPIRED, "expired"),
        ("not_yet_valid", Cause.CERTIFICATE_NOT_YET_VALID, "not valid yet"),
        ("wrong_host", Cause.CERTIFICATE_WRONG_NAME, "another host name"),
        ("self_signed", Cause.CERTIFICATE_UNTRUSTED, "trusted"),
        ("old_tls_only", Cause.TLS_FAILED, "TLS"),
    ],
)
def test_each_kind_of_bad_certificate_is_told_apart(
    authority: ThrowAwayAuthority, certificate: str, cause: Cause, word: str
) -> None:
    with pytest.raises(ssl.SSLError) as caught:
        handshake(getattr(authority, certificate)(), client_context())
    found, sentence = tls_loss(caught.value)
    assert found is cause
    assert word in sentence and sentence.endswith(".")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (TimeoutError("late"), Cause.TIMEOUT),
        (ConnectionResetError("reset"), Cause.CONNECTION_LOST),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), Cause.CONNECTION_LOST),
        (ssl.SSLError(1, "anything else"), Cause.TLS_FAILED),
    ],
)
def test_what_is_not_the_certificates_fault_is_not_blamed_on_it(error: OSError, cause: Cause) -> None:
    assert tls_loss(error)[0] is cause


def test_the_context_insists_on_everything_by_its_own_settings(authority: ThrowAwayAuthority) -> None:
    context = client_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_flags == ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN


def test_the_context_is_made_once_and_again_when_the_anchors_change(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    anchors = tmp_path / "anchors.pem"
    first = ThrowAwayAuthority(tmp_path)
    anchors.write_bytes(first.ca_file.read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(anchors))
    before = client_context()
    assert client_context() is before
    second = ThrowAwayAuthority(tmp_path)
    anchors.write_bytes(second.ca_file.read_bytes())
    os.utime(anchors, (1, 1))
    after = client_context()
    assert after is not before
    assert handshake(second.good(), after)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(first.good(), after)


def test_extra_anchors_stand_beside_those_of_the_system(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority: ThrowAwayAuthority
) -> None:
    system, extra = ThrowAwayAuthority(tmp_path), authority
    paths = ssl.get_default_verify_paths()._replace(openssl_cafile=str(system.ca_file))
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: paths)
    monkeypatch.setattr("gobii_email.adapters.tls._cached", None)
    context = client_context()
    assert handshake(system.good(), context)
    assert handshake(extra.good(), context)
    monkeypatch.setattr("gobii_email.adapters.tls._cached", None)


def test_without_extra_anchors_a_private_authority_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, authority: ThrowAwayAuthority
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.good(), client_context())
