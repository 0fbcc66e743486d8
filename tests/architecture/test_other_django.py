"""Part of the suite once more on Django 6, with an interpreter and a virtual environment of its own.

The environment is made from requirements/test-django6.txt and kept under var/django6 until that file or
the interpreter changes. Runs where it is asked for, so that a plain run of the suite stays quick.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "test-django6.txt"
KEPT = ROOT / "var" / "django6"
PART = ["tests/domain", "tests/models", "tests/services/test_deliver.py", "tests/entrypoints/test_admin.py"]
SUITABLE = (
    "import ensurepip, sqlite3, ssl, sys, venv\n"
    "if (3, 12) <= sys.version_info < (3, 15): print(sys.version, sys.base_prefix)"
)

is_asked_for = os.environ.get("GOBII_TEST_DJANGO6") == "1" or os.environ.get("CI") == "true"


def candidates() -> Iterator[str]:
    """Commands that may be a Python of 3.12 to 3.14; a version manager's may only print an excuse."""
    yield sys.executable
    yield from ("python3.14", "python3.13", "python3.12")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from map(str, sorted(pyenv.glob("versions/3.1[234].*/bin/python"), reverse=True))


def identity(command: str) -> str:
    """Which Python `command` is; empty when it is not one that can be used."""
    try:
        run = subprocess.run([command, "-c", SUITABLE], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout if run.returncode == 0 else ""


def make_environment(python: str, place: Path) -> None:
    install = ["pip", "install", "-qq", "--disable-pip-version-check", "--only-binary", ":all:"]
    install += ["--require-hashes", "-r", str(LOCK)]
    # Made elsewhere and moved: what has its final name is whole, though two runs may make it at once.
    with tempfile.TemporaryDirectory(dir=place.parent) as workshop:
        made = Path(workshop, "venv")
        for command in ([python, "-m", "venv", made], [made / "bin" / "python", "-m", *install]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
        with contextlib.suppress(OSError):  # the other one was first
            made.rename(place)


@pytest.fixture(scope="module")
def django6() -> Path:
    """The Python of an environment with Django 6."""
    found = next(((python, known) for python in candidates() if (known := identity(python))), None)
    if found is None:
        pytest.skip("DJANGO 6 IS NOT TESTED HERE: there is no working Python 3.12 to 3.14")
    python, known = found
    place = KEPT / sha256(known.encode() + LOCK.read_bytes()).hexdigest()[:16]
    KEPT.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        try:
            make_environment(python, place)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as problem:
            said = str(problem.stderr or problem).strip().splitlines()
            pytest.skip(f"DJANGO 6 IS NOT TESTED HERE: its environment cannot be made: {said[-1]}")
    return place / "bin" / "python"


@pytest.mark.skipif(not is_asked_for, reason="Django 6 is tested with GOBII_TEST_DJANGO6=1 or CI=true only")
def test_the_core_works_on_django_6_and_uses_nothing_it_will_drop(django6: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [django6, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
        )

    assert run("django", "--version").stdout.startswith("6.")
    dropped = "error::django.utils.deprecation.RemovedAfterNextVersionWarning"
    suite = run("pytest", "-p", "no:cacheprovider", "-W", dropped, *PART)
    assert suite.returncode == 0, suite.stdout[-5000:] + suite.stderr[-2000:]
