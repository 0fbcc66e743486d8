"""What is said to sign in, whatever the protocol around it.

Knows PLAIN (RFC 4616), OAUTHBEARER (RFC 7628) and XOAUTH2
(developers.google.com/workspace/gmail/imap/xoauth2-protocol). Credentials go out as UTF-8 and never into
an exception; when it is safe to say them is decided by the dialogues.
"""

import base64
import binascii

from gobii_email.adapters.wire import Broken
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.redaction import without_credentials
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import safe_text

# How a client ends the exchange after a challenge that explains a failure (RFC 7628 section 3.2.3).
OAUTHBEARER_SEEN = b"\x01"
_OAUTH = ("XOAUTH2", "OAUTHBEARER")


def revealed(username: str, secret: Secret | None, protocol: str) -> str:
    """The secret in clear. Raises Broken when it is absent or `protocol` cannot carry it."""
    clear = secret.reveal() if secret is not None else ""
    if not clear:
        raise Broken(Cause.SECRET_UNREADABLE, "The account has no password or token to log in with.")
    if any(character in "\0\r\n" for character in username + clear):
        text = f"The user name or the password contains a line break or a NUL, which {protocol} cannot carry."
        raise Broken(Cause.SECRET_UNREADABLE, text)
    return clear


def oauth_mechanism(offered: list[str]) -> str:
    """Which of the two ways to present a token; every vendor documents XOAUTH2, so it goes first."""
    return next((mechanism for mechanism in _OAUTH if mechanism in offered), _OAUTH[0])


def plain(username: str, secret: str) -> bytes:
    return b"\0" + username.encode() + b"\0" + secret.encode()


def build_xoauth2_string(user: str, token: str) -> str:
    """The initial response of XOAUTH2, before base64; raises ValueError for control characters."""
    _refuse_controls(user + token)
    return f"user={user}\x01auth=Bearer {token}\x01\x01"


def oauthbearer(user: str, token: str, host: str, port: int) -> str:
    """The initial response of OAUTHBEARER, before base64; raises ValueError for control characters."""
    _refuse_controls(user + token)
    name = user.replace("=", "=3D").replace(",", "=2C")
    return f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01"


def _refuse_controls(text: str) -> None:
    if any(ord(character) < 32 for character in text):
        raise ValueError("a user name or access token must not contain control characters")


def explained(challenge: str | bytes) -> str:
    """What a challenge after a refused token says, fit to be shown; "" when it says nothing readable."""
    try:
        data = base64.b64decode(challenge, validate=True)
    except (binascii.Error, ValueError):
        return ""
    return shown(data)


def shown(data: bytes) -> str:
    """A decoded challenge, fit to be shown."""
    return without_credentials(safe_text(data))
