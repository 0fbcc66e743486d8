"""A provider of sign-ins on loopback: OAuth 2.0 with PKCE and OpenID Connect, for tests and demonstration.

Real as far as a client can see: codes are good once and for one verifier, id tokens are signed with RS256 by
published keys, refresh tokens rotate. Whoever is sent to `/authorize` is signed in as `person` at once and
sent back. It listens on a free port, in its own threads, and stops by its own handle.
"""

import base64
import hashlib
import itertools
import json
import secrets
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

LOOPBACK = "127.0.0.1"
_COUNT = itertools.count()
CLIENT_ID, CLIENT_SECRET = "client-of-tests", "client-s3cret"


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said in place of the real answer. `drip` seconds pass between two bytes of the body."""

    status: int = 200
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)
    drip: float = 0


def error(code: str, status: int = 400, description: str = "") -> Answer:
    """The answer of a token endpoint that grants nothing."""
    return Answer(status, json.dumps({"error": code, "error_description": description}).encode())


@dataclass
class OAuthFaults:
    """What goes wrong, and where; change it while the provider runs.

    `answers` maps a path (`/token`) to what its next requests get, one after the other; `delays` to seconds
    before its answer. `claims` replaces claims of id tokens, those with None are left out; `other_key` signs
    them with a key that is not published; `scope` is granted in place of what was asked for;
    `no_refresh_token` and `no_id_token` leave these out.
    """

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    delays: dict[str, float] = field(default_factory=dict)
    claims: dict[str, Any] = field(default_factory=dict)
    other_key: bool = False
    scope: str | None = None
    no_refresh_token: bool = False
    no_id_token: bool = False


@dataclass(slots=True)
class _Grant:
    """What one person allowed; `code_for` are the parameters that its code is good with."""

    person: dict[str, Any]
    scope: str
    nonce: str
    code_for: dict[str, str] = field(default_factory=dict)


class LocalOAuthProvider:
    """`with LocalOAuthProvider(person={"email": "a@b.example", "email_verified": True}) as provider`.

    `person` are the claims of whoever signs in next. `issuer` is its own address unless given. Access tokens
    last `lifetime` seconds, refresh tokens are good once when `rotates`. `requests` are the forms that came,
    with their paths; `takes` is what a mail server asks about a user and a token.
    """

    def __init__(
        self,
        *,
        person: Mapping[str, Any] | None = None,
        issuer: str = "",
        lifetime: int = 3600,
        rotates: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.person = dict(person or {})
        self.lifetime = lifetime
        self.rotates = rotates
        self.faults = OAuthFaults()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.access_tokens: dict[str, _Grant] = {}
        self.refresh_tokens: dict[str, _Grant] = {}
        self.revoked: list[str] = []
        self._codes: dict[str, _Grant] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((LOOPBACK, 0), _handler_of(self))
        self._server.daemon_threads = True
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.issuer = issuer or self.url
        self.key_details: dict[str, Any] = {}
        self.rotate_keys()

    @property
    def url(self) -> str:
        host = LOOPBACK if self._scheme == "http" else "localhost"
        return f"{self._scheme}://{host}:{self._server.server_address[1]}"

    def settings(self, service: str) -> dict[str, str]:
        """The settings that make it the provider of `service`, "google" or "microsoft"."""
        values = {
            "CLIENT_ID": CLIENT_ID,
            "CLIENT_SECRET": CLIENT_SECRET,
            "AUTHORIZE_URL": f"{self.url}/authorize",
            "TOKEN_URL": f"{self.url}/token",
            "JWKS_URL": f"{self.url}/keys",
            "ISSUER": self.issuer,
        }
        if service == "google":
            values["REVOKE_URL"] = f"{self.url}/revoke"
        return {f"{service.upper()}_{name}": value for name, value in values.items()}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(30)

    # What tests ask and change

    def takes(self, user: str, token: str) -> bool:
        """Whether `token` is one of the mailbox `user` and neither expired by `expire` nor revoked."""
        with self._lock:
            grant = self.access_tokens.get(token)
        names = () if grant is None else (grant.person.get("email"), grant.person.get("preferred_username"))
        return user.lower() in {str(name).lower() for name in names}

    def asked(self, path: str) -> list[dict[str, str]]:
        """The forms that came to `path`."""
        with self._lock:
            return [form for where, form in self.requests if where == path]

    def expire(self) -> None:
        """No access token that was issued is good any more."""
        with self._lock:
            self.access_tokens.clear()

    def withdraw(self) -> None:
        """Everybody withdraws what they allowed."""
        with self._lock:
            self.access_tokens.clear()
            self.refresh_tokens.clear()

    def rotate_keys(self) -> None:
        """Signs with a new key from now on, and publishes that one alone."""
        self._key = _new_key()

    def grant(self, scope: str) -> str:
        """A refresh token of `person`, as from a sign-in elsewhere."""
        token = f"refresh-{secrets.token_urlsafe(24)}"
        with self._lock:
            self.refresh_tokens[token] = _Grant(dict(self.person), scope, "")
        return token

    def sign_in(self, url: str) -> dict[str, str]:
        """What a browser would be sent back with that goes to `url`."""
        return dict(parse_qsl(urlsplit(self.send_back(dict(parse_qsl(urlsplit(url).query)))).query))

    # The endpoints

    def answer(self, path: str, form: dict[str, str]) -> Answer:
        with self._lock:
            self.requests.append((path, form))
            planned = self.faults.answers.get(path)
            found = planned.pop(0) if planned else None
        time.sleep(self.faults.delays.get(path, 0))
        if found is not None:
            return found
        match path:
            case "/authorize":
                return Answer(302, b"", {"Location": self.send_back(form)})
            case "/token":
                return self._token(form)
            case "/revoke":
                return self._revoke(form.get("token", ""))
            case "/introspect":
                return self._introspected(form.get("token", ""))
            case "/keys":
                key = self._key.as_dict(private=False) | {"use": "sig", "alg": "RS256"} | self.key_details
                return _json({"keys": [key]})
        return Answer(404)

    def send_back(self, asked: dict[str, str]) -> str:
        """The address that somebody is sent back to who allowed what was `asked`."""
        code = secrets.token_urlsafe(24)
        scope = asked.get("scope", "") if self.faults.scope is None else self.faults.scope
        grant = _Grant(dict(self.person), scope, asked.get("nonce", ""))
        grant.code_for = {
            "client_id": asked.get("client_id", ""),
            "redirect_uri": asked.get("redirect_uri", ""),
            "challenge": asked.get("code_challenge", ""),
        }
        with self._lock:
            self._codes[code] = grant
        back = {"code": code, "state": asked.get("state", "")}
        return f"{asked.get('redirect_uri', '')}?{urlencode(back)}"

    def _token(self, form: dict[str, str]) -> Answer:
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return error("invalid_client", 401)
        with self._lock:
            grant = self._granted(form)
            if grant is None:
                return error("invalid_grant")
            return _json(self._tokens(grant, form))

    def _granted(self, form: dict[str, str]) -> _Grant | None:
        if form.get("grant_type") == "refresh_token":
            token = form.get("refresh_token", "")
            return self.refresh_tokens.pop(token, None) if self.rotates else self.refresh_tokens.get(token)
        grant = self._codes.pop(form.get("code", ""), None)
        if form.get("grant_type") != "authorization_code" or grant is None:
            return None
        proof = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        shown = {
            "client_id": form["client_id"],
            "redirect_uri": form.get("redirect_uri", ""),
            "challenge": base64.urlsafe_b64encode(proof).decode().rstrip("="),
        }
        return grant if shown == grant.code_for else None

    def _tokens(self, grant: _Grant, form: dict[str, str]) -> dict[str, Any]:
        access = f"access-{secrets.token_urlsafe(24)}"
        self.access_tokens[access] = grant
        said: dict[str, Any] = {
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": self.lifetime,
            "scope": grant.scope,
        }
        is_first = form["grant_type"] == "authorization_code"
        if (is_first or self.rotates) and not self.faults.no_refresh_token:
            said["refresh_token"] = refresh = f"refresh-{secrets.token_urlsafe(24)}"
            self.refresh_tokens[refresh] = grant
        if is_first and not self.faults.no_id_token:
            said["id_token"] = self._id_token(grant)
        return said

    def _id_token(self, grant: _Grant) -> str:
        now = int(time.time())
        claims = {
            "iss": self.issuer.replace("{tenantid}", str(grant.person.get("tid", ""))),
            "aud": CLIENT_ID,
            "sub": "subject-1",
            "iat": now,
            "exp": now + 3600,
            "nonce": grant.nonce,
        }
        claims |= grant.person | self.faults.claims
        kept = {name: value for name, value in claims.items() if value is not None}
        key = RSAKey.import_key(_private_key(-1)) if self.faults.other_key else self._key
        return jwt.encode({"alg": "RS256", "kid": self._key.kid}, kept, key)

    def _introspected(self, token: str) -> Answer:
        """What a mail server is told of `token` (RFC 7662)."""
        with self._lock:
            grant = self.access_tokens.get(token)
        if grant is None:
            return _json({"active": False})
        return _json({"active": True, "scope": grant.scope, "email": grant.person.get("email", "")})

    def _revoke(self, token: str) -> Answer:
        with self._lock:
            grant = self.refresh_tokens.get(token) or self.access_tokens.get(token)
            if grant is None:
                return error("invalid_token")
            self.revoked.append(token)
            for tokens in (self.access_tokens, self.refresh_tokens):
                for one in [one for one, of in tokens.items() if of is grant]:
                    del tokens[one]
        return Answer()


def _new_key() -> RSAKey:
    """Another key than the one before, under a name of its own; made seldom, because that takes long."""
    return RSAKey.import_key(_private_key(next(_COUNT) % 3), {"kid": secrets.token_hex(8)})


@cache
def _private_key(number: int) -> bytes:
    return RSAKey.generate_key(2048).as_pem(private=True)


def _json(value: object) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _handler_of(provider: LocalOAuthProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            self._say(provider.answer(parts.path, dict(parse_qsl(parts.query))))

        def do_POST(self) -> None:
            size = min(int(self.headers.get("Content-Length") or 0), 65_536)
            form = dict(parse_qsl(self.rfile.read(size).decode()))
            self._say(provider.answer(urlsplit(self.path).path, form))

        def _say(self, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            step = 1 if answer.drip else 65_536
            try:
                for begin in range(0, len(answer.body), step):
                    self.wfile.write(answer.body[begin : begin + step])
                    time.sleep(answer.drip)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            """Says nothing: requests hold codes and tokens."""

    return Handler
