"""How long the database works for each list of the admin, with many rows on PostgreSQL.

A private server is filled through `bulk_rows` (COPY), then Django's test client opens the lists as a
signed-in operator; what each statement took, from sending it to having its rows, is added up by page.
`python -m benchmarks.admin_lists --help`.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from benchmarks.rig import end_in_order
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import ROOT

MOST_STATEMENTS = 12
MOST_MILLISECONDS = 200.0
ADDRESS = "anna77@agents.example"
BODY = "Lorem ipsum dolor sit amet. " * 50
AGENTS = 500
TESTS_OF_AN_ACCOUNT = 20
STEPS = [
    {
        "id": name,
        "status": "ok",
        "milliseconds": 12,
        "text": "Fine. " * 10,
        "facts": {},
        "advice": "",
        "raw": "",
    }
    for name in ("settings", "policy", "dns", "tcp", "banner", "ehlo", "starttls", "auth", "mail", "rcpt")
]

PAGES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "messages": ("persistentagentmessage", {}),
    "messages, page 20": ("persistentagentmessage", {"p": "20"}),
    "messages, failed": ("persistentagentmessage", {"latest_status__exact": "failed"}),
    "messages, none such": ("persistentagentmessage", {"latest_status__exact": "in_doubt"}),
    "messages, by provider": ("persistentagentmessage", {"provider": "postmark"}),
    "messages, past 7 days": ("persistentagentmessage", {"timestamp__gte": "2020-01-01 00:00:00+00:00"}),
    "messages, part of a subject": ("persistentagentmessage", {"q": "number 77"}),
    "messages, no such subject": ("persistentagentmessage", {"q": "nowhere to be found"}),
    "messages, a recipient": ("persistentagentmessage", {"q": "to77@rcpt.example"}),
    "messages, a Message-ID": ("persistentagentmessage", {"q": "<77@bench.example>"}),
    "messages, older": ("persistentagentmessage", {"before": "MIDDLE"}),
    "attempts": ("outboundmessageattempt", {}),
    "attempts, page 20": ("outboundmessageattempt", {"p": "20"}),
    "attempts, failed": ("outboundmessageattempt", {"status__exact": "failed"}),
    "attempts, none such": ("outboundmessageattempt", {"status__exact": "in_doubt"}),
    "attempts, part of a subject": ("outboundmessageattempt", {"q": "number 77"}),
    "attempts, queue id": ("outboundmessageattempt", {"q": "queue-77"}),
    "accounts": ("agentemailaccount", {}),
    "accounts, untested": ("agentemailaccount", {"tested": "no"}),
    "accounts, server in backoff": ("agentemailaccount", {"backoff": "host"}),
    "accounts, search": ("agentemailaccount", {"q": "anna77"}),
    "endpoints": ("persistentagentcommsendpoint", {}),
    "endpoints, outside": ("persistentagentcommsendpoint", {"whose": "outside"}),
    "endpoints, search": ("persistentagentcommsendpoint", {"q": "anna77"}),
    "endpoints, a contact": ("persistentagentcommsendpoint", {"whose": "outside", "q": "to77@rcpt.example"}),
    "agents": ("persistentagent", {}),
    "agents, search": ("persistentagent", {"q": "Agent 77"}),
    "tests": ("connectiontest", {}),
    "tests, failed": ("connectiontest", {"is_ok__exact": "0"}),
    "tests, search": ("connectiontest", {"q": ADDRESS}),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """One page: its statements, and the milliseconds of all of them together, in the middle and at most."""

    statements: int
    milliseconds: float
    most: float
    slowest: str

    @property
    def is_well(self) -> bool:
        return self.statements <= MOST_STATEMENTS and self.most <= MOST_MILLISECONDS


def measure(messages: int, rounds: int) -> dict[str, Any]:
    """Every page of `PAGES`, opened `rounds` times after a first one that does not count."""
    with tempfile.TemporaryDirectory(prefix="gobii-bench-") as var, EmbeddedPostgres(own=True) as postgres:
        os.environ |= {"DATABASE_URL": postgres.url, "GOBII_VAR": var, "GOBII_DB_POOL": "0"}
        os.environ |= {"GOBII_ENCRYPTION_KEY": "bench:" + "A" * 43 + "=", "ALLOWED_HOSTS": "testserver"}
        os.environ["DJANGO_SETTINGS_MODULE"] = "gobii_email.settings"
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", verbosity=0)
        started = time.monotonic()
        middle = fill(messages)
        print(f"{messages} messages made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        found = {title: page(model, query, rounds, middle) for title, (model, query) in PAGES.items()}
        connections.close_all()
    return {"messages": messages, "pages": {title: asdict(row) for title, row in found.items()}}


def fill(messages: int) -> datetime:
    """Agents with mailboxes, tests, contacts and mail; answers when the middle one was made."""
    from django.contrib.auth.models import User
    from django.db import connection, transaction

    User.objects.create_superuser("operator")
    with transaction.atomic():
        senders = _agents()
        middle = _mail(messages, senders)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
    return middle


def _agents() -> list[uuid.UUID]:
    from gobii_email.models import (
        AgentEmailAccount,
        ConnectionTest,
        MailHost,
        PersistentAgent,
        PersistentAgentCommsEndpoint,
    )

    agents = PersistentAgent.objects.bulk_create([PersistentAgent(name=f"Agent {n}") for n in range(AGENTS)])
    own = [
        PersistentAgentCommsEndpoint(owner_agent=agent, channel="email", address=f"anna{n}@agents.example")
        for n, agent in enumerate(agents)
    ]
    PersistentAgentCommsEndpoint.objects.bulk_create(own)
    accounts = [
        AgentEmailAccount(endpoint=one, smtp_host=f"smtp{n}.example", smtp_port=587)
        for n, one in enumerate(own)
    ]
    for account in accounts:
        account.set_smtp_password("bench")
        account.smtp_tested_fingerprint = account.smtp_fingerprint()
    AgentEmailAccount.objects.bulk_create(accounts)
    now = datetime.now(UTC)
    later = now + timedelta(hours=1)
    MailHost.objects.bulk_create(
        MailHost(name=f"smtp{n}.example:587", backoff_until=later) for n in range(0, AGENTS, 3)
    )
    ConnectionTest.objects.bulk_create(
        ConnectionTest(
            account=account,
            protocol="smtp",
            started_at=now - timedelta(hours=n),
            finished_at=now,
            steps=STEPS,
        )
        for n in range(TESTS_OF_AN_ACCOUNT)
        for account in accounts
    )
    return [one.pk for one in own]


def _mail(messages: int, senders: Sequence[uuid.UUID]) -> datetime:
    from gobii_email.models import (
        FrozenMessage,
        OutboundMessageAttempt,
        OutboundMessageRecipient,
        PersistentAgentCommsEndpoint,
        PersistentAgentMessage,
    )
    from gobii_email.models.bulk_rows import Insertion, write_rows

    now = datetime.now(UTC)
    dice = random.Random(7)  # noqa: S311
    status = [dice.choices(["sent", "failed", "queued"], [95, 4, 1])[0] for _ in range(messages)]
    ids = [(uuid.uuid4(), uuid.uuid4()) for _ in range(messages)]
    at = [now - timedelta(seconds=10) * (messages - n) for n in range(messages)]
    write_rows(
        [
            Insertion(
                PersistentAgentMessage,
                (
                    *("id", "timestamp", "from_endpoint_id", "from_address", "subject", "body"),
                    *("rfc_message_id", "latest_status"),
                ),
                [
                    (
                        *(ids[n][0], at[n], senders[n % AGENTS], f"anna{n % AGENTS}@agents.example"),
                        *(f"Report number {n}", BODY, f"<{n}@bench.example>", status[n]),
                    )
                    for n in range(messages)
                ],
            ),
            Insertion(
                OutboundMessageAttempt,
                (
                    *("id", "message_id", "number", "from_endpoint_id", "queued_at", "not_before", "due_at"),
                    *("provider", "provider_message_id", "status", "addresses", "reply"),
                ),
                [
                    (
                        *(ids[n][1], ids[n][0], 1, senders[n % AGENTS], at[n], at[n]),
                        at[n] if status[n] == "queued" else None,
                        *("" if status[n] == "queued" else "smtp", f"queue-{n}", status[n]),
                        *([f"to{n}@rcpt.example"], "250 2.0.0 Ok: queued as 4bXyZ1234"),
                    )
                    for n in range(messages)
                ],
            ),
            Insertion(
                OutboundMessageRecipient,
                ("message_id", "attempt_id", "address", "kind", "status"),
                [(*ids[n], f"to{n}@rcpt.example", "to", "accepted") for n in range(messages)],
            ),
            Insertion(
                FrozenMessage,
                ("message_id", "mime", "html", "text", "size", "sha256"),
                [(ids[n][0], BODY.encode(), BODY, BODY, len(BODY), "") for n in range(messages)],
            ),
            Insertion(
                PersistentAgentCommsEndpoint,
                ("id", "channel", "address"),
                [(uuid.uuid4(), "email", f"to{n}@rcpt.example") for n in range(messages)],
            ),
        ]
    )
    return at[messages // 2]


def page(model: str, query: Mapping[str, str], rounds: int, middle: datetime) -> Result:
    from django.contrib.auth.models import User
    from django.test import Client
    from django.urls import reverse

    client = Client()
    client.force_login(User.objects.get())
    asked = {name: middle.isoformat() if value == "MIDDLE" else value for name, value in query.items()}
    url = reverse(f"admin:gobii_email_{model}_changelist")
    runs = [_timed(lambda: client.get(url, asked)) for _ in range(rounds + 1)][1:]
    totals = [sum(milliseconds for milliseconds, _ in run) for run in runs]
    slowest = max((one for run in runs for one in run), key=lambda one: one[0])
    return Result(len(runs[0]), statistics.median(totals), max(totals), f"{slowest[0]:.0f} ms: {slowest[1]}")


def _timed(act: Callable[[], Any]) -> list[tuple[float, str]]:
    with timed_statements() as took:
        answer = act()
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code} {answer.get('Location', '')}")
    return took


@contextmanager
def timed_statements() -> Iterator[list[tuple[float, str]]]:
    """Milliseconds and text of each statement; with psycopg its rows have arrived when it returns."""
    from django.db import connection

    took: list[tuple[float, str]] = []

    def time_one(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        started = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            took.append((1000 * (time.perf_counter() - started), sql))

    with connection.execute_wrapper(time_one):
        yield took


def as_rows(document: Mapping[str, Any]) -> list[list[str]]:
    return [
        [title, str(row["statements"]), f"{row['milliseconds']:.0f}", f"{row['most']:.0f}"]
        for title, row in document["pages"].items()
    ]


def measured(messages: int, rounds: int) -> dict[str, Any]:
    """What `measure` answers, in a process of its own: Django is set up once in each."""
    command = [sys.executable, "-m", "benchmarks.admin_lists", "--json"]
    command += ["--messages", str(messages), "--rounds", str(rounds)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slowest", action="store_true", help="with the slowest statement of each page")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    end_in_order()
    document = measure(options.messages, options.rounds)
    if options.json:
        print(json.dumps(document, indent=1))
        return
    for (title, count, middle, most), row in zip(as_rows(document), document["pages"].values(), strict=True):
        print(f"{title:<32} {count:>3} statements {middle:>5} ms, at most {most:>5} ms")
        if options.slowest:
            print(f"    {row['slowest'][:1500]}")
    if not all(Result(**row).is_well for row in document["pages"].values()):
        raise SystemExit(f"More than {MOST_STATEMENTS} statements or {MOST_MILLISECONDS:.0f} ms.")


if __name__ == "__main__":
    main()
