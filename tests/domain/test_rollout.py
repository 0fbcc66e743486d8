"""Who is included while the feature is being rolled out."""

import uuid
from itertools import pairwise

import pytest

from gobii_email.domain.rollout import Rollout, parse_rollout

AGENTS = [str(uuid.UUID(int=number * 7919)) for number in range(2000)]


def included(rollout: Rollout) -> set[str]:
    return {agent for agent in AGENTS if rollout.includes(agent, "a@sender.example")}


@pytest.mark.parametrize("text", ["all", "ALL", "", "  ", "100", "100%"])
def test_all_includes_everybody(text: str) -> None:
    assert included(parse_rollout(text)) == set(AGENTS)


@pytest.mark.parametrize("text", ["0", "0%"])
def test_zero_percent_includes_nobody(text: str) -> None:
    assert included(parse_rollout(text)) == set()


def test_a_percentage_includes_about_that_many() -> None:
    assert parse_rollout("25%") == parse_rollout(" 25 ") == Rollout(percent=25)
    assert 0.2 < len(included(parse_rollout("25"))) / len(AGENTS) < 0.3


def test_whoever_is_included_stays_so_while_the_percentage_rises() -> None:
    steps = [included(Rollout(percent=percent)) for percent in (1, 10, 50, 99, 100)]
    assert all(smaller <= larger for smaller, larger in pairwise(steps))
    assert included(Rollout(percent=10)) == included(Rollout(percent=10))


def test_an_agent_is_the_same_in_capitals() -> None:
    rollout = Rollout(percent=50)
    assert all(rollout.includes(agent, "") == rollout.includes(agent.upper(), "") for agent in AGENTS[:200])


def test_a_list_includes_its_agents_and_addresses_alone() -> None:
    rollout = parse_rollout(f"{AGENTS[1].upper()}, A@sender.example,")
    assert rollout.includes(AGENTS[1], "other@sender.example")
    assert rollout.includes(AGENTS[2], "a@SENDER.example")
    assert not rollout.includes(AGENTS[2], "b@sender.example")


@pytest.mark.parametrize("text", ["101", "101%", "-1%", "1.5%", "many%", "%"])
def test_what_is_no_percentage_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match="not a percentage from 0 to 100"):
        parse_rollout(text)
