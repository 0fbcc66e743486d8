"""Many rows in few statements, without a model instance or a parameter for each of their values.

PostgreSQL takes more than a few rows as a binary COPY, which streams them and never writes bytes as text;
SQLite runs one prepared statement over them. Columns that are not named get their field's default, and
neither signals nor `auto_now` take part.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from operator import attrgetter
from typing import Any, TypeVar

from django.db import connection, models

FEW_ROWS = 4
"""Up to so many go as parameters of one INSERT: one round trip instead of COPY's two."""
MOST_BYTES = 64 * 1024
"""Of such an INSERT, whose bytes are written as text of twice the length."""
ROWS_AT_ONCE = 500

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows of one shape become columns: which values are converted, and what follows them."""

    table: str
    columns: str
    types: tuple[str, ...]
    conversions: tuple[tuple[int, Callable[[Any], Any]], ...]
    constants: tuple[Any, ...]

    def complete(self, rows: Iterable[Row]) -> list[Row]:
        if not self.conversions:
            return [(*row, *self.constants) for row in rows]
        return [self._converted(row) for row in rows]

    def _converted(self, row: Row) -> Row:
        values = [*row, *self.constants]
        for position, convert in self.conversions:
            values[position] = convert(values[position])
        return values

    def insert(self, rows: int) -> str:
        one = f"({', '.join(['%s'] * len(self.types))})"
        return f"INSERT INTO {self.table} ({self.columns}) VALUES {', '.join([one] * rows)}"


Made = TypeVar("Made", bound=models.Model)


def new_object(model: type[Made], **values: Any) -> Made:
    """`model(**values)`, where `values` are by attribute name: a quarter of the time."""
    row = [values[name] if name in values else default() for name, default in _defaults(model)]
    made = model.from_db(connection.alias, [name for name, _ in _defaults(model)], row)
    made._state.adding, made._state.db = True, None
    return made


@cache
def _defaults(model: type[models.Model]) -> tuple[tuple[str, Callable[[], Any]], ...]:
    return tuple((field.attname, field.get_default) for field in model._meta.concrete_fields)


def insert_objects(model: type[models.Model], objects: Sequence[models.Model]) -> None:
    """Inserts all columns of `objects`, which have their primary keys already."""
    names = tuple(field.attname for field in model._meta.concrete_fields)
    insert_rows(model, names, list(map(attrgetter(*names), objects)))
    for stored in objects:
        stored._state.adding, stored._state.db = False, connection.alias


def insert_rows(model: type[models.Model], names: tuple[str, ...], rows: Sequence[Row]) -> None:
    """Inserts `rows`, whose values are those of the attributes `names`. Raises what Django would raise."""
    if not rows:
        return
    plan = _plan(model, names, connection.vendor)
    complete = plan.complete(rows)
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.executemany(plan.insert(1), complete)
        elif hasattr(cursor, "copy") and not _is_small(complete):
            _copy(cursor, plan, complete)
        else:
            for chunk in _chunks(complete):
                cursor.execute(plan.insert(len(chunk)), [value for row in chunk for value in row])


def insert_missing(model: type[models.Model], names: tuple[str, ...], rows: Sequence[Row]) -> int:
    """Inserts those of `rows` that meet no other row of the same key; answers how many these were."""
    plan = _plan(model, names, connection.vendor)
    inserted = 0
    with connection.cursor() as cursor:
        for chunk in _chunks(plan.complete(rows)):
            statement = f"{plan.insert(len(chunk))} ON CONFLICT DO NOTHING"
            cursor.execute(statement, [value for row in chunk for value in row])
            inserted += cursor.rowcount
    return inserted


def update_rows(model: type[models.Model], names: tuple[str, ...], rows: Sequence[Row]) -> None:
    """Sets the attributes `names` of the rows whose primary keys are the first values of `rows`."""
    if not rows:
        return
    fields: list[Any] = [model._meta.pk, *map(model._meta.get_field, names)]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql" and len(rows) > 1:
            statement = _update_from_json(model, fields)
            for start in range(0, len(rows), ROWS_AT_ONCE):
                cursor.execute(statement, [_as_json(fields, rows[start : start + ROWS_AT_ONCE])])
            return
        statement = _update_one(model, fields)
        values = [_prepared(fields, row) for row in rows]
        parameters = [[*others, key] for key, *others in values]
        if len(parameters) == 1:
            cursor.execute(statement, parameters[0])
        else:
            cursor.executemany(statement, parameters)


def _prepared(fields: Sequence[Any], row: Row) -> list[Any]:
    return [field.get_db_prep_save(value, connection) for field, value in zip(fields, row, strict=True)]


def _as_json(fields: Sequence[Any], rows: Sequence[Row]) -> str:
    columns = [field.column for field in fields]
    return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=str)


def _update_one(model: type[models.Model], fields: Sequence[Any]) -> str:
    key, *columns = [connection.ops.quote_name(field.column) for field in fields]
    sets = ", ".join(f"{column} = %s" for column in columns)
    return f"UPDATE {connection.ops.quote_name(model._meta.db_table)} SET {sets} WHERE {key} = %s"


def _update_from_json(model: type[models.Model], fields: Sequence[Any]) -> str:
    """All rows in one parameter; PostgreSQL reads that faster than Python writes a CASE for each."""
    table = connection.ops.quote_name(model._meta.db_table)
    columns = [connection.ops.quote_name(field.column) for field in fields]
    sets = ", ".join(f"{column} = given.{column}" for column in columns[1:])
    types = ", ".join(
        f"{column} {field.db_type(connection)}" for column, field in zip(columns, fields, strict=True)
    )
    return (
        f"UPDATE {table} SET {sets} FROM json_to_recordset(%s::json) AS given({types})"
        f" WHERE {table}.{columns[0]} = given.{columns[0]}"
    )


@lru_cache(maxsize=64)
def _plan(model: type[models.Model], names: tuple[str, ...], vendor: str) -> _Plan:
    given: list[Any] = [model._meta.get_field(name) for name in names]
    others = [
        field
        for field in model._meta.concrete_fields
        if field not in given and not field.null and not isinstance(field, models.AutoField)
    ]
    quote = connection.ops.quote_name
    return _Plan(
        table=quote(model._meta.db_table),
        columns=", ".join(quote(field.column) for field in [*given, *others]),
        types=tuple(str(field.db_type(connection)).partition("(")[0] for field in [*given, *others]),
        conversions=tuple(
            (position, partial(field.get_db_prep_save, connection=connection))
            for position, field in enumerate(given)
            if _needs_conversion(field, vendor)
        ),
        constants=tuple(field.get_db_prep_save(field.get_default(), connection) for field in others),
    )


def _needs_conversion(field: Any, vendor: str) -> bool:
    """PostgreSQL's client takes moments and UUIDs as they are, SQLite's does not; neither takes JSON."""
    kind = field.target_field if isinstance(field, models.ForeignKey) else field
    plain = (models.DateTimeField, models.UUIDField)
    return isinstance(kind, models.JSONField) or (vendor != "postgresql" and isinstance(kind, plain))


def _copy(cursor: Any, plan: _Plan, rows: Iterable[Row]) -> None:
    statement = f"COPY {plan.table} ({plan.columns}) FROM STDIN (FORMAT BINARY)"
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.set_types(plan.types)
        for row in rows:
            copy.write_row(row)


def _is_small(rows: Sequence[Row]) -> bool:
    return len(rows) <= FEW_ROWS and sum(map(_size, rows)) <= MOST_BYTES


def _size(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, bytes | str))


def _chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """`rows` in pieces of bounded number and size; a row that is too large by itself goes alone."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) >= ROWS_AT_ONCE or size + _size(row) > 64 * MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += _size(row)
    if chunk:
        yield chunk
