"""Counts that the processes of one machine add up in files: right with threads, with forks, and after a kill.

Each process writes into files of its own, memory-mapped, so what was counted survives `kill -9`. It holds its
place by a lock that the system gives back when the process ends, and whoever takes the place next goes on
with its counts: they never fall, and there are never more files than processes at one time.
"""

import fcntl
import json
import os
import struct
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, cast

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.utils import floatToGoString

COUNTER, HISTOGRAM = "counter", "histogram"
MOST_PROCESSES = 1000
MOST_SERIES = 3000
"""Of one kind in one process. The file is as large from the beginning, so that a full disk kills nobody."""
_FILE_BYTES = 1 << 20
_PAUSE_SECONDS = 60.0


class CountsUnavailable(Exception):
    """They cannot be kept here: the directory cannot be written, or there are too many of them."""


class SharedCounts:
    """Counts of this process, in `directory`; None switches them off.

    `add` and `observe` raise CountsUnavailable where they cannot be kept, and then keep none for a minute.
    """

    def __init__(self, directory: Callable[[], Path | None]) -> None:
        self._directory = directory
        self.begin_anew()
        os.register_at_fork(after_in_child=self.begin_anew)

    def begin_anew(self) -> None:
        """As a new process: what a parent had is left to it."""
        self._off_until = 0.0
        self._lock = threading.Lock()
        self._place: IO[bytes] | None = None
        self._files: dict[str, Any] = {}
        self._cells: dict[tuple[str, Sequence[str]], _Cells] = {}

    def add(self, name: str, about: str, labels: Sequence[str], values: Sequence[str], amount: float) -> None:
        """Adds `amount` to the counter `name`, which ends in _total, for these `values` of its `labels`."""
        with self._lock:
            cells = self._cells.get((name, values))
            if cells is None:
                if self._is_off:
                    return
                keys = [_key(name.removesuffix("_total"), name, about, labels, values)]
                cells = self._cells_of(COUNTER, name, values, keys)
            cells.add(0, amount)

    def observe(
        self,
        name: str,
        about: str,
        labels: Sequence[str],
        values: Sequence[str],
        bounds: Sequence[float],
        amounts: Iterable[float],
    ) -> None:
        """Sorts `amounts` into the histogram `name` with buckets up to each of `bounds`."""
        with self._lock:
            cells = self._cells.get((name, values))
            if cells is None:
                if self._is_off:
                    return
                keys = list(_keys_of_histogram(name, about, labels, values, bounds))
                cells = self._cells_of(HISTOGRAM, name, values, keys)
            found = list(amounts)
            cells.add(0, sum(found))
            for place, times in Counter(bisect_left(bounds, amount) for amount in found).items():
                cells.add(1 + place, times)

    def collect(self) -> list[Family]:
        """The sums over all processes, dead ones included. A file that cannot be read is left out."""
        directory = self._directory()
        paths = sorted(str(path) for path in directory.glob("*_*.db")) if directory else []
        return list(_merged([path for path in paths if _is_readable(path)]))

    def _cells_of(self, kind: str, name: str, values: Sequence[str], keys: Sequence[str]) -> "_Cells":
        of_kind = self._files.get(kind)
        if of_kind is None:
            of_kind = self._files[kind] = self._opened(kind)
        if len(of_kind._positions) + len(keys) > MOST_SERIES:
            raise CountsUnavailable(f"there are {MOST_SERIES} series already")
        made = self._cells[name, values] = _Cells(of_kind, keys)
        return made

    @property
    def _is_off(self) -> bool:
        return self._directory() is None or time.monotonic() < self._off_until

    def _opened(self, kind: str) -> Any:
        directory = self._directory()
        assert directory is not None
        try:
            if self._place is None:
                self._place = _place(directory)
            path = Path(self._place.name).with_name(f"{kind}_{Path(self._place.name).stem}.db")
            if path.exists() and not _is_readable(str(path)):
                path.unlink()
            _allocate(path)
            return MmapedDict(str(path))  # type: ignore[no-untyped-call]
        except OSError as problem:
            self._off_until = time.monotonic() + _PAUSE_SECONDS
            raise CountsUnavailable(problem.strerror or type(problem).__name__) from None


class _Cells:
    """The numbers of one series, as they stand in its file."""

    __slots__ = ("_file", "_keys", "_numbers")

    def __init__(self, file: Any, keys: Sequence[str]) -> None:
        self._file = file
        self._keys = keys
        self._numbers = [file.read_value(key)[0] for key in keys]

    def add(self, place: int, amount: float) -> None:
        self._numbers[place] += amount
        self._file.write_value(self._keys[place], self._numbers[place], 0.0)


def _place(directory: Path) -> IO[bytes]:
    """The first place in `directory` that no living process holds, held by this one until it ends."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number in range(MOST_PROCESSES):
        place = (directory / f"{number}.place").open("ab")
        try:
            # Of the process and not of the open file, so a forked child does not hold its parent's place.
            fcntl.lockf(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            place.close()
            continue
        return place
    raise CountsUnavailable(f"{MOST_PROCESSES} processes count here already")


def _allocate(path: Path) -> None:
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)
        else:
            file.truncate(_FILE_BYTES)


def _key(family: str, name: str, about: str, labels: Sequence[str], values: Sequence[str]) -> str:
    return json.dumps([family, name, dict(zip(labels, values, strict=True)), about], sort_keys=True)


def _keys_of_histogram(
    name: str, about: str, labels: Sequence[str], values: Sequence[str], bounds: Sequence[float]
) -> Iterable[str]:
    yield _key(name, f"{name}_sum", about, labels, values)
    for bound in [*bounds, float("inf")]:
        le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        yield _key(name, f"{name}_bucket", about, [*labels, "le"], [*values, le])


def _is_readable(path: str) -> bool:
    """Whether the file is whole; a machine that lost its power may leave one that is not."""
    try:
        with Path(path).open("rb") as file:
            (used,) = struct.unpack("i", file.read(4))
        if used and not 8 <= used <= Path(path).stat().st_size:
            return False
        for key, *_ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
            json.loads(key)
    except Exception:
        return False
    return True


def _merged(paths: Sequence[str]) -> Iterable[Family]:
    return cast("Iterable[Family]", MultiProcessCollector.merge(paths))  # type: ignore[no-untyped-call]
