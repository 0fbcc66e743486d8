"""System checks: what is wrong with the settings, each with a stable id and a hint.

Knows settings alone, save for one check of the `database` tag. Registered when the app is ready; what an
installation does at run time is looked at by `email_doctor`. Ids are public and never reused.
"""

import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router

from gobii_email.conf import Config, config, is_private_way
from gobii_email.encryption import KeyRingError, SecretsEncryption

SECURE_PYTHONS = {(3, 11): 15, (3, 12): 13, (3, 13): 12, (3, 14): 3}
"""First patch release of each line without CVE-2026-1299, which lets a header through unescaped."""


def load_settings() -> Config | None:
    """The settings, or None when they cannot be used, which E000 reports."""
    try:
        return config()
    except ImproperlyConfigured:
        return None


def check_settings(**_: Any) -> list[CheckMessage]:
    """E000: every setting that cannot be read, one message each."""
    try:
        config()
    except ImproperlyConfigured as problem:
        lines = str(problem).splitlines()
        hint = "Correct it in the environment, the file that NAME_FILE names, or the Django settings."
        return [Error(line, hint=hint, id="gobii_email.E000") for line in lines[1:] or lines]
    return []


def check_key_ring(**_: Any) -> list[CheckMessage]:
    """E001: a key ring that is set and cannot be used."""
    found = load_settings()
    if found is None or not found.encryption_key:
        return []
    try:
        SecretsEncryption(found.encryption_key)
    except KeyRingError as problem:
        hint = "Write kid:base64key[,kid:base64key…]; `python -m gobii_email.encryption` makes an entry."
        return [Error(str(problem), hint=hint, id="gobii_email.E001")]
    return []


def check_key_ring_is_there(*, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """E002: stored secrets and no key ring. Asks the database, so it runs where databases are named."""
    from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential

    found = load_settings()
    if (
        found is None
        or found.encryption_key
        or router.db_for_read(AgentEmailAccount) not in (databases or ())
    ):
        return []
    stored = (
        AgentEmailAccount.objects.filter(smtp_password_encrypted__isnull=False),
        AgentEmailAccount.objects.filter(imap_password_encrypted__isnull=False),
        AgentEmailOAuthCredential.objects.all(),
    )
    try:
        if not any(rows.exists() for rows in stored):
            return []
    except DatabaseError:
        return []  # not reachable or not migrated yet, which others report
    text = (
        "There are mailboxes with stored secrets, and GOBII_ENCRYPTION_KEY is not set: no secret can be read."
    )
    hint = "Set GOBII_ENCRYPTION_KEY to the key ring the secrets were encrypted with."
    return [Error(text, hint=hint, id="gobii_email.E002")]


POOL_WITH_PREFORK = Error(
    "The database pool (GOBII_DB_POOL) is on in a worker with the prefork pool.",
    hint="Forked processes would share its connections: start the worker with `--pool threads`,"
    " or unset GOBII_DB_POOL.",
    id="gobii_email.E003",
)


def refuse_pool_with(worker_pool: object) -> None:
    """For a worker that starts with `worker_pool`, a name or a class: raises ImproperlyConfigured on E003."""
    if _has_database_pool() and "prefork" in _pool_name(worker_pool):
        raise ImproperlyConfigured(f"{POOL_WITH_PREFORK.msg} {POOL_WITH_PREFORK.hint}")


def _pool_name(worker_pool: object) -> str:
    is_class = isinstance(worker_pool, type)
    return f"{worker_pool.__module__}.{worker_pool.__name__}" if is_class else str(worker_pool)


def _has_database_pool() -> bool:
    return any(connections[name].settings_dict.get("OPTIONS", {}).get("pool") for name in connections)


def check_database_pool(**_: Any) -> list[CheckMessage]:
    """E003: a database pool where the settings choose Celery's prefork pool."""
    chosen = str(getattr(settings, "CELERY_WORKER_POOL", ""))
    return [POOL_WITH_PREFORK] if chosen in {"prefork", "processes"} and _has_database_pool() else []


def check_time_limits(**_: Any) -> list[CheckMessage]:
    """E004: time limits that contradict each other."""
    found = load_settings()
    return (
        []
        if found is None
        else [Error(text, hint=hint, id="gobii_email.E004") for text, hint in _contradictions(found)]
    )


_MUST_LAST = {
    "GOBII_LEASE": "lease",
    "GOBII_EXPIRES_AFTER": "expires_after",
    "GOBII_HINT_LIFETIME": "hint_lifetime",
    "GOBII_DISPATCH_EVERY": "dispatch_every",
    "GOBII_DEADLINE_CONNECT": "deadline_connect",
    "GOBII_DEADLINE_STEP": "deadline_step",
    "GOBII_DEADLINE_ENVELOPE": "deadline_envelope",
    "GOBII_DEADLINE_BODY": "deadline_body",
    "GOBII_DEADLINE_DOT": "deadline_dot",
}


def _contradictions(found: Config) -> Iterator[tuple[str, str]]:
    for name, attribute in _MUST_LAST.items():
        if getattr(found, attribute) <= timedelta(0):
            yield f"{name} is nothing.", f"Give {name} a length of time, such as 60s."
    if not found.retry_schedule or min(found.retry_schedule) <= timedelta(0):
        yield "GOBII_RETRY_SCHEDULE has no wait, or one of nothing.", "List waits such as 1m,2m,5m."
    # A worker cut off from the database may still be told 250 until its dot's deadline; the doubt began
    # one lease after the mark.
    if found.doubt_resend_after + found.lease < found.deadline_dot:
        yield (
            "GOBII_DOUBT_RESEND_AFTER and GOBII_LEASE together are shorter than GOBII_DEADLINE_DOT: a message"
            " would be sent again while its first server may still accept it.",
            "Make GOBII_DOUBT_RESEND_AFTER longer, or GOBII_DEADLINE_DOT shorter.",
        )


def check_python(**_: Any) -> list[CheckMessage]:
    """W001: a Python with known holes in its mail modules."""
    line, patch = sys.version_info[:2], sys.version_info[2]
    floor = SECURE_PYTHONS.get(line, 0)
    if patch >= floor:
        return []
    text = f"Python {line[0]}.{line[1]}.{patch} has known holes in its e-mail modules."
    hint = (
        f"Mail is checked before Python sees it, and still: update to {line[0]}.{line[1]}.{floor} or newer."
    )
    return [Warning(text, hint=hint, id="gobii_email.W001")]


def check_allowed_networks(**_: Any) -> list[CheckMessage]:
    """W002: private networks that any mailbox's host may resolve to."""
    found = load_settings()
    if found is None or not found.allowed_networks:
        return []
    text = f"BYO_EMAIL_ALLOWED_NETWORKS lets mailboxes reach {', '.join(map(str, found.allowed_networks))}."
    hint = "Whoever connects a mailbox can then talk to hosts in there: unset it, or name mail servers alone."
    return [Warning(text, hint=hint, id="gobii_email.W002")]


def check_postmark_webhook(**_: Any) -> list[CheckMessage]:
    """W003: Postmark sends, and its reports of delivery and bounces are refused for want of a secret."""
    found = load_settings()
    if found is None or not found.postmark_server_token or found.postmark_webhook_secret:
        return []
    text = "POSTMARK_SERVER_TOKEN is set and POSTMARK_WEBHOOK_SECRET is not: Postmark's reports are refused."
    hint = "Set POSTMARK_WEBHOOK_SECRET to user:password, and the same in the webhook's address at Postmark."
    return [Warning(text, hint=hint, id="gobii_email.W003")]


def check_sign_in(**_: Any) -> list[CheckMessage]:
    """W006: a client of Google or Microsoft without its secret, or without a way back for people."""
    found = load_settings()
    if found is None:
        return []
    clients = {
        "GOOGLE": (found.google_client_id, found.google_client_secret),
        "MICROSOFT": (found.microsoft_client_id, found.microsoft_client_secret),
    }
    return [
        Warning(text, hint=hint, id="gobii_email.W006")
        for name, (client_id, secret) in clients.items()
        for text, hint in _half_clients(name, bool(client_id), bool(secret), found.public_url)
    ]


def _half_clients(name: str, has_id: bool, has_secret: bool, public_url: str) -> Iterator[tuple[str, str]]:
    if has_id != has_secret:
        given, missing = ("ID", "SECRET") if has_id else ("SECRET", "ID")
        yield (
            f"{name}_CLIENT_{given} is set and {name}_CLIENT_{missing} is not: nobody can sign in there.",
            f"Set {name}_CLIENT_{missing} as it was issued with the client, or unset the other.",
        )
    if has_id and not is_private_way(public_url):
        yield (
            f"{name}_CLIENT_ID is set and PUBLIC_URL is not https: nobody can be sent back from a sign-in.",
            "Set PUBLIC_URL to the https address of this service, and register its callback at the provider.",
        )


def check_secret_key(**_: Any) -> list[CheckMessage]:
    """W004: the stand-alone service signs with the key it made for itself."""
    kept = getattr(settings, "VAR", None)
    try:
        is_own = kept is not None and (kept / "secret_key").read_text().strip() == settings.SECRET_KEY
    except OSError:
        return []
    if not is_own:
        return []
    text = "SECRET_KEY is the one this service made for itself in its var directory."
    hint = "Set SECRET_KEY, so that every process and machine signs with the same key."
    return [Warning(text, hint=hint, id="gobii_email.W004")]


def check_sqlite(**_: object) -> list[CheckMessage]:
    """W005: SQLite as Django sets it up by default, with which several workers meet a locked database."""
    found = settings.DATABASES["default"]
    is_safe = found.get("OPTIONS", {}).get("transaction_mode") == "IMMEDIATE"
    if is_safe or not str(found["ENGINE"]).endswith("sqlite3"):
        return []
    text = "SQLite without IMMEDIATE transactions: several workers will meet “database is locked”."
    hint = (
        'Set OPTIONS = {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": '
        '"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;"} for this database.'
    )
    return [Warning(text, hint=hint, id="gobii_email.W005")]


def register_checks() -> None:
    """Called once, when the app is ready."""
    for check in (check_settings, check_key_ring, check_database_pool, check_time_limits):
        register(check, "gobii_email")
    register(check_sqlite, "gobii_email")
    # Warnings wait for `check --deploy` and `email_doctor`: every command would repeat them otherwise.
    for check in (
        check_python,
        check_allowed_networks,
        check_postmark_webhook,
        check_secret_key,
        check_sign_in,
    ):
        register(check, "gobii_email", Tags.security, deploy=True)
    register(check_key_ring_is_there, "gobii_email", Tags.database)
