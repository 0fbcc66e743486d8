"""Limits in a real Redis: never more than allowed in any window, hardly less, and no slot too early."""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import fakeredis
import pytest
import redis

from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.domain.quotas import SPANS, Window
from gobii_email.ports import (
    Admission,
    Entered,
    Forgotten,
    LimiterUnavailable,
    LimitScope,
    Spent,
    Wait,
)
from gobii_email.testing.valkey import EmbeddedValkey

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASE = timedelta(minutes=3)
MILLISECOND = timedelta(milliseconds=1)
SECOND = timedelta(seconds=1)
MINUTE = SPANS["minute"]


class Time:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, span: timedelta) -> None:
        self.now += span


@pytest.fixture(scope="session")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(params=["valkey", "fakeredis"])
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A server that knows nothing yet: a real one, or an imitation in this process."""
    if request.param == "fakeredis":
        server = fakeredis.FakeServer()
        monkeypatch.setattr(
            redis.Redis,
            "from_url",
            lambda url, **options: fakeredis.FakeRedis(
                server=server, decode_responses=options.get("decode_responses", False)
            ),
        )
        return "redis://imitation"
    address: str = request.getfixturevalue("valkey").url
    redis.Redis.from_url(address).flushdb()
    return address


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def limits(url: str, time: Time) -> RedisLimiter:
    return RedisLimiter(url, patience=MINUTE, clock=time)


def account(
    *,
    minute: int | None = None,
    hour: int | None = None,
    day: int | None = None,
    connections: int | None = None,
    name: str = "ada",
) -> LimitScope:
    limits = {"minute": minute, "hour": hour, "day": day}
    windows = tuple(Window(span, SPANS[span], limit) for span, limit in limits.items() if limit)
    return LimitScope(f"account:{name}", "the account's", windows, connections)


def host(minute: int | None = None, connections: int | None = None) -> LimitScope:
    windows = (Window("minute", MINUTE, minute),) if minute else ()
    return LimitScope("host:smtp.example.com:587", "smtp.example.com's", windows, connections)


def known(limits: RedisLimiter, *scopes: LimitScope) -> list[LimitScope]:
    for scope in scopes:
        limits.restore(scope, [])
    return list(scopes)


def send(limits: RedisLimiter, lane: str, scopes: list[LimitScope], *costs: int) -> Admission:
    """Admits and settles at once what was admitted."""
    admission = limits.admit(lane, scopes, costs)
    assert isinstance(admission, Admission)
    if admission.granted:
        limits.settle(lane, scopes, spent=[Spent(c) for c in costs[: admission.granted]], returned=0)
    return admission


# What it knows


def test_a_scope_is_unknown_until_it_was_restored(limits: RedisLimiter) -> None:
    scopes = [account(minute=5), host(connections=2)]
    everything = Forgotten(("account:ada", "host:smtp.example.com:587"))
    assert limits.enter("lane", scopes, lease=LEASE) == everything
    assert limits.room("lane", scopes) == everything
    assert limits.admit("lane", scopes, [1]) == everything
    assert limits.usage(scopes[0]) is None
    known(limits, scopes[0])
    assert limits.enter("lane", scopes, lease=LEASE) == Forgotten(("host:smtp.example.com:587",))
    assert limits.usage(scopes[0]).lanes == 0  # all scopes or none
    known(limits, scopes[1])
    assert limits.enter("lane", scopes, lease=LEASE) == Entered(room=5, lanes=1)


def test_only_the_first_restores(limits: RedisLimiter) -> None:
    scope = account(minute=5)
    assert limits.restore(scope, [Spent(2, 10 * SECOND)])
    assert not limits.restore(scope, [Spent(3)])
    assert limits.usage(scope).used == {"minute": 2}


def test_nothing_but_a_restore_makes_a_scope_known(limits: RedisLimiter, url: str) -> None:
    scopes = [account(minute=5)]
    limits.settle("lane", scopes, spent=[Spent(1)], returned=0)
    limits.renew([("lane", scopes)], lease=LEASE)
    assert limits.leave("lane", scopes) is False
    assert redis.Redis.from_url(url).keys() == []


def test_a_scope_without_limits_is_never_asked_for(limits: RedisLimiter, url: str) -> None:
    scopes = [account()]
    assert limits.enter("lane", scopes, lease=LEASE) == Entered(room=10**9, lanes=1)
    assert limits.admit("lane", scopes, [7, 7]) == Admission(2)
    limits.settle("lane", scopes, spent=[Spent(14)], returned=0)
    assert not limits.leave("lane", scopes)
    assert redis.Redis.from_url(url).keys() == []


def test_what_is_restored_counts_for_the_rest_of_each_window(limits: RedisLimiter, time: Time) -> None:
    scope = account(minute=50, hour=50, day=50)
    hours = timedelta(hours=1)
    limits.restore(scope, [Spent(1), Spent(2, 90 * SECOND), Spent(4, 2 * hours), Spent(8, 30 * hours)])
    assert limits.usage(scope).used == {"minute": 1, "hour": 3, "day": 7}
    time.pass_by(22 * hours)
    assert limits.usage(scope).used == {"minute": 0, "hour": 0, "day": 3}


def test_restored_lanes_are_at_work_until_their_lease_ends(limits: RedisLimiter, time: Time) -> None:
    scope = account(connections=1)
    limits.restore(scope, [], lanes=[("other", 20 * SECOND)])
    wait = Wait(time.now + 20 * SECOND, "the only connection of the account is in use", is_full=True)
    assert limits.enter("lane", [scope], lease=LEASE) == wait
    time.pass_by(20 * SECOND)
    assert limits.enter("lane", [scope], lease=LEASE) == Entered(10**9, 1)


def test_all_that_is_kept_goes_away_by_itself(limits: RedisLimiter, url: str) -> None:
    scopes = known(limits, account(minute=5, connections=2), host(minute=9))
    limits.enter("lane", scopes, lease=LEASE)
    limits.admit("lane", scopes, [1, 1])
    limits.settle("lane", scopes, spent=[Spent(1)], returned=0)
    server = redis.Redis.from_url(url)
    keys = server.keys()
    assert len(keys) == 12
    assert all(86_400 < server.ttl(key) <= 90_000 for key in keys)


def test_entering_lets_the_accounts_next_hint_ring(limits: RedisLimiter, url: str) -> None:
    server = redis.Redis.from_url(url)
    server.set("gobii:hint:ada", "")
    server.set("gobii:hint:ben", "")
    limits.enter("lane", [account(connections=1)], lease=LEASE)
    assert server.keys() == [b"gobii:hint:ben"]


# Rates


def test_the_next_slot_is_exact(limits: RedisLimiter, time: Time) -> None:
    scopes = known(limits, account(minute=2))
    limits.enter("lane", scopes, lease=LEASE)
    send(limits, "lane", scopes, 1)
    time.pass_by(25 * SECOND)
    assert send(limits, "lane", scopes, 1, 1) == Admission(
        1, Wait(START + MINUTE, "the account's limit of 2 a minute")
    )
    assert limits.room("lane", scopes) == Wait(START + MINUTE, "the account's limit of 2 a minute")
    time.now = START + MINUTE - MILLISECOND
    assert send(limits, "lane", scopes, 1).granted == 0
    time.now = START + MINUTE
    assert limits.room("lane", scopes) == Entered(1, 1)
    assert send(limits, "lane", scopes, 1, 1) == Admission(
        1, Wait(START + MINUTE + 25 * SECOND, "the account's limit of 2 a minute")
    )


def test_what_is_counted_together_is_free_when_the_last_of_it_is(limits: RedisLimiter, time: Time) -> None:
    """A thousandth of a minute is 60 ms."""
    scopes = known(limits, account(minute=3))
    limits.enter("lane", scopes, lease=LEASE)
    for _ in range(3):
        send(limits, "lane", scopes, 1)
        time.pass_by(30 * MILLISECOND)
    latest = START + 60 * MILLISECOND
    assert limits.room("lane", scopes) == Wait(latest + MINUTE, "the account's limit of 3 a minute")
    time.now = latest + MINUTE - MILLISECOND
    assert isinstance(limits.room("lane", scopes), Wait)
    time.now = latest + MINUTE
    assert limits.room("lane", scopes) == Entered(3, 1)


def test_a_slot_for_many_waits_for_enough_of_them(limits: RedisLimiter, time: Time) -> None:
    scopes = known(limits, account(minute=10))
    limits.enter("lane", scopes, lease=LEASE)
    for _ in range(5):
        send(limits, "lane", scopes, 2)
        time.pass_by(SECOND)
    admission = limits.admit("lane", scopes, [5])
    assert admission == Admission(0, Wait(START + 2 * SECOND + MINUTE, "the account's limit of 10 a minute"))
    time.now = START + 2 * SECOND + MINUTE
    assert send(limits, "lane", scopes, 5).granted == 1


def test_costs_are_admitted_in_order_up_to_the_first_that_does_not_fit(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=10))
    limits.enter("lane", scopes, lease=LEASE)
    assert limits.admit("lane", scopes, [4, 4, 4, 1]).granted == 2
    assert limits.usage(scopes[0]).used == {"minute": 8}
    assert limits.admit("lane", scopes, []) == Admission(0)


def test_the_longest_wait_of_all_windows_and_scopes_is_told(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=1, hour=1), host(minute=1))
    limits.enter("lane", scopes, lease=LEASE)
    assert send(limits, "lane", scopes, 1, 1).wait == Wait(
        START + SPANS["hour"], "the account's limit of 1 an hour"
    )
    ben = known(limits, account(minute=9, name="ben"))[0]
    assert limits.enter("other", [ben, scopes[1]], lease=LEASE) == Wait(
        START + MINUTE, "smtp.example.com's limit of 1 a minute"
    )
    assert limits.usage(ben).lanes == 0  # all scopes or none


def test_reserved_counts_until_it_is_settled_however_long_that_takes(
    limits: RedisLimiter, time: Time
) -> None:
    scopes = known(limits, account(minute=2))
    limits.enter("lane", scopes, lease=timedelta(hours=1))
    limits.admit("lane", scopes, [1, 1])
    time.pass_by(10 * MINUTE)
    assert limits.admit("lane", scopes, [1]).granted == 0
    limits.settle("lane", scopes, spent=[Spent(1, 20 * SECOND)], returned=1)
    time.pass_by(40 * SECOND - MILLISECOND)
    assert limits.usage(scopes[0]).used == {"minute": 1}
    time.pass_by(MILLISECOND)
    assert limits.usage(scopes[0]).used == {"minute": 0}


def test_reserved_alone_may_fill_a_window(limits: RedisLimiter, time: Time) -> None:
    scopes = known(limits, account(minute=2))
    limits.enter("lane", scopes, lease=LEASE)
    limits.admit("lane", scopes, [2])
    wait = Wait(START + LEASE, "the account's limit of 2 a minute", is_full=True)
    assert limits.enter("other", scopes, lease=LEASE) == wait
    limits.settle("lane", scopes, spent=[], returned=2)
    assert limits.leave("lane", scopes) is True
    assert limits.enter("other", scopes, lease=LEASE) == Entered(2, 1)


def test_what_is_returned_is_free_at_once(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=3))
    limits.enter("lane", scopes, lease=LEASE)
    limits.admit("lane", scopes, [3])
    limits.settle("lane", scopes, spent=[Spent(1)], returned=2)
    assert limits.room("lane", scopes) == Entered(2, 1)
    assert limits.usage(scopes[0]).reserved == 0


def test_leaving_gives_back_what_was_not_settled(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=3))
    limits.enter("lane", scopes, lease=LEASE)
    limits.admit("lane", scopes, [3])
    limits.settle("lane", scopes, spent=[Spent(1)], returned=0)
    limits.leave("lane", scopes)
    assert limits.usage(scopes[0]).used == {"minute": 1}


def test_more_is_never_given_back_than_was_reserved(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=3))
    limits.enter("lane", scopes, lease=LEASE)
    limits.enter("other", scopes, lease=LEASE)
    limits.admit("other", scopes, [2])
    limits.settle("lane", scopes, spent=[], returned=5)
    assert limits.usage(scopes[0]).used == {"minute": 2}


def test_limits_may_change_from_call_to_call(limits: RedisLimiter, time: Time) -> None:
    wide, narrow = account(minute=10), account(minute=2)
    known(limits, wide)
    limits.enter("lane", [wide], lease=LEASE)
    send(limits, "lane", [wide], *[1] * 6)
    assert limits.room("lane", [narrow]) == Wait(START + MINUTE, "the account's limit of 2 a minute")
    assert limits.room("lane", [wide]) == Entered(4, 1)
    new_window = account(minute=10, day=7)
    assert limits.room("lane", [new_window]) == Entered(1, 1)
    time.pass_by(MINUTE)
    assert limits.room("lane", [narrow]) == Entered(2, 1)


def test_a_limit_of_a_billion_is_counted_exactly(limits: RedisLimiter) -> None:
    billion = 10**9
    scopes = known(limits, account(minute=billion, day=billion))
    assert limits.enter("lane", scopes, lease=LEASE) == Entered(billion, 1)
    assert send(limits, "lane", scopes, billion - 1, 2).granted == 1
    assert limits.room("lane", scopes) == Entered(1, 1)
    assert send(limits, "lane", scopes, 1, 1).granted == 1
    assert limits.usage(scopes[0]).used == {"minute": billion, "day": billion}


@pytest.mark.parametrize("costs", [[6], [1, 6], [0], [-1]], ids=str)
def test_a_cost_that_never_fits_is_a_mistake(limits: RedisLimiter, costs: list[int]) -> None:
    scopes = known(limits, account(minute=9, hour=5))
    limits.enter("lane", scopes, lease=LEASE)
    with pytest.raises(ValueError, match=r"limit of 5 an hour; send them in parts|1 or more"):
        limits.admit("lane", scopes, costs)


# Connections and leases


def test_no_more_lanes_than_connections(limits: RedisLimiter) -> None:
    scopes = known(limits, account(connections=2), host(connections=3))
    assert limits.enter("1", scopes, lease=LEASE) == Entered(10**9, 1)
    assert limits.enter("2", scopes, lease=2 * LEASE) == Entered(10**9, 2)
    assert limits.enter("2", scopes, lease=2 * LEASE) == Entered(10**9, 2)
    wait = Wait(START + LEASE, "all 2 connections of the account are in use", is_full=True)
    assert limits.enter("3", scopes, lease=LEASE) == wait
    others = [known(limits, account(name="ben"))[0], scopes[1]]
    assert limits.enter("4", others, lease=LEASE) == Entered(10**9, 1)
    assert limits.enter("5", others, lease=LEASE) == Wait(
        START + LEASE, "all 3 connections of smtp.example.com are in use", is_full=True
    )


def test_whoever_leaves_learns_once_that_somebody_asked(limits: RedisLimiter) -> None:
    scopes = known(limits, account(connections=1))
    limits.enter("1", scopes, lease=LEASE)
    assert limits.leave("1", scopes) is False
    limits.enter("1", scopes, lease=LEASE)
    limits.enter("2", scopes, lease=LEASE)
    assert limits.leave("1", scopes) is True
    assert limits.leave("1", scopes) is False


def test_a_lane_that_is_renewed_stays(limits: RedisLimiter, time: Time) -> None:
    scopes = known(limits, account(connections=1))
    limits.enter("1", scopes, lease=LEASE)
    time.pass_by(LEASE - SECOND)
    limits.renew([("1", scopes)], lease=LEASE)
    time.pass_by(LEASE - SECOND)
    assert isinstance(limits.enter("2", scopes, lease=LEASE), Wait)
    time.pass_by(SECOND)
    assert isinstance(limits.enter("2", scopes, lease=LEASE), Entered)


def test_what_a_crashed_lane_had_reserved_counts_from_the_end_of_its_lease(
    limits: RedisLimiter, time: Time
) -> None:
    scopes = known(limits, account(minute=2, connections=1))
    limits.enter("1", scopes, lease=LEASE)
    limits.admit("1", scopes, [1, 1])
    time.pass_by(LEASE)
    wait = Wait(time.now + MINUTE, "the account's limit of 2 a minute")
    assert limits.enter("2", scopes, lease=LEASE) == wait
    time.pass_by(MINUTE)
    assert limits.enter("2", scopes, lease=LEASE) == Entered(2, 1)


def test_a_lane_that_settles_after_its_lease_keeps_what_is_true(limits: RedisLimiter, time: Time) -> None:
    scopes = known(limits, account(minute=3))
    limits.enter("1", scopes, lease=LEASE)
    limits.admit("1", scopes, [1, 1, 1])
    time.pass_by(LEASE + SECOND)
    limits.settle("1", scopes, spent=[Spent(1, 2 * SECOND)], returned=2)
    assert limits.usage(scopes[0]).used == {"minute": 1}
    assert limits.admit("1", scopes, [1]).granted == 1  # and it is a lane again
    assert limits.usage(scopes[0]).lanes == 1


def test_a_flush_in_the_middle_leaves_nothing_half_known(limits: RedisLimiter, url: str) -> None:
    scopes = known(limits, account(minute=4, connections=2))
    limits.enter("1", scopes, lease=LEASE)
    limits.admit("1", scopes, [1, 1])
    redis.Redis.from_url(url).flushall()
    limits.settle("1", scopes, spent=[Spent(1)], returned=0)
    limits.renew([("1", scopes)], lease=LEASE)
    assert limits.room("1", scopes) == Forgotten(("account:ada",))
    limits.restore(scopes[0], [Spent(2)])
    limits.renew([("1", scopes)], lease=LEASE)
    usage = limits.usage(scopes[0])
    assert (usage.used, usage.lanes) == ({"minute": 2}, 1)
    limits.settle("1", scopes, spent=[Spent(1)], returned=0)
    assert limits.leave("1", scopes) is False
    assert limits.usage(scopes[0]).used == {"minute": 3}


# Looking ahead


def test_slots_tell_when_the_last_of_many_may_go(limits: RedisLimiter) -> None:
    scopes = known(limits, account(minute=2, day=5))
    limits.restore(scopes[0], [])
    assert limits.slots(scopes, 2) == START
    assert limits.slots(scopes, 3) == START + MINUTE
    assert limits.slots(scopes, 5) == START + 2 * MINUTE
    assert limits.slots(scopes, 6) == START + SPANS["day"]
    limits.enter("lane", scopes, lease=LEASE)
    send(limits, "lane", scopes, 1)
    limits.admit("lane", scopes, [1])
    assert limits.slots(scopes, 1) == START + MINUTE


# Never above, hardly below


class Log:
    """Every recipient that went out and when; the exact truth that the limiter is compared with."""

    def __init__(self) -> None:
        self.sent: list[tuple[datetime, int]] = []

    def most_in(self, span: timedelta) -> int:
        """The most in any window of `span`, its end left out."""
        inside: deque[tuple[datetime, int]] = deque()
        total = most = 0
        for at, cost in sorted(self.sent):
            inside.append((at, cost))
            total += cost
            while inside[0][0] <= at - span:
                total -= inside.popleft()[1]
            most = max(most, total)
        return most


class Traffic:
    """Three lanes that ask, send some time before they settle, are refused, crash, and come back.

    Whoever had to wait asks again at the very time it was told.
    """

    def __init__(self, limits: RedisLimiter, time: Time, scopes: list[LimitScope], seed: int) -> None:
        self.limits, self.time, self.scopes, self.chance = limits, time, scopes, random.Random(seed)
        self.log = Log()
        self.open: dict[str, list[int]] = {f"{number}": [] for number in range(3)}
        self.slot = self.admitted_at = time.now

    def step(self) -> None:
        self.time.pass_by(self.chance.choice([0, 1, 7, 30, 30, 59, 61, 400]) * MILLISECOND)
        if self.chance.random() < 0.3:
            self.time.now = max(self.time.now, self.slot)
        self.limits.renew([(lane, self.scopes) for lane, costs in self.open.items() if costs], lease=LEASE)
        lane = self.chance.choice(list(self.open))
        act = self.chance.choice([self.ask, self.ask, self.finish, self.finish, self.refuse, self.leave])
        (self.crash if self.chance.random() < 0.03 else act)(lane, self.open[lane])

    def ask(self, lane: str, mine: list[int]) -> None:
        entered = self.limits.enter(lane, self.scopes, lease=LEASE)
        if isinstance(entered, Entered):
            costs = [self.chance.randint(1, 2) for _ in range(4)]
            admission = self.limits.admit(lane, self.scopes, costs)
            assert isinstance(admission, Admission)
            mine += costs[: admission.granted]
            self.admitted_at = self.time.now
            entered = admission.wait or entered
        if isinstance(entered, Wait):
            self.slot = entered.until

    def finish(self, lane: str, mine: list[int]) -> None:
        ago = min(self.chance.choice([0, 5, 45]) * MILLISECOND, self.time.now - self.admitted_at)
        spent = [Spent(cost, ago) for cost in mine]
        self.log.sent += [(self.time.now - ago, cost) for cost in mine]
        self.limits.settle(lane, self.scopes, spent=spent, returned=0)
        mine.clear()

    def refuse(self, lane: str, mine: list[int]) -> None:
        self.limits.settle(lane, self.scopes, spent=[], returned=sum(mine))
        mine.clear()

    def leave(self, lane: str, mine: list[int]) -> None:
        self.finish(lane, mine)
        self.limits.leave(lane, self.scopes)

    def crash(self, lane: str, mine: list[int]) -> None:
        self.log.sent += [(self.time.now, cost) for cost in mine]
        del self.open[lane]
        self.open[f"{lane}'"] = []


@pytest.mark.parametrize("seed", range(25))
def test_never_above_the_limit_whatever_lanes_do(valkey: EmbeddedValkey, seed: int) -> None:
    redis.Redis.from_url(valkey.url).flushdb()
    time = Time()
    limits = RedisLimiter(valkey.url, patience=MINUTE, clock=time)
    limit = 3 + seed % 5
    scopes = known(limits, account(minute=limit, hour=9 * limit, connections=2))
    traffic = Traffic(limits, time, scopes, seed)
    for _ in range(250):
        traffic.step()
    assert sum(cost for _, cost in traffic.log.sent) > 3 * limit
    assert traffic.log.most_in(MINUTE) <= limit
    assert traffic.log.most_in(SPANS["hour"]) <= 9 * limit


@pytest.mark.parametrize(("limit", "cost"), [(1, 1), (7, 1), (300, 1), (2000, 3)])
def test_a_backlog_uses_nearly_all_of_the_limit(valkey: EmbeddedValkey, limit: int, cost: int) -> None:
    """Each mail takes an odd time, so entries of a window are merged in every way."""
    redis.Redis.from_url(valkey.url).flushdb()
    time, log = Time(), Log()
    limits = RedisLimiter(valkey.url, patience=MINUTE, clock=time)
    scopes = known(limits, account(minute=limit))
    limits.enter("lane", scopes, lease=timedelta(days=1))
    minutes = 5 if limit < 1000 else 3
    while time.now < START + minutes * MINUTE:
        admission = send(limits, "lane", scopes, cost)
        if admission.granted:
            log.sent.append((time.now, cost))
            time.pass_by(timedelta(milliseconds=11) if limit > 100 else timedelta(seconds=23) / limit)
        else:
            assert admission.wait is not None and not admission.wait.is_full
            time.now = admission.wait.until
    possible = limit // cost * cost * minutes
    assert log.most_in(MINUTE) <= limit
    assert sum(cost for _, cost in log.sent) >= 0.98 * possible


def test_a_window_never_holds_more_than_a_thousand_entries(valkey: EmbeddedValkey) -> None:
    redis.Redis.from_url(valkey.url).flushdb()
    time = Time()
    limits = RedisLimiter(valkey.url, patience=MINUTE, clock=time)
    scopes = known(limits, account(minute=10**6))
    limits.enter("lane", scopes, lease=timedelta(days=1))
    for _ in range(3000):
        limits.settle("lane", scopes, spent=[Spent(1)], returned=0)
        time.pass_by(timedelta(milliseconds=21))
    assert redis.Redis.from_url(valkey.url).llen("gobii:limit:account:ada:minute") <= 1001


def test_many_at_once_get_no_more_than_there_is(valkey: EmbeddedValkey) -> None:
    redis.Redis.from_url(valkey.url).flushdb()
    limits = RedisLimiter(valkey.url, patience=MINUTE)
    scopes = known(limits, account(minute=100, connections=4), host(minute=80))
    granted: list[int] = []
    most_lanes: list[int] = []

    def compete(number: int) -> None:
        lane = f"lane {number}"
        for _ in range(40):
            if isinstance(entered := limits.enter(lane, scopes, lease=LEASE), Entered):
                most_lanes.append(entered.lanes)
                admission = limits.admit(lane, scopes, [1, 2])
                assert isinstance(admission, Admission)
                granted.append(sum([1, 2][: admission.granted]))
                limits.settle(lane, scopes, spent=[Spent(granted[-1])], returned=0)
                limits.leave(lane, scopes)

    run_all([lambda number=number: compete(number) for number in range(8)])
    assert sum(granted) == 80
    assert max(most_lanes) <= 4
    assert limits.usage(scopes[1]).used == {"minute": 80}


def run_all(acts: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)


# Without Redis


def test_the_servers_clock_counts_where_none_is_given(valkey: EmbeddedValkey) -> None:
    redis.Redis.from_url(valkey.url).flushdb()
    limits = RedisLimiter(valkey.url, patience=MINUTE)
    scopes = known(limits, account(minute=1))
    limits.enter("lane", scopes, lease=LEASE)
    before = datetime.now(UTC)
    wait = send(limits, "lane", scopes, 1, 1).wait
    assert wait is not None
    assert before + 55 * SECOND < wait.until <= datetime.now(UTC) + MINUTE


def test_a_script_that_redis_lost_is_given_again(valkey: EmbeddedValkey) -> None:
    limits = RedisLimiter(valkey.url, patience=MINUTE)
    scopes = known(limits, account(minute=1))
    redis.Redis.from_url(valkey.url).script_flush()
    assert limits.usage(scopes[0]) is not None


def test_a_redis_that_is_away_or_frozen_is_said_to_be_unavailable(valkey: EmbeddedValkey) -> None:
    scopes = [account(minute=1)]
    with EmbeddedValkey() as own:
        known(RedisLimiter(own.url, patience=MINUTE), *scopes)
        limits = RedisLimiter(own.url, patience=SECOND / 5)
        own.freeze()
        with pytest.raises(LimiterUnavailable):
            limits.enter("lane", scopes, lease=LEASE)
        own.thaw()
        patient = RedisLimiter(own.url, patience=MINUTE)
        assert isinstance(patient.enter("lane", scopes, lease=LEASE), Entered)
    calls: list[Callable[[], object]] = [
        lambda: limits.enter("lane", scopes, lease=LEASE),
        lambda: limits.room("lane", scopes),
        lambda: limits.admit("lane", scopes, [1]),
        lambda: limits.settle("lane", scopes, spent=[], returned=1),
        lambda: limits.leave("lane", scopes),
        lambda: limits.renew([("lane", scopes)], lease=LEASE),
        lambda: limits.restore(scopes[0], []),
        lambda: limits.usage(scopes[0]),
        lambda: limits.slots(scopes, 1),
    ]
    for call in calls:
        with pytest.raises(LimiterUnavailable):
            call()
