"""Query sets whose SQL is written once a process, for the few statements that every mail needs.

Django writes the statement of a query set anew at each use, which takes longer than the database takes to
answer one that follows four relations. What a row becomes is left to Django.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from django.db import connection, models
from django.db.models.query import get_related_populators

from gobii_email.models.cursors import bound_cursor, plain_here

Found = TypeVar("Found", bound=models.Model)
Key = str | uuid.UUID


@dataclass(frozen=True, slots=True)
class _Statement:
    """The SQL, its parameters with their places for the key, and how a row becomes objects."""

    sql: str
    parameters: tuple[Any, ...]
    places: tuple[int, ...]
    converters: tuple[tuple[int, Sequence[Callable[..., Any]], Any], ...]
    model: type[models.Model]
    columns: slice
    names: tuple[str, ...]
    populators: Sequence[Any]
    annotations: tuple[tuple[str, int], ...]

    def parameters_for(self, key: Key) -> list[Any]:
        given = list(self.parameters)
        for place in self.places:
            given[place] = plain_here(key)
        return given

    def read(self, row: Sequence[Any]) -> models.Model:
        values = list(row)
        for position, converters, expression in self.converters:
            for convert in converters:
                values[position] = convert(values[position], expression, connection)
        found = self.model.from_db(connection.alias, self.names, values[self.columns])
        for populator in self.populators:
            populator.populate(values, found)
        for name, position in self.annotations:
            setattr(found, name, values[position])
        return found


class Compiled(Generic[Found]):
    """The rows of `build(key)`, whose statement is kept; `example` is a key that means nothing else.

    `build` may compare with its key and nothing more: the statement must be the same for every key.
    """

    def __init__(self, build: Callable[[Any], "models.QuerySet[Found]"], example: Key) -> None:
        self._build = build
        self._example = example
        self._statements: dict[str, _Statement] = {}  # by kind of database

    def rows(self, key: Key) -> list[Found]:
        statement = self._statements.get(connection.vendor)
        if statement is None:
            statement = self._statements[connection.vendor] = self._compiled()
        with bound_cursor() as cursor:
            cursor.execute(statement.sql, statement.parameters_for(key))
            return [statement.read(row) for row in cursor.fetchall()]  # type: ignore[misc]

    def _compiled(self) -> _Statement:
        rows = self._build(self._example)
        compiler = rows.query.get_compiler(connection.alias)
        sql, parameters = compiler.as_sql()
        select, info = compiler.select, compiler.klass_info
        positions = info["select_fields"]
        columns = slice(positions[0], positions[-1] + 1)
        converters = compiler.get_converters(column for column, _, _ in select)
        return _Statement(
            sql=sql,
            parameters=tuple(parameters),
            places=tuple(
                place for place, value in enumerate(parameters) if value == plain_here(self._example)
            ),
            converters=tuple((position, *found) for position, found in converters.items()),
            model=info["model"],
            columns=columns,
            names=tuple(column.target.attname for column, _, _ in select[columns]),
            populators=get_related_populators(info, select, connection.alias, *_fetch_mode_of(rows)),
            annotations=tuple(compiler.annotation_col_map.items()),
        )


def _fetch_mode_of(rows: "models.QuerySet[Any]") -> tuple[Any, ...]:
    """What Django from 6.1 on wants to know for fields that were left out."""
    return (rows._fetch_mode,) if hasattr(rows, "_fetch_mode") else ()
