"""What is said in AUTH for each kind of account.

Knows PLAIN (RFC 4616), LOGIN and XOAUTH2 (developers.google.com/workspace/gmail/imap/xoauth2-protocol);
credentials go out as UTF-8 and never into an exception. When it is safe to say them is decided by
the transport.
"""

import base64
from dataclasses import dataclass, field

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


def build_xoauth2_string(user: str, token: str) -> str:
    """The initial response of XOAUTH2, before base64; raises ValueError for control characters."""
    if any(ord(character) < 32 for character in user + token):
        raise ValueError("a user name or access token for XOAUTH2 must not contain control characters")
    return f"user={user}\x01auth=Bearer {token}\x01\x01"


def login_for(server: SmtpServer) -> Login:
    """The login of `server`'s account. Raises Broken when its secret is absent or cannot be sent."""
    secret = server.secret.reveal() if server.secret is not None else ""
    if not secret:
        raise Broken(Cause.SECRET_UNREADABLE, "The account has no password or token to log in with.")
    if any(character in "\0\r\n" for character in server.username + secret):
        text = "The user name or the password contains a line break or a NUL, which SMTP cannot carry."
        raise Broken(Cause.SECRET_UNREADABLE, text)
    try:
        return _login(server.auth, server.username, secret)
    except ValueError:
        text = "The user name, password or token contains characters that cannot be sent."
        raise Broken(Cause.SECRET_UNREADABLE, text) from None


def _login(auth: Auth, username: str, secret: str) -> Login:
    hidden = secret.encode()
    if auth is Auth.LOGIN:
        return Login("LOGIN", "LOGIN", (_base64(username.encode()), _base64(hidden)), (hidden,))
    if auth is Auth.OAUTH2:
        whole = build_xoauth2_string(username, secret).encode()
        # An empty answer to the challenge that explains a failure; the refusal follows it.
        return Login("XOAUTH2", f"XOAUTH2 {_base64(whole)}", ("",), (whole, hidden))
    whole = b"\0" + username.encode() + b"\0" + hidden
    return Login("PLAIN", f"PLAIN {_base64(whole)}", (_base64(whole),), (whole, hidden))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
