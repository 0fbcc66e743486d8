"""Everything that touches rows, once more on PostgreSQL, in a run of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.processes import ServerUnavailable

ROOT = Path(__file__).resolve().parents[2]
WITH_ROWS = ["tests/models", "tests/services", "tests/entrypoints/test_admin.py",
             "tests/entrypoints/test_admin_lists.py",
             "tests/entrypoints/test_postmark_webhook.py"]  # fmt: skip


@pytest.mark.skipif("TEST_DATABASE_URL" in os.environ, reason="this very run is on the database named there")
def test_the_rows_tests_pass_on_postgresql_too() -> None:
    try:
        with EmbeddedPostgres() as server:
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-ra", *WITH_ROWS],
                cwd=ROOT,
                env=os.environ | {"TEST_DATABASE_URL": server.url},
                capture_output=True,
                text=True,
                check=False,
            )
    except ServerUnavailable as problem:
        pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")
    assert run.returncode == 0, run.stdout[-5000:]
    print(run.stdout[-300:])
