"""A worker is killed with SIGKILL at each place of a delivery; a server outside counts the copies.

The server names the places that it can see; `failpoints` the few that only code can name.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gobii_email.testing.oracle import Rule, Trap
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.stack import Process
from tests.chaos.failpoints import PLACES
from tests.chaos.plant import Plant

# With seconds for a lease, since these tests wait for it and nothing else; a living worker must keep it, and
# hear of the dot in time, on a busy machine too.
SOON = {"GOBII_LEASE": "4s", "GOBII_DOUBT_RESEND_AFTER": "1s", "GOBII_DEADLINE_DOT": "5s"}
BEFORE_THE_MARK = [
    ("sqlite", "claimed"),
    ("sqlite", "auth"),
    ("sqlite", "data"),
    ("sqlite", "before_mark"),
    ("postgresql", "before_mark"),
]
AFTER_THE_MARK = [
    ("sqlite", "marked", 0),
    ("sqlite", "dot", 1),
    ("sqlite", "before_settlement", 1),
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
    worker._process.wait(120)
    assert worker.exit_code == -9
    plant.workers.remove(worker)
    plant.start_worker(threads=2)
    return message


def _kill(trap: Trap, worker: Process) -> None:
    worker.kill()


@pytest.fixture(scope="module")
def plants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Plant]]:
    """One plant for each database, without a worker: each test starts its own."""
    made: dict[str, Plant] = {}
    with ExitStack() as opened:

        def plant_on(database: str) -> Plant:
            if database not in made:
                directory = tmp_path_factory.mktemp(database)
                plant = Plant(directory, database=database, accounts=1, workers=0, dispatchers=1, env=SOON)
                try:
                    made[database] = opened.enter_context(plant)
                except ServerUnavailable as problem:
                    pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")
            return made[database]

        yield plant_on


@pytest.fixture
def plant(plants: Callable[[str], Plant], database: str) -> Iterator[Plant]:
    """The plant of that database; ends the test's workers."""
    made = plants(database)
    yield made
    made.oracle.set_rules()
    while made.workers:
        made.workers.pop().kill()


@pytest.mark.parametrize(("database", "place"), BEFORE_THE_MARK)
def test_killed_before_the_mark_it_still_goes_out_exactly_once(
    plant: Plant, tmp_path: Path, place: str
) -> None:
    message = send_and_die(plant, tmp_path, place)
    plant.wait(message, "sent")
    assert plant.copies(message) == 1
    # That a connection was opened is noted without waiting for it, so the note may die with its worker.
    histories = [["sent"]] if place == "claimed" else [["sent"], ["deferred", "sent"]]
    assert plant.history(message) in histories


@pytest.mark.parametrize(("database", "place", "copies"), AFTER_THE_MARK)
def test_killed_after_the_mark_it_is_in_doubt_and_not_repeated(
    plant: Plant, tmp_path: Path, place: str, copies: int
) -> None:
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


@pytest.mark.parametrize("database", ["sqlite"])
def test_a_doubt_that_may_be_resent_goes_out_again_with_the_same_message_id(
    plant: Plant, tmp_path: Path
) -> None:
    message = send_and_die(plant, tmp_path, "marked", on_doubt="resend")
    plant.wait(message, "sent")
    assert plant.copies(message) == 1
    assert plant.history(message) == ["deferred", "sent"]
