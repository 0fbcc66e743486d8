"""Limits in an account's document: what is refused, and what is said about it."""

from typing import Any

import pytest

from gobii_email.domain.account_document import Problem, read_document
from gobii_email.domain.quotas import LIMITS

LIMIT_REMEDY = (
    "Give a number from 1 to 1,000,000,000 (who wants no limit gives the largest), or null for the default."
)
TTL_REMEDY = (
    "Give a number from 0 to 3,600 (in seconds; 0 closes a connection after its turn),"
    " or null for the default."
)


def limits(**given: Any) -> Any:
    return read_document({"address": "anna@sender.example", "limits": given})


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_is_from_one_to_a_billion_or_the_default(name: str) -> None:
    for fine in (1, 10**9, None):
        found = limits(**{name: fine})
        assert (found.problems, found.changes) == ([], {name: fine})


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_zero_would_never_send(name: str) -> None:
    (problem,) = limits(**{name: 0}).problems
    assert str(problem) == (
        f"limits.{name}: a limit of zero would never send. Pause the mailbox instead, or give 1 or more."
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (-1, "it is negative."),
        (10**9 + 1, "it is more than 1,000,000,000."),
        (2**80, "it is more than 1,000,000,000."),
        ("60", "it is not a whole number."),
        (1.5, "it is not a whole number."),
        (True, "it is not a whole number."),
        (False, "it is not a whole number."),
        ([60], "it is not a whole number."),
    ],
    ids=str,
)
def test_what_is_no_limit_is_refused_with_what_would_be(given: object, reason: str) -> None:
    assert limits(per_minute=given).problems == [Problem("limits.per_minute", reason, LIMIT_REMEDY)]


@pytest.mark.parametrize("fine", [0, 3600, None])
def test_a_connection_may_wait_for_up_to_an_hour(fine: int | None) -> None:
    found = limits(pool_ttl=fine)
    assert (found.problems, found.changes) == ([], {"pool_ttl": fine})


@pytest.mark.parametrize(("given", "reason"), [(3601, "it is more than 3,600."), (-1, "it is negative.")])
def test_a_connection_may_not_wait_for_longer(given: int, reason: str) -> None:
    assert limits(pool_ttl=given).problems == [Problem("limits.pool_ttl", reason, TTL_REMEDY)]
