"""A connection test: its steps one after the other, up to the first that fails.

What a step does is left to the protocols, which take their steps with the adapters that send and read; here
is how steps are taken, timed and told.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gobii_email.domain.advice import advice_for
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.ports import ProbeFailure

SLOW_GREETING_SECONDS = 5.0
"""A greeting that takes longer is warned of."""

OnStep = Callable[[Step], None]
OnLine = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """What a step that was taken found. With `advice`, and where `status` says so, it warns."""

    text: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)
    advice: str = ""
    raw: str = ""
    status: StepStatus = StepStatus.OK


@dataclass(frozen=True, slots=True)
class Missed:
    """What kept a step from being taken: why, in the words for people, and in the server's own."""

    failure: ProbeFailure
    facts: Mapping[str, object] = field(default_factory=dict)
    raw: str = ""


Act = Callable[[], Found]
Explain = Callable[[str, Exception], "Missed | Found"]


def unfollowed(step: Step) -> None:
    """For tests that nobody watches."""


def warned(key: str, text: str, **facts: object) -> Found:
    return Found(text, facts, advice_for(key), status=StepStatus.WARN)


def walk(
    plan: Sequence[tuple[str, Act]],
    explain: Explain,
    expected: tuple[type[Exception], ...],
    *,
    until: str = "",
    on_step: OnStep = unfollowed,
) -> tuple[list[Step], ProbeFailure | None]:
    """Takes the steps of `plan` up to the first failure, or to `until`; the others are skipped.

    `explain` tells what one of the `expected` exceptions means for the step it ended.
    """
    steps: list[Step] = []
    failure: ProbeFailure | None = None
    for name, act in plan:
        if failure is not None:
            step = Step(name, StepStatus.SKIPPED, text="Not reached.")
        elif until in [taken.id for taken in steps]:
            step = Step(name, StepStatus.SKIPPED, text="Not asked for.")
        else:
            step, failure = _taken(name, act, explain, expected)
        steps.append(step)
        on_step(step)
    return steps, failure


def _taken(
    name: str, act: Act, explain: Explain, expected: tuple[type[Exception], ...]
) -> tuple[Step, ProbeFailure | None]:
    began = time.monotonic()
    try:
        found: Found | Missed = act()
    except expected as ended:
        found = explain(name, ended)
    spent = round((time.monotonic() - began) * 1000)
    if isinstance(found, Missed):
        return _failed(name, spent, found), found.failure
    facts = dict(found.facts)
    return Step(name, found.status, spent, found.text, facts, found.advice, found.raw), None


def _failed(name: str, spent: int, missed: Missed) -> Step:
    failure = missed.failure
    if failure.is_untold:
        return Step(name, StepStatus.FAIL, 0, failure.text)
    facts = dict(missed.facts)
    return Step(name, StepStatus.FAIL, spent, failure.text, facts, failure.finding.advice, missed.raw)
