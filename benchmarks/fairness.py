"""What one account's mail waits while others have a backlog, or servers that answer slowly or never.

One worker process. Single mails are submitted one after the other, each when the last has arrived; the delay
is from the start of submitting to the sink's acceptance. `python -m benchmarks.fairness --help`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig import REUSED, Rig, Submitter, percentile

QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Disturbance:
    """`mails` of `accounts` wait at a server; it takes `tarpit` seconds a reply, or is an ordinary one."""

    title: str
    mails: int = 0
    accounts: int = 0
    tarpit: float | None = None


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that the single mails took; `late` of them had not arrived in time and count as that long."""

    p50: float
    p99: float
    worst: float
    count: int
    late: int
    disturbing: str


def disturbances(backlog: int, accounts: int) -> dict[str, Disturbance]:
    crowd = {"mails": 5 * accounts, "accounts": accounts}
    return {
        "idle": Disturbance("nothing else to do"),
        "backlog": Disturbance(f"{backlog} mails of one account", mails=backlog, accounts=1),
        "slow": Disturbance(f"{accounts} accounts at a server of 30 s a reply", **crowd, tarpit=30),
        "never": Disturbance(f"{accounts} accounts at a server that never answers", **crowd, tarpit=1e9),
    }


def measure(
    what: Disturbance, *, mails: int, threads: int, seconds: float, head_start: float, rig: Rig
) -> Waits:
    """Lets the disturbance take hold for `head_start`, then sends `mails` or as many as `seconds` allow."""
    (quiet,) = rig.accounts(QUIET, 1, REUSED)
    if what.accounts:
        _queue_disturbance(rig, what)
    rig.start(1, threads)
    with Submitter(rig) as submitter:
        before = rig.sink.count()
        if what.tarpit is None and what.mails:
            rig.sink.wait_for(before + 50, seconds=30)
        time.sleep(head_start)
        deadline = time.monotonic() + seconds
        delays: list[float | None] = []
        while len(delays) < mails and time.monotonic() < deadline:
            delays.append(_delay(rig, submitter, quiet, limit=seconds / 2))
    left = {status: count for status, count in rig.statuses().items() if status not in ("sent", "delivered")}
    arrived = [seconds / 2 if delay is None else delay for delay in delays]
    return Waits(
        p50=statistics.median(arrived),
        p99=percentile(arrived, 0.99),
        worst=max(arrived),
        count=len(arrived),
        late=delays.count(None),
        disturbing=", ".join(f"{count} {status}" for status, count in sorted(left.items())) or "nothing",
    )


def _queue_disturbance(rig: Rig, what: Disturbance) -> None:
    rig.sink.set(tarpit=0)
    server = {} if what.tarpit is None else {"host": "127.0.0.1", "port": rig.sink.tarpit_port}
    senders = rig.accounts("loud", what.accounts, REUSED, **server)
    rig.submit(senders, what.mails)
    rig.sink.set(tarpit=what.tarpit or 0)


def _delay(rig: Rig, submitter: Submitter, sender: str, *, limit: float) -> float | None:
    mail = submitter.send(sender)
    while (at := rig.sink.when(mail.message_id)) is None:
        if time.monotonic() > mail.at + limit:
            return None
        time.sleep(0.002)
    return at - mail.at


def compare(names: list[str], wanted: Mapping[str, Disturbance], **facts: Any) -> dict[str, Any]:
    rows = {}
    for name in names:
        # Each in a place of its own: nothing of one is left when the next one starts.
        with Rig() as rig:
            found = measure(wanted[name], rig=rig, **facts)
        rows[name] = {"title": wanted[name].title, **asdict(found)}
        print(line(rows[name], rows.get("idle")), flush=True)
    return {"rows": rows, "facts": facts}


def line(row: Mapping[str, Any], idle: Mapping[str, Any] | None) -> str:
    ratio = f"{row['p50'] / idle['p50']:5.1f} and {row['p99'] / idle['p99']:5.1f} times idle" if idle else ""
    late = f"  {row['late']} LATE" if row["late"] else ""
    return (
        f"{row['title']:48} p50 {1000 * row['p50']:7.0f} ms  p99 {1000 * row['p99']:7.0f} ms  {ratio}"
        f"  ({row['count']} mails; left in the end: {row['disturbing']}){late}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(disturbances(0, 0)))
    parser.add_argument("--backlog", type=int, default=20_000)
    parser.add_argument("--accounts", type=int, default=200, help="on the slow host")
    parser.add_argument("--mails", type=int, default=100)
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60, help="the most for the single mails of a row")
    parser.add_argument("--head-start", type=float, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    wanted = disturbances(options.backlog, options.accounts)
    document = compare(
        options.only or list(wanted),
        wanted,
        mails=options.mails,
        threads=options.threads,
        seconds=options.seconds,
        head_start=options.head_start,
    )
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
