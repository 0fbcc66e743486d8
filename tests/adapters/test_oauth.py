"""Signatures, answers and limits of an OAuth provider, over real sockets."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gobii_email.adapters import oauth
from gobii_email.adapters.oauth import MAX_ANSWER_BYTES, Endpoints, OAuthProvider
from gobii_email.domain.oauth_tokens import GOOGLE, MICROSOFT, Denied, OAuthService, Reason, Tokens
from gobii_email.domain.secret import Secret
from gobii_email.ports import SignInRequest, UnverifiedIdentity
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.oauth_server import CLIENT_ID, CLIENT_SECRET, Answer, LocalOAuthProvider, error
from gobii_email.testing.processes import free_port
from tests.oauth import ADDRESS, BACK, PEOPLE, TENANT

REQUEST = SignInRequest(ADDRESS, BACK, Secret("state-1"), "nonce-1", Secret("v" * 64))


@pytest.fixture(scope="module")
def running() -> Iterator[LocalOAuthProvider]:
    with LocalOAuthProvider() as made:
        yield made


@pytest.fixture
def provider(running: LocalOAuthProvider) -> LocalOAuthProvider:
    """As it was at the start."""
    running.person, running.issuer = dict(PEOPLE["google"]), running.url
    running.faults = type(running.faults)()
    running.key_details = {}
    running.requests.clear()
    return running


def client(
    provider: LocalOAuthProvider, service: OAuthService = GOOGLE, *, seconds: float = 60, **values: Any
) -> OAuthProvider:
    at = Endpoints(
        authorize=f"{provider.url}/authorize",
        token=f"{provider.url}/token",
        jwks=f"{provider.url}/keys",
        revoke=f"{provider.url}/revoke",
        issuer=provider.issuer,
        client_id=CLIENT_ID,
        client_secret=Secret(CLIENT_SECRET),
    )
    return OAuthProvider(service, replace(at, **values), total=timedelta(seconds=seconds))


def signed_in(provider: LocalOAuthProvider, at: OAuthProvider) -> Tokens:
    code = provider.sign_in(at.authorize_url(REQUEST))["code"]
    answer = at.exchange(Secret(code), REQUEST)
    assert isinstance(answer, Tokens)
    return answer


def claims(provider: LocalOAuthProvider, at: OAuthProvider, nonce: str = "nonce-1") -> Any:
    tokens = signed_in(provider, at)
    assert tokens.id_token is not None
    return at.claims(tokens.id_token, nonce, tokens.access_token)


def denied(answer: Tokens | Denied) -> Denied:
    assert isinstance(answer, Denied)
    return answer


# There and back


def test_people_are_sent_with_a_challenge_and_everything_a_lasting_grant_needs(
    provider: LocalOAuthProvider,
) -> None:
    asked = parse_qs(urlsplit(client(provider).authorize_url(REQUEST)).query)
    assert asked["code_challenge_method"] == ["S256"] and len(asked["code_challenge"][0]) == 43
    assert asked["scope"] == ["openid email https://mail.google.com/"]
    assert asked["access_type"] == ["offline"] and asked["prompt"] == ["consent"]
    assert (asked["redirect_uri"], asked["state"], asked["nonce"]) == ([BACK], ["state-1"], ["nonce-1"])
    assert REQUEST.verifier.reveal() not in str(asked)


def test_a_code_is_exchanged_with_its_own_verifier_alone(provider: LocalOAuthProvider) -> None:
    at = client(provider)
    code = Secret(provider.sign_in(at.authorize_url(REQUEST))["code"])
    assert denied(at.exchange(code, replace(REQUEST, verifier=Secret("w" * 64)))).error == "invalid_grant"
    code = Secret(provider.sign_in(at.authorize_url(REQUEST))["code"])
    tokens = at.exchange(code, REQUEST)
    assert isinstance(tokens, Tokens) and tokens.lasts == timedelta(hours=1)
    assert denied(at.exchange(code, REQUEST)).reason is Reason.OWNER


def test_a_refresh_gives_new_tokens_and_microsoft_is_told_the_scopes(provider: LocalOAuthProvider) -> None:
    for service in (GOOGLE, MICROSOFT):
        at = client(provider, service)
        tokens = signed_in(provider, at)
        assert tokens.refresh_token is not None
        renewed = at.refresh(tokens.refresh_token, tokens.scope)
        assert isinstance(renewed, Tokens) and renewed.access_token != tokens.access_token
        form = provider.asked("/token")[-1]
        assert form.get("scope") == (None if service is GOOGLE else " ".join(MICROSOFT.asks))


def test_a_token_is_revoked(provider: LocalOAuthProvider) -> None:
    at = client(provider)
    tokens = signed_in(provider, at)
    assert tokens.refresh_token is not None
    assert at.revoke(tokens.refresh_token)
    assert provider.revoked == [tokens.refresh_token.reveal()]
    assert not at.revoke(Secret("unknown"))
    assert not client(provider, revoke="").revoke(Secret("x"))
    assert not client(provider, revoke=f"http://127.0.0.1:{free_port()}/").revoke(Secret("x"))


# Whose it is


def test_a_signed_identity_is_believed(provider: LocalOAuthProvider) -> None:
    found = claims(provider, client(provider))
    assert (found["email"], found["email_verified"]) == (ADDRESS, True)


NOW = int(time.time())


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"iss": "https://accounts.evil.example"}, "invalid_claim"),
        ({"iss": None}, "missing_claim"),
        ({"aud": "another-client"}, "invalid_claim"),
        ({"aud": [CLIENT_ID, "another-client"]}, "missing_claim"),
        ({"aud": [CLIENT_ID, "another"], "azp": "another"}, "invalid_claim"),
        ({"aud": None}, "missing_claim"),
        ({"nonce": "another"}, "invalid_claim"),
        ({"nonce": None}, "missing_claim"),
        ({"exp": NOW - 3600}, "expired_token"),
        ({"exp": None}, "missing_claim"),
        ({"exp": "soon"}, "invalid_claim"),
        ({"nbf": NOW + 3600}, "invalid_claim"),
        ({"iat": NOW + 3600}, "invalid_claim"),
        ({"at_hash": "AAAA"}, "invalid_claim"),
    ],
)
def test_an_identity_for_somebody_else_or_another_time_is_not(
    provider: LocalOAuthProvider, changed: dict[str, Any], why: str
) -> None:
    provider.faults.claims = changed
    with pytest.raises(UnverifiedIdentity) as caught:
        claims(provider, client(provider))
    assert caught.value.error == why


def test_clocks_may_differ_a_little(provider: LocalOAuthProvider) -> None:
    provider.faults.claims = {"exp": int(time.time()) - 60, "iat": int(time.time()) + 60}
    assert claims(provider, client(provider))["email"] == ADDRESS


def test_a_signature_by_a_key_that_is_not_published_is_not_believed(provider: LocalOAuthProvider) -> None:
    provider.faults.other_key = True
    with pytest.raises(UnverifiedIdentity, match="bad_signature"):
        claims(provider, client(provider))


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b.c",
        # {"alg":"none"} and {"alg":"HS256","kid":…} with the claims of a good one
        "eyJhbGciOiJub25lIn0.eyJlbWFpbCI6ImFnZW50QHNlbmRlci5leGFtcGxlIn0.",
        "eyJhbGciOiJIUzI1NiIsImtpZCI6ImsifQ.eyJlbWFpbCI6ImEifQ.AAAA",
        "[" * 5000,
    ],
)
def test_what_is_no_signed_token_is_not_believed(provider: LocalOAuthProvider, token: str) -> None:
    with pytest.raises(UnverifiedIdentity):
        client(provider).claims(Secret(token), "nonce-1", Secret("x"))


def test_a_new_key_is_looked_up_and_an_invented_one_causes_no_traffic(
    provider: LocalOAuthProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = client(provider)
    claims(provider, at)
    claims(provider, at)
    assert len(provider.asked("/keys")) == 1
    provider.rotate_keys()
    monkeypatch.setattr(oauth, "ASK_FOR_KEYS_AGAIN_AFTER", 0.0)
    claims(provider, at)
    assert len(provider.asked("/keys")) == 2
    monkeypatch.setattr(oauth, "ASK_FOR_KEYS_AGAIN_AFTER", 60.0)
    provider.rotate_keys()
    for _ in range(3):
        with pytest.raises(UnverifiedIdentity, match="unknown_key"):
            claims(provider, at)
    assert len(provider.asked("/keys")) == 2


@pytest.mark.parametrize("answer", [Answer(503), Answer(200, b"[]"), Answer(200, b'{"keys": [7]}')])
def test_without_published_keys_nothing_is_believed(provider: LocalOAuthProvider, answer: Answer) -> None:
    provider.faults.answers["/keys"] = [answer]
    with pytest.raises(UnverifiedIdentity):
        claims(provider, client(provider))


def test_microsofts_issuer_is_that_of_the_token_s_own_tenant(provider: LocalOAuthProvider) -> None:
    provider.person, provider.issuer = dict(PEOPLE["microsoft"]), "https://login.test/{tenantid}/v2.0"
    assert claims(provider, client(provider, MICROSOFT))["tid"] == TENANT
    other = TENANT.replace("1", "9")
    for changed in (
        {"tid": other, "iss": f"https://login.test/{TENANT}/v2.0"},
        {"tid": "common"},
        {"tid": None},
    ):
        provider.faults.claims = changed
        with pytest.raises(UnverifiedIdentity):
            claims(provider, client(provider, MICROSOFT))


def test_a_key_of_one_tenant_does_not_sign_for_another(provider: LocalOAuthProvider) -> None:
    provider.person, provider.issuer = dict(PEOPLE["microsoft"]), "https://login.test/{tenantid}/v2.0"
    provider.key_details = {"issuer": "https://login.test/{tenantid}/v2.0"}
    assert claims(provider, client(provider, MICROSOFT))
    provider.key_details = {"issuer": "https://login.test/another/v2.0"}
    with pytest.raises(UnverifiedIdentity, match="issuer"):
        claims(provider, client(provider, MICROSOFT))


# What may come back


GRANT = b'{"access_token": "a", "token_type": "Bearer"}'


@pytest.mark.parametrize(
    ("answer", "reason", "code"),
    [
        (error("invalid_grant"), Reason.OWNER, "invalid_grant"),
        (error("interaction_required"), Reason.OWNER, "interaction_required"),
        (error("invalid_client", 401), Reason.OPERATOR, "invalid_client"),
        (error("temporarily_unavailable", 503), Reason.PASSING, "unreachable"),
        (error("slow_down", 429), Reason.PASSING, "slow_down"),
        (error("<script>alert(1)</script>"), Reason.PASSING, "unreadable_error"),
        (Answer(500, b"oops"), Reason.PASSING, "unreachable"),
        (Answer(200, b"<html>"), Reason.PASSING, "unusable_answer"),
        (Answer(200, b"[1]"), Reason.PASSING, "unusable_answer"),
        (Answer(200, b"{}"), Reason.PASSING, "unusable_answer"),
        (Answer(200, b'{"access_token": "a", "token_type": "mac"}'), Reason.PASSING, "unusable_answer"),
        (
            Answer(200, b'{"access_token": "a\\u0001b", "token_type": "Bearer"}'),
            Reason.PASSING,
            "unusable_answer",
        ),
        (Answer(200, GRANT + b" " * MAX_ANSWER_BYTES), Reason.PASSING, "unusable_answer"),
        (Answer(200, GRANT + b" " * 200, {}, 0.05), Reason.PASSING, "unusable_answer"),
    ],
    ids=lambda value: str(getattr(value, "body", value))[:40],
)
def test_an_answer_without_tokens_is_a_value_that_says_whose_turn_it_is(
    provider: LocalOAuthProvider, answer: Answer, reason: Reason, code: str
) -> None:
    provider.faults.answers["/token"] = [answer]
    found = denied(client(provider, seconds=3 if answer.drip else 60).refresh(Secret("r3fresh"), ""))
    assert (found.reason, found.error) == (reason, code)
    assert "Google" in found.text and "script" not in found.text


def test_no_redirect_is_followed(provider: LocalOAuthProvider) -> None:
    for status in (301, 302, 307, 308):
        provider.faults.answers["/token"] = [Answer(status, b"", {"Location": f"{provider.url}/elsewhere"})]
        assert denied(client(provider).refresh(Secret("r3fresh"), "")).error == "unusable_answer"
    assert provider.asked("/elsewhere") == []


def test_a_provider_that_does_not_answer_is_given_up_in_time(provider: LocalOAuthProvider) -> None:
    provider.faults.delays["/token"] = 1
    assert denied(client(provider, seconds=0.3).refresh(Secret("r3fresh"), "")).reason is Reason.PASSING
    nowhere = client(provider, token=f"http://127.0.0.1:{free_port()}/token")
    assert denied(nowhere.refresh(Secret("r3fresh"), "")).error == "unreachable"


def test_its_certificate_is_verified(authority: ThrowAwayAuthority) -> None:
    with LocalOAuthProvider(person=PEOPLE["google"], tls=authority.good("localhost")) as good:
        assert signed_in(good, client(good)).refresh_token is not None
    with LocalOAuthProvider(person=PEOPLE["google"], tls=authority.self_signed()) as bad:
        assert denied(client(bad).refresh(Secret("r3fresh"), "")).error == "unreachable"
        assert bad.requests == []


def test_nothing_of_a_token_is_shown(provider: LocalOAuthProvider) -> None:
    """Neither by what is answered nor by what is raised."""
    secret = "canary-r3fresh"
    body = json.dumps({"error": "invalid_grant", "error_description": f"{secret} is over"}).encode()
    for answer in (Answer(400, body), Answer(500, secret.encode()), Answer(200, secret.encode())):
        provider.faults.answers["/token"] = [answer]
        assert secret not in repr(client(provider).refresh(Secret(secret), ""))
    assert secret not in repr(Tokens(Secret(secret), Secret(secret), Secret(secret)))
