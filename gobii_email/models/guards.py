"""Rules that span two tables or forbid a kind of statement, kept by the database itself with triggers.

An account belongs to an agent's own e-mail endpoint, which keeps owner and channel while it has one; events
are never rewritten. SQLite drops a table's triggers when a migration rebuilds it and cannot rename a table
that another's trigger names, so there all guards are taken down before migrations and put up after them.
"""

from typing import Any

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_migrate, pre_migrate

ACCOUNTS = "gobii_email_agentemailaccount"
ENDPOINTS = "gobii_email_persistentagentcommsendpoint"
EVENTS = "gobii_email_outboundmessageevent"

_ACCOUNT_NEEDS_OWN_ENDPOINT = "an account belongs to an e-mail endpoint that an agent owns"
_ENDPOINT_KEEPS_OWNER = "an endpoint with an account keeps its owner and its channel"
_EVENTS_ARE_KEPT = "events are only added"

# name: (table, when it fires)
_TRIGGERS = {
    "gobii_email_account_insert_guard": (ACCOUNTS, "BEFORE INSERT"),
    "gobii_email_account_update_guard": (ACCOUNTS, "BEFORE UPDATE OF endpoint_id"),
    "gobii_email_endpoint_guard": (ENDPOINTS, "BEFORE UPDATE OF channel, owner_agent_id"),
    "gobii_email_event_guard": (EVENTS, "BEFORE UPDATE"),
}

_OWN_EMAIL = "channel = 'email' AND owner_agent_id IS NOT NULL"
_FITTING = f"SELECT 1 FROM {ENDPOINTS} WHERE id = NEW.endpoint_id AND {_OWN_EMAIL}"
_IN_USE = f"SELECT 1 FROM {ACCOUNTS} WHERE endpoint_id = OLD.id"
_LOSES_OWNER = "(NEW.channel <> 'email' OR NEW.owner_agent_id IS NULL)"

_SQLITE = {
    ACCOUNTS: (f"WHEN NOT EXISTS ({_FITTING})", _ACCOUNT_NEEDS_OWN_ENDPOINT),
    ENDPOINTS: (f"WHEN {_LOSES_OWNER} AND EXISTS ({_IN_USE})", _ENDPOINT_KEEPS_OWNER),
    EVENTS: ("", _EVENTS_ARE_KEPT),
}

# FOR SHARE, so that of two transactions that would break the rule together the second one waits and sees.
_POSTGRES = {
    ACCOUNTS: ("", f"PERFORM 1 FROM ({_FITTING} FOR SHARE) fitting; IF FOUND", _ACCOUNT_NEEDS_OWN_ENDPOINT),
    ENDPOINTS: (f"WHEN {_LOSES_OWNER}", f"IF NOT EXISTS ({_IN_USE})", _ENDPOINT_KEEPS_OWNER),
    EVENTS: ("", "IF false", _EVENTS_ARE_KEPT),
}


def put_up(connection: BaseDatabaseWrapper) -> None:
    """Creates all guards anew. May be repeated; does nothing before the tables exist."""
    with connection.cursor() as cursor:
        if not {ACCOUNTS, ENDPOINTS, EVENTS} <= set(connection.introspection.table_names(cursor)):
            return
        for statement in _statements(connection.vendor):
            cursor.execute(statement)


def take_down(connection: BaseDatabaseWrapper) -> None:
    """Drops all guards that are there."""
    with connection.cursor() as cursor:
        tables = set(connection.introspection.table_names(cursor))
        for name, (table, _) in _TRIGGERS.items():
            if connection.vendor == "sqlite":
                cursor.execute(f"DROP TRIGGER IF EXISTS {name}")
            elif connection.vendor == "postgresql" and table in tables:
                cursor.execute(f"DROP TRIGGER IF EXISTS {name} ON {table}")
        if connection.vendor == "postgresql":
            for table in _POSTGRES:
                cursor.execute(f"DROP FUNCTION IF EXISTS {table}_guard()")


def _statements(vendor: str) -> list[str]:
    match vendor:
        case "sqlite":
            return [_sqlite_trigger(name) for name in _TRIGGERS]
        case "postgresql":
            return [*map(_postgres_function, _POSTGRES), *map(_postgres_trigger, _TRIGGERS)]
    return []


def _sqlite_trigger(name: str) -> str:
    table, fires = _TRIGGERS[name]
    condition, message = _SQLITE[table]
    return (
        f"CREATE TRIGGER IF NOT EXISTS {name} {fires} ON {table} FOR EACH ROW {condition} "
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def _postgres_function(table: str) -> str:
    _, allowed, message = _POSTGRES[table]
    return (
        f"CREATE OR REPLACE FUNCTION {table}_guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"{allowed} THEN RETURN NEW; END IF; "
        f"RAISE EXCEPTION '{message}' USING ERRCODE = 'check_violation'; END $$"
    )


def _postgres_trigger(name: str) -> str:
    table, fires = _TRIGGERS[name]
    condition = _POSTGRES[table][0]
    return (
        f"CREATE OR REPLACE TRIGGER {name} {fires} ON {table} FOR EACH ROW {condition} "
        f"EXECUTE FUNCTION {table}_guard()"
    )


def _before_migrations(*, using: str, **_: Any) -> None:
    if connections[using].vendor == "sqlite":
        take_down(connections[using])


def _after_migrations(*, using: str, plan: Any = (), **_: Any) -> None:
    if not any(is_backwards for _, is_backwards in plan):
        put_up(connections[using])


def connect() -> None:
    """Keeps the guards up across migrations. To be called when the app is ready."""
    config = apps.get_app_config("gobii_email")
    pre_migrate.connect(_before_migrations, sender=config, dispatch_uid="gobii_email.guards.before")
    post_migrate.connect(_after_migrations, sender=config, dispatch_uid="gobii_email.guards.after")
