"""Many mails under many faults: the books must balance, and must be able not to."""

import pytest

from tests.chaos.conftest import BuildPlant
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.run import Report, run

MAILS, SEED = 200, 4711

ON_SQLITE = (
    "kill:body",
    "kill:after_dot",
    "freeze:before_dot",
    "reset:dot",
    "4xx:dot",
    "5xx:rcpt",
    "sigterm",
    "redis:lost",
    "hints:lost",
    "clock:forward",
)
ON_POSTGRESQL = (
    "kill:mail",
    "kill:replied",
    "kill:dot",
    "reset:rcpt",
    "4xx:rcpt",
    "late:after_dot",
    "postgres:immediate",
    "postgres:fast",
    "redis:flush",
    "hints:doubled",
)


def named(names: tuple[str, ...]) -> list[Fault]:
    return [FAULTS[name] for name in names]


@pytest.mark.parametrize(("database", "names"), [("sqlite", ON_SQLITE), ("postgresql", ON_POSTGRESQL)])
def test_nothing_is_lost_and_nothing_is_doubled(
    build_plant: BuildPlant, database: str, names: tuple[str, ...]
) -> None:
    plant = build_plant(database, accounts=6, seed=SEED)
    report = run(plant, named(names), mails=MAILS, seed=SEED, per_second=9, pause=0.2)
    print(report.document())
    assert report.books.violations() == []
    assert report.books.submitted == MAILS
    assert len(report.struck) >= 4, f"too little went wrong: {report.missed}"


def test_mail_submitted_while_the_broker_is_away_goes_out_when_it_is_back(build_plant: BuildPlant) -> None:
    plant = build_plant("sqlite", accounts=1, workers=1, dispatchers=1)
    plant.valkey.kill()
    message = plant.send()
    assert plant.wait(message, "queued") == "queued"
    plant.valkey.start()
    plant.wait(message, "sent")
    assert plant.copies(message) == 1


def broken_run(build_plant: BuildPlant, safety: str, *names: str) -> Report:
    plant = build_plant("sqlite", accounts=1, env={"CHAOS_BREAK": safety})
    return run(plant, named(names), mails=12, seed=SEED, per_second=6, pause=0, big_share=0)


def test_without_the_mark_the_books_show_doubled_mail(build_plant: BuildPlant) -> None:
    report = broken_run(build_plant, "mark", "kill:after_dot")
    assert report.struck
    assert report.books.doubled, report.document()
