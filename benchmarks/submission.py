"""What a mail costs its caller, and how many a second go into the queue, beside Django's own mail classes.

Each round runs in a fresh process on PostgreSQL and on SQLite in turn, with a real broker that is rung; the
table shows the median of three. "Django" builds an EmailMultiAlternatives of the same text and page and
serialises it, and stores nothing. "One body" is a body and subject that all share, so that it is rendered
once for every 250. Bounded by its counts, to about a minute.

    .venv/bin/python -m benchmarks.submission [MAILS]
"""

import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path

from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.valkey import EmbeddedValkey

ROUNDS, CALLS, MAILS, DELIVERED = 3, 150, 1000, 250
SENDER, AT = "agent@sender.example", "rcpt.example"
WORDS = "The quarterly report is ready and the numbers look good. "
BODIES = {
    "Markdown": "# Hello\n\n" + f"{WORDS}See **page** [one](https://x.example/1).\n\n" * 22,
    "HTML": "<div>" + f"<p>{WORDS * 2}<a href='https://x.example/1'>see</a></p>" * 13 + "</div>",
    "plain": f"{WORDS * 2}\n\n" * 17,
}

Figures = dict[str, list[float]]


def timed(act: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of processor and of the clock, for each of `count`."""
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return [
        1000 * (end - start) / count
        for start, end in ((cpu, time.process_time()), (wall, time.perf_counter()))
    ]


def one_round(mails: int) -> Figures:
    """Every figure once, in this process and on its database."""
    import django

    django.setup()
    from django.core.mail import EmailMultiAlternatives
    from django.core.management import call_command

    from gobii_email import api
    from gobii_email.models import PersistentAgent, PersistentAgentCommsEndpoint, PersistentAgentMessage
    from gobii_email.services.render import render_mail_body

    call_command("migrate", verbosity=0)
    endpoints = PersistentAgentCommsEndpoint.objects
    sender = endpoints.filter(address=SENDER).first() or endpoints.create(
        owner_agent=PersistentAgent.objects.create(name="Ada"), channel="email", address=SENDER
    )
    contact, _ = endpoints.get_or_create(channel="email", address=f"to@{AT}", owner_agent=None)
    figures: Figures = {}

    def send(body: str) -> None:
        for number in range(CALLS):
            api.send_agent_email(from_endpoint=SENDER, to=f"to@{AT}", subject=f"Mail {number}", body=body)

    def by_django(body: str) -> None:
        page = render_mail_body(body, subject="Mail")
        for number in range(CALLS):
            mail = EmailMultiAlternatives(f"Mail {number}", page.text, SENDER, [f"to@{AT}"])
            mail.attach_alternative(page.html, "text/html")
            mail.message().as_bytes(linesep="\r\n")

    def render(body: str) -> None:
        for _ in range(CALLS):
            render_mail_body(body, subject="Mail")

    def stored(texts: Sequence[tuple[str, str]]) -> list[PersistentAgentMessage]:
        return PersistentAgentMessage.objects.bulk_create(
            PersistentAgentMessage(from_endpoint=sender, to_endpoint=contact, subject=subject, body=body)
            for subject, body in texts
        )

    def deliver(messages: Sequence[PersistentAgentMessage]) -> None:
        for start in range(0, len(messages), DELIVERED):
            api.deliver_many(messages[start : start + DELIVERED])

    send(BODIES["Markdown"])
    for kind, body in BODIES.items():
        figures[f"send_agent_email, {kind}"] = timed(lambda body=body: send(body), CALLS)
        figures[f"  of it rendering, {kind}"] = timed(lambda body=body: render(body), CALLS)
        figures[f"  Django, {kind}"] = timed(lambda body=body: by_django(body), CALLS)
    for kind in ("HTML", "plain"):
        one, many = (
            [("Mail", BODIES[kind])] * mails,
            [(f"Mail {n}", f"{BODIES[kind]}{n}") for n in range(mails)],
        )
        for title, texts in (("", many), (" (one body)", one)):
            messages = stored(texts)
            figures[f"deliver_many{title}, {kind}"] = timed(
                lambda messages=messages: deliver(messages), mails
            )
            with tempfile.NamedTemporaryFile("w") as file:
                for number, (subject, body) in enumerate(texts):
                    line = {"from": SENDER, "to": f"to{number}@{AT}", "subject": subject, "body": body}
                    file.write(json.dumps(line) + "\n")
                file.flush()
                with redirect_stderr(io.StringIO()):
                    figures[f"email_send --batch{title}, {kind}"] = timed(
                        lambda name=file.name: call_command("email_send", batch=name, stdout=io.StringIO()),
                        mails,
                    )
    return figures


def round_on(database_url: str, redis_url: str, place: str, mails: int) -> Figures:
    environment = os.environ | {
        "DJANGO_SETTINGS_MODULE": "gobii_email.settings",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "GOBII_VAR": place,
        "LOG_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "benchmarks.submission", "--round", str(mails)]
    answer = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: Figures = json.loads(answer.stdout.splitlines()[-1])
    return found


Row = tuple[str, float, float, float]
"""What was done; milliseconds of processor and of the clock for each; how many times Django's processor."""


def rows_of(rounds: Sequence[Figures]) -> list[Row]:
    """The medians of `rounds`."""
    middle = {
        name: [statistics.median(figures[name][column] for figures in rounds) for column in (0, 1)]
        for name in rounds[0]
    }
    of_django = {kind: middle[f"  Django, {kind}"][0] for kind in BODIES}
    return [
        (name, cpu, wall, cpu / of_django[name.rpartition(", ")[2]]) for name, (cpu, wall) in middle.items()
    ]


def compare(mails: int) -> dict[str, list[Row]]:
    """By database. Rounds on the databases alternate."""
    found: dict[str, list[Figures]] = {"PostgreSQL": [], "SQLite": []}
    with (
        EmbeddedPostgres(own=True) as postgres,
        EmbeddedValkey() as valkey,
        tempfile.TemporaryDirectory() as place,
    ):
        urls = {"PostgreSQL": postgres.url, "SQLite": f"sqlite:///{Path(place) / 'mail.sqlite3'}"}
        for _ in range(ROUNDS):
            for database, url in urls.items():
                found[database].append(round_on(url, valkey.url, place, mails))
    return {database: rows_of(rounds) for database, rounds in found.items()}


def main() -> None:
    if sys.argv[1:2] == ["--round"]:
        print(json.dumps(one_round(int(sys.argv[2]))))
        return
    mails = int(sys.argv[1]) if len(sys.argv) > 1 else MAILS
    found = compare(mails)
    print(f"{mails} mails of 2 KB in bulk, {CALLS} single calls, medians of {ROUNDS} rounds, one process")
    for database, rows in found.items():
        print(f"\n{database:36} {'CPU ms':>8} {'wall ms':>8} {'a second':>9} {'Django = 1':>11}")
        for name, cpu, wall, times in rows:
            print(f"{name:36} {cpu:8.2f} {wall:8.2f} {1000 / wall:9.0f} {times:11.2f}")


if __name__ == "__main__":
    main()
