"""A worker is killed with SIGKILL at each place of a delivery; an oracle outside counts the copies."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.conftest import Plant

BEFORE_THE_MARK = [
    ("sqlite", "before_connect"),
    ("sqlite", "before_auth"),
    ("sqlite", "before_data"),
    ("sqlite", "between_body_and_mark"),
    ("postgresql", "before_connect"),
    ("postgresql", "between_body_and_mark"),
]
AFTER_THE_MARK = [
    ("sqlite", "between_mark_and_dot", 0),
    ("sqlite", "after_dot", 1),
    ("sqlite", "after_250", 1),
    ("postgresql", "between_mark_and_dot", 0),
    ("postgresql", "after_250", 1),
]


def worker_that_dies(made: Plant, tmp_path: Path, place: str) -> None:
    """The worker under test, a second one that takes over, and the dispatcher."""
    flag = tmp_path / "died"
    made.stack.start_worker(
        concurrency=1,
        extra_env={"FAILPOINT": place, "FAILPOINT_FLAG": str(flag)},
        options=("-I", "tests.chaos.failpoints"),
    )
    made.stack.start_dispatcher()


def wait_until_dead(made: Plant) -> None:
    worker = made.stack.processes[0]
    worker._process.wait(20)
    assert worker.exit_code == -9


@pytest.mark.parametrize(("database_url", "place"), BEFORE_THE_MARK, indirect=["database_url"])
def test_killed_before_the_mark_it_still_goes_out_exactly_once(
    plant: Callable[..., Plant], tmp_path: Path, place: str
) -> None:
    made = plant()
    worker_that_dies(made, tmp_path, place)
    (message,) = made.send()
    wait_until_dead(made)
    made.stack.start_worker(concurrency=2)
    document = made.wait(message, "sent")
    assert made.copies(document) == 1
    statuses = [attempt["status"] for attempt in document["attempts"]]
    assert statuses == (["sent"] if place == "before_connect" else ["deferred", "sent"])


@pytest.mark.parametrize(("database_url", "place", "copies"), AFTER_THE_MARK, indirect=["database_url"])
def test_killed_after_the_mark_it_is_in_doubt_and_not_repeated(
    plant: Callable[..., Plant], tmp_path: Path, place: str, copies: int
) -> None:
    made = plant()
    worker_that_dies(made, tmp_path, place)
    (message,) = made.send()
    wait_until_dead(made)
    made.stack.start_worker(concurrency=2)
    document = made.wait(message, "in_doubt")
    made.stack.start_worker(concurrency=1)
    assert made.status(message)["status"] == "in_doubt"
    assert made.copies(document) == copies
    resolved = made.stack.manage("email_resolve", message, "--as", "sent" if copies else "resend", "--json")
    assert resolved.returncode == 0, resolved.stderr
    document = made.wait(message, "sent")
    assert made.copies(document) == 1


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_doubt_that_may_be_resent_goes_out_again_with_the_same_message_id(
    plant: Callable[..., Plant], tmp_path: Path
) -> None:
    made = plant(GOBII_DOUBT_RESEND_AFTER="1s", GOBII_DEADLINE_DOT="2s")
    worker_that_dies(made, tmp_path, "between_mark_and_dot")
    (message,) = made.send(on_doubt="resend")
    wait_until_dead(made)
    made.stack.start_worker(concurrency=2)
    document = made.wait(message, "sent")
    assert made.copies(document) == 1
    assert [attempt["status"] for attempt in document["attempts"]] == ["deferred", "sent"]
