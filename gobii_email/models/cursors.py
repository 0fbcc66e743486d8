"""Cursors for statements that are written by hand, and their values as each database takes them."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from typing import Any

from django.db import connection


def is_postgres() -> bool:
    return connection.vendor == "postgresql"


@contextmanager
def bound_cursor() -> Iterator[Any]:
    """One that binds on PostgreSQL's side, so that a statement is planned once a connection, not each time.

    Django's own binds in the client; errors, logging and query counting are Django's all the same.
    """
    connection.ensure_connection()
    if not is_postgres():
        with connection.cursor() as cursor:
            yield cursor
        return
    prepared, unprepared = _cursors()
    if connection.queries_logged:
        wrapped = connection.make_debug_cursor(unprepared(connection.connection))
    else:
        wrapped = connection.make_cursor(prepared(connection.connection))
    with connection.wrap_database_errors, wrapped as cursor:
        yield cursor


@cache
def _cursors() -> tuple[type[Any], type[Any]]:
    """The one to use, and the one for logs: a statement that is prepared is logged without its text."""
    from psycopg import Cursor

    class Unprepared(Cursor[Any]):
        def execute(self, query: Any, params: Any = None, **_: Any) -> Any:
            return super().execute(query, params, prepare=False)

    return Cursor, Unprepared


def plain(value: Any) -> Any:
    """As SQLite stores it in Django's columns."""
    match value:
        case uuid.UUID():
            return value.hex
        case datetime():
            return connection.ops.adapt_datetimefield_value(value)
    return value


def plain_here(value: Any) -> Any:
    return value if is_postgres() else plain(value)


def stored_uuid(value: Any) -> uuid.UUID:
    """What a column of keys holds, whichever database it came from."""
    return value if isinstance(value, uuid.UUID) else uuid.UUID(value)


def among(values: Sequence[Any]) -> tuple[str, list[Any]]:
    """A condition that a column is one of `values`, to be written behind its name, and its parameters."""
    if is_postgres():
        return "= ANY(%s)", [list(values)]
    return "IN (SELECT value FROM json_each(%s))", [json.dumps(list(map(plain, values)))]
