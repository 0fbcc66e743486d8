"""What follows the word AUTH for each kind of account (RFC 4954).

Puts the words of SASL, and LOGIN's two answers, into base64. When it is safe to say them is decided by
the dialogue.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from gobii_email.adapters import sasl
from gobii_email.adapters.wire import Broken
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import Auth, SmtpServer


@dataclass(frozen=True, slots=True)
class Login:
    """`opening` follows the word AUTH, `answers` follow the server's 334 challenges in turn.

    `secrets` must not be shown when the server echoes them.
    """

    mechanism: str
    opening: str = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    secrets: tuple[bytes, ...] = field(repr=False)


def login_for(server: SmtpServer, offered: Sequence[str]) -> Login:
    """The login of `server`'s account. Raises Broken when its secret is absent or cannot be sent."""
    secret = sasl.revealed(server.username, server.secret, "SMTP")
    try:
        return _login(server, secret, list(offered))
    except ValueError:
        text = "The user name, password or token contains characters that cannot be sent."
        raise Broken(Cause.SECRET_UNREADABLE, text) from None


def _login(server: SmtpServer, secret: str, offered: list[str]) -> Login:
    hidden = secret.encode()
    if server.auth is Auth.LOGIN:
        answers = (_base64(server.username.encode()), _base64(hidden))
        return Login("LOGIN", "LOGIN", answers, (hidden,))
    if server.auth is Auth.OAUTH2:
        return _oauth(server, secret, sasl.oauth_mechanism(offered))
    whole = sasl.plain(server.username, secret)
    return Login("PLAIN", f"PLAIN {_base64(whole)}", (_base64(whole),), (whole, hidden))


def _oauth(server: SmtpServer, token: str, mechanism: str) -> Login:
    # The answers end the exchange after the challenge that explains a failure; the refusal follows it.
    if mechanism == "OAUTHBEARER":
        whole = sasl.oauthbearer(server.username, token, server.host, server.port).encode()
        answer = _base64(sasl.OAUTHBEARER_SEEN)
    else:
        whole, answer = sasl.build_xoauth2_string(server.username, token).encode(), ""
    return Login(mechanism, f"{mechanism} {_base64(whole)}", (answer,), (whole, token.encode()))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
