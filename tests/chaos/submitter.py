"""The agent runtime: submits mails at a rate, as a caller would that repeats what failed under one key.

A process of its own. Writes one line for each mail once its submission has returned, so that the books know
what was promised; some submissions are rolled back, and some mails are withdrawn again.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import django

BIG_BODY = "All work and no play makes mail a dull thing. " * 8_000


class Submitter:
    """`chance` decides who sends, to whom, what is withdrawn or may be sent again; not so if plain."""

    def __init__(
        self, journal: Path, senders: list[str], chance: random.Random, big_share: float, is_plain: bool
    ) -> None:
        self.senders, self.chance, self.big_share, self.is_plain = senders, chance, big_share, is_plain
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def submit(self, number: int) -> None:
        mail = self._mail(number)
        kinds, weights = ["plain", "rolled_back", "withdrawn"], [100, 0, 0] if self.is_plain else [92, 4, 4]
        kind = self.chance.choices(kinds, weights)[0]
        if kind == "rolled_back":
            self._roll_back({**mail, "subject": f"never {number}"})
        message = self._until_it_works(mail)
        cancelled = kind == "withdrawn" and self._withdraw(message)
        self._note("accepted", message_id=str(message.pk), subject=mail["subject"], cancelled=cancelled)

    def _mail(self, number: int) -> dict[str, Any]:
        people = self.chance.choices([1, 3], [100, 0] if self.is_plain else [85, 15])[0]
        is_big = self.chance.random() < self.big_share
        return {
            "from_endpoint": self.chance.choice(self.senders),
            "to": [f"p{person}.{number}@rcpt.example" for person in range(people)],
            "subject": f"mail {number}",
            "body": BIG_BODY if is_big else "Good morning",
            "on_doubt": "hold" if self.is_plain else self.chance.choices(["hold", "resend"], [80, 20])[0],
        }

    def _until_it_works(self, mail: dict[str, Any]) -> Any:
        from django.db import Error, connection

        from gobii_email import api

        while True:
            try:
                return api.send_agent_email(**mail, idempotency_key=mail["subject"])
            except Error:
                connection.close()
                time.sleep(0.1)

    def _roll_back(self, mail: dict[str, Any]) -> None:
        """Submits in a transaction of the caller's that comes to nothing."""
        from django.db import Error, connection, transaction

        from gobii_email import api

        self._note("rolled_back", subject=mail["subject"])
        try:
            with transaction.atomic():
                api.send_agent_email(**mail)
                raise ZeroDivisionError
        except (ZeroDivisionError, Error):
            connection.close()

    def _withdraw(self, message: Any) -> bool:
        from django.db import Error, connection

        from gobii_email import api

        time.sleep(self.chance.uniform(0, 0.1))
        while True:
            try:
                return bool(api.cancel_agent_email(message.pk))
            except Error:
                connection.close()

    def _note(self, what: str, **facts: Any) -> None:
        os.write(self._journal, json.dumps({"what": what, "at": time.time(), **facts}).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--mails", type=int, required=True)
    parser.add_argument("--per-second", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--big-share", type=float, default=0.03)
    parser.add_argument("--plain", action="store_true", help="one recipient, hold on doubt, none withdrawn")
    parser.add_argument("senders", nargs="+")
    given = parser.parse_args()
    django.setup()
    submitter = Submitter(
        given.journal, given.senders, random.Random(given.seed), given.big_share, given.plain
    )
    began = time.monotonic()
    for number in range(given.mails):
        time.sleep(max(0.0, began + number / given.per_second - time.monotonic()))
        submitter.submit(number)


if __name__ == "__main__":
    main()
