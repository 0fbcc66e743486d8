"""System checks: what is wrong with the settings, each with a stable id and a hint.

Knows settings alone, save for one check of the `database` tag. Registered when the app is ready; what only
counts in production is in deploy_checks, what an installation does at run time is looked at by
`email_doctor`. Ids are public and never reused.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections, router

from gobii_email.conf import Config, config
from gobii_email.encryption import KeyRingError, SecretsEncryption


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
    "IMAP_IDLE_SCAN_INTERVAL_SEC": "idle_scan_interval",
    "IMAP_IDLE_REISSUE_SEC": "idle_reissue",
    "IMAP_IDLE_LEASE_TTL_SEC": "idle_lease",
}
LONGEST_IDLE = timedelta(minutes=29)
"""RFC 2177 section 3: a server may log out whoever is silent for half an hour."""


def _contradictions(found: Config) -> Iterator[tuple[str, str]]:
    for name, attribute in _MUST_LAST.items():
        if getattr(found, attribute) <= timedelta(0):
            yield f"{name} is nothing.", f"Give {name} a length of time, such as 60s."
    if not found.retry_schedule or min(found.retry_schedule) <= timedelta(0):
        yield "GOBII_RETRY_SCHEDULE has no wait, or one of nothing.", "List waits such as 1m,2m,5m."
    if found.idle_reissue > LONGEST_IDLE:
        yield (
            "IMAP_IDLE_REISSUE_SEC is over 29 minutes: servers log out who is silent for half an hour.",
            "Make it 29m or shorter; 25m is usual.",
        )
    # A worker cut off from the database may still be told 250 until its dot's deadline; the doubt began
    # one lease after the mark.
    if found.doubt_resend_after + found.lease < found.deadline_dot:
        yield (
            "GOBII_DOUBT_RESEND_AFTER and GOBII_LEASE together are shorter than GOBII_DEADLINE_DOT: a message"
            " would be sent again while its first server may still accept it.",
            "Make GOBII_DOUBT_RESEND_AFTER longer, or GOBII_DEADLINE_DOT shorter.",
        )


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
    register(check_key_ring_is_there, "gobii_email", Tags.database)
