"""Whom sessions over HTTPS trust, and where they go: a real server with a certificate of a test's own."""

import ssl
from pathlib import Path

import pytest
import requests

from gobii_email.adapters.https_session import HttpsSession
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.oauth_server import Answer, LocalOAuthProvider


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Authorities that vouch for no server here."""
    return ThrowAwayAuthority(tmp_path).ca_file


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_what_openssl_is_told_to_trust_wins_over_what_requests_reads(
    authority: ThrowAwayAuthority, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, str(elsewhere))
    with LocalOAuthProvider(tls=authority.good("localhost")) as server:
        assert HttpsSession().get(f"{server.url}/keys", timeout=5).ok
        monkeypatch.setenv("SSL_CERT_FILE", str(elsewhere))
        monkeypatch.setenv(name, str(authority.ca_file))
        with pytest.raises(requests.exceptions.SSLError):
            HttpsSession().get(f"{server.url}/keys", timeout=5)


def test_nobody_is_trusted_beyond_the_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    context: ssl.SSLContext = ThrowAwayAuthority(tmp_path).good("localhost")
    with LocalOAuthProvider(tls=context) as server, pytest.raises(requests.exceptions.SSLError):
        HttpsSession().get(f"{server.url}/keys", timeout=5)


def test_a_redirect_is_an_answer_and_not_followed() -> None:
    with LocalOAuthProvider() as server:
        server.faults.answers["/keys"] = [Answer(302, b"", {"Location": f"{server.url}/elsewhere"})]
        answer = HttpsSession().get(f"{server.url}/keys", timeout=5)
        assert (answer.status_code, server.asked("/elsewhere")) == (302, [])
