"""How many mails a worker process sends in a second: over STARTTLS + AUTH to a server on this machine.

Submits a batch while no worker runs, starts one, and takes the time from the first to the last acceptance in
the server's own journal. Compares the databases side by side in one run; bounded by its counts.

    .venv/bin/python -m benchmarks.sends [MAILS]
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack, eventually

SENDER, PASSWORD, THREADS = "agent@sender.example", "a password", 16

SUBMIT = """
from gobii_email.services.write import NewMail, write
body = "Good *morning* " * 100
mails = [
    NewMail(from_endpoint={sender!r}, to=f"to{{n}}@rcpt.example", subject="Hello", body=body)
    for n in range({count})
]
for start in range(0, len(mails), 200):
    write(mails[start:start + 200])
"""


def rate(database_url: str | None, count: int, **env: str) -> float:
    """Mails a second with one worker process on `database_url`, or on SQLite without one."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        authority = ThrowAwayAuthority(directory)
        journal = directory / "accepted.ndjson"
        server = ScriptedSmtpServer(
            tls=authority.good("localhost", "127.0.0.1"), users={SENDER: PASSWORD}, journal=journal
        )
        with server:
            settings = {
                "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
                "SSL_CERT_FILE": str(authority.ca_file),
                "GOBII_RING_GRACE": "0s",
            }
            with Stack(directory, database_url, settings | env) as stack:
                stack.connect(SENDER, server.port, PASSWORD)
                stack.python(SUBMIT.format(sender=SENDER, count=count))
                stack.start_worker(concurrency=THREADS)
                stack.start_dispatcher()
                eventually(lambda: len(server.messages) >= count, seconds=120)
                time.sleep(0.2)
        moments = sorted(json.loads(line)["at"] for line in journal.read_text().splitlines())
        return (len(moments) - 1) / (moments[-1] - moments[0])


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with EmbeddedPostgres(own=True) as postgres:
        sqlite = rate(None, count)
        plain = rate(postgres.url, count)
    with EmbeddedPostgres(own=True) as postgres:
        pooled = rate(postgres.url, count, GOBII_DB_POOL="8")
    print(f"{count} mails, one worker process of {THREADS} threads, server and client on this machine")
    print(f"SQLite                 {sqlite:6.1f} mails/s   1.00")
    print(f"PostgreSQL             {plain:6.1f} mails/s   {plain / sqlite:.2f}")
    print(f"PostgreSQL, pool of 8  {pooled:6.1f} mails/s   {pooled / sqlite:.2f}")


if __name__ == "__main__":
    main()
