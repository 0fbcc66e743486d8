"""An account with access tokens goes through the whole service, and then the tokens are searched for.

Its tokens come from `email_account apply` and are over: a real worker renews them at a provider, signs in
with the new one at a real submission server, and finds another grant withdrawn.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.oauth_server import LocalOAuthProvider
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack
from tests.journeys.test_canary import EventRecorder, database_content, redis_content

GOOD, OVER = "good@sender.example", "over@sender.example"
PERSON = {"email": GOOD, "email_verified": True}


def document(address: str, port: int, refresh_token: str) -> str:
    return json.dumps(
        {
            "agent": address,
            "address": address,
            "smtp": {"host": "localhost", "port": port, "security": "starttls", "auth": "oauth2"},
            "oauth": {
                "provider": "google",
                "access_token": f"access-of-{address}",
                "refresh_token": refresh_token,
                "expires_at": "2020-01-01T00:00:00Z",
            },
        }
    )


@dataclass
class LeftBehind:
    """What is found in each place after the mail has gone out, all tokens there were, and what happened."""

    places: dict[str, bytes]
    tokens: set[str]
    exit_codes: list[int]
    logins: list[tuple[str, bool]]
    refreshed_with: list[str]


@pytest.fixture(scope="module")
def left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeftBehind]:
    directory = tmp_path_factory.mktemp("oauth-canary")
    authority = ThrowAwayAuthority(directory)
    places: dict[str, bytes] = {}
    with (
        LocalOAuthProvider(person=PERSON) as provider,
        ScriptedSmtpServer(tls=authority.good(), takes_token=provider.takes) as server,
    ):
        granted = provider.grant("https://mail.google.com/")
        env = provider.settings("google") | {
            "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
            "SSL_CERT_FILE": str(authority.ca_file),
            "OTEL_TRACES_EXPORTER": "console",
            "LOG_LEVEL": "DEBUG",
        }
        with Stack(directory, env=env) as stack, EventRecorder(stack.valkey.url) as events:
            worker, dispatcher = stack.start_worker(options=("-l", "DEBUG")), stack.start_dispatcher()
            commands = [
                stack.manage("email_account", "apply", "-", input=document(GOOD, server.port, granted)),
                stack.manage("email_account", "test", GOOD, "--smtp"),
                stack.manage("email_account", "enable", GOOD, "--outbound"),
                stack.manage("email_account", "apply", "-", input=document(OVER, server.port, "r-withdrawn")),
                stack.manage("email_account", "test", OVER, "--smtp"),
            ]
            provider.expire()
            mail = ["--from", GOOD, "--to", "to@rcpt.example", "--subject", "x", "--body", "y"]
            commands.append(stack.manage("email_send", *mail, "--wait", "120"))
            places["redis"] = redis_content(stack.valkey.url)
            worker.stop()
            dispatcher.stop()
            places["worker: log and spans"] = worker.log.read_bytes()
            places["dispatcher: log"] = dispatcher.log.read_bytes()
            places["commands"] = "\n".join(done.stdout + done.stderr for done in commands).encode()
            places["events"] = json.dumps(events.recorded, ensure_ascii=False).encode()
            places["database"] = database_content(directory / "stack.sqlite3")
        tokens = {*provider.access_tokens, *provider.refresh_tokens, f"access-of-{GOOD}", f"access-of-{OVER}"}
        tokens |= {form["refresh_token"] for form in provider.asked("/token")}
        yield LeftBehind(
            places,
            tokens,
            [done.returncode for done in commands],
            [(user, is_right) for user, _, is_right in server.logins],
            [form["refresh_token"] for form in provider.asked("/token")],
        )


def test_tokens_from_a_document_are_renewed_by_commands_and_workers(left_behind: LeftBehind) -> None:
    assert left_behind.exit_codes == [0, 0, 0, 0, 1, 0], left_behind.places["commands"].decode()
    # The test; the mail with a token that had been withdrawn; the mail again with a new one.
    assert left_behind.logins == [(GOOD, True), (GOOD, False), (GOOD, True)]
    assert len(set(left_behind.refreshed_with)) == len(left_behind.refreshed_with) == 3
    assert b"Connect the account again" in left_behind.places["commands"]


def test_no_token_is_left_anywhere(left_behind: LeftBehind) -> None:
    places, shapes = left_behind.places, {token: plain_forms(token) for token in left_behind.tokens}
    found = {
        (place, token[:9])
        for place, content in places.items()
        for token, forms in shapes.items()
        if any(form in content for form in forms)
    }
    assert found == set()


def test_what_was_done_was_told(left_behind: LeftBehind) -> None:
    """The places that were searched are those where it would have been."""
    assert b"oauth.refreshed" in left_behind.places["worker: log and spans"]
    assert b'"name": "oauth.refresh"' in left_behind.places["worker: log and spans"]
    assert all(left_behind.places.values()), [name for name, text in left_behind.places.items() if not text]


def plain_forms(token: str) -> set[bytes]:
    """`token` raw, as hexadecimal digits, and inside a longer base64 text at each of the three alignments."""
    raw = token.encode()
    return {raw, raw.hex().encode(), *(base64.b64encode(b" " * shift + raw)[4:-4] for shift in range(3))}
