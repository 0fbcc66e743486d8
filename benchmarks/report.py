"""Runs the benchmarks and writes what they found into docs/performance.md, each under its own mark.

What spans and metrics cost goes into docs/telemetry.md.
`python -m benchmarks.report` runs all of them, some forty minutes; with names it runs those and leaves the
other tables as they are. Only real runs are written, with the machine, the date and the versions.
"""

import argparse
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import admin_lists, drain, fairness, limits, memory, polling, scale, sink, submission, tracing
from benchmarks.rivals import PEERS
from gobii_email.testing.postgres import postgres_binaries
from gobii_email.testing.stack import ROOT

PAGE = ROOT / "docs" / "performance.md"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def drain_section(load: drain.Load, rounds: int, seconds: float) -> str:
    document = drain.compare(drain.every_row(), load, rounds, seconds)
    print(drain.as_text(document))
    ceiling = sink.ceiling()
    return drain_text(document) + (
        f"\n\nThe sink itself takes {ceiling['per_second']:.0f} mails a second from two processes of bare,"
        f" pipelined smtplib, at {ceiling['sink_ms']:.2f} ms of its processor each.\n"
    )


def drain_text(document: Mapping[str, Any]) -> str:
    found = {name: [drain.Result(**run) for run in runs] for name, runs in document["rows"].items()}
    head = [
        "",
        "mails/s",
        "worker ms a mail",
        "round trips a mail",
        "commits",
        "Redis trips",
        "connections",
        "runs",
    ]
    rows = [_drain_row(name, runs) for name, runs in found.items()]
    load = document["load"]
    wire = statistics.median(run.wire_bytes for runs in found.values() for run in runs)
    return "\n".join(
        [
            f"{load['mails']} mails of {wire:.0f} bytes a run, {load['accounts']} accounts, {load['threads']}"
            f" threads a worker. {_rounds_sentence(found)}",
            "",
            table(head, rows),
            "",
            *(f"- {text}" for text in drain.ratios(found)),
        ]
    )


def _rounds_sentence(found: Mapping[str, list[drain.Result]]) -> str:
    """Whether rows may be compared: what else the machine did met them alike only if they alternated."""
    ours_and_by_hand = [runs for name, runs in found.items() if name in drain.ROWS or name.startswith("hand")]
    if min(map(len, ours_and_by_hand)) >= 2:
        return "Medians of runs that alternate."
    return (
        "**Provisional: some rows ran only once, so rows met different loads of the machine,"
        " and neither rates nor ratios between rows can be relied on.**"
    )


def _drain_row(name: str, runs: list[drain.Result]) -> list[str]:
    def middle(value: str) -> float:
        return statistics.median(getattr(run, value) for run in runs)

    bad = sum(run.missing + run.doubled + run.unsettled for run in runs)
    return [
        (drain.ROWS | PEERS)[name].title + (f" **({bad} missing, doubled or unsettled)**" if bad else ""),
        f"{middle('per_second'):.0f}",
        f"{middle('milliseconds'):.2f}",
        f"{middle('turns'):.1f}",
        f"{middle('commits'):.1f}",
        f"{middle('redis_trips'):.1f}",
        f"{middle('connections'):.0f}",
        str(len(runs)),
    ]


def submission_section() -> str:
    found = submission.compare(submission.MAILS)
    head = ["", *(f"{database}: {unit}" for database in found for unit in ("CPU ms", "a second"))]
    names = [row[0] for row in next(iter(found.values()))]
    figures = {database: {row[0]: row for row in rows} for database, rows in found.items()}
    rows = [
        [
            name.strip(),
            *(
                text
                for by_name in figures.values()
                for text in (f"{by_name[name][1]:.2f}", f"{1000 / by_name[name][2]:.0f}")
            ),
        ]
        for name in names
    ]
    return table(head, rows)


def fairness_section() -> str:
    wanted = fairness.disturbances(100_000, 200)
    document = fairness.compare(list(wanted), wanted, mails=100, threads=32, seconds=60, head_start=5)
    rows, idle = document["rows"], document["rows"]["idle"]
    head = ["meanwhile", "p50 ms", "p99 ms", "p50, times idle", "p99, times idle", "not arrived"]
    return table(
        head,
        [
            [
                row["title"],
                f"{1000 * row['p50']:.0f}",
                f"{1000 * row['p99']:.0f}",
                f"{row['p50'] / idle['p50']:.1f}",
                f"{row['p99'] / idle['p99']:.1f}",
                f"{row['late']} of {row['count']}",
            ]
            for row in rows.values()
        ],
    )


def limits_section() -> str:
    document = limits.compare([60, 600, 3000], workers=2, threads=32, seconds=125, flush_at=75)
    head = ["a minute", "fullest minute", "and after FLUSHALL", "used", "doubled"]
    return table(
        head,
        [
            [
                str(row["per_minute"]),
                str(row["fullest_before_flush"]),
                str(row["fullest"]),
                f"{100 * row['share']:.1f} %",
                str(row["doubled"]),
            ]
            for row in document["rows"]
        ],
    )


def scale_section() -> str:
    document = scale.compare(1000, 1_000_000, accounts=50, mails=1000, threads=32, seconds=60)
    return "```\n" + scale.as_text(document, plans=True) + "\n```"


def memory_section() -> str:
    document = memory.compare(100_000, 20, 32, 500)
    return "\n".join([f"- {memory.large_line(document['large'])}", f"- {memory.many_line(document['many'])}"])


def polling_section() -> str:
    unchanged, taken = polling.unchanged(5000, 16, 600), polling.backlog(5000, 16, 600)
    return "\n".join([f"- {polling.polls_line(unchanged)}", f"- {polling.backlog_line(taken)}"])


def admin_section() -> str:
    document = admin_lists.measured(100_000, 5)
    return table(["list", "statements", "ms", "at most ms"], admin_lists.as_rows(document))


def tracing_section() -> str:
    found = tracing.measure(20_000, rounds=3)
    # The best of each: whatever else the machine does can only make a round worse.
    rows = [[tracing.ROWS[name][0], f"{min(figures):.0f}"] for name, figures in found.items()]
    return table(["for each mail", "µs of processor"], rows)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "submission": submission_section,
    "drain": lambda: drain_section(drain.Load(), rounds=2, seconds=900),
    "fairness": fairness_section,
    "limits": limits_section,
    "scale": scale_section,
    "memory": memory_section,
    "polling": polling_section,
    "admin": admin_section,
    "tracing": tracing_section,
}
ELSEWHERE: Mapping[str, Path] = {"tracing": ROOT / "docs" / "telemetry.md"}
"""Sections that stand in another document than PAGE."""


def load_average() -> float:
    return float(_lines("/proc/loadavg")[0].split()[0]) if _lines("/proc/loadavg") else 0.0


def provenance(command: str, load_before: float) -> str:
    """Under which a number means anything: when, on what, with what, which code, how."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    cores = sum(line.startswith("processor") for line in _lines("/proc/cpuinfo"))
    packages = ", ".join(f"{name} {version(name)}" for name in ("Django", "celery", "redis", "psycopg"))
    postgres = subprocess.run(
        [postgres_binaries() / "postgres", "--version"], capture_output=True, text=True, check=False
    ).stdout.strip()
    busy = load_before > cores / 2
    warning = " **Others were using the machine: take the counts, not the times.**" if busy else ""
    return (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {cores} cores of {model},"
        f" Python {platform.python_version()}, {packages}, {postgres},"
        f" commit {_commit()}, load average {load_before:.1f} before. `{command}`.{warning}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def write(page: Path, name: str, text: str) -> None:
    """Puts `text` between the section's marks. Raises ValueError where the page has none."""
    before, begin, rest = page.read_text().partition(f"<!-- {name}: begin -->\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not begin or not end:
        raise ValueError(f"{page.name} has no marks for {name}")
    page.write_text(f"{before}{begin}{text.rstrip()}\n{end}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SECTIONS], metavar="NAME", help=", ".join(SECTIONS))
    for name in parser.parse_args().names or SECTIONS:
        print(f"== {name}", flush=True)
        load_before = load_average()
        found = SECTIONS[name]()
        text = f"{provenance(f'python -m benchmarks.report {name}', load_before)}\n\n{found}"
        write(ELSEWHERE.get(name, PAGE), name, text)


if __name__ == "__main__":
    main()
