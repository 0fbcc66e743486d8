"""Many rows in few statements, without a model instance or a parameter for each of their values.

PostgreSQL takes the rows of one message and all that belongs to it in a single statement, those of many as
binary COPYs, which stream; SQLite runs one prepared statement a table. Columns that are not named get their
field's default, and neither signals nor `auto_now` take part.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

from django.db import connection, models

from gobii_email.models.cursors import bound_cursor, is_postgres

FEW_ROWS = 4
"""Up to so many go as parameters of one INSERT, more of a message's own as one JSON text."""
MOST_BYTES = 1024 * 1024
"""Of such a row; larger ones are streamed."""
ROWS_AT_ONCE = 500

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Insertion:
    """New rows of a table, whose values are those of the attributes `names`."""

    model: type[models.Model]
    names: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Change:
    """New values for the attributes `names` of the rows whose primary keys are the first values of `rows`."""

    model: type[models.Model]
    names: tuple[str, ...]
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class _Plan:
    """How rows of one shape become columns: which values are converted, and what the other columns hold.

    The others stand in the statement itself: a client library reads each of its parameters anew.
    """

    table: str
    given: tuple[str, ...]
    columns: str
    types: tuple[str, ...]
    conversions: tuple[tuple[int, Callable[[Any], Any]], ...]
    constants: tuple[Any, ...]
    literals: tuple[str, ...]

    def converted(self, rows: Sequence[Row]) -> Sequence[Row]:
        return [self._converted(row) for row in rows] if self.conversions else rows

    def _converted(self, row: Row) -> Row:
        values = [*row]
        for position, convert in self.conversions:
            values[position] = convert(values[position])
        return values

    def insert(self, rows: int) -> str:
        one = f"({', '.join([*['%s'] * len(self.given), *self.literals])})"
        return f"INSERT INTO {self.table} ({self.columns}) VALUES {', '.join([one] * rows)}"

    @property
    def insert_json(self) -> str:
        """Of rows that are one JSON text, the only parameter."""
        shape = ", ".join(map(" ".join, zip(self.given, self.types, strict=False)))
        return (
            f"INSERT INTO {self.table} ({self.columns}) SELECT {', '.join([*self.given, *self.literals])} "
            f"FROM json_to_recordset(%s::json) AS given({shape})"
        )


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


def insertion_of(model: type[Made], names: tuple[str, ...], objects: Sequence[Made]) -> Insertion:
    """The attributes `names` of `objects`, which count as stored from now on; others are as by default."""
    rows = list(map(attrgetter(*names), objects))
    for stored in objects:
        stored._state.adding, stored._state.db = False, connection.alias
    return Insertion(model, names, rows)


def write_rows(steps: Sequence[Insertion | Change]) -> None:
    """Does all `steps`, the first of which names the messages that the others belong to.

    To be called in a transaction. Raises what Django would raise.
    """
    steps = [step for step in steps if step.rows]
    has_few = is_postgres() and len(steps[0].rows) <= FEW_ROWS
    together = [step for step in steps if has_few and not _is_large(step)]
    for step in steps:
        if step not in together:
            _insert(step) if isinstance(step, Insertion) else _change(step)
    if together:
        _write_together(together)


def _is_large(step: Insertion | Change) -> bool:
    return len(step.rows) > ROWS_AT_ONCE or any(_size(row) > MOST_BYTES for row in step.rows)


def _write_together(steps: Sequence[Insertion | Change]) -> None:
    """One statement; whether what they refer to is there is judged when the transaction ends."""
    texts, parameters = [], []
    for step in steps:
        text, values = _insert_few(step) if isinstance(step, Insertion) else _change_few(step)
        texts.append(text)
        parameters += values
    *others, last = texts
    named = [f"step{number} AS ({text})" for number, text in enumerate(others)]
    statement = f"WITH {', '.join(named)} {last}" if named else last
    with bound_cursor() as cursor:
        cursor.execute(statement, parameters)


def _insert_few(step: Insertion) -> tuple[str, list[Any]]:
    plan = _plan(step.model, step.names, connection.vendor)
    if len(step.rows) <= FEW_ROWS:
        return plan.insert(len(step.rows)), list(chain.from_iterable(plan.converted(step.rows)))
    return plan.insert_json, [_as_json(plan.given, step.rows)]


def _insert(step: Insertion) -> None:
    plan = _plan(step.model, step.names, connection.vendor)
    with connection.cursor() as cursor:
        if is_postgres():
            _copy(cursor, plan, step.rows)
        else:
            cursor.executemany(plan.insert(1), plan.converted(step.rows))


def insert_missing(model: type[models.Model], names: tuple[str, ...], rows: Sequence[Row]) -> int:
    """Inserts those of `rows` that meet no other row of the same key; answers how many these were."""
    plan = _plan(model, names, connection.vendor)
    inserted = 0
    with connection.cursor() as cursor:
        for chunk in _chunks(plan.converted(rows)):
            statement = f"{plan.insert(len(chunk))} ON CONFLICT DO NOTHING"
            cursor.execute(statement, [value for row in chunk for value in row])
            inserted += cursor.rowcount
    return inserted


def _change(step: Change) -> None:
    with connection.cursor() as cursor:
        if is_postgres():
            for start in range(0, len(step.rows), ROWS_AT_ONCE):
                cursor.execute(*_change_json(step, step.rows[start : start + ROWS_AT_ONCE]))
        else:
            cursor.executemany(_update_one(step.model, _fields(step)), list(map(_key_last(step), step.rows)))


def _change_few(step: Change) -> tuple[str, list[Any]]:
    """A single row by its key; of a JSON text the planner cannot tell how few it holds."""
    if len(step.rows) > 1:
        return _change_json(step, step.rows)
    return _update_one(step.model, _fields(step)), _key_last(step)(step.rows[0])


def _change_json(step: Change, rows: Sequence[Row]) -> tuple[str, list[Any]]:
    fields = _fields(step)
    return _update_from_json(step.model, fields), [_as_json([field.column for field in fields], rows)]


def _key_last(step: Change) -> Callable[[Row], list[Any]]:
    """Makes of a row the parameters of `_update_one`."""
    fields = _fields(step)

    def parameters(row: Row) -> list[Any]:
        key, *others = (
            field.get_db_prep_save(value, connection) for field, value in zip(fields, row, strict=True)
        )
        return [*others, key]

    return parameters


def _fields(step: Change) -> tuple[Any, ...]:
    return (step.model._meta.pk, *map(step.model._meta.get_field, step.names))


def _as_json(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """In one parameter; PostgreSQL reads that faster than Python writes a CASE or a list for each."""
    return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=str)


def _update_one(model: type[models.Model], fields: Sequence[Any]) -> str:
    key, *columns = [connection.ops.quote_name(field.column) for field in fields]
    sets = ", ".join(f"{column} = %s" for column in columns)
    return f"UPDATE {connection.ops.quote_name(model._meta.db_table)} SET {sets} WHERE {key} = %s"


@lru_cache(maxsize=8)
def _update_from_json(model: type[models.Model], fields: tuple[Any, ...]) -> str:
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
    constants = tuple(field.get_db_prep_save(field.get_default(), connection) for field in others)
    quote = connection.ops.quote_name
    return _Plan(
        table=quote(model._meta.db_table),
        given=tuple(field.column for field in given),
        columns=", ".join(quote(field.column) for field in [*given, *others]),
        types=tuple(str(field.db_type(connection)).partition("(")[0] for field in [*given, *others]),
        conversions=tuple(
            (position, partial(field.get_db_prep_save, connection=connection))
            for position, field in enumerate(given)
            if _needs_conversion(field, vendor)
        ),
        constants=constants,
        literals=tuple(map(_literal, constants)),
    )


def _literal(value: Any) -> str:
    """A default as a statement says it; a percent sign would be a parameter."""
    if is_postgres():
        from psycopg.sql import Literal

        return Literal(value).as_string(connection.connection).replace("%", "%%")
    kept = value if isinstance(value, int) else "'" + str(value).replace("'", "''") + "'"
    return str(int(kept) if isinstance(kept, bool) else kept).replace("%", "%%")


def _needs_conversion(field: Any, vendor: str) -> bool:
    """PostgreSQL's client takes moments and UUIDs as they are, SQLite's does not; neither takes JSON."""
    kind = field.target_field if isinstance(field, models.ForeignKey) else field
    plain = (models.DateTimeField, models.UUIDField)
    return isinstance(kind, models.JSONField) or (vendor != "postgresql" and isinstance(kind, plain))


def _copy(cursor: Any, plan: _Plan, rows: Sequence[Row]) -> None:
    statement = f"COPY {plan.table} ({plan.columns}) FROM STDIN (FORMAT BINARY)"
    with connection.wrap_database_errors, cursor.copy(statement) as copy:
        copy.set_types(plan.types)
        for row in plan.converted(rows):
            copy.write_row((*row, *plan.constants))


def _size(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, bytes | str))


def _chunks(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """`rows` in pieces of bounded number and size; a row that is too large by itself goes alone."""
    chunk: list[Row] = []
    size = 0
    for row in rows:
        if chunk and (len(chunk) >= ROWS_AT_ONCE or size + _size(row) > 4 * MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += _size(row)
    if chunk:
        yield chunk
