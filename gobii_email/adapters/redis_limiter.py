"""Rates and connections in Redis, shared by all workers (`ports.Limiter`).

Every method is one call of one script, redis_limiter.lua beside this file, which reads the server's clock:
so it decides alone, and workers whose clocks differ agree. What Redis holds may be lost at any time; a scope
it does not know is Forgotten until somebody restores it.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import Any

import redis

from gobii_email.adapters.celery_queue import hint_key, redis_client
from gobii_email.domain.quotas import SPANS, Window, time_of_last
from gobii_email.ports import (
    Admission,
    Clock,
    Entered,
    Forgotten,
    LimiterUnavailable,
    LimitScope,
    Spent,
    Usage,
    Wait,
)

_SPANS = {name: span // timedelta(microseconds=1) for name, span in SPANS.items()}
_ACCOUNT = "account:"


class RedisLimiter:
    """Limits kept in the Redis at `url`, which is given `patience` to answer each call.

    A call is never repeated: what timed out may have been done, and to reserve twice would be worse than to
    ask again later. `clock` is for tests: the time to go by instead of the server's.
    """

    def __init__(
        self, url: str, *, patience: timedelta = timedelta(seconds=1), clock: Clock | None = None
    ) -> None:
        self._redis = redis_client(url, patience=patience, is_text=True)
        script = files(__package__).joinpath("redis_limiter.lua").read_text(encoding="utf-8")
        self._script = self._redis.register_script(script)
        self._clock = clock

    def enter(
        self, lane: str, scopes: Sequence[LimitScope], *, lease: timedelta
    ) -> Entered | Wait | Forgotten:
        hint = {"hint": hint_key(endpoint)} if (endpoint := _endpoint_of(scopes)) else {}
        answer = self._ask("enter", scopes, lane=lane, lease=_microseconds(lease), **hint)
        return self._entered(scopes, answer)

    def room(self, lane: str, scopes: Sequence[LimitScope]) -> Entered | Wait | Forgotten:
        return self._entered(scopes, self._ask("room", scopes, lane=lane))

    def admit(self, lane: str, scopes: Sequence[LimitScope], costs: Sequence[int]) -> Admission | Forgotten:
        """Raises ValueError for a cost below 1, or one that no limit will ever have room for."""
        _refuse_impossible(scopes, costs)
        kind, *answer = self._ask("admit", scopes, lane=lane, costs=list(costs))
        if kind == "forgotten":
            return Forgotten(tuple(answer))
        return Admission(answer[0], self._wait(scopes, answer[2:]) if answer[1:] else None)

    def settle(
        self, lane: str, scopes: Sequence[LimitScope], *, spent: Sequence[Spent], returned: int
    ) -> None:
        self._ask("settle", scopes, lane=lane, spent=_oldest_first(spent), returned=returned)

    def leave(self, lane: str, scopes: Sequence[LimitScope]) -> bool:
        return bool(self._ask("leave", scopes, lane=lane))

    def renew(self, lanes: Sequence[tuple[str, Sequence[LimitScope]]], *, lease: timedelta) -> None:
        turns = [{"lane": lane, "scopes": _plain(scopes)} for lane, scopes in lanes]
        self._ask("renew", (), turns=turns, lease=_microseconds(lease))

    def restore(
        self, scope: LimitScope, spent: Sequence[Spent], *, lanes: Sequence[tuple[str, timedelta]] = ()
    ) -> bool:
        at_work = [{"lane": lane, "left": _microseconds(left)} for lane, left in lanes]
        return bool(self._ask("restore", [scope], spent=_oldest_first(spent), lanes=at_work))

    def usage(self, scope: LimitScope) -> Usage | None:
        answer = self._ask("usage", [scope])
        if not answer:
            return None
        reserved, lanes, *totals = answer
        names = [window.name for window in scope.windows]
        used = {name: total + reserved for name, total in zip(names, totals, strict=True)}
        return Usage(used, reserved, lanes)

    def slots(self, scopes: Sequence[LimitScope], cost: int) -> datetime | None:
        """As if what is reserved were sent now, and nothing spent in scopes that are not known."""
        rows = self._ask("entries", scopes)
        windows = [window for scope in scopes for window in scope.windows]
        spent = [_left(window, row) for window, row in zip(windows, rows, strict=True)]
        try:
            return self._now() + time_of_last(cost, list(zip(windows, spent, strict=True)))
        except OverflowError:
            return None  # not before the year 10000

    def _ask(self, method: str, scopes: Sequence[LimitScope], **facts: object) -> Any:
        request: dict[str, object] = {"spans": _SPANS, "scopes": _plain(scopes), **facts}
        if self._clock is not None:
            request["now"] = round(self._clock().timestamp() * 1_000_000)
        try:
            return self._script(args=[method, json.dumps(request)])
        except redis.RedisError as problem:
            raise LimiterUnavailable(f"Redis does not answer ({type(problem).__name__}).") from None

    def _entered(self, scopes: Sequence[LimitScope], answer: Sequence[Any]) -> Entered | Wait | Forgotten:
        match answer:
            case ["entered", room, lanes]:
                return Entered(room, lanes)
            case ["wait", *facts]:
                return self._wait(scopes, facts)
            case [_, *keys]:
                return Forgotten(tuple(keys))
        raise AssertionError(answer)

    def _wait(self, scopes: Sequence[LimitScope], facts: Sequence[Any]) -> Wait:
        scope_number, window_number, span, is_full = map(int, facts)
        scope = scopes[scope_number - 1]
        reason = _rate(scope, scope.windows[window_number - 1]) if window_number else _crowd(scope)
        return Wait(self._now() + timedelta(microseconds=span), reason, is_full=bool(is_full))

    def _now(self) -> datetime:
        return self._clock() if self._clock is not None else datetime.now(UTC)


def _plain(scopes: Sequence[LimitScope]) -> list[Mapping[str, object]]:
    return [
        {
            "key": scope.key,
            "windows": [{"name": window.name, "limit": window.limit} for window in scope.windows],
            "connections": scope.connections or 0,
        }
        for scope in scopes
    ]


def _endpoint_of(scopes: Sequence[LimitScope]) -> str:
    """The sender's endpoint, where the first scope is an account's; doorbells hint at those."""
    key = scopes[0].key if scopes else ""
    return key.removeprefix(_ACCOUNT) if key.startswith(_ACCOUNT) else ""


def _oldest_first(spent: Sequence[Spent]) -> list[Mapping[str, int]]:
    ordered = sorted(spent, key=lambda one: one.ago, reverse=True)
    return [{"cost": one.cost, "ago": max(_microseconds(one.ago), 0)} for one in ordered]


def _microseconds(span: timedelta) -> int:
    return span // timedelta(microseconds=1)


def _left(window: Window, row: Sequence[Any]) -> list[tuple[timedelta, int]]:
    """How long each part of what a window holds still counts."""
    reserved, *facts = map(int, row)
    spent = [(timedelta(microseconds=left), cost) for left, cost in zip(facts[::2], facts[1::2], strict=True)]
    return [*spent, (window.span, reserved)] if reserved else spent


def _refuse_impossible(scopes: Sequence[LimitScope], costs: Sequence[int]) -> None:
    most = max(costs, default=1)
    for scope in scopes:
        for window in scope.windows:
            if most > window.limit:
                never = f"{most} recipients at once never fit into {_rate(scope, window)}"
                raise ValueError(f"{never}; send them in parts")
    if min(costs, default=1) < 1:
        raise ValueError("a cost is the number of recipients, 1 or more")


def _rate(scope: LimitScope, window: Window) -> str:
    article = "an" if window.name == "hour" else "a"
    return f"{scope.owner} limit of {window.limit:,} {article} {window.name}"


def _crowd(scope: LimitScope) -> str:
    owner = scope.owner.removesuffix("'s")
    if scope.connections == 1:
        return f"the only connection of {owner} is in use"
    return f"all {scope.connections} connections of {owner} are in use"
