"""Mailboxes: the keys of their secrets, whether each secret opens, and who waits for a person."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet
from django.utils import timezone

from gobii_email import checks
from gobii_email.conf import config
from gobii_email.encryption import KeyRingError, SecretsEncryption, SecretUnreadable
from gobii_email.management.examinations.row import (
    FAIL,
    OK,
    PATIENCE_SECONDS,
    WARN,
    Row,
    from_checks,
    named,
)
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, MailHost

_PASSWORDS = ("smtp_password_encrypted", "imap_password_encrypted")
_TOKENS = ("access_token_encrypted", "refresh_token_encrypted")
_DAMAGED = "damaged"


def keys() -> Row:
    """Whether the key ring can be used, and under which of its keys the stored secrets are."""
    found = checks.check_key_ring()
    if found:
        return from_checks("keys", "", found)
    counts = _secrets_by_key(timezone.now() + timedelta(seconds=PATIENCE_SECONDS / 2))
    if not config().encryption_key:
        if counts:
            text = f"{counts.total()} secrets are stored, and GOBII_ENCRYPTION_KEY is not set"
            hint = "Set GOBII_ENCRYPTION_KEY to the ring they were encrypted with."
            return Row("keys", FAIL, text, hint)
        hint = "Set it before the first mailbox is connected."
        return Row("keys", WARN, "GOBII_ENCRYPTION_KEY is not set", hint)
    return _judged(SecretsEncryption.from_settings(), counts)


def _judged(ring: SecretsEncryption, counts: Counter[str]) -> Row:
    primary = ring.primary_key_id
    stored = ", ".join(f"{count} under {key}" for key, count in sorted(counts.items())) or "none stored yet"
    text = f"{len(ring.key_ids)} in the ring, {primary} the primary; secrets: {stored}"
    lost = sorted(set(counts) - set(ring.key_ids))
    if lost:
        hint = f"Put {named(lost)} back into GOBII_ENCRYPTION_KEY, or enter these secrets again."
        return Row("keys", FAIL, f"{text}; not in the ring: {named(lost)}", hint)
    retired = sorted(set(counts) - {primary})
    if retired:
        hint = f"Keep {named(retired)} in the ring until `email_keys reencrypt` has moved these secrets."
        return Row("keys", WARN, f"{text}; retired: {named(retired)}", hint)
    return Row("keys", OK, text)


def _secrets_by_key(end: datetime) -> Counter[str]:
    """How many secrets there are by the id of their key, of as many as can be looked at until `end`."""
    counts: Counter[str] = Counter()
    anyone = SecretsEncryption.generate()
    stored = (
        AgentEmailAccount.objects.values_list(*_PASSWORDS),
        AgentEmailOAuthCredential.objects.values_list(*_TOKENS),
    )
    for rows in stored:
        for number, blobs in enumerate(rows.order_by().iterator(chunk_size=500)):
            counts.update(_key_of(anyone, blob) for blob in blobs if blob is not None)
            if number % 500 == 499 and timezone.now() > end:
                break
    return counts


def _key_of(ring: SecretsEncryption, blob: bytes) -> str:
    try:
        return ring.key_id(blob)
    except SecretUnreadable:
        return _DAMAGED


def secrets() -> Row:
    """Whether the key ring opens every stored secret, as far as time allows."""
    if checks.check_key_ring():
        return Row("secrets", FAIL, "the key ring cannot be used", "See the row of the keys.")
    readable, unreadable = 0, []
    end = timezone.now() + timedelta(seconds=PATIENCE_SECONDS / 2)
    try:
        for address, is_readable in _stored_secrets(end):
            readable += is_readable
            if not is_readable:
                unreadable.append(address)
    except KeyRingError:
        return Row("secrets", FAIL, "there is no key to open them with", "See the row of the keys.")
    if unreadable:
        text = f"{len(unreadable)} cannot be read ({named(unreadable)}), {readable} can"
        hint = "Put the old key back into GOBII_ENCRYPTION_KEY, or enter them again."
        return Row("secrets", FAIL, text, hint)
    return Row("secrets", OK, f"{readable} can be read")


def _stored_secrets(end: datetime) -> Iterator[tuple[str, bool]]:
    """The address of each stored secret and whether it opens, until `end`."""
    for account in AgentEmailAccount.objects.select_related("endpoint").iterator():
        for read in (account.get_smtp_password, account.get_imap_password):
            yield from _opened(account, read)
        if timezone.now() > end:
            return
    for credential in AgentEmailOAuthCredential.objects.select_related("account__endpoint").iterator():
        for read in (credential.get_access_token, credential.get_refresh_token):
            yield from _opened(credential.account, read)
        if timezone.now() > end:
            return


def _opened(account: AgentEmailAccount, read: Callable[[], object]) -> Iterator[tuple[str, bool]]:
    try:
        if read() is not None:
            yield str(account), True
    except SecretUnreadable:
        yield str(account), False


def accounts() -> Row:
    """Which mailboxes wait: for time, for a test, or for a person."""
    now = timezone.now()
    in_force = Q(state_until__isnull=True) | Q(state_until__gt=now)
    held = Q(in_force, ~Q(state=AgentEmailAccount.State.ACTIVE))
    is_sending = AgentEmailAccount.objects.filter(is_outbound_enabled=True)
    untested = AgentEmailAccount.objects.exclude(smtp_host="").filter(smtp_tested_fingerprint="")
    waiting = {
        "held until somebody acts": _addresses(is_sending.filter(held, state_until__isnull=True)),
        "to be tested": _addresses(untested),
    }
    facts = {
        "send": is_sending.count(),
        "held for a while": is_sending.filter(held, state_until__isnull=False).count(),
        "servers left alone": MailHost.objects.filter(backoff_until__gt=now).count(),
    }
    return _told(facts, waiting)


def tokens() -> Row:
    """Mailboxes opened with tokens: who has to sign in, and whose tokens are not renewed just now."""
    now = timezone.now()
    by_token = Q(smtp_auth="oauth2") | Q(imap_auth="oauth2")
    connected = AgentEmailAccount.objects.filter(by_token)
    in_force = Q(state_until__isnull=True) | Q(state_until__gt=now)
    needed = Q(in_force, state=AgentEmailAccount.State.AUTH_NEEDED) | Q(oauth_credential__isnull=True)
    failing = ~Q(oauth_credential__refresh_error="") & ~needed
    waiting = {
        "wait for a sign-in": _addresses(connected.filter(needed)),
        "not renewed at the last try": _addresses(connected.filter(failing)),
    }
    parts = [f"{len(found)} {what} ({named(found)})" for what, found in waiting.items() if found]
    text = ", ".join([f"mailboxes opened with tokens: {connected.count()}", *parts])
    if waiting["wait for a sign-in"]:
        hint = "Their owners sign in again on the mailbox's page, or `email_account apply` gives new tokens."
        return Row("tokens", WARN, text, hint)
    if parts:
        hint = (
            "It is tried again every minute; if it stays, see that the provider's token address is reachable."
        )
        return Row("tokens", WARN, text, hint)
    return Row("tokens", OK, text)


def _addresses(rows: QuerySet[AgentEmailAccount]) -> Sequence[str]:
    return list(rows.order_by("endpoint__address").values_list("endpoint__address", flat=True))


def _told(facts: Mapping[str, int], waiting: Mapping[str, Sequence[str]]) -> Row:
    parts = [f"{count} {what}" for what, count in facts.items() if count or what == "send"]
    parts += [f"{len(found)} {what} ({named(found)})" for what, found in waiting.items() if found]
    text = f"mailboxes: {', '.join(parts)}"
    if any(waiting.values()):
        hint = "See why: `email_account show ADDRESS`; then `email_account test ADDRESS`."
        return Row("accounts", WARN, text, hint)
    return Row("accounts", OK, text)
