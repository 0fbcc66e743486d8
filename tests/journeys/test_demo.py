"""The demonstration, run as a person runs it: in a directory of its own, with every process real."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gobii_email.testing.stack import ROOT

ENDINGS = {
    "A Markdown mail with Cc and Bcc": "sent sent 1 1",
    "HTML, inline image, attachment": "sent sent 1 1",
    "A reply that threads": "sent sent 1 1",
    "Refused twice with 451": "sent sent 3 1",
    "One recipient of three refused": "partially_sent partially_sent 1 1",
    "Refused for good": "failed failed 1 0",
    "Its worker is killed before DATA": "sent sent 2 1",
    "An agent without an account": "delivered delivered 1 0",
}


def environment(var: Path, **more: str) -> dict[str, str]:
    ours = ("REDIS_URL", "DATABASE_URL", "GOBII_VAR")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return inherited | {"GOBII_VAR": str(var)} | more


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "demo", *options]


def processes_of(var: Path) -> list[str]:
    """The command lines of living processes whose environment names `var`, or that work in it."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("whose processes are alive is told by /proc, which this system does not have")
    needle = f"GOBII_VAR={var}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple["subprocess.CompletedProcess[str]", Path]:
    var = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        command("--once"), cwd=ROOT, env=environment(var), capture_output=True, text=True, timeout=600
    )
    return done, var


def test_once_exits_0_when_every_mail_ended_as_it_should(run):
    done, _ = run
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stderr == ""
    assert f"All {len(ENDINGS)} mails ended as they should" in done.stdout


@pytest.mark.parametrize(("title", "ending"), ENDINGS.items(), ids=ENDINGS)
def test_the_summary_says_how_each_mail_ended(run, title, ending):
    row = re.search(rf"^✓ {re.escape(title)} +(\S+) +(\S+) +(\d+) +\S+ +(\d+)$", run[0].stdout, re.MULTILINE)
    assert row is not None and " ".join(row.groups()) == ending


def test_each_timeline_is_told_with_its_reasons(run):
    told = " ".join(run[0].stdout.split())
    for part in (
        "451 4.7.1 Greylisted",
        "1 of 3 recipients were refused",
        "554 5.7.1 Refused: this looks like spam",
        "» kill -9",
        "The worker was lost before the message was handed to",
        "Simulated: composed and stored",
    ):
        assert part in told


def test_it_is_readable_in_80_columns_and_without_colour(run):
    assert max(map(len, run[0].stdout.splitlines())) <= 80
    assert "\x1b" not in run[0].stdout


def test_nothing_is_left_but_the_key_for_its_owner_alone(run):
    _, var = run
    assert processes_of(var) == []
    left = [path for path in (var / "demo").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["encryption_key"]
    assert left[0].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_in_the_middle_leaves_no_process_behind(tmp_path, number):
    with subprocess.Popen(
        command(), cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        while not demo.stdout.readline().startswith("  processes"):
            assert demo.poll() is None
        assert len(processes_of(tmp_path)) > 4
        demo.send_signal(number)
        rest = demo.stdout.read()
        assert demo.wait(120) == 128 + number
    assert "Ended: " in rest
    assert processes_of(tmp_path) == []


def test_a_broker_that_is_away_is_said_in_one_sentence_without_its_password(tmp_path):
    done = subprocess.run(
        command("--once"),
        cwd=ROOT,
        env=environment(tmp_path, REDIS_URL="redis://:s3cr3t@127.0.0.1:1/0"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No broker answers at REDIS_URL (127.0.0.1:1): start it, or unset")
    assert len(done.stderr.splitlines()) == 1 and "s3cr3t" not in done.stdout + done.stderr


def test_without_any_valkey_it_says_what_to_install(tmp_path):
    blinded = "import gobii_email.testing.valkey as valkey, runpy, sys; sys.argv = ['demo', '--once'];"
    blinded += "valkey._binary_of_the_wheel = lambda: None; runpy.run_module('demo', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", blinded],
        cwd=ROOT,
        env=environment(tmp_path, PATH=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: No Valkey or Redis server was found: install")


def test_help_needs_nothing_to_run(tmp_path):
    done = subprocess.run(
        command("--help"), cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and "--once" in done.stdout and "--flower" in done.stdout
    assert not (tmp_path / "demo").exists()
