"""A connection test: its steps one after the other, up to the first that fails.

What a step does is left to the protocols, which take their steps with the adapters that send and read; here
is how steps are taken, timed and told.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gobii_email.domain.advice import advice_for
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.smtp_replies import safe_text
from gobii_email.ports import ProbeFailure

SLOW_GREETING_SECONDS = 5.0
"""A greeting that takes longer is warned of."""

MAX_ITEMS, MAX_CHARACTERS = 50, 200
"""What is kept of a list, and of a text, among the facts of a step."""

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


def greeted(read: Callable[[], str]) -> Found:
    """The server's first line, with a warning where it lets people wait for it."""
    began = time.monotonic()
    said = read()
    waited = time.monotonic() - began
    if waited > SLOW_GREETING_SECONDS:
        return replace(warned("slow-greeting", f"It took {waited:.0f} s: {said}"), raw=said)
    return Found(said, raw=said)


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
    return _step(name, found.status, spent, found.text, found.facts, found.advice, found.raw), None


def _failed(name: str, spent: int, missed: Missed) -> Step:
    failure = missed.failure
    if failure.is_untold:
        return Step(name, StepStatus.FAIL, 0, failure.text)
    advice = failure.finding.advice
    return _step(name, StepStatus.FAIL, spent, failure.text, missed.facts, advice, missed.raw)


def _step(
    name: str,
    status: StepStatus,
    spent: int,
    text: str,
    facts: Mapping[str, object],
    advice: str,
    raw: str,
) -> Step:
    """A step fit to be shown and kept, whatever a server had put into it."""
    shown = {key: _fit(value) for key, value in facts.items()}
    return Step(name, status, spent, safe_text(text), shown, advice, safe_text(raw))


def _fit(value: object) -> object:
    if isinstance(value, list):
        return [_fit(item) for item in value[:MAX_ITEMS]]
    return safe_text(value, max_characters=MAX_CHARACTERS) if isinstance(value, str) else value
