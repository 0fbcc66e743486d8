"""One run: mails are submitted while faults strike, then everything is left in peace and the books are read.

Answers what was found, as values; what counts as a failure is decided by the books alone. Seconds are
reported and never judged.
"""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gobii_email.testing.stack import Process, eventually
from tests.chaos.arena import Arena
from tests.chaos.books import Books, balance
from tests.chaos.faults import Fault
from tests.chaos.plant import LEASE_SECONDS, Plant

QUIET_SECONDS = 120.0
Say = Callable[[str], None]


def _silently(text: str) -> None:
    return None


@dataclass(slots=True)
class Report:
    """What a run did and found. `settled_seconds`: from the last fault to the end of all leases held then."""

    books: Books
    struck: dict[str, int] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)
    settled_seconds: float = 0.0
    drained_seconds: float = 0.0
    submitted_seconds: float = 0.0
    seconds: float = 0.0
    connections: int = 0

    def document(self) -> dict[str, Any]:
        return {
            "mails": self.books.submitted,
            "copies": self.books.copies,
            "statuses": dict(self.books.statuses),
            "violations": self.books.violations(),
            "allowed_doubles": self.books.allowed_doubles,
            "in_doubt_that_the_server_took": self.books.doubts_taken,
            "faults": self.struck,
            "faults_that_found_nobody": self.missed,
            "lease_seconds": LEASE_SECONDS,
            "settled_seconds": round(self.settled_seconds, 1),
            "drained_seconds": round(self.drained_seconds, 1),
            "seconds": round(self.seconds, 1),
            "connections": self.connections,
        }


def run(
    plant: Plant,
    faults: list[Fault],
    *,
    mails: int,
    seed: int,
    per_second: float,
    pause: float = 0.5,
    big_share: float = 0.03,
    repeat: bool = True,
    plain: bool = False,
    say: Say = _silently,
) -> Report:
    """Each of `faults` in an order that `seed` decides; with `repeat` again, as long as mail is submitted."""
    began = time.monotonic()
    report = Report(Books())
    submitter = plant.submit(mails, per_second=per_second, seed=seed, big_share=big_share, plain=plain)
    eventually(lambda: plant.submitted() or not submitter.is_running, seconds=120)
    chance = random.Random(seed)
    report.struck, report.missed = torment(
        plant, faults, submitter, chance, pause=pause, repeat=repeat, say=say
    )
    last_fault = time.monotonic()
    held = plant.leases()
    report.settled_seconds = _seconds_until(lambda: not (held & plant.leases()), last_fault)
    _seconds_until(lambda: not submitter.is_running, last_fault)
    assert submitter.exit_code == 0, submitter.output()[-2000:]
    report.submitted_seconds = time.monotonic() - began
    say(f"{time.monotonic() - began:6.1f} s  all submitted, no more faults; open: {plant.open_messages()}")
    report.drained_seconds = _seconds_until(lambda: not plant.open_messages(), last_fault)
    report.books = balance(plant.submitted(), plant.oracle.lines(), plant.rows())
    report.connections = len(plant.oracle.noted("closed"))
    report.seconds = time.monotonic() - began
    return report


def torment(
    arena: Arena,
    faults: list[Fault],
    submitter: Process,
    chance: random.Random,
    *,
    pause: float = 0.5,
    repeat: bool = True,
    say: Say = _silently,
) -> tuple[dict[str, int], list[str]]:
    """Does `faults` to `arena` while `submitter` runs; how often each struck, and which found nobody."""
    began = time.monotonic()
    struck: Counter[str] = Counter()
    missed: list[str] = []
    for fault in _in_turn(faults, chance, submitter, repeat=repeat):
        time.sleep(chance.uniform(0, pause))
        has_struck = fault.act(arena, chance)
        say(f"{time.monotonic() - began:6.1f} s  {fault.name}{'' if has_struck else ' (found nobody)'}")
        if has_struck:
            struck[fault.name] += 1
        else:
            missed.append(fault.name)
    arena.oracle.set_rules()
    return dict(struck), missed


def _in_turn(
    faults: list[Fault], chance: random.Random, submitter: Process, *, repeat: bool
) -> Iterator[Fault]:
    while submitter.is_running and faults:
        for fault in chance.sample(faults, len(faults)):
            if not submitter.is_running:
                return
            yield fault
        if not repeat:
            return


def _seconds_until(probe: Any, since: float) -> float:
    """Seconds from `since` until `probe` holds; gives up after a time that no healthy run needs."""
    deadline = time.monotonic() + QUIET_SECONDS
    while not probe() and time.monotonic() < deadline:
        time.sleep(0.2)
    return time.monotonic() - since
