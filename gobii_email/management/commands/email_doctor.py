"""`email_doctor`: everything an operator asks first, as rows of ok, warn or fail.

All are asked at once, each in a thread that nobody waits for longer than a few seconds: what hangs is
itself the finding. Runs also where settings or database are broken.
"""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import connections

from gobii_email.management.examinations import EXAMINATIONS
from gobii_email.management.examinations.row import FAIL, OK, WARN, Examination, Row, brief
from gobii_email.management.message_argument import printable
from gobii_email.management.terminal import EmailCommand

LONGEST_SECONDS = 5.0
"""A client gives up after two seconds by itself; this bounds those that cannot, and slow machines."""


class Command(EmailCommand):
    help = "Looks at everything that mail depends on; exit code 1 if anything fails."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        rows = list(examined(EXAMINATIONS))
        is_well = all(row.status != FAIL for row in rows)
        document = {
            "ok": is_well,
            "checks": [
                {"name": row.name, "status": row.status, "text": row.text, "hint": row.hint} for row in rows
            ],
        }
        self.answer(document, self.is_json, "\n".join(map(self._line, rows)))
        if not is_well:
            # The rows have said it all; an error document beside them would only confuse.
            raise SystemExit(1)

    def _line(self, row: Row) -> str:
        paint = {OK: self.style.SUCCESS, WARN: self.style.WARNING, FAIL: self.style.ERROR}[row.status]
        line = f"{paint(f'{row.status:<4}')}  {row.name:<10}  {printable(row.text)}"
        return f"{line}\n{'':<18}{printable(row.hint)}" if row.hint else line


def examined(
    examinations: Sequence[tuple[str, Examination]], within: float = LONGEST_SECONDS
) -> Iterator[Row]:
    """A row for each, in order; all together take `within` seconds at most."""
    deadline = time.monotonic() + within
    for name, answer in [(name, _started(name, examine)) for name, examine in examinations]:
        try:
            yield answer.get(timeout=max(deadline - time.monotonic(), 0.001))
        except queue.Empty:
            yield Row(name, FAIL, f"no answer within {within:g} s", "What it asks hangs; see the other rows.")


def _started(name: str, examine: Examination) -> "queue.SimpleQueue[Row]":
    answer: queue.SimpleQueue[Row] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put(examine())
        except Exception as problem:  # a finding as well: it depends on what another row reports
            answer.put(
                Row(name, FAIL, f"could not be looked at: {brief(problem)}", "See the other rows first.")
            )
        finally:
            connections.close_all()

    threading.Thread(target=run, daemon=True).start()
    return answer
