"""Encrypts mailbox passwords and tokens at rest, each bound to the place it belongs to.

Knows key rings and ciphertexts; which fields hold one, and what an account does when its secret cannot
be read, is decided elsewhere. AES-256-GCM with associated data (NIST SP 800-38D): a ciphertext that is
moved to another account or field, or whose server was edited, does not decrypt.
"""

import base64
import binascii
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gobii_email import metrics
from gobii_email.domain.secret import Secret

_VERSION = 1
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,16}", re.ASCII)
# Whatever a form accepted must come back as it was, lone surrogates included; and an encoding error
# would carry the text in its arguments.
_LOSSLESS = "surrogatepass"


class KeyRingError(ValueError):
    """The text of the key ring is unusable. Names the entry and the remedy, never a key."""


class SecretUnreadable(Exception):
    """A stored secret does not decrypt here: one sentence for the owner, with the remedy."""


@dataclass(frozen=True, slots=True)
class SecretContext:
    """The one place a secret is good for. `server_host` is the token's issuer for OAuth tokens."""

    account_id: str
    field: str
    server_host: str

    def associated_data(self, header: bytes) -> bytes:
        """What the ciphertext is bound to: each part after its length, so none runs into the next."""
        host = self.server_host.lower().removesuffix(".")
        parts = (header, *(part.encode("utf-8", _LOSSLESS) for part in (self.account_id, self.field, host)))
        return b"".join(len(part).to_bytes(4) + part for part in parts)


class SecretsEncryption:
    """Encrypts with the first key of the ring, decrypts with any of them.

    The ring is text: `kid:base64key[,kid:base64key…]`, each key 32 bytes, standard or URL-safe base64.
    A blob is: version | length of kid | kid | 12-byte nonce | ciphertext and tag.
    """

    _latest: "ClassVar[tuple[Secret, SecretsEncryption] | None]" = None

    def __init__(self, key_ring: Secret | str) -> None:
        # Rebound, so that this frame shows no key if a traceback is rendered with its variables.
        key_ring = _opaque(key_ring)
        self._ciphers: Mapping[str, AESGCM] = {}
        ring = _parsed(key_ring)
        if isinstance(ring, str):
            raise KeyRingError(ring)
        self._ciphers = ring

    @staticmethod
    def from_settings() -> "SecretsEncryption":
        """With the key ring of `GOBII_ENCRYPTION_KEY`; made anew only when its value changes."""
        from gobii_email.conf import config

        key_ring = _opaque(config().encryption_key or "")
        latest = SecretsEncryption._latest
        if latest is None or latest[0] != key_ring:
            latest = SecretsEncryption._latest = (key_ring, SecretsEncryption(key_ring))
        return latest[1]

    @staticmethod
    def generate() -> "SecretsEncryption":
        """With a fresh key that nobody keeps, for throw-away data."""
        return SecretsEncryption(new_key())

    def __repr__(self) -> str:
        return f"SecretsEncryption(key_ids={self.key_ids})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Every key id of the ring, primary first."""
        return tuple(self._ciphers)

    @property
    def primary_key_id(self) -> str:
        """The id of the key that `encrypt` uses; a blob with another `key_id` is due for re-encryption."""
        return self.key_ids[0]

    def encrypt(self, secret: Secret | str, context: SecretContext) -> bytes:
        """The blob to store. Raises ValueError for an empty secret: store null for nothing."""
        secret = _opaque(secret)
        if not secret:
            raise ValueError("There is no secret to encrypt: leave the field empty instead.")
        header = _header(self.primary_key_id)
        nonce = os.urandom(_NONCE_BYTES)
        return (
            header
            + nonce
            + self._ciphers[self.primary_key_id].encrypt(
                nonce, secret.reveal().encode("utf-8", _LOSSLESS), context.associated_data(header)
            )
        )

    def decrypt(self, blob: bytes | memoryview, context: SecretContext) -> Secret:
        """The secret of `blob`, if it was encrypted for `context`. Raises SecretUnreadable."""
        key_id, header, nonce, ciphertext = _taken_apart(bytes(blob))
        if key_id not in self._ciphers:
            metrics.DECRYPT_FAILURES.inc()
            raise SecretUnreadable(
                f"The saved password was encrypted with key “{key_id}”, which this installation"
                " no longer has: enter the password again."
            )
        try:
            return Secret(
                self._ciphers[key_id]
                .decrypt(nonce, ciphertext, context.associated_data(header))
                .decode("utf-8", _LOSSLESS)
            )
        except InvalidTag:
            metrics.DECRYPT_FAILURES.inc()
            raise SecretUnreadable(
                "The saved password does not belong to this account and server, or was changed"
                " in the database: enter the password again."
            ) from None

    def key_id(self, blob: bytes | memoryview) -> str:
        """The id of the key that `blob` was encrypted with. Raises SecretUnreadable if it is no blob."""
        return _taken_apart(bytes(blob))[0]


def new_key(key_id: str | None = None) -> str:
    """A fresh entry for the key ring, `kid:base64key`; the id is made up when none is given."""
    key_id = key_id or f"k{secrets.token_hex(4)}"
    if not _KEY_ID.fullmatch(key_id):
        raise KeyRingError("A key id has 1 to 16 letters, digits, hyphens or underscores.")
    return f"{key_id}:{base64.b64encode(os.urandom(_KEY_BYTES)).decode()}"


def with_last(key_ring: Secret, entry: Secret) -> Secret:
    """The ring with a further key, which all can read with and none encrypts with."""
    return Secret(",".join([*_entries(key_ring), entry.reveal()]))


def with_first(key_ring: Secret, key_id: str) -> Secret:
    """The ring with its key `key_id` first. Raises KeyRingError where it has none of that name."""
    entries = _entries(key_ring)
    chosen = [entry for entry in entries if _key_id_of(entry) == key_id]
    if not chosen:
        raise KeyRingError(f"GOBII_ENCRYPTION_KEY has no key of that name; it has {_key_ids(entries)}.")
    return Secret(",".join(chosen + [entry for entry in entries if entry not in chosen]))


def _entries(key_ring: Secret) -> list[str]:
    return [entry.strip() for entry in key_ring.reveal().split(",")]


def _key_id_of(entry: str) -> str:
    return entry.partition(":")[0].strip()


def _key_ids(entries: list[str]) -> str:
    return ", ".join(map(_key_id_of, entries))


def _opaque(value: Secret | str) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)


def _parsed(key_ring: Secret) -> Mapping[str, AESGCM] | str:
    """The ciphers by key id in the order of the ring, or what is wrong with it.

    A value rather than an exception, because the frames of a traceback keep their variables.
    """
    text = key_ring.reveal().strip()
    if not text:
        return (
            "GOBII_ENCRYPTION_KEY is not set: make a key with `python -m gobii_email.encryption`"
            " and keep it where the database is not."
        )
    ciphers: dict[str, AESGCM] = {}
    for number, entry in enumerate(text.split(","), start=1):
        key_id, colon, encoded = (part.strip() for part in entry.partition(":"))
        key = _decoded(encoded)
        if not colon:
            return _complaint(number, "is not of the form kid:base64key")
        if not _KEY_ID.fullmatch(key_id):
            return _complaint(number, "needs a key id of 1 to 16 letters, digits, hyphens or underscores")
        if key_id in ciphers:
            return _complaint(number, "repeats the key id of an earlier entry")
        if key is None:
            return _complaint(number, "has a key that is not base64")
        if len(key) != _KEY_BYTES:
            return _complaint(number, f"has a key of {len(key)} bytes, where {_KEY_BYTES} are needed")
        ciphers[key_id] = AESGCM(key)
    return ciphers


def _complaint(number: int, what: str) -> str:
    return (
        f"Entry {number} of GOBII_ENCRYPTION_KEY {what}:"
        " correct it, or make a new one with `python -m gobii_email.encryption`."
    )


def _decoded(encoded: str) -> bytes | None:
    bare = encoded.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _header(key_id: str) -> bytes:
    return bytes((_VERSION, len(key_id))) + key_id.encode()


def _taken_apart(blob: bytes) -> tuple[str, bytes, bytes, bytes]:
    """Key id, header, nonce, and ciphertext with its tag."""
    end = 2 + blob[1] if len(blob) > 1 else 0
    key_id = blob[2:end].decode("ascii", "replace")
    too_short = len(blob) <= end + _NONCE_BYTES + _TAG_BYTES
    if too_short or blob[0] != _VERSION or not _KEY_ID.fullmatch(key_id):
        raise SecretUnreadable("The saved password is damaged: enter the password again.")
    nonce_end = end + _NONCE_BYTES
    return key_id, blob[:end], blob[end:nonce_end], blob[nonce_end:]


if __name__ == "__main__":
    print(new_key())
