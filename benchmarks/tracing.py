"""What spans and metrics of a send cost, in microseconds of processor, the exporting included.

Each row is a process of its own that opens and ends the span of one accepted mail over and over, through the
helpers that a worker calls; a collector in another process takes what is exported over HTTP. Nothing is sent.
`python -m benchmarks.tracing --help`.
"""

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from gobii_email.testing.stack import ROOT

AT_ONCE = 1000
ROWS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "off": ("span, nothing exported", {"OTEL_TRACES_EXPORTER": "none"}),
    "all": ("span, every trace exported", {"GOBII_TRACES_SHARE": "1"}),
    "tenth": ("span, a tenth of the traces exported", {"GOBII_TRACES_SHARE": "0.1"}),
    "metrics": ("metrics", {"OTEL_TRACES_EXPORTER": "none"}),
}
STAGES = ("connect", "tls", "ehlo", "auth", "mail", "rcpt", "data", "dot")


def measure(mails: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds a mail in each round, by row; the rows take turns."""
    found: dict[str, list[float]] = {name: [] for name in ROWS}
    with collector() as address:
        for _ in range(rounds):
            for name in ROWS:
                found[name].append(_in_a_process(name, mails, address))
    return found


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Exports are nobody's news."""


@contextmanager
def collector() -> Iterator[str]:
    """The address of something that takes every export."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Collector) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _in_a_process(name: str, mails: int, address: str) -> float:
    with tempfile.TemporaryDirectory(prefix="gobii-bench-") as var:
        given = {
            "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
            "GOBII_VAR": var,
            "GOBII_ENCRYPTION_KEY": "bench:" + "A" * 43 + "=",
            "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        }
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.tracing", "--only", name, "--mails", str(mails)],
            cwd=ROOT, env=os.environ | given | ROWS[name][1], capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode or done.stderr:  # an export that fails is only logged
        raise RuntimeError(done.stderr[-3000:])
    return float(done.stdout)


def spent(name: str, mails: int) -> float:
    """Microseconds of this process for each of `mails`, after a tenth of them that do not count."""
    import django

    django.setup()
    from gobii_email import tracing

    logging.getLogger("gobii_email").setLevel(logging.WARNING)
    if tracing.start_exporting() != (name in ("all", "tenth")):
        raise RuntimeError("the SDK of OpenTelemetry is not installed, or asked for by the environment")
    once = _counting() if name == "metrics" else _span()
    for _ in range(mails // 10):
        once()
    tracing.flush()
    before = time.process_time()
    for number in range(mails):
        once()
        if number % AT_ONCE == 0:
            tracing.flush()  # faster than any mail goes, so the exporter's queue of 2,048 would overflow
    tracing.flush()
    return 1e6 * (time.process_time() - before) / mails


def _span() -> Callable[[], None]:
    from gobii_email import telemetry
    from gobii_email.domain.outcomes import Accepted, SessionFacts
    from gobii_email.domain.smtp_replies import Reply, Stage
    from gobii_email.ports import Auth, Security, SmtpServer

    server = SmtpServer("mail.example", 587, Security.STARTTLS, Auth.PLAIN, username="agent")
    facts = SessionFacts(stage_ms={Stage(name): 20 for name in STAGES})
    taken = Accepted(Reply(250, "2.0.0", "Ok: queued as 7F"), facts=facts)

    def once() -> None:
        with telemetry.smtp_send(
            server, attempt_id="1", sender="agent@sender.example", to_count=1, cc_count=0, traceparent=""
        ) as span:
            span.ended(taken)

    return once


def _counting() -> Callable[[], None]:
    from gobii_email import metrics

    stages = dict.fromkeys(STAGES, 20)

    def once() -> None:
        metrics.QUEUE_WAIT.observe(0.2)
        metrics.ATTEMPTS.inc("smtp", "other", "sent", "none", "none")
        metrics.stages([stages])
        metrics.ACCEPT.observe(0.4, "smtp")

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mails", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ROWS, help="one row, in this process: its microseconds alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.only:
        print(spent(options.only, options.mails))
        return
    found = measure(options.mails, options.rounds)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for name, figures in found.items():
        # The best of each: whatever else the machine does can only make a round worse.
        print(f"{ROWS[name][0]}: {min(figures):.0f} µs a mail")


if __name__ == "__main__":
    main()
