"""Where limits come from, what answers teach about them, and when many will have gone."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gobii_email.domain.providers import Provider, provider_of_host
from gobii_email.domain.quotas import (
    LONGEST_LESSON,
    SPANS,
    About,
    Learned,
    Limits,
    OwnLimits,
    Window,
    in_force,
    learn,
    limits_of,
    time_of_last,
    windows,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
TEN_MINUTES = timedelta(minutes=10)


def provider(host: str) -> Provider:
    found = provider_of_host(host)
    assert found is not None
    return found


GOOGLE = provider("smtp.gmail.com")
MICROSOFT = provider("smtp.office365.com")
ZOHO = provider("smtp.zoho.com")
FASTMAIL = provider("smtp.fastmail.com")


def limits(of: Provider | None = None, **own: Any) -> Limits:
    return limits_of(OwnLimits(**own), of, messages_per_connection_default=1)


def rates(found: Limits) -> tuple[int | None, int | None, int | None]:
    return found.per_minute, found.per_hour, found.per_day


@pytest.mark.parametrize(
    ("of", "own", "expected", "connections", "recipients"),
    [
        pytest.param(None, {}, (10, None, 500), 1, 100, id="a stranger is treated with caution"),
        pytest.param(MICROSOFT, {}, (30, None, 10_000), 3, 500, id="a provider's own"),
        pytest.param(GOOGLE, {}, (None, None, 500), 3, 100, id="no connections named: three"),
        pytest.param(ZOHO, {}, (None, 50, 500), 3, 100, id="no day named: a cautious one"),
        pytest.param(FASTMAIL, {}, (None, None, 500), 3, 100, id="nothing named"),
        pytest.param(None, {"per_hour": 7}, (None, 7, None), 1, 100, id="one rate set: no cautious ones"),
        pytest.param(
            MICROSOFT, {"per_hour": 7}, (30, 7, 10_000), 3, 500, id="one rate set: the provider's stay"
        ),
        pytest.param(ZOHO, {"per_minute": 7}, (7, 50, None), 3, 100, id="one rate set: no cautious day"),
        pytest.param(
            MICROSOFT, {"per_minute": 60, "connections": 9}, (60, None, 10_000), 9, 500, id="own ones win"
        ),
        pytest.param(None, {"connections": 5}, (10, None, 500), 5, 100, id="connections are no rate"),
    ],
)
def test_a_limit_is_the_accounts_else_its_providers_else_cautious(
    of: Provider | None, own: Any, expected: Any, connections: int, recipients: int
) -> None:
    found = limits(of, **own)
    assert rates(found) == expected
    assert (found.connections, found.recipients_per_message) == (connections, recipients)


def test_each_limit_says_where_it_comes_from() -> None:
    assert limits(MICROSOFT, per_minute=60).sources == {
        "per_minute": "set for this account",
        "per_day": "Microsoft 365",
        "connections": "Microsoft 365",
        "recipients_per_message": "Microsoft 365",
        "messages_per_connection": "set for the installation",
    }
    assert limits().sources["per_day"] == "unknown provider"
    assert limits(FASTMAIL).sources["per_day"] == "a cautious default"


def test_connections_carry_what_the_account_says_else_the_installation() -> None:
    assert limits_of(OwnLimits(), None, messages_per_connection_default=8).messages_per_connection == 8
    own = OwnLimits(messages_per_connection=3, pool_ttl=timedelta(seconds=9))
    found = limits_of(own, None, messages_per_connection_default=8)
    assert (found.messages_per_connection, found.pool_ttl) == (3, timedelta(seconds=9))


@pytest.mark.parametrize(
    ("own", "most"), [({}, 10), ({"per_day": 3}, 3), ({"per_minute": 10**9, "per_day": 10**9}, 100)]
)
def test_a_transaction_never_has_more_recipients_than_any_window(own: Any, most: int) -> None:
    assert limits(**own).most_recipients == most


def test_only_limits_that_exist_are_windows() -> None:
    assert limits(per_minute=5, per_day=7).windows() == (
        Window("minute", SPANS["minute"], 5),
        Window("day", SPANS["day"], 7),
    )


# Learning


def slower(
    known: Limits, before: Learned | None = None, *, about: About = About.RATE, **facts: Any
) -> Learned:
    values = {"now": NOW, "observed_per_minute": 0, "reason": "421 slow down"} | facts
    return learn(known, before, about=about, **values)


def test_a_rate_is_halved_and_grows_back_by_a_tenth_every_ten_minutes() -> None:
    known = limits(MICROSOFT)
    learned = slower(known)
    paces = [in_force(known, learned, NOW + steps * TEN_MINUTES).per_minute for steps in range(7)]
    assert paces == [15, 18, 21, 24, 27, 30, 30]
    assert in_force(known, learned, NOW + TEN_MINUTES - timedelta(seconds=1)).per_minute == 15
    assert in_force(known, learned, NOW).sources["per_minute"] == "its server asked to slow down"
    assert in_force(known, learned, NOW + 5 * TEN_MINUTES) == known


def test_what_grew_back_in_part_is_halved_from_there() -> None:
    known = limits(MICROSOFT)
    again = slower(known, slower(known), now=NOW + 2 * TEN_MINUTES)
    assert again.per_minute == 10


def test_nothing_is_ever_slowed_down_to_a_stop() -> None:
    known = limits(per_minute=1)
    assert slower(known).per_minute == 1
    assert slower(limits(per_day=5), observed_per_minute=0).per_minute == 1
    assert slower(limits(), about=About.CONNECTIONS).connections == 1


def test_without_a_limit_the_last_minute_is_halved_and_free_again_when_it_has_doubled() -> None:
    known = limits(per_day=10_000)
    learned = slower(known, observed_per_minute=80)
    paces = [in_force(known, learned, NOW + steps * TEN_MINUTES).per_minute for steps in (0, 1, 9, 10)]
    assert paces == [40, 44, 76, None]


def test_connections_and_pace_are_learned_apart() -> None:
    known = limits(MICROSOFT, connections=8)
    both = slower(known, slower(known), about=About.CONNECTIONS, now=NOW + TEN_MINUTES)
    assert (both.per_minute, both.connections) == (18, 4)
    only = slower(known, about=About.CONNECTIONS)
    assert (only.per_minute, only.connections) == (None, 4)
    later = in_force(known, only, NOW + 3 * TEN_MINUTES)
    assert (later.per_minute, later.connections) == (30, 7)


def test_a_lesson_never_raises_what_was_lowered_since() -> None:
    learned = slower(limits(MICROSOFT))
    assert in_force(limits(MICROSOFT, per_minute=5), learned, NOW).per_minute == 5


@given(
    limit=st.integers(1, 10**9),
    answers=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(About)), max_size=30),
)
def test_what_is_in_force_is_from_one_to_the_limit(limit: int, answers: Sequence[tuple[int, About]]) -> None:
    known, now, learned = limits(per_minute=limit, connections=limit), NOW, None
    for minutes, about in answers:
        now += timedelta(minutes=minutes)
        learned = slower(known, learned, about=about, now=now)
        found = in_force(known, learned, now)
        assert 1 <= (found.per_minute or 0) <= limit
        assert 1 <= found.connections <= limit
    assert in_force(known, learned, now + LONGEST_LESSON) == known


# Looking ahead


def exactly(cost: int, held: Any) -> timedelta:
    """One recipient at a time: each as soon as all windows have room."""
    logs = [[until - window.span for until, c in spent for _ in range(c)] for window, spent in held]
    now = timedelta(0)
    for _ in range(cost):
        for (window, _), log in zip(held, logs, strict=True):
            if len(log) >= window.limit:
                now = max(now, log[-window.limit] + window.span)
        for log in logs:
            log.append(now)
    return now


HELD = st.lists(st.tuples(st.integers(1, 59), st.integers(1, 3)), max_size=4).map(
    lambda spent: [(timedelta(seconds=left), cost) for left, cost in sorted(spent)]
)


@given(minute=st.integers(1, 9), hour=st.integers(1, 30), cost=st.integers(1, 120), held=HELD)
@settings(deadline=None)
def test_small_limits_are_foretold_exactly(minute: int, hour: int, cost: int, held: Any) -> None:
    of_minute, of_hour = windows(per_minute=minute, per_hour=hour, per_day=None)
    facts = [(of_minute, held), (of_hour, [(timedelta(minutes=40), 2)])]
    assert time_of_last(cost, facts) == exactly(cost, facts)


def test_a_long_repetition_is_foretold_as_exactly_as_a_short_one() -> None:
    facts = [(window, []) for window in windows(per_minute=3, per_hour=None, per_day=10)]
    assert time_of_last(97, facts) == exactly(97, facts)
    assert time_of_last(100_000, facts) == timedelta(days=9_999, minutes=3)


def test_large_limits_are_foretold_within_a_sixtieth_of_a_span_and_never_early() -> None:
    held = [(timedelta(milliseconds=60 * part), 4) for part in range(1, 1000)]
    facts = [(windows(per_minute=4000, per_hour=None, per_day=None)[0], held)]
    assert timedelta(0) <= time_of_last(9_000, facts) - exactly(9_000, facts) <= timedelta(seconds=1)


def test_without_a_window_all_may_go_now() -> None:
    assert time_of_last(10**9, []) == timedelta(0)
