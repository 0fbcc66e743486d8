"""Whoever reads a received mail is killed with SIGKILL, at each place: nothing is lost, nothing doubled."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.processes import ServerUnavailable

ROOT = Path(__file__).resolve().parents[2]
MAIL = (
    b"From: ann@person.example\r\nTo: agent@sender.example\r\nSubject: Mail NUMBER\r\n"
    b"Message-ID: <NUMBER@person.example>\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\n\r\nHello\r\n--b\r\nContent-Type: application/pdf; name=a.pdf\r\n\r\nfile NUMBER\r\n--b--\r\n"
)


@pytest.fixture(params=["sqlite", "postgresql"])
def environment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    names = ("PATH", "HOME", "PYTHONPATH", "VIRTUAL_ENV")
    plain = {name: os.environ[name] for name in names if name in os.environ} | {
        "GOBII_VAR": str(tmp_path),
        "SECRET_KEY": "only for tests",
        "GOBII_ENCRYPTION_KEY": "test:" + "A" * 43 + "=",
    }
    if request.param == "sqlite":
        yield plain | {"DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3"}
        return
    try:
        with EmbeddedPostgres() as server:
            yield plain | {"DATABASE_URL": server.url}
    except ServerUnavailable as problem:
        pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_killed_anywhere_each_mail_becomes_one_message(environment: dict[str, str], tmp_path: Path) -> None:
    assert run(environment, "manage.py", "migrate", "-v", "0").returncode == 0
    (tmp_path / "mail").write_bytes(MAIL)
    done = run(environment, "-m", "tests.chaos.reading", str(tmp_path / "mail"))
    assert done.returncode == 0, done.stderr[-2000:]
    numbers = range(6)
    assert json.loads(done.stdout) == {
        "survived": [],
        "read": ["received"] * 6,
        "read again": ["received"] * 6,
        "subjects": [f"Mail {number}" for number in numbers],
        "files": [f"file {number}" for number in numbers],
        "kept": 6,
        "states": ["received"] * 6,
        "untold": 0,
    }
