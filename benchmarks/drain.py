"""How fast a full queue empties, and what a mail costs: mails a second and processor milliseconds.

Mails are submitted while no worker runs; then workers and a dispatcher start, and the sink counts. Rows of
the service and of other programs alternate in one run, on the same machine, mails and sink; what is
printed are medians. `python -m benchmarks.drain --help` says how to run less of it.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import sampler
from benchmarks.rig import REUSED, SINGLE, Rig, Usage
from benchmarks.rivals import PEERS, Rivals

SETTLE_SECONDS = 20.0
WARM = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the service; without numbers of its own, with those of the load."""

    title: str
    limits: Mapping[str, int]
    workers: int = 1
    delay: float = 0.0
    threads: int = 0
    accounts: int = 0
    mails: int = 0

    def load(self, load: "Load") -> "Load":
        own = {name: getattr(self, name) for name in ("threads", "accounts", "mails")}
        return replace(load, **{name: value for name, value in own.items() if value})


ROWS = {
    "reuse": Row("connections reused, 1 worker", REUSED),
    "single": Row("one connection a mail, 1 worker", SINGLE),
    "reuse2": Row("connections reused, 2 workers", REUSED, workers=2),
    "single2": Row("one connection a mail, 2 workers", SINGLE, workers=2),
    "wide": Row("reused, 128 threads, 100 accounts", REUSED, threads=128, accounts=100, mails=16000),
    "slow": Row("the same at 50 ms a reply", REUSED, delay=0.05, threads=128, accounts=100, mails=16000),
}


@dataclass(slots=True)
class Result:
    """One run. `milliseconds` are of all worker processes, once warm, bookkeeping to its end included."""

    per_second: float
    milliseconds: float
    dispatcher_ms: float = 0.0
    sink_ms: float = 0.0
    mails: int = 0
    missing: int = 0
    doubled: int = 0
    unsettled: int = 0
    connections: int = 0
    most_open: int = 0
    turns: float = 0.0
    commits: float = 0.0
    redis_trips: float = 0.0
    redis: dict[str, float] = field(default_factory=dict)
    submit_per_second: float = 0.0
    wire_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What each run is given; `seconds` bound it."""

    mails: int = 2000
    accounts: int = 20
    threads: int = 32
    seconds: float = 60.0


def drain(rig: Rig, name: str, load: Load, *, profile: Path | None = None) -> Result:
    """One run of a row: submit, start, wait until the sink has all and the database says so, stop."""
    row = ROWS[name]
    load = row.load(load)
    senders = senders_of(rig, row, load)
    settled_before = rig.statuses().get("sent", 0)
    submit_seconds = rig.submit(senders, load.mails)
    rig.sink.reset()
    rig.sink.set(delay=row.delay)
    try:
        rig.start(row.workers, load.threads, profile=profile)
        usages = watch(rig, load)
        settled = _wait_until_settled(rig, settled_before + load.mails)
        usages.append(rig.usage())
        if profile is not None:
            time.sleep(1.2)
    finally:
        rig.stop()
        rig.sink.set(delay=0)
    result = _result(rig, usages, load.mails)
    result.unsettled = settled_before + load.mails - settled
    result.submit_per_second = load.mails / submit_seconds
    return result


def senders_of(rig: Rig, row: Row, load: Load) -> list[str]:
    name = "reused" if row.limits is REUSED else "single"
    return rig.accounts(f"{name}{load.accounts}-", load.accounts, row.limits)


def drain_rival(rig: Rig, rivals: Rivals, name: str, load: Load) -> Result:
    """The same for another program; what it wrote down is not asked."""
    load = ROWS[name.removeprefix("hand-")].load(load) if name.startswith("hand-") else load
    senders = senders_of(rig, ROWS["reuse"], load)
    try:
        rivals.start(name, load.mails, senders, load.threads)
        usages = watch(rig, load)
        time.sleep(0.3)
        usages.append(rig.usage())
    finally:
        rig.stop()
        rig.sink.set(delay=0)
    return _result(rig, usages, load.mails)


def watch(rig: Rig, load: Load) -> list[Usage]:
    """Looks every 100 ms until the sink has all mails, or their time is over."""
    deadline = time.monotonic() + load.seconds
    usages = [rig.usage()]
    while usages[-1].mails < load.mails and time.monotonic() < deadline:
        time.sleep(0.1)
        usages.append(rig.usage())
    return usages


def _wait_until_settled(rig: Rig, sent: int) -> int:
    deadline = time.monotonic() + SETTLE_SECONDS
    while (found := rig.statuses().get("sent", 0)) < sent and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _result(rig: Rig, usages: list[Usage], mails: int) -> Result:
    seen = rig.sink.summary()
    warm = next((usage for usage in usages if usage.mails >= WARM * mails), usages[0])
    end = usages[-1]
    count = max(1, end.mails - warm.mails)
    redis = {name: calls / count for name, calls in (end.redis - warm.redis).items() if name not in _OURS}
    return Result(
        per_second=(seen["accepted"] - 1) / (seen["last_at"] - seen["first_at"])
        if seen["accepted"] > 1
        else 0,
        milliseconds=1000 * (end.processor - warm.processor) / count,
        dispatcher_ms=1000 * (end.dispatcher - warm.dispatcher) / count,
        sink_ms=1000 * seen["cpu_seconds"] / max(1, seen["accepted"]),
        mails=seen["accepted"],
        missing=mails - seen["distinct"],
        doubled=seen["doubled"],
        connections=seen["connections"],
        most_open=seen["most_open"],
        turns=seen["turns"] / max(1, seen["accepted"]),
        commits=(end.commits - warm.commits - 2 * _looks(usages, warm)) / count,
        redis_trips=(end.redis_trips - warm.redis_trips - _OWN_TRIPS * _looks(usages, warm)) / count,
        redis=dict(sorted(redis.items(), key=lambda item: -item[1])),
        wire_bytes=seen["bytes"] // max(1, seen["accepted"]),
    )


# The benchmark's own questions, and how often it is read for each look.
_OWN_TRIPS = 4
_OURS = {"info", "client|setinfo", "client", "hello"}


def _looks(usages: list[Usage], warm: Usage) -> int:
    return len([usage for usage in usages if usage.at > warm.at])


def count_statements(rig: Rig, name: str, load: Load) -> str:
    """SQL statements a mail by process and kind, from the server's own log, in a run that is not timed."""
    row = ROWS[name]
    load = row.load(load)
    rig.submit(senders_of(rig, row, load), load.mails)
    rig.sink.reset()
    start = len(rig.logged())
    rig.log_statements(True)
    try:
        rig.start(row.workers, load.threads)
        rig.sink.wait_for(load.mails, seconds=load.seconds)
        time.sleep(1)
    finally:
        rig.stop()
        rig.log_statements(False)
    found = statements(rig.logged()[start:])
    lines = []
    for process in ("worker", "dispatcher"):
        rows = Counter({text: count for (who, text), count in found.items() if who == process})
        lines.append(f"{sum(rows.values()) / load.mails:.2f} statements a mail by the {process}")
        lines += [f"  {count / load.mails:6.2f}  {text[:150]}" for text, count in rows.most_common(18)]
    return "\n".join(lines)


_LOGGED = re.compile(r"^\[(\S*) \d+\] LOG:  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)", re.MULTILINE)
_VALUES = re.compile(r"'(?:[^']|'')*'(?:::\w+)?|\b\d+\b|\$\d+")


def statements(log: str) -> Counter[tuple[str, str]]:
    """(process, statement with its values left out) and how often."""
    found: Counter[tuple[str, str]] = Counter()
    for process, text in _LOGGED.findall(log):
        found[process, plain_statement(text)] += 1
    return found


def plain_statement(text: str) -> str:
    """Its shape: without values, the names of its columns and the app's prefix of tables."""
    plain = re.sub(r"\s+", " ", _VALUES.sub("?", text))
    plain = re.sub(r'"?gobii_email_|"', "", re.sub(r"\(\?(?:, \?)+\)", "(?…)", plain))
    plain = re.sub(r"\(\?…\)(?:, \(\?…\))+", "(?…)…", plain)
    plain = re.sub(r"(SELECT|RETURNING) .*? FROM", r"\1 … FROM", plain)
    return plain or "(empty: a pool asks whether a connection lives)"


def main() -> None:
    options = _options()
    load = Load(options.mails, options.accounts, options.threads, options.run_seconds)
    if options.profile or options.statements:
        look_inside(options.only or ["reuse"], load, statements=options.statements, profile=options.profile)
        return
    document = compare(options.only or every_row(), load, options.rounds, options.seconds)
    print(as_text(document))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", metavar="ROW", help="may be given again; --list names them"
    )
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--mails", type=int, default=2000)
    parser.add_argument("--accounts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=330, help="no run starts after this long")
    parser.add_argument("--run-seconds", type=float, default=60, help="a run is given up after this long")
    parser.add_argument("--profile", action="store_true", help="where the worker's processor time goes")
    parser.add_argument("--statements", action="store_true", help="SQL statements a mail")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    every = ROWS | PEERS
    if options.list:
        print("\n".join(f"{name:15} {row.title}" for name, row in every.items()))
        sys.exit()
    if unknown := [name for name in options.only or [] if name not in every]:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(every)}")
    return options


def look_inside(names: list[str], load: Load, *, statements: bool, profile: bool) -> None:
    with Rig() as rig:
        for name in names:
            print(f"== {name}: {ROWS[name].title}")
            if statements:
                print(count_statements(rig, name, load))
            if profile:
                out = rig.directory / "samples.json"
                result = drain(rig, name, load, profile=out)
                print(line(name, [result]))
                print("Redis, with what scripts call:", redis_calls(result))
                print(sampler.report(out, result.mails))


def every_row() -> list[str]:
    """Ours each followed by the same written by hand, so that what the time cuts off is cut off in pairs."""
    pairs = [name for ours in ROWS for name in (ours, f"hand-{ours}")]
    return [*pairs, *(name for name in PEERS if name not in pairs)]


def redis_calls(result: Result) -> str:
    return ", ".join(f"{name} {calls:.1f}" for name, calls in result.redis.items() if calls >= 0.05)


def compare(names: list[str], load: Load, rounds: int, seconds: float) -> dict[str, Any]:
    """Round after round of all rows, so that whatever else the machine does meets them alike."""
    results: dict[str, list[Result]] = {name: [] for name in names}
    started = time.monotonic()
    with Rig() as rig:
        rivals = Rivals(rig, names)
        for name in _in_turn(names, rivals.names, rounds):
            if time.monotonic() - started > seconds:
                print(f"SKIPPED: the time is over; {name} and what follows were left out", flush=True)
                break
            is_ours = name in ROWS
            found = drain(rig, name, load) if is_ours else drain_rival(rig, rivals, name, load)
            results[name].append(found)
            print(line(name, [found]), flush=True)
    rows = {name: [asdict(run) for run in runs] for name, runs in results.items() if runs}
    return {"rows": rows, "load": asdict(load)}


def _in_turn(names: list[str], rivals: list[str], rounds: int) -> Iterator[str]:
    """Ours and the task by hand in each round, the others in the first one alone."""
    for number in range(rounds):
        for name in names:
            if name in ROWS or (name in rivals and (number == 0 or name.startswith("hand"))):
                yield name


def line(name: str, runs: list[Result]) -> str:
    def middle(value: str) -> float:
        return statistics.median(getattr(run, value) for run in runs)

    problems = [
        f"{word} {count}!"
        for word in ("missing", "doubled", "unsettled")
        if (count := max(getattr(run, word) for run in runs))
    ]
    return (
        f"{(ROWS | PEERS)[name].title:40} {middle('per_second'):6.0f}/s {middle('milliseconds'):6.2f} ms"
        f"  dispatcher {middle('dispatcher_ms'):4.2f} ms  commits {middle('commits'):4.1f}"
        f"  redis {middle('redis_trips'):4.1f}"
        f"  round trips {middle('turns'):4.1f}  connections {middle('connections'):5.0f}"
        f" ({middle('most_open'):.0f} at once)  {' '.join(problems)}"
    )


def as_text(document: dict[str, Any]) -> str:
    rows = {name: [Result(**run) for run in runs] for name, runs in document["rows"].items()}
    lines = ["", "medians", *(line(name, runs) for name, runs in rows.items())]
    return "\n".join([*lines, "", *ratios(rows)])


def ratios(rows: Mapping[str, list[Result]]) -> list[str]:
    """Each row of ours beside the same written by hand: how many times as fast, as cheap."""
    lines = []
    for name in ROWS:
        hand = f"hand-{name}"
        if name in rows and hand in rows:
            ours, theirs = _medians(rows[name]), _medians(rows[hand])
            lines.append(
                f"{ROWS[name].title}: {ours[0] / theirs[0]:.2f} times the rate of the task by hand,"
                f" {ours[1] / theirs[1]:.2f} times its processor time"
            )
    return lines


def _medians(runs: list[Result]) -> tuple[float, float]:
    return (
        statistics.median(run.per_second for run in runs),
        statistics.median(run.milliseconds for run in runs),
    )


if __name__ == "__main__":
    main()
