"""Many mails, workers killed at random, the broker killed and wiped: the books must balance all the same."""

import random
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import pytest

from tests.chaos.conftest import Plant

MAILS = 60
OVER = {"sent", "in_doubt"}


@pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)
def test_nothing_is_lost_and_nothing_is_doubled(plant: Callable[..., Plant]) -> None:
    made = plant()
    made.server.faults.delays["DOT"] = timedelta(milliseconds=100)
    workers = [made.stack.start_worker(concurrency=4) for _ in range(2)]
    made.stack.start_dispatcher()
    made.send(MAILS)
    chance = random.Random(4711)  # noqa: S311
    for round_number in range(4):
        time.sleep(chance.uniform(0.2, 1.0))
        workers.pop(0).kill()
        if round_number == 1:
            made.stack.valkey.kill()
            made.stack.valkey.start()
        workers.append(made.stack.start_worker(concurrency=4))

    deadline = time.monotonic() + 60
    while set((statuses := made.statuses()).values()) - OVER:
        assert time.monotonic() < deadline, Counter(statuses.values())
        time.sleep(0.5)

    accepted = made.accepted()
    assert len(statuses) == MAILS
    assert max(accepted.values()) == 1, "a mail was doubled"
    lost = [message for message, status in statuses.items() if status == "sent" and not accepted[message]]
    assert lost == [], "sent, says the database, and no server has it"
    unknown = set(accepted) - set(statuses)
    assert unknown == set()
    print(f"{Counter(statuses.values())}, accepted by the server: {sum(accepted.values())}")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_mail_submitted_while_the_broker_is_away_goes_out_when_it_is_back(
    plant: Callable[..., Plant],
) -> None:
    made = plant()
    made.stack.start_worker(concurrency=2)
    made.stack.start_dispatcher()
    made.stack.valkey.kill()
    (message,) = made.send()
    assert made.status(message)["status"] == "queued"
    made.stack.valkey.start()
    assert made.copies(made.wait(message, "sent")) == 1
