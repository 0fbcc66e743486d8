"""Counts that several processes add up: with threads, forks and kills, to the one."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from gobii_email.shared_counts import CountsUnavailable, SharedCounts

NAME = "test_total"
BOUNDS = (1.0, 10.0)
_CHILD = """
import sys, time
from pathlib import Path
from gobii_email.shared_counts import SharedCounts
counts = SharedCounts(lambda: Path(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    counts.add("test_total", "x", ("kind",), ("a",), 1)
print("done", flush=True)
sys.stdin.read()
"""


def counter(counts: SharedCounts, kind: str = "a") -> float:
    samples = [one for family in counts.collect() for one in family.samples if one.name == NAME]
    return sum(one.value for one in samples if one.labels == {"kind": kind})


def add(counts: SharedCounts, times: int = 1, kind: str = "a") -> None:
    for _ in range(times):
        counts.add(NAME, "x", ("kind",), (kind,), 1)


def counting(directory: Path, times: int) -> "subprocess.Popen[str]":
    """Another process that has counted so often, and lives on."""
    command = [sys.executable, "-c", _CHILD, str(directory), str(times)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    return process


@pytest.fixture
def here(tmp_path: Path) -> Callable[[], SharedCounts]:
    return lambda: SharedCounts(lambda: tmp_path)


def test_threads_lose_no_count(here: Callable[[], SharedCounts]) -> None:
    counts = here()
    threads = [threading.Thread(target=add, args=(counts, 2000)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter(counts) == 16000


def test_processes_add_up_and_one_that_is_killed_takes_nothing_with_it(
    here: Callable[[], SharedCounts], tmp_path: Path
) -> None:
    counts = here()
    add(counts, 5)
    first, second = counting(tmp_path, 100), counting(tmp_path, 200)
    assert counter(counts) == 305
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert counter(counts) == 305
    third = counting(tmp_path, 1000)
    assert counter(counts) == 1305
    files = {path.name for path in tmp_path.glob("*.db")}
    assert files == {"counter_0.db", "counter_1.db", "counter_2.db"}, "the third goes on where the first was"
    for process in (second, third):
        process.kill()
        process.wait()


def test_a_fork_counts_for_itself(here: Callable[[], SharedCounts]) -> None:
    counts = here()
    add(counts, 3)
    child = os.fork()
    if child == 0:
        add(counts, 4)
        os._exit(0)
    os.waitpid(child, 0)
    add(counts, 1)
    assert counter(counts) == 8


def test_a_histogram_has_every_bucket_up_to_infinity(here: Callable[[], SharedCounts]) -> None:
    counts = here()
    counts.observe("test_seconds", "x", ("stage",), ("dot",), BOUNDS, [0.5, 1.0, 5.0, 50.0])
    (family,) = counts.collect()
    values = {(one.name, one.labels.get("le")): one.value for one in family.samples}
    assert values == {
        ("test_seconds_bucket", "1.0"): 2,
        ("test_seconds_bucket", "10.0"): 3,
        ("test_seconds_bucket", "+Inf"): 4,
        ("test_seconds_count", None): 4,
        ("test_seconds_sum", None): 56.5,
    }


def test_a_damaged_file_is_left_out_and_written_anew(
    here: Callable[[], SharedCounts], tmp_path: Path
) -> None:
    counts = here()
    add(counts, 3)
    damaged = tmp_path / "counter_9.db"
    damaged.write_bytes(b"\xff" * 4096)
    assert counter(counts) == 3
    (tmp_path / "counter_0.db").write_bytes(b"\xff" * 4096)
    counts.begin_anew()
    add(counts, 1)
    assert counter(counts) == 1


def test_a_directory_that_cannot_be_written_is_told_once_a_minute(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    counts = SharedCounts(lambda: tmp_path / "file")
    with pytest.raises(CountsUnavailable):
        add(counts)
    add(counts, 100)


def test_without_a_directory_nothing_is_counted() -> None:
    counts = SharedCounts(lambda: None)
    add(counts)
    assert counts.collect() == []


def test_series_are_bounded(here: Callable[[], SharedCounts], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.shared_counts.MOST_SERIES", 3)
    counts = here()
    for kind in "abc":
        add(counts, kind=kind)
    with pytest.raises(CountsUnavailable):
        add(counts, kind="d")
    add(counts, kind="a")
    assert counter(counts) == 2
