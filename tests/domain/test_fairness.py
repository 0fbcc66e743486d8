"""How many of a worker's threads a server may hold, by what it has shown."""

import pytest

from gobii_email.domain.fairness import SLOW_AFTER, HostShare, first_share, may_enter, widened

QUICK, SLOW = 0.1, SLOW_AFTER + 1


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (2, 1), (8, 1), (16, 2), (64, 8), (200, 25)])
def test_a_server_starts_with_an_eighth_of_the_threads_and_at_least_one(threads: int, expected: int) -> None:
    assert first_share(threads) == expected


@pytest.mark.parametrize(
    ("allowed", "seconds", "threads", "expected"),
    [
        pytest.param(0, QUICK, 64, 9, id="the first quick answer adds a thread to the first share"),
        pytest.param(9, QUICK, 64, 10, id="each further one adds another"),
        pytest.param(55, QUICK, 64, 56, id="up to seven eighths"),
        pytest.param(56, QUICK, 64, 56, id="and no further"),
        pytest.param(40, SLOW_AFTER, 64, 41, id="just in time is quick"),
        pytest.param(56, SLOW, 64, 8, id="one slow answer takes everything back"),
        pytest.param(0, SLOW, 64, 8, id="a slow server keeps its first share"),
        pytest.param(3, QUICK, 4, 3, id="of four threads one is left for others"),
        pytest.param(0, QUICK, 2, 2, id="of two or three none can be kept back"),
        pytest.param(0, QUICK, 1, 1, id="a single thread serves everybody in turn"),
    ],
)
def test_what_a_server_may_hold_after_an_answer(
    allowed: int, seconds: float, threads: int, expected: int
) -> None:
    assert widened(HostShare(1, allowed), threads, seconds=seconds) == expected


STUCK = HostShare(lanes=8, allowed=56, is_stuck=True)
NEW = HostShare(lanes=8)
PROVEN = HostShare(lanes=40, allowed=56)


@pytest.mark.parametrize(
    ("share", "others", "expected"),
    [
        pytest.param(HostShare(), [], True, id="nobody is anywhere"),
        pytest.param(HostShare(lanes=7), [], True, id="an unknown server has its first share"),
        pytest.param(HostShare(lanes=8), [], False, id="and no more"),
        pytest.param(HostShare(lanes=55, allowed=56), [], True, id="a proven one has what it was allowed"),
        pytest.param(HostShare(lanes=56, allowed=56), [], False, id="and no more either"),
        pytest.param(HostShare(lanes=20, allowed=56, is_stuck=True), [], False, id="unless it is stuck"),
        pytest.param(HostShare(), [STUCK] * 3, True, id="three slow servers leave room for a newcomer"),
        pytest.param(HostShare(), [STUCK] * 4, False, id="four have the half that is theirs together"),
        pytest.param(HostShare(), [NEW, NEW, STUCK, STUCK], False, id="unknown ones share it with them"),
        pytest.param(PROVEN, [STUCK] * 4, True, id="a proven server does not mind them"),
        pytest.param(HostShare(), [PROVEN] * 4, True, id="nor do proven ones count among them"),
    ],
)
def test_who_may_enter_among_64_threads(share: HostShare, others: list[HostShare], expected: bool) -> None:
    assert may_enter(share, others, 64) is expected


@pytest.mark.parametrize("threads", [1, 2, 3, 8, 64])
def test_however_many_servers_are_stuck_half_of_the_threads_are_left(threads: int) -> None:
    hosts: list[HostShare] = []
    for _ in range(threads):
        host = HostShare()
        while may_enter(host, hosts, threads):
            host.lanes += 1
        hosts.append(host)
    assert sum(host.lanes for host in hosts) == max(1, threads // 2)


@pytest.mark.parametrize("threads", [2, 3, 4, 8])
def test_two_servers_that_are_quick_may_both_be_spoken_to_at_once(threads: int) -> None:
    quick = widened(HostShare(lanes=1), threads, seconds=QUICK)
    assert may_enter(HostShare(lanes=0, allowed=quick), [HostShare(lanes=1, allowed=quick)], threads)
