"""Talks to a provider's OAuth 2.0 endpoints through authlib, and verifies its id tokens.

Knows the exchange of a code, the refresh, the revocation, and signatures by the provider's published keys;
what a grant means for an account is decided in services. Endpoints come from the configuration alone: no
redirect is followed, an answer has a size and the whole exchange a time (RFC 6749, 7009, 7517, 7636).
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import requests
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.requests_client import OAuth2Session
from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from gobii_email.adapters.https_session import HttpsSession
from gobii_email.domain.oauth_tokens import (
    TENANT_PLACE,
    Denied,
    OAuthService,
    Reason,
    Tokens,
    denied,
    granted,
    issuer_for,
    tokens_from,
)
from gobii_email.domain.secret import Secret
from gobii_email.ports import SignInRequest, UnverifiedIdentity

MAX_ANSWER_BYTES = 256 * 1024
MAX_KEYS = 50
CONNECT_SECONDS = 5.0
LEEWAY_SECONDS = 120
"""What the provider's clock and ours may differ by."""
KEYS_LAST = 3600.0
ASK_FOR_KEYS_AGAIN_AFTER = 10.0
"""Seconds between two looks for a key that is not known, so that forged tokens cause no traffic."""
TOTAL = timedelta(seconds=20)

T = TypeVar("T")


class _Unusable(Exception):
    """What came back is not what the protocol says, too large or too late."""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a service is, and as whom this installation is registered there. `revoke` may be ""."""

    authorize: str
    token: str
    jwks: str
    issuer: str
    client_id: str
    client_secret: Secret
    revoke: str = ""


class OAuthProvider:
    """A `ports.TokenIssuer`. `total` bounds each exchange as a whole."""

    def __init__(self, service: OAuthService, endpoints: Endpoints, *, total: timedelta = TOTAL) -> None:
        self.service = service
        self.revokes = bool(endpoints.revoke)
        self._at = endpoints
        self._total = total.total_seconds()
        self._keys = _PublishedKeys(lambda: self._in_time(self._published))

    # The way of a sign-in

    def authorize_url(self, request: SignInRequest) -> str:
        with self._session(redirect_uri=request.redirect_uri) as session:
            url, _ = session.create_authorization_url(
                self._at.authorize,
                state=request.state.reveal(),
                code_verifier=request.verifier.reveal(),
                scope=" ".join(self.service.asks),
                nonce=request.nonce,
                login_hint=request.address,
                **self.service.extra,
            )
        return str(url)

    def exchange(self, code: Secret, request: SignInRequest) -> Tokens | Denied:
        def ask(session: OAuth2Session) -> Mapping[str, Any]:
            answer: Mapping[str, Any] = session.fetch_token(
                self._at.token,
                grant_type="authorization_code",
                code=code.reveal(),
                code_verifier=request.verifier.reveal(),
            )
            return answer

        return self._tokens(ask, redirect_uri=request.redirect_uri)

    def refresh(self, refresh_token: Secret, scope: str) -> Tokens | Denied:
        is_named = self.service.names_scopes_on_refresh
        named = {"scope": " ".join(granted(self.service, scope))} if is_named else {}

        def ask(session: OAuth2Session) -> Mapping[str, Any]:
            answer: Mapping[str, Any] = session.refresh_token(
                self._at.token, refresh_token=refresh_token.reveal(), **named
            )
            return answer

        return self._tokens(ask)

    def revoke(self, token: Secret) -> bool:
        """Whether the service says that `token`, and all that came with it, is void. Never raises."""
        if not self.revokes:
            return False
        try:
            answer: requests.Response = self._in_time(
                lambda session: session.revoke_token(self._at.revoke, token=token.reveal())
            )
        except (_Unusable, requests.RequestException, AuthlibBaseError, ValueError):
            return False
        return answer.status_code == 200

    # Whose it is

    def claims(self, id_token: Secret, nonce: str, access_token: Secret) -> Mapping[str, Any]:
        """What the service says of who signed in. Raises UnverifiedIdentity."""
        try:
            signed = jwt.decode(id_token.reveal(), self._keys.of_header, algorithms=["RS256"])
            issuer = issuer_for(self._at.issuer, signed.claims)
            if issuer is None or not self._keys.may_sign(signed.header["kid"], issuer, signed.claims):
                raise UnverifiedIdentity("issuer")
            claims = CodeIDToken(
                signed.claims,
                signed.header,
                {
                    "iss": {"essential": True, "value": issuer},
                    "aud": {"essential": True, "value": self._at.client_id},
                },
                {"nonce": nonce, "client_id": self._at.client_id, "access_token": access_token.reveal()},
            )
            claims.validate(leeway=LEEWAY_SECONDS)
        except JoseError as problem:
            raise UnverifiedIdentity(str(problem.error)[:40] or "token") from None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UnverifiedIdentity("token") from None
        return dict(claims)

    def _published(self, session: OAuth2Session) -> Mapping[str, Any]:
        answer = session.get(self._at.jwks, withhold_token=True)
        found = answer.json() if answer.status_code == 200 else None
        if not isinstance(found, dict):
            raise _Unusable("no key set")
        return found

    # One exchange

    def _session(self, **values: Any) -> "_Session":
        return _Session(self._at, self._total, **values)

    def _tokens(self, ask: Callable[[OAuth2Session], Mapping[str, Any]], **values: Any) -> Tokens | Denied:
        try:
            answer = self._in_time(ask, **values)
        except AuthlibBaseError as problem:
            return denied(self.service, problem.error)
        except requests.RequestException:
            return self._away("unreachable", "cannot be reached just now")
        except (_Unusable, ValueError):
            return self._away("unusable_answer", "gave no usable answer")
        return tokens_from(answer) or self._away("unusable_answer", "gave no usable answer")

    def _away(self, error: str, what: str) -> Denied:
        return Denied(Reason.PASSING, error, f"The sign-in service of {self.service.name} {what}.")

    def _in_time(self, ask: Callable[[OAuth2Session], T], **values: Any) -> T:
        """What `ask` answers. Raises what it raised, or _Unusable when the time is over.

        In a thread of its own, because neither the resolver nor a header that drips in knows a deadline; it
        is left behind then, and ends with its next read.
        """
        found: list[T] = []
        problems: list[BaseException] = []

        def act() -> None:
            try:
                with self._session(**values) as session:
                    found.append(ask(session))
            except Exception as problem:
                problems.append(problem)

        thread = threading.Thread(target=act, name="oauth", daemon=True)
        thread.start()
        thread.join(self._total)
        if problems:
            raise problems[0] from None
        if not found:
            raise _Unusable("too late")
        return found[0]


class _Session(HttpsSession, OAuth2Session):  # type: ignore[misc]
    """Authlib's session, which reads so much for so long."""

    def __init__(self, at: Endpoints, total: float, **values: Any) -> None:
        client: dict[str, Any] = {
            "client_id": at.client_id,
            "client_secret": at.client_secret.reveal(),
            # In the body, where Google and Microsoft document it; and no secret in a header that is logged.
            "token_endpoint_auth_method": "client_secret_post",
            "revocation_endpoint_auth_method": "none",
            "code_challenge_method": "S256",
        }
        super().__init__(**client, **values)
        self._until = time.monotonic() + total

    def send(self, request: requests.PreparedRequest, **named: Any) -> requests.Response:
        left = max(self._until - time.monotonic(), 0.001)
        timeout = (min(CONNECT_SECONDS, left), left)
        answer = super().send(request, **(named | {"stream": True, "timeout": timeout}))
        answer._content = self._body(answer)
        return answer

    def _body(self, answer: requests.Response) -> bytes:
        body = b""
        with answer:
            for part in answer.iter_content(8192):
                body += part
                if len(body) > MAX_ANSWER_BYTES or time.monotonic() > self._until:
                    raise _Unusable("too large or too late")
        return body


class _PublishedKeys:
    """The keys a service signs with; asked for again when one is not known, as after a rotation."""

    def __init__(self, ask: Callable[[], Mapping[str, Any]]) -> None:
        self._ask = ask
        self._lock = threading.Lock()
        self._known: KeySet | None = None
        self._issuers: Mapping[str, str] = {}
        self._asked_at = 0.0

    def of_header(self, signed: Any) -> Any:
        """The key that a token's header names. Raises UnverifiedIdentity when none is published under it."""
        kid = signed.headers().get("kid")
        with self._lock:
            age = time.monotonic() - self._asked_at
            key = self._find(kid) if age < KEYS_LAST else None
            if key is None and (self._known is None or age >= ASK_FOR_KEYS_AGAIN_AFTER):
                self._learn()
                key = self._find(kid)
        if key is None:
            raise UnverifiedIdentity("unknown_key")
        return key

    def may_sign(self, kid: str, issuer: str, claims: Mapping[str, Any]) -> bool:
        """Whether the key is published for this issuer: Microsoft names the tenants of a key beside it."""
        named = self._issuers.get(kid)
        return named is None or named.replace(TENANT_PLACE, str(claims.get("tid"))) == issuer

    def _find(self, kid: object) -> Any:
        return next((key for key in self._known or () if key.kid == kid), None)

    def _learn(self) -> None:
        try:
            published = self._ask().get("keys")
            rows = published[:MAX_KEYS] if isinstance(published, list) else []
            usable = [row for row in rows if _is_for_signatures(row)]
            self._known = KeySet.import_key_set({"keys": usable})
            self._issuers = {row["kid"]: str(row["issuer"]) for row in usable if "issuer" in row}
        except (_Unusable, requests.RequestException, JoseError, ValueError, TypeError):
            raise UnverifiedIdentity("no_keys") from None
        self._asked_at = time.monotonic()


def _is_for_signatures(row: object) -> bool:
    return (
        isinstance(row, dict)
        and row.get("kty") == "RSA"
        and row.get("use", "sig") == "sig"
        and isinstance(row.get("kid"), str)
    )
