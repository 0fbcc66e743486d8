"""Key rings and ciphertexts: what decrypts, what must not, and what the errors say."""

import base64
import os
import subprocess
import sys
import traceback
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gobii_email import conf
from gobii_email import encryption as encryption_module
from gobii_email.domain.secret import Secret
from gobii_email.encryption import (
    KeyRingError,
    SecretContext,
    SecretsEncryption,
    SecretUnreadable,
    new_key,
)

PASSWORD = "pässwörd-S3cret"
HERE = SecretContext("8e0a", "smtp_password", "smtp.example.com")
KEY = base64.b64encode(bytes(range(250, 256)) * 5 + b"\xff\xfe").decode()


@pytest.fixture
def encryption() -> SecretsEncryption:
    return SecretsEncryption(new_key("k1"))


@example("\ud800")
@given(st.text(min_size=1, alphabet=st.characters(exclude_categories=())))
def test_any_text_comes_back_as_it_was(password: str) -> None:
    encryption = SecretsEncryption(f"k:{KEY}")
    assert encryption.decrypt(encryption.encrypt(password, HERE), HERE).reveal() == password


def test_a_secret_and_its_text_encrypt_alike(encryption: SecretsEncryption) -> None:
    assert encryption.decrypt(encryption.encrypt(Secret(PASSWORD), HERE), HERE) == Secret(PASSWORD)


def test_a_blob_read_from_postgresql_is_a_memoryview(encryption: SecretsEncryption) -> None:
    blob = memoryview(encryption.encrypt(PASSWORD, HERE))
    assert encryption.key_id(blob) == "k1"
    assert encryption.decrypt(blob, HERE).reveal() == PASSWORD


def test_the_blob_shows_version_and_key_id_and_nothing_of_the_secret(encryption: SecretsEncryption) -> None:
    blob = encryption.encrypt(PASSWORD, HERE)
    assert blob[:4] == b"\x01\x02k1"
    assert len(blob) == 4 + 12 + len(PASSWORD.encode()) + 16
    assert PASSWORD.encode() not in blob


def test_the_same_secret_encrypts_differently_each_time(encryption: SecretsEncryption) -> None:
    assert len({encryption.encrypt(PASSWORD, HERE) for _ in range(50)}) == 50


def test_an_empty_secret_is_refused(encryption: SecretsEncryption) -> None:
    with pytest.raises(ValueError, match="no secret"):
        encryption.encrypt("", HERE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        replace(HERE, account_id="8e0b"),
        replace(HERE, field="imap_password"),
        replace(HERE, server_host="smtp.attacker.example"),
        replace(HERE, account_id="8e0asmtp", field="_password"),
        SecretContext("", "8e0asmtp_password", "smtp.example.com"),
    ],
    ids=["another account", "another field", "another host", "shifted border", "merged parts"],
)
def test_a_ciphertext_does_not_decrypt_elsewhere(
    encryption: SecretsEncryption, elsewhere: SecretContext
) -> None:
    with pytest.raises(SecretUnreadable, match="enter the password again"):
        encryption.decrypt(encryption.encrypt(PASSWORD, HERE), elsewhere)


@pytest.mark.parametrize("spelling", ["SMTP.Example.COM", "smtp.example.com.", "SMTP.EXAMPLE.COM."])
def test_the_spelling_of_the_host_does_not_matter(encryption: SecretsEncryption, spelling: str) -> None:
    blob = encryption.encrypt(PASSWORD, HERE)
    assert encryption.decrypt(blob, replace(HERE, server_host=spelling)).reveal() == PASSWORD


def test_no_changed_byte_goes_unnoticed(encryption: SecretsEncryption) -> None:
    blob = encryption.encrypt(PASSWORD, HERE)
    for position in range(len(blob)):
        changed = blob[:position] + bytes([blob[position] ^ 1]) + blob[position + 1 :]
        with pytest.raises(SecretUnreadable, match="enter the password again"):
            encryption.decrypt(changed, HERE)


def test_no_truncated_blob_is_read(encryption: SecretsEncryption) -> None:
    blob = encryption.encrypt(PASSWORD, HERE)
    for length in range(len(blob)):
        with pytest.raises(SecretUnreadable):
            encryption.decrypt(blob[:length], HERE)


def test_a_blob_relabelled_with_another_key_id_does_not_decrypt() -> None:
    # Both ids name the same key: only the associated data can tell them apart.
    encryption = SecretsEncryption(f"old:{KEY},new:{KEY}")
    blob = encryption.encrypt(PASSWORD, HERE)
    with pytest.raises(SecretUnreadable):
        encryption.decrypt(blob.replace(b"old", b"new"), HERE)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_unreadable_and_never_a_crash(blob: bytes) -> None:
    with pytest.raises(SecretUnreadable):
        SecretsEncryption(f"k:{KEY}").decrypt(blob, HERE)


def test_rotation_reads_old_blobs_and_writes_with_the_new_key() -> None:
    old, new = new_key("2025"), new_key("2026")
    blob = SecretsEncryption(old).encrypt(PASSWORD, HERE)
    rotated = SecretsEncryption(f"{new},{old}")
    assert rotated.decrypt(blob, HERE).reveal() == PASSWORD
    assert (rotated.key_id(blob), rotated.primary_key_id, rotated.key_ids) == (
        "2025",
        "2026",
        ("2026", "2025"),
    )
    assert rotated.key_id(rotated.encrypt(PASSWORD, HERE)) == "2026"


def test_a_dropped_key_is_named_with_the_remedy() -> None:
    blob = SecretsEncryption(new_key("2025")).encrypt(PASSWORD, HERE)
    with pytest.raises(SecretUnreadable, match=r"“2025”.*enter the password again"):
        SecretsEncryption(new_key("2026")).decrypt(blob, HERE)


@pytest.mark.parametrize(
    "spelling",
    [KEY, KEY.rstrip("="), KEY.replace("+", "-").replace("/", "_"), f" {KEY} "],
    ids=["standard", "unpadded", "URL-safe", "with blanks"],
)
def test_a_key_may_be_spelt_in_any_base64(spelling: str) -> None:
    assert "/" in KEY and KEY.endswith("=")
    blob = SecretsEncryption(f"k:{KEY}").encrypt(PASSWORD, HERE)
    assert SecretsEncryption(f"\n k:{spelling}\n").decrypt(blob, HERE).reveal() == PASSWORD


SHORT_KEY = base64.b64encode(b"sixteen bytes ok").decode()


@pytest.mark.parametrize(
    ("ring", "complaint"),
    [
        ("", "is not set"),
        ("  \n", "is not set"),
        (KEY, "Entry 1 .* form kid:base64key"),
        (f"a:{KEY},", "Entry 2 .* form kid:base64key"),
        (f":{KEY}", "Entry 1 .* key id of 1 to 16"),
        (f"{'x' * 17}:{KEY}", "Entry 1 .* key id of 1 to 16"),
        (f"schlüssel:{KEY}", "Entry 1 .* key id of 1 to 16"),
        (f"a:{KEY},a:{KEY}", "Entry 2 .* repeats"),
        (f"a:{KEY},b:{SHORT_KEY}", "Entry 2 .* 16 bytes, where 32"),
        ("a:", "Entry 1 .* 0 bytes"),
        (f"a:{KEY[:-3]}!!!", "Entry 1 .* not base64"),
        (f"a:{KEY[:-3]}é", "Entry 1 .* not base64"),
    ],
)
def test_an_unusable_key_ring_is_refused_with_a_remedy(ring: str, complaint: str) -> None:
    with pytest.raises(KeyRingError, match=complaint) as raised:
        SecretsEncryption(ring)
    assert "python -m gobii_email.encryption" in str(raised.value)


@pytest.mark.parametrize("ring", [f"a:{KEY}x", f"a:{SHORT_KEY}", f"a:{KEY},a:{SHORT_KEY}", KEY])
def test_no_key_shows_in_a_traceback_with_variables(ring: str) -> None:
    with pytest.raises(KeyRingError) as raised:
        SecretsEncryption(Secret(ring))
    stack = traceback.TracebackException.from_exception(raised.value, capture_locals=True).stack
    # This test's own variables hold the ring; the frames of the code under test must not.
    frames = [frame.locals for frame in stack if frame.filename == encryption_module.__file__]
    assert "Secret(********)" in str(frames)
    assert KEY[:20] not in str(frames) and SHORT_KEY[:20] not in str(frames)


def test_a_ring_shows_its_ids_alone() -> None:
    assert repr(SecretsEncryption(f"a:{KEY}")) == "SecretsEncryption(key_ids=('a',))"


def test_new_keys_are_distinct_usable_entries() -> None:
    entries = [new_key() for _ in range(20)]
    assert len(SecretsEncryption(",".join(entries)).key_ids) == 20
    assert new_key("2026").startswith("2026:")
    with pytest.raises(KeyRingError):
        new_key("no blanks")


def test_the_module_prints_an_entry_for_the_ring() -> None:
    printed = subprocess.check_output([sys.executable, "-m", "gobii_email.encryption"], text=True)
    assert len(SecretsEncryption(printed).key_ids) == 1


def test_a_generated_ring_is_like_no_other() -> None:
    blob = SecretsEncryption.generate().encrypt(PASSWORD, HERE)
    with pytest.raises(SecretUnreadable):
        SecretsEncryption.generate().decrypt(blob, HERE)


class _Config:
    def __init__(self, key_ring: Secret | None) -> None:
        self.encryption_key = key_ring


def test_settings_are_read_anew_only_when_the_value_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = new_key("first"), new_key("second")
    monkeypatch.setattr(conf, "config", lambda: _Config(Secret(first)))
    before = SecretsEncryption.from_settings()
    assert SecretsEncryption.from_settings() is before
    monkeypatch.setattr(conf, "config", lambda: _Config(Secret(second)))
    assert SecretsEncryption.from_settings().key_ids == ("second",)


@pytest.mark.parametrize("unset", [None, Secret("")], ids=["none", "empty"])
def test_without_a_key_ring_nothing_is_encrypted(
    monkeypatch: pytest.MonkeyPatch, unset: Secret | None
) -> None:
    monkeypatch.setattr(conf, "config", lambda: _Config(unset))
    with pytest.raises(KeyRingError, match="GOBII_ENCRYPTION_KEY is not set"):
        SecretsEncryption.from_settings()


def test_nonces_come_from_the_operating_system(
    encryption: SecretsEncryption, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: b"n" * count)
    assert encryption.encrypt(PASSWORD, HERE)[4:16] == b"n" * 12
