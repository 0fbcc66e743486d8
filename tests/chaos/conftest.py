"""Plants for the tests: a whole service with the server that remembers, on each database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gobii_email.testing.processes import ServerUnavailable
from tests.chaos.plant import Plant

BuildPlant = Callable[..., Plant]


@pytest.fixture
def build_plant(tmp_path: Path) -> Iterator[BuildPlant]:
    """Starts a plant of the given kind; ends it with the test."""
    with ExitStack() as opened:

        def build(database: str, **facts: Any) -> Plant:
            try:
                return opened.enter_context(Plant(tmp_path, database=database, **facts))
            except ServerUnavailable as problem:
                pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")

        yield build
