"""Submits mails at a rate, by `EmailMessage.send()`, and notes each one that was taken without an error.

A caller that got an error submits again, as people and agents do: nobody here has a key against doubles.
"""

import argparse
import json
import os
import time
from pathlib import Path

import django

BODY = "Good morning\n--end--\n"
BIG_BODY = "All work and no play makes mail a dull thing.\n" * 8_000 + "--end--\n"


def submit(number: int) -> None:
    from django.conf import settings
    from django.core.mail import EmailMessage

    from tests.chaos.peers.models import Letter

    subject, body = f"mail {number}", BIG_BODY if number % 10 == 0 else BODY
    if settings.PEER == "transaction":
        Letter.objects.create(subject=subject, body=body)
    else:
        EmailMessage(subject, body, "agent@sender.example", [f"p{number}@rcpt.example"]).send()


def until_it_works(number: int) -> int:
    """Submits until no error comes; answers how often it was tried."""
    from django.db import connection

    for tries in range(1, 1_000):
        try:
            submit(number)
            return tries
        except Exception as problem:
            print(f"mail {number}: {problem!r}", flush=True)
            connection.close()
            time.sleep(0.2)
    raise SystemExit("it never works")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--mails", type=int, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    given = parser.parse_args()
    django.setup()
    if os.environ["PEER"].startswith("celery"):
        import tests.chaos.peers.celery_app  # noqa: F401  its broker, for tasks that anybody may share
    journal = os.open(given.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    began = time.monotonic()
    for number in range(given.mails):
        time.sleep(max(0.0, began + number / given.per_second - time.monotonic()))
        tries = until_it_works(number)
        facts = {"what": "accepted", "subject": f"mail {number}", "tries": tries, "at": time.time()}
        os.write(journal, json.dumps(facts).encode() + b"\n")


if __name__ == "__main__":
    main()
