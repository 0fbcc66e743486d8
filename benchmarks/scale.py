"""Whether a long queue makes its own work slower: 1,000 rows beside 1,000,000, on PostgreSQL.

Rows are copies, made by the server, of one mail that was submitted in the ordinary way. Then a dispatcher
and a worker run as always; the server's own log says how long each of their statements took, and those
are explained once more at the end. Claims in the log take up to twenty mails or find none, and a dispatcher
looks seldom, so both are timed by themselves as well: thirty looks, then claims of twenty, first with pages
that are not in memory, then once more.
`python -m benchmarks.scale --help`.
"""

import argparse
import json
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.drain import plain_statement
from benchmarks.rig import REUSED, Rig

_APP = "gobii_email_"
_MESSAGES, _FROZEN = f"{_APP}persistentagentmessage", f"{_APP}frozenmessage"
_ATTEMPTS, _RECIPIENTS = f"{_APP}outboundmessageattempt", f"{_APP}outboundmessagerecipient"
_LOGGED = re.compile(
    r"^\[(worker|dispatcher) \d+\] LOG:  duration: ([\d.]+) ms  (?:statement|execute [^:]*): (.*(?:\n\t.*)*)",
    re.MULTILINE,
)

_DIRECT = """
import json, time
from datetime import timedelta
from django.utils import timezone
from gobii_email.models import OutboundMessageAttempt
from gobii_email.models.queue import Claim, claim, due_lanes, release
lanes = OutboundMessageAttempt.objects.order_by().values_list("from_endpoint", flat=True).distinct()
lanes, found = list(lanes), {"look": []}
for _ in range(30):
    now = timezone.now()
    began = time.perf_counter()
    assert len(due_lanes(now, 200)) == len(lanes)
    found["look"].append(1000 * (time.perf_counter() - began))
for again in ("first", "again"):
    found[again] = []
    for lane in lanes:
        now = timezone.now()
        began = time.perf_counter()
        rows = claim(Claim(lane, 20, "benchmark", now, now + timedelta(minutes=1)))
        found[again].append(1000 * (time.perf_counter() - began))
        assert len(rows) == 20, len(rows)
        release(rows)
print(json.dumps(found))
"""

_TITLES = {
    "look": "a dispatcher's look at all lanes",
    "first": "a claim of twenty mails, pages not in memory yet",
    "again": "a claim of twenty mails, once more",
}


def multiply(rig: Rig, rows: int, senders: list[str], sendable: int) -> None:
    """Makes `rows` queued mails of the one there is, for `senders`; the first `sendable` are whole."""
    endpoints = f"SELECT array_agg(e.id) FROM {_APP}persistentagentcommsendpoint e WHERE e.address = ANY(%s)"
    sender = f"(({endpoints}))[1 + n %% {len(senders)}]"
    oldest_first = f"now() - interval '1 minute' - ({rows} - n) * interval '1 millisecond'"
    message, attempt = _uuid("message"), _uuid("attempt")
    of_message = {
        "id": message,
        "rfc_message_id": "'<' || n || '@copy>'",
        "from_endpoint_id": sender,
        "idempotency_key": "NULL",
    }
    of_attempt = {
        "id": attempt,
        "message_id": message,
        "from_endpoint_id": sender,
        "due_at": oldest_first,
        "queued_at": oldest_first,
        "not_before": oldest_first,
    }
    own_id = (
        "regexp_replace(convert_from(t.mime, 'UTF8'), '(?i)(message-id: *)<[^>]*>', '\\1<' || n || '@copy>')"
    )
    mime = f"convert_to({own_id}, 'UTF8')"
    _copy(rig, _MESSAGES, of_message, rows, senders)
    _copy(rig, _ATTEMPTS, of_attempt, rows, senders)
    _copy(rig, _FROZEN, {"message_id": message, "mime": mime}, min(rows, sendable), senders)
    _copy(
        rig,
        _RECIPIENTS,
        {"id": None, "message_id": message, "attempt_id": attempt},
        min(rows, sendable),
        senders,
    )
    rig.sql("ANALYZE")


def _uuid(kind: str) -> str:
    """In the order of their making, as the service's own."""
    digits = f"md5('{kind}' || n)"
    return (
        f"('0190' || lpad(to_hex(n), 8, '0') || '7' || left({digits}, 3) || '8' || right({digits}, 15))::uuid"
    )


def _copy(rig: Rig, table: str, changed: Mapping[str, str | None], rows: int, senders: list[str]) -> None:
    """`changed` has an expression of `n` for each column that differs, None for one the server numbers."""
    found = rig.sql("SELECT column_name FROM information_schema.columns WHERE table_name = %s", table)
    columns = [name for (name,) in found if changed.get(name, "") is not None]
    values = [changed.get(name) or f't."{name}"' for name in columns]
    names = ", ".join(f'"{name}"' for name in columns)
    text = f"INSERT INTO {table} ({names}) SELECT {', '.join(values)} FROM (SELECT * FROM {table} LIMIT 1) t,"
    statement = f"{text} generate_series(1, {rows}) n"
    rig.sql(
        statement if "%s" in statement else statement.replace("%%", "%"), *[senders] * statement.count("%s")
    )


def measure(rows: int, *, accounts: int, mails: int, threads: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of each statement of dispatcher and worker, by its text, while `mails` go out."""
    with Rig({"GOBII_RING_GRACE": "0s"}) as rig:
        senders = rig.accounts("busy", accounts, REUSED)
        rig.submit(senders[:1], 1, "A short mail.")
        started = time.monotonic()
        # More than are waited for: workers take them several at a time.
        multiply(rig, rows, senders, sendable=3 * mails + 1000)
        print(f"{rows} rows made in {time.monotonic() - started:.0f} s", flush=True)
        direct = json.loads(rig.stack.python(_DIRECT))
        start = len(rig.logged())
        rig.log_statements(False)
        rig.sql("ALTER SYSTEM SET log_min_duration_statement = 0")
        rig.sql("SELECT pg_reload_conf()")
        rig.start(1, threads)
        rig.sink.wait_for(mails, seconds=seconds)
        rig.stop()
        rig.sql("ALTER SYSTEM RESET log_min_duration_statement")
        rig.sql("SELECT pg_reload_conf()")
        took, texts = timings(rig.logged()[start:])
        found = rig.sink.summary()
        span = (found["last_at"] or 0) - (found["first_at"] or 0)
        return {
            "rows": rows,
            "accepted": found["accepted"],
            "per_second": (found["accepted"] - 1) / span if span else 0.0,
            "direct": {name: statistics.median(found) for name, found in direct.items()},
            "statements": took,
            "plans": {text: explain(rig, full) for text, full in texts.items() if _is_a_question(text)},
        }


def timings(log: str) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """By statement without its values: count, median and most milliseconds; and one full text of each."""
    took: dict[str, list[float]] = defaultdict(list)
    texts: dict[str, str] = {}
    for who, milliseconds, text in _LOGGED.findall(log):
        name = f"{who}: {plain_statement(text)}"
        took[name].append(float(milliseconds))
        texts.setdefault(name, text)
    rows = {
        name: {"count": len(found), "median": statistics.median(found), "most": max(found)}
        for name, found in took.items()
    }
    return rows, texts


def _is_a_question(name: str) -> bool:
    return _APP.rstrip("_") in name or re.search(r": (SELECT|UPDATE|WITH|DELETE)", name) is not None


def explain(rig: Rig, statement: str) -> str:
    """Its plan on the queue as it is now, run and rolled back; why not, where it cannot be explained."""
    assert rig.postgres is not None
    with psycopg.connect(rig.postgres.url) as connection:
        try:
            rows = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) {statement}").fetchall()
        except psycopg.Error as problem:
            return str(problem)
        finally:
            connection.rollback()
    return "\n".join(text for (text,) in rows)


def compare(few: int, many: int, **facts: Any) -> dict[str, Any]:
    small, large = measure(few, **facts), measure(many, **facts)
    return {"small": small, "large": large}


def as_text(document: dict[str, Any], *, plans: bool) -> str:
    small, large = document["small"], document["large"]
    lines = [
        f"{found['rows']:>9} rows: {found['accepted']} mails at {found['per_second']:.0f}/s"
        for found in (small, large)
    ]
    for name, text in _TITLES.items():
        before, after = small["direct"][name], large["direct"][name]
        lines.append(f"{text}: {before:.1f} ms, {after:.1f} ms, {after / before:.1f} times")
    lines.append("median ms with few rows, with many, ratio, count")
    both = [name for name in large["statements"] if name in small["statements"]]
    for name in sorted(both, key=lambda name: -large["statements"][name]["median"]):
        before, after = small["statements"][name], large["statements"][name]
        ratio = after["median"] / max(before["median"], 0.001)
        lines.append(
            f"{before['median']:8.2f} {after['median']:8.2f} {ratio:7.1f} {after['count']:6.0f}  {name[:120]}"
        )
    alone = [name for name in large["statements"] if name not in small["statements"]]
    lines += [
        f"only with many rows: {large['statements'][name]['median']:.2f} ms  {name[:120]}" for name in alone
    ]
    if plans:
        lines += [f"\n{name[:200]}\n{plan}" for name, plan in large["plans"].items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=1000)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--accounts", type=int, default=50)
    parser.add_argument("--mails", type=int, default=1000, help="sent at each size")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--plans", action="store_true", help="the plans at the larger size")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    facts = {"accounts": options.accounts, "mails": options.mails}
    document = compare(options.few, options.many, threads=options.threads, seconds=options.seconds, **facts)
    print(as_text(document, plans=options.plans))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
