"""The database: reachable, writable, durable, migrated, and with the same time as this machine."""

from datetime import timedelta

from django.db import connection, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.management.examinations.redis import time_of
from gobii_email.management.examinations.row import FAIL, OK, WARN, Row, brief
from gobii_email.models import OutboundMessageAttempt

MOST_SKEW = timedelta(seconds=2)


def database() -> Row:
    hint = "See that the database of DATABASE_URL runs and takes connections from here."
    try:
        connection.ensure_connection()
        version = ".".join(map(str, connection.get_database_version()))
        found = _sqlite() if connection.vendor == "sqlite" else _postgres()
    except Exception as problem:  # every driver has errors of its own
        return Row("database", FAIL, f"not reachable: {brief(problem)}", hint)
    kind = f"{connection.display_name} {version}"
    if found is None:
        return Row("database", OK, kind)
    status, text, hint = found
    return Row("database", status, f"{kind}, {text}", hint)


def _sqlite() -> tuple[str, str, str] | None:
    """What makes writers of this SQLite database fail on each other, or forget what they have written."""
    with connection.cursor() as cursor:
        journal = cursor.execute("PRAGMA journal_mode").fetchone()[0]
        synchronous = cursor.execute("PRAGMA synchronous").fetchone()[0]
    mode = str(connection.settings_dict.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED")
    if (journal, mode.upper()) != ("wal", "IMMEDIATE"):
        hint = "Set transaction_mode IMMEDIATE and PRAGMA journal_mode=WAL in the database's OPTIONS."
        return WARN, f"journal {journal}, transactions {mode}", hint
    if synchronous < 2:
        text = "after a power cut it may have forgotten that a mail was sent"
        return WARN, text, "Set PRAGMA synchronous=FULL in the database's OPTIONS."
    return None


def _postgres() -> tuple[str, str, str] | None:
    """Whether it takes writes, and keeps those it has confirmed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
        if cursor.fetchone()[0]:
            return FAIL, "which takes no writes", "Point DATABASE_URL at the primary, not at a replica."
        cursor.execute("SELECT name FROM pg_settings WHERE setting = 'off' AND name = ANY(%s)", [_DURABLE])
        off = sorted(name for (name,) in cursor.fetchall())
    if off:
        text = f"{' and '.join(off)} off: after a crash it may have forgotten that a mail was sent"
        return WARN, text, "Switch it on for this database."
    return None


_DURABLE = ["fsync", "synchronous_commit", "full_page_writes"]


def migrations() -> Row:
    executor = MigrationExecutor(connections[router.db_for_write(OutboundMessageAttempt)])
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in plan[:3])
        return Row("migrations", FAIL, f"{len(plan)} not applied: {names}", "Run `manage.py migrate`.")
    return Row("migrations", OK, "all applied")


def clock() -> Row:
    """Leases and limits compare the times of three machines: this one, the database's and Redis'."""
    skews = {"the database": _skew_of_database(), "Redis": _skew_of_redis()}
    apart = {name: abs(skew) for name, skew in skews.items() if skew is not None}
    if not apart:
        return Row("clock", OK, "nothing to compare it with")
    text = ", ".join(f"{skew.total_seconds():.1f} s apart from {name}" for name, skew in apart.items())
    if max(apart.values()) > MOST_SKEW:
        return Row("clock", WARN, text, "Let NTP set the clocks of this machine and of theirs.")
    return Row("clock", OK, text)


def _skew_of_database() -> timedelta | None:
    if connection.vendor != "postgresql":
        return None  # on this machine
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        skew: timedelta = cursor.fetchone()[0] - timezone.now()
    return skew


def _skew_of_redis() -> timedelta | None:
    there = time_of(config().redis_url)
    return None if there is None else there - timezone.now()
