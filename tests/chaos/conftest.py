"""Plants for the tests: a whole service with the server that remembers, on each database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.processes import ServerUnavailable
from tests.chaos.plant import Plant

BuildPlant = Callable[..., Plant]


@pytest.fixture(scope="package")
def shared_postgres() -> Iterator[EmbeddedPostgres]:
    """One server for the tests that do not hurt it; each plant has a database of its own there."""
    try:
        with EmbeddedPostgres(own=True) as server:
            yield server
    except ServerUnavailable as problem:
        pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")


@pytest.fixture
def build_plant(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[BuildPlant]:
    """Starts a plant of the given kind; ends it with the test."""
    with ExitStack() as opened:

        def build(database: str, *, own_server: bool = False, **facts: Any) -> Plant:
            server = None
            if database == "postgresql" and not own_server:
                server = request.getfixturevalue("shared_postgres")
            try:
                return opened.enter_context(Plant(tmp_path, database=database, server=server, **facts))
            except ServerUnavailable as problem:
                pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")

        yield build
