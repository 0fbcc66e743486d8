"""The one TLS context: what it insists on, whom it trusts, what it resumes, what it says of a failure."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gobii_email.adapters.smtp_session import SmtpSession
from gobii_email.adapters.tls import (
    Endpoint,
    client_context,
    remember_session,
    session_to_resume,
    tls_loss,
)
from gobii_email.domain.outcomes import Accepted, Cause, Lost
from gobii_email.ports import Auth, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.adapters.conftest import MESSAGE, Notes, account, envelope, transport_to


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


@pytest.fixture
def serving(authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(tls=authority.good(), security="ssl") as server:
        yield server


def is_resumed(server: ScriptedSmtpServer, host: str = "localhost") -> bool:
    """Whether a connection resumes, where it may, a session; its own is kept, as a transport does."""
    context, endpoint = client_context(), (host, server.port, "ssl")
    with (
        socket.create_connection((server.host, server.port)) as plain,
        context.wrap_socket(
            plain, server_hostname=host, session=session_to_resume(context, endpoint)
        ) as secured,
    ):
        secured.recv(100)
        remember_session(secured, endpoint)
        return bool(secured.session_reused)


def test_the_next_connection_to_the_same_endpoint_resumes(serving: ScriptedSmtpServer) -> None:
    assert [is_resumed(serving) for _ in range(4)] == [False, True, True, True]


def test_another_name_for_the_same_server_is_verified_anew(serving: ScriptedSmtpServer) -> None:
    assert not is_resumed(serving)
    assert not is_resumed(serving, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        is_resumed(serving, "127.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError):
        is_resumed(serving, "mail.example")


@pytest.mark.parametrize(
    "other", [("localhost", 1, "ssl"), ("localhost.", 0, "ssl"), ("localhost", 0, "starttls")]
)
def test_a_session_belongs_to_its_very_endpoint(serving: ScriptedSmtpServer, other: Endpoint) -> None:
    is_resumed(serving)
    host, port, security = other
    assert session_to_resume(client_context(), (host, port or serving.port, security)) is None


def test_a_server_that_is_no_longer_trusted_is_refused_whatever_was_resumable(
    serving: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    is_resumed(serving)
    assert is_resumed(serving)
    before = client_context()
    monkeypatch.setenv("SSL_CERT_FILE", str(ThrowAwayAuthority(tmp_path).ca_file))
    with pytest.raises(ssl.SSLCertVerificationError):
        is_resumed(serving)
    assert session_to_resume(before, ("localhost", serving.port, "ssl")) is None


def test_another_server_at_the_endpoint_does_not_get_in_by_a_session(
    authority: ThrowAwayAuthority, serving: ScriptedSmtpServer
) -> None:
    is_resumed(serving)
    serving.stop()
    with (
        ScriptedSmtpServer(tls=authority.self_signed(), security="ssl", port=serving.port) as impostor,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        is_resumed(impostor)


def test_a_session_is_resumed_for_ten_minutes_after_its_full_handshake(
    serving: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_resumed(serving)
    now = time.monotonic()
    for minutes, resumed in [(3, True), (6, True), (9, True), (11, False)]:
        monkeypatch.setattr("gobii_email.adapters.tls.time.monotonic", lambda past=minutes * 60: now + past)
        assert is_resumed(serving) is resumed


def test_mail_resumes_and_a_test_of_the_connection_verifies_anew(
    authority: ThrowAwayAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    real = SmtpSession.encrypt

    def encrypt(session: SmtpSession, context: ssl.SSLContext) -> str:
        version = real(session, context)
        asked.append(bool(session._socket.session_reused))
        return version

    monkeypatch.setattr(SmtpSession, "encrypt", encrypt)
    with ScriptedSmtpServer(tls=authority.good()) as server:
        transport, target = transport_to(server.port), account(server.port, auth=Auth.NONE)
        for _ in range(2):
            assert isinstance(transport.send(target, envelope(), MESSAGE, Notes()), Accepted)
        assert transport.probe(target, "a@sender.example").is_ok
    assert asked == [False, True, False]


def test_a_session_that_a_handshake_failed_with_is_forgotten(serving: ScriptedSmtpServer) -> None:
    is_resumed(serving)
    port = serving.port
    serving.stop()
    with socket.create_server(("127.0.0.1", port)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].close(), daemon=True).start()
        target = account(port, security=Security.SSL, auth=Auth.NONE)
        assert isinstance(transport_to(port).send(target, envelope(), MESSAGE, Notes()), Lost)
    assert session_to_resume(client_context(), ("localhost", port, "ssl")) is None


def test_without_extra_anchors_a_private_authority_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, authority: ThrowAwayAuthority
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority.good(), client_context())
