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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import sampler
from benchmarks.rig import REUSED, SINGLE, Rig, Usage

SETTLE_SECONDS = 20.0
WARM = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the service."""

    title: str
    limits: Mapping[str, int]
    workers: int = 1
    delay: float = 0.0
    share: float = 1.0


ROWS = {
    "reuse": Row("connections reused, 1 worker", REUSED),
    "single": Row("one connection a mail, 1 worker", SINGLE),
    "reuse2": Row("connections reused, 2 workers", REUSED, workers=2),
    "single2": Row("one connection a mail, 2 workers", SINGLE, workers=2),
    "slow": Row("50 ms a reply, reused, 1 worker", REUSED, delay=0.05),
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
    redis: dict[str, float] = field(default_factory=dict)
    submit_per_second: float = 0.0
    wire_bytes: int = 0


def drain(
    rig: Rig,
    name: str,
    *,
    mails: int,
    accounts: int,
    threads: int,
    seconds: float,
    profile: Path | None = None,
) -> Result:
    """One run of a row: submit, start, wait until the sink has all and the database says so, stop."""
    row = ROWS[name]
    rig.sink.set(delay=0)
    senders = rig.accounts("reused" if row.limits is REUSED else "single", accounts, row.limits)
    settled_before = rig.statuses().get("sent", 0)
    submit_seconds = rig.submit(senders, mails)
    rig.sink.reset()
    rig.sink.set(delay=row.delay)
    rig.start(row.workers, threads, profile=profile)
    try:
        usages = watch(rig, mails, seconds)
        settled = _wait_until_settled(rig, settled_before + mails)
        usages.append(rig.usage())
        if profile is not None:
            time.sleep(1.2)
    finally:
        rig.stop()
        rig.sink.set(delay=0)
    result = _result(rig, usages, mails)
    result.unsettled = settled_before + mails - settled
    result.submit_per_second = mails / submit_seconds
    return result


def watch(rig: Rig, mails: int, seconds: float) -> list[Usage]:
    """Looks every 100 ms until the sink has `mails`, or `seconds` are over."""
    deadline = time.monotonic() + seconds
    usages = [rig.usage()]
    while usages[-1].mails < mails and time.monotonic() < deadline:
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
        redis=dict(sorted(redis.items(), key=lambda item: -item[1])),
        wire_bytes=seen["bytes"] // max(1, seen["accepted"]),
    )


# The benchmark's own questions.
_OURS = {"info", "client|setinfo", "client", "hello"}


def _looks(usages: list[Usage], warm: Usage) -> int:
    return len([usage for usage in usages if usage.at > warm.at])


def count_statements(rig: Rig, name: str, *, mails: int, accounts: int, threads: int) -> str:
    """SQL statements a mail by process and kind, from the server's own log, in a run that is not timed."""
    row = ROWS[name]
    senders = rig.accounts("reused" if row.limits is REUSED else "single", accounts, row.limits)
    rig.submit(senders, mails)
    rig.sink.reset()
    start = len(rig.logged())
    rig.log_statements(True)
    rig.start(row.workers, threads)
    try:
        rig.sink.wait_for(mails, seconds=60)
        time.sleep(1)
    finally:
        rig.stop()
        rig.log_statements(False)
    found = statements(rig.logged()[start:])
    lines = []
    for process in ("worker", "dispatcher"):
        rows = Counter({text: count for (who, text), count in found.items() if who == process})
        lines.append(f"{sum(rows.values()) / mails:.2f} statements a mail by the {process}")
        lines += [f"  {count / mails:6.2f}  {text[:150]}" for text, count in rows.most_common(18)]
    return "\n".join(lines)


_LOGGED = re.compile(r"^\[(\S*) \d+\] LOG:  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)", re.MULTILINE)
_VALUES = re.compile(r"'(?:[^']|'')*'(?:::\w+)?|\b\d+\b|\$\d+")


def statements(log: str) -> Counter[tuple[str, str]]:
    """(process, statement with its values left out) and how often."""
    found: Counter[tuple[str, str]] = Counter()
    for process, text in _LOGGED.findall(log):
        plain = re.sub(r"\s+", " ", _VALUES.sub("?", text))
        plain = re.sub(r'"?gobii_email_|"', "", re.sub(r"\(\?(?:, \?)+\)", "(?…)", plain))
        found[process, re.sub(r"(SELECT|RETURNING) .*? FROM", r"\1 … FROM", plain)] += 1
    return found


def main() -> None:
    options = _options()
    if options.profile or options.statements:
        _look_inside(options)
        return
    document = compare(options)
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
    if options.list:
        print("\n".join(f"{name:14} {row.title}" for name, row in ROWS.items()))
        sys.exit()
    return options


def _look_inside(options: argparse.Namespace) -> None:
    facts = {"mails": options.mails, "accounts": options.accounts, "threads": options.threads}
    with Rig() as rig:
        for name in options.only or ["reuse"]:
            print(f"== {name}: {ROWS[name].title}")
            if options.statements:
                print(count_statements(rig, name, **facts))
            if options.profile:
                out = rig.directory / "samples.json"
                result = drain(rig, name, **facts, seconds=options.run_seconds, profile=out)
                print(line(name, [result]))
                print(sampler.report(out, result.mails))


def compare(options: argparse.Namespace) -> dict[str, Any]:
    names = options.only or list(ROWS)
    results: dict[str, list[Result]] = {name: [] for name in names}
    started = time.monotonic()
    facts = {"mails": options.mails, "accounts": options.accounts, "threads": options.threads}
    with Rig() as rig:
        for _ in range(options.rounds):
            for name in names:
                if time.monotonic() - started > options.seconds:
                    break
                found = drain(rig, name, **facts, seconds=options.run_seconds)
                results[name].append(found)
                print(line(name, [found]), flush=True)
    return {"rows": {name: [asdict(run) for run in runs] for name, runs in results.items()}, "facts": facts}


def line(name: str, runs: list[Result]) -> str:
    def middle(read: Callable[[Result], float]) -> float:
        return statistics.median(read(run) for run in runs)

    problems = [
        f"{word} {count}!"
        for word in ("missing", "doubled", "unsettled")
        if (count := max(getattr(run, word) for run in runs))
    ]
    redis = middle(lambda run: sum(run.redis.values()))
    return (
        f"{ROWS[name].title:34} {middle(lambda r: r.per_second):7.0f} mails/s "
        f"{middle(lambda r: r.milliseconds):6.2f} ms  dispatcher {middle(lambda r: r.dispatcher_ms):4.2f} ms  "
        f"commits {middle(lambda r: r.commits):4.1f}  redis {redis:4.1f}  "
        f"round trips {middle(lambda r: r.turns):4.1f}  connections {middle(lambda r: r.connections):5.0f} "
        f"(open {middle(lambda r: r.most_open):.0f})  {' '.join(problems)}"
    )


def as_text(document: dict[str, Any]) -> str:
    rows = {name: [Result(**run) for run in runs] for name, runs in document["rows"].items()}
    return "\n".join(["", "medians", *(line(name, runs) for name, runs in rows.items() if runs)])


if __name__ == "__main__":
    main()
