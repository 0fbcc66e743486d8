"""Whether limits are kept to the mail, and used: the fullest rolling minute at the sink, and the share used.

Accounts of several rates have more mail than they may send; two workers share them, and in the middle Redis
forgets everything. `python -m benchmarks.limits --help`.
"""

import argparse
import json
import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.rig import REUSED, Rig

WINDOW = 60.0


@dataclass(frozen=True, slots=True)
class Kept:
    """`fullest` is the most in any 60 seconds; `share` is of what the limit allowed in whole minutes."""

    per_minute: int
    workers: int
    accepted: int
    fullest: int
    fullest_before_flush: int
    share: float
    seconds: float
    doubled: int


def fullest(moments: Sequence[float], window: float = WINDOW) -> int:
    """The most of the ordered `moments` in any half-open span of `window` seconds."""
    return max(
        (place - bisect_left(moments, at - window + 1e-9) + 1 for place, at in enumerate(moments)), default=0
    )


def share_used(moments: Sequence[float], limit: int, window: float = WINDOW) -> float:
    """Of `limit` in each whole window since the first one; of one window when none is whole."""
    if not moments:
        return 0.0
    windows = max(1, math.floor((moments[-1] - moments[0]) / window + 0.02))
    until = moments[0] + windows * window
    return bisect_left(moments, until) / (limit * windows)


def measure(
    rig: Rig, rates: Sequence[int], *, workers: int, threads: int, seconds: float, flush_at: float | None
) -> list[Kept]:
    accounts = {rate: rig.accounts(f"rate{rate}x", 1, {**REUSED, "per_minute": rate})[0] for rate in rates}
    for rate, address in accounts.items():
        rig.submit([address], math.ceil(rate * (seconds / WINDOW + 1.5)))
    rig.start(workers, threads)
    if not rig.sink.wait_for(1, seconds=30):
        raise RuntimeError("nothing arrived")
    started = time.monotonic()
    flushed = started + seconds
    if flush_at is not None:
        time.sleep(flush_at)
        flushed = time.monotonic()
        with redis.Redis.from_url(rig.stack.valkey.url) as client:
            client.flushall()
    time.sleep(max(0.0, started + seconds - time.monotonic()))
    rig.stop()
    rows = rig.sink.accepted()
    doubled = rig.sink.summary()["doubled"]
    found = []
    for rate, address in accounts.items():
        moments = sorted(row[0] for row in rows if row[3] == address)
        found.append(
            Kept(
                per_minute=rate,
                workers=workers,
                accepted=len(moments),
                fullest=fullest(moments),
                fullest_before_flush=fullest([at for at in moments if at < flushed]),
                share=share_used(moments, rate),
                seconds=seconds,
                doubled=doubled,
            )
        )
    return found


def compare(
    rates: Sequence[int], *, workers: int, threads: int, seconds: float, flush_at: float | None
) -> dict[str, Any]:
    with Rig() as rig:
        found = measure(rig, rates, workers=workers, threads=threads, seconds=seconds, flush_at=flush_at)
    for kept in found:
        print(line(asdict(kept)), flush=True)
    return {"rows": [asdict(kept) for kept in found], "flush_at": flush_at}


def line(row: dict[str, Any]) -> str:
    verdict = "kept" if row["fullest"] <= row["per_minute"] else "EXCEEDED"
    return (
        f"{row['per_minute']:6} a minute, {row['workers']} workers, {row['seconds']:.0f} s: fullest minute "
        f"{row['fullest_before_flush']} before FLUSHALL, {row['fullest']} in all: {verdict};"
        f" {100 * row['share']:.1f} % used; {row['doubled']} doubled"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-minute", type=int, action="append", help="may be given again; 60, 600, 3000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=125)
    parser.add_argument(
        "--flush-at", type=float, default=75, help="FLUSHALL after so many seconds; 0 is never"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    document = compare(
        options.per_minute or [60, 600, 3000],
        workers=options.workers,
        threads=options.threads,
        seconds=options.seconds,
        flush_at=options.flush_at or None,
    )
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
