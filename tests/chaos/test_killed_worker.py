"""A worker is killed with SIGKILL at each place of a delivery; a server outside counts the copies.

The server names the places that it can see; `failpoints` the few that only code can name.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from gobii_email.testing.oracle import Rule, Trap
from gobii_email.testing.stack import Process
from tests.chaos.conftest import BuildPlant
from tests.chaos.failpoints import PLACES
from tests.chaos.plant import Plant

BEFORE_THE_MARK = [
    ("sqlite", "claimed"),
    ("sqlite", "connect"),
    ("sqlite", "auth"),
    ("sqlite", "rcpt"),
    ("sqlite", "data"),
    ("sqlite", "before_mark"),
    ("postgresql", "claimed"),
    ("postgresql", "before_mark"),
]
AFTER_THE_MARK = [
    ("sqlite", "marked", 0),
    ("sqlite", "dot", 1),
    ("sqlite", "after_dot", 1),
    ("sqlite", "before_settlement", 1),
    ("postgresql", "marked", 0),
    ("postgresql", "before_settlement", 1),
]


def send_and_die(plant: Plant, tmp_path: Path, place: str, **options: str) -> str:
    """Submits one mail to a worker that dies at `place`; then another worker takes over."""
    if place in PLACES:
        flag = str(tmp_path / "died")
        worker = plant.start_worker(
            threads=1, options=("-I", "tests.chaos.failpoints"), FAILPOINT=place, FAILPOINT_FLAG=flag
        )
    else:
        worker = plant.start_worker(threads=1)
        plant.trap(Rule(place, "trap", name=place), _kill)
    message = plant.send(**options)
    worker._process.wait(20)
    assert worker.exit_code == -9
    plant.workers.remove(worker)
    plant.start_worker(threads=2)
    return message


def _kill(trap: Trap, worker: Process) -> None:
    worker.kill()


@pytest.fixture
def small(build_plant: BuildPlant) -> Callable[..., Plant]:
    return lambda database, **facts: build_plant(database, accounts=1, workers=0, dispatchers=1, **facts)


@pytest.mark.parametrize(("database", "place"), BEFORE_THE_MARK)
def test_killed_before_the_mark_it_still_goes_out_exactly_once(
    small: Callable[..., Plant], tmp_path: Path, database: str, place: str
) -> None:
    plant = small(database)
    message = send_and_die(plant, tmp_path, place)
    plant.wait(message, "sent")
    assert plant.copies(message) == 1
    assert plant.history(message) == (["sent"] if place == "claimed" else ["deferred", "sent"])


@pytest.mark.parametrize(("database", "place", "copies"), AFTER_THE_MARK)
def test_killed_after_the_mark_it_is_in_doubt_and_not_repeated(
    small: Callable[..., Plant], tmp_path: Path, database: str, place: str, copies: int
) -> None:
    plant = small(database)
    message = send_and_die(plant, tmp_path, place)
    plant.wait(message, "in_doubt")
    # Long enough for whoever would send it again to do so: another mail goes all the way meanwhile.
    plant.wait(plant.send(subject="another"), "sent")
    assert plant.rows().messages[message]["status"] == "in_doubt"
    assert plant.copies(message) == copies
    how = "sent" if copies else "resend"
    resolved = plant.stack.manage("email_resolve", message, "--as", how, "--json")
    assert resolved.returncode == 0, resolved.stderr
    plant.wait(message, "sent")
    assert plant.copies(message) == 1


def test_a_doubt_that_may_be_resent_goes_out_again_with_the_same_message_id(
    small: Callable[..., Plant], tmp_path: Path
) -> None:
    plant = small("sqlite", env={"GOBII_DOUBT_RESEND_AFTER": "1s", "GOBII_DEADLINE_DOT": "2s"})
    message = send_and_die(plant, tmp_path, "marked", on_doubt="resend")
    plant.wait(message, "sent")
    assert plant.copies(message) == 1
    assert plant.history(message) == ["deferred", "sent"]
