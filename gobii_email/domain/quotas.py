"""How much an account may send: its limits, and what its server's answers taught about them.

Pure. A limit that is not set is its provider's (providers.toml), and for an unknown provider a cautious one
(docs/decisions/0006). What was learned is only ever below that, and grows back by itself.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from gobii_email.domain.providers import Provider

LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection")
MOST = 1_000_000_000
"""A limit above this is a mistake; who wants none says this."""
LONGEST_POOL_TTL = 3600
"""Seconds: no server keeps a silent connection longer."""

SPANS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}

CAUTIOUS_PER_MINUTE, CAUTIOUS_PER_DAY, CAUTIOUS_RECIPIENTS = 10, 500, 100
"""Where a provider says nothing: 500 a day and 100 a message is what the strictest large ones allow."""
CONNECTIONS_OF_A_PROVIDER, CONNECTIONS_OF_A_STRANGER = 3, 1
"""Microsoft 365 allows three, the fewest that a large provider names."""

GROWS_EVERY, GROWS_BY = timedelta(minutes=10), 10
"""What was learned grows by a tenth of the limit every ten minutes: from a half it is back within an hour."""
LONGEST_LESSON = 2 * GROWS_BY * GROWS_EVERY
"""Small limits grow back by one at a time: 19 from 1 in 18 steps."""
LEARNS_EVERY = timedelta(minutes=1)
"""Answers that come together are about one pace, and halve it once."""

SET, DEFAULT, STRANGER, INSTALLATION, LEARNED = (
    "set for this account",
    "a cautious default",
    "unknown provider",
    "set for the installation",
    "its server asked to slow down",
)


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` (>= 1) recipients in any `span`; `name` is minute, hour or day."""

    name: str
    span: timedelta
    limit: int


def windows(*, per_minute: int | None, per_hour: int | None, per_day: int | None) -> tuple[Window, ...]:
    """A window for each limit there is, the shortest first."""
    limits = zip(SPANS.items(), (per_minute, per_hour, per_day), strict=True)
    return tuple(Window(name, span, limit) for (name, span), limit in limits if limit is not None)


@dataclass(frozen=True, slots=True)
class OwnLimits:
    """What an operator has set for one account; None where nothing is."""

    per_minute: int | None = None
    per_hour: int | None = None
    per_day: int | None = None
    connections: int | None = None
    messages_per_connection: int | None = None
    pool_ttl: timedelta | None = None

    @property
    def names_a_rate(self) -> bool:
        return any(limit is not None for limit in (self.per_minute, self.per_hour, self.per_day))


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for one account, in recipients; None where there is no such limit.

    `sources` says by field where a value comes from, as the end of a sentence. `pool_ttl` is how long a
    connection may wait for the next turn.
    """

    per_minute: int | None
    per_hour: int | None
    per_day: int | None
    connections: int
    messages_per_connection: int
    pool_ttl: timedelta
    recipients_per_message: int | None
    sources: Mapping[str, str] = field(default_factory=dict)

    def windows(self) -> tuple[Window, ...]:
        return windows(per_minute=self.per_minute, per_hour=self.per_hour, per_day=self.per_day)

    @property
    def most_recipients(self) -> int:
        """How many recipients one transaction may have; a message for more goes out in parts."""
        limits = [window.limit for window in self.windows()]
        return min([self.recipients_per_message or MOST, *limits])


def limits_of(own: OwnLimits, provider: Provider | None, *, messages_per_connection_default: int) -> Limits:
    """The limits of an account: its own, else its provider's, else cautious ones.

    Whoever sets one rate for an account has spoken about its rate: then no cautious one is added.
    """
    rates = _cautious_rates(provider) if not own.names_a_rate else {}
    fallback = STRANGER if provider is None else DEFAULT
    chosen: dict[str, tuple[int | None, str]] = {
        name: _first((getattr(own, name), SET), (known, _name(provider)), (rates.get(name), fallback))
        for name, known in _rates_of(provider).items()
    }
    chosen["connections"] = _first(
        (own.connections, SET),
        (provider.connections if provider else None, _name(provider)),
        (CONNECTIONS_OF_A_PROVIDER if provider else CONNECTIONS_OF_A_STRANGER, fallback),
    )
    chosen["recipients_per_message"] = _first(
        (provider.recipients_per_message if provider else None, _name(provider)),
        (CAUTIOUS_RECIPIENTS, fallback),
    )
    chosen["messages_per_connection"] = _first(
        (own.messages_per_connection, SET), (messages_per_connection_default, INSTALLATION)
    )
    values = {name: value for name, (value, _) in chosen.items()}
    return Limits(
        per_minute=values["per_minute"],
        per_hour=values["per_hour"],
        per_day=values["per_day"],
        connections=values["connections"] or 1,
        messages_per_connection=values["messages_per_connection"] or 1,
        pool_ttl=own.pool_ttl or timedelta(0),
        recipients_per_message=values["recipients_per_message"],
        sources={name: source for name, (value, source) in chosen.items() if value is not None},
    )


def _first(*candidates: tuple[int | None, str]) -> tuple[int | None, str]:
    return next((found for found in candidates if found[0] is not None), (None, ""))


def _name(provider: Provider | None) -> str:
    return provider.name if provider is not None else ""


def _rates_of(provider: Provider | None) -> dict[str, int | None]:
    """A provider that counts messages is not exceeded by as many recipients."""
    if provider is None:
        return dict.fromkeys(("per_minute", "per_hour", "per_day"))
    return {
        "per_minute": provider.messages_per_minute,
        "per_hour": provider.recipients_per_hour,
        "per_day": provider.recipients_per_day,
    }


def _cautious_rates(provider: Provider | None) -> dict[str, int]:
    if provider is not None:
        return {"per_day": CAUTIOUS_PER_DAY}
    return {"per_minute": CAUTIOUS_PER_MINUTE, "per_day": CAUTIOUS_PER_DAY}


# What a server's answers teach


class About(StrEnum):
    """What a server said was too much."""

    RATE = "rate"
    CONNECTIONS = "connections"


@dataclass(frozen=True, slots=True)
class Learned:
    """What an account was slowed down to `at` some moment, and why; None where it was not."""

    per_minute: int | None
    connections: int | None
    at: datetime
    reason: str


def learn(
    limits: Limits,
    learned: Learned | None,
    *,
    now: datetime,
    observed_per_minute: int,
    about: About,
    reason: str,
) -> Learned:
    """Half of what is in force, or where no rate is, of the recipients of the last minute. Never below 1."""
    present = in_force(limits, learned, now)
    per_minute = present.per_minute if present.per_minute != limits.per_minute else None
    connections = present.connections if present.connections != limits.connections else None
    if about is About.CONNECTIONS:
        connections = max(1, present.connections // 2)
    else:
        per_minute = max(1, (present.per_minute or observed_per_minute) // 2)
    return Learned(per_minute, connections, now, reason)


def in_force(limits: Limits, learned: Learned | None, now: datetime) -> Limits:
    """The `limits`, lower where something was learned and has not grown back yet."""
    if learned is None:
        return limits
    steps = max(0, (now - learned.at) // GROWS_EVERY)
    per_minute = _grown(learned.per_minute, limits.per_minute, steps)
    connections = _grown(learned.connections, limits.connections, steps)
    lessons = {"per_minute": per_minute, "connections": connections}
    lowered = [name for name, value in lessons.items() if value is not None]
    return replace(
        limits,
        per_minute=per_minute or limits.per_minute,
        connections=connections or limits.connections,
        sources={**limits.sources, **dict.fromkeys(lowered, LEARNED)},
    )


def _grown(learned: int | None, limit: int | None, steps: int) -> int | None:
    """What is left of a lesson; None when it is over. Without a limit it is over at twice its beginning."""
    if learned is None:
        return None
    ceiling = learned * 2 if limit is None else limit
    step = max(1, (learned if limit is None else limit) // GROWS_BY)
    grown = learned + steps * step
    return grown if grown < ceiling else None


# When many will have gone

Left = tuple[timedelta, int]
"""How much longer so many recipients count in a window."""


def time_of_last(cost: int, held: Sequence[tuple[Window, Sequence[Left]]]) -> timedelta:
    """How long until the last of `cost` (>= 1) recipients may go, each as soon as all windows have room.

    Each window comes with what it holds, soonest free first. Large costs go in lumps of a sixtieth of the
    smallest limit: the answer may then be late by a sixtieth of a span, never early.
    """
    return _Forecast(held).time_of_last(cost) if held else timedelta(0)


@dataclass(frozen=True, slots=True)
class _Sight:
    """A moment of a forecast: what was still to go, and what all windows held."""

    at: timedelta
    cost: int
    held: list[list[Left]]


class _Forecast:
    """The windows as time passes. What has come round as it was goes on so, and is not counted out."""

    def __init__(self, held: Sequence[tuple[Window, Sequence[Left]]]) -> None:
        self._fillings = [_Filling(window, spent) for window, spent in held]
        self._lump = max(1, min(window.limit for window, _ in held) // 60)
        self._period = max(SPANS.values())

    def time_of_last(self, cost: int) -> timedelta:
        now = timedelta(0)
        before: _Sight | None = None
        while True:
            now = max(one.time_of(min(cost, self._lump), now) for one in self._fillings)
            cost -= self._send(cost, now)
            if cost <= 0:
                return now
            if before is None or now - before.at >= self._period:
                seen = _Sight(now, cost, [one.seen_from(now) for one in self._fillings])
                if before is not None and before.held == seen.held:
                    return now + self._repeat(before, seen)
                before = seen

    def _send(self, cost: int, now: timedelta) -> int:
        room = min(cost, *(one.room(now) for one in self._fillings))
        for one in self._fillings:
            one.add(now, room)
        return room

    def _repeat(self, before: _Sight, seen: _Sight) -> timedelta:
        """From `seen` on: whole rounds at once, then what is left of the last one."""
        sent = before.cost - seen.cost
        rounds = (seen.cost - 1) // sent
        rest = zip((one.window for one in self._fillings), seen.held, strict=True)
        return rounds * (seen.at - before.at) + time_of_last(seen.cost - rounds * sent, list(rest))


class _Filling:
    """One window: what it holds, and until when."""

    def __init__(self, window: Window, spent: Sequence[Left]) -> None:
        self.window = window
        self._held = deque(spent)
        self._used = sum(cost for _, cost in spent)

    def time_of(self, cost: int, now: timedelta) -> timedelta:
        """When there is room for `cost`, which is at most the limit."""
        excess = self._used + cost - self.window.limit
        for until, held in self._held:
            if excess <= 0:
                break
            excess -= held
            now = max(now, until)
        return now

    def room(self, now: timedelta) -> int:
        while self._held and self._held[0][0] <= now:
            self._used -= self._held.popleft()[1]
        return self.window.limit - self._used

    def add(self, now: timedelta, cost: int) -> None:
        self._held.append((now + self.window.span, cost))
        self._used += cost

    def seen_from(self, now: timedelta) -> list[Left]:
        return [(until - now, cost) for until, cost in self._held]
