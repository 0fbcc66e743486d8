"""The one TLS context of the project, its sessions, and what a failed handshake means.

Every mail server is verified, chain and host name, with TLS 1.2 or newer (RFC 8314, RFC 8997,
RFC 7817); there is no switch to skip that. An in-house authority is added through `SSL_CERT_FILE`,
beside the authorities of the system.
"""

import os
import ssl
import threading
import time
from pathlib import Path

from gobii_email.domain.outcomes import Cause

MAX_SESSION_AGE_SECONDS = 600.0
MAX_SESSIONS = 500

_TrustKey = tuple[str, int, int]
Endpoint = tuple[str, int, str]
_lock = threading.Lock()
_cached: tuple[_TrustKey, ssl.SSLContext] | None = None
_sessions: dict[tuple[ssl.SSLContext, Endpoint], tuple[float, ssl.SSLSession]] = {}

# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID = 9
_EXPIRED = 10
_WRONG_NAME = 62
_WRONG_ADDRESS = 64
_SELF_SIGNED = (18, 19)
_PLAIN_ANSWERS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG")
_OLD_TLS = ("UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION", "VERSION_TOO_LOW")


def client_context() -> ssl.SSLContext:
    """The context for every connection to a mail server; made anew when `SSL_CERT_FILE` changes."""
    global _cached
    key = _trust_key()
    with _lock:
        if _cached is None or _cached[0] != key:
            _cached = (key, _new_context(key[0]))
            _sessions.clear()
        return _cached[1]


def session_to_resume(context: ssl.SSLContext, endpoint: Endpoint) -> ssl.SSLSession | None:
    """A session of at most ten minutes ago with `endpoint`: host name, port, security, all exactly equal.

    Chain and name were verified when it began, by the same `context`; they are not when it is resumed.
    """
    begun_at, session = _sessions.get((context, endpoint), (0.0, None))
    return session if time.monotonic() - begun_at < MAX_SESSION_AGE_SECONDS else None


def remember_session(secured: ssl.SSLSocket, endpoint: Endpoint) -> None:
    """Keeps what `secured` was given to resume by, which TLS 1.3 sends with the first data.

    The age counts from the full handshake: a resumed session is not kept again.
    """
    # Asked in this order, because looking at the session copies it.
    if secured.session_reused or (session := secured.session) is None:
        return
    with _lock:
        if len(_sessions) >= MAX_SESSIONS:
            _sessions.clear()
        _sessions[secured.context, endpoint] = (time.monotonic(), session)


def forget_session(context: ssl.SSLContext, endpoint: Endpoint) -> None:
    _sessions.pop((context, endpoint), None)


def _trust_key() -> _TrustKey:
    extra = os.environ.get("SSL_CERT_FILE", "")
    try:
        status = os.stat(extra)  # noqa: PTH116 - several times as fast as a Path
    except OSError:
        return (extra, 0, 0)
    return (extra, status.st_mtime_ns, status.st_size)


def _new_context(extra_anchors: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    # Set outright: what Python adds by itself differs from version to version, and its strict
    # mode refuses the certificates of many in-house authorities.
    context.verify_flags = ssl.VERIFY_X509_TRUSTED_FIRST | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Reads SSL_CERT_FILE in place of the system's file, which is therefore added again.
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    system = ssl.get_default_verify_paths()
    if extra_anchors and Path(system.openssl_cafile).is_file():
        context.load_verify_locations(cafile=system.openssl_cafile)
    return context


def tls_loss(error: BaseException) -> tuple[Cause, str]:
    """Why no encrypted connection came about: the cause, and a sentence about the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_loss(error)
    if isinstance(error, TimeoutError):
        return Cause.TIMEOUT, "The server did not finish the TLS handshake in time."
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        return Cause.CONNECTION_LOST, "The server closed the connection during the TLS handshake."
    return Cause.TLS_FAILED, _handshake_sentence(getattr(error, "reason", None) or "")


def _certificate_loss(error: ssl.SSLCertVerificationError) -> tuple[Cause, str]:
    match error.verify_code:
        case code if code == _EXPIRED:
            return Cause.CERTIFICATE_EXPIRED, "The server's certificate has expired."
        case code if code == _NOT_YET_VALID:
            return Cause.CERTIFICATE_NOT_YET_VALID, "The server's certificate is not valid yet."
        case code if code in (_WRONG_NAME, _WRONG_ADDRESS):
            text = "The server's certificate is for another host name than the one configured."
            return Cause.CERTIFICATE_WRONG_NAME, text
        case code if code in _SELF_SIGNED:
            text = "The server's certificate is self-signed or from an authority that is not trusted here."
            return Cause.CERTIFICATE_UNTRUSTED, text
        case _:
            text = "The server's certificate does not lead to an authority that is trusted here."
            return Cause.CERTIFICATE_UNTRUSTED, text


def _handshake_sentence(reason: str) -> str:
    if reason in _PLAIN_ANSWERS:
        return "The server does not answer with TLS on this port; STARTTLS may be the right setting."
    if reason in _OLD_TLS:
        return "The server offers only TLS versions older than 1.2."
    return "The TLS handshake with the server failed."
