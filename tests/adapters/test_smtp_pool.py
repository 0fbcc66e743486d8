"""Connections between turns: how many wait, how long, and that no account gets another's."""

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from gobii_email.adapters.smtp import SmtpTransport
from gobii_email.adapters.smtp_dialogue import Dialogue
from gobii_email.adapters.smtp_pool import SmtpPool
from gobii_email.domain.outcomes import Accepted
from gobii_email.ports import Auth, Reuse, SmtpServer
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.adapters.conftest import (
    MESSAGE,
    PASSWORD,
    USERS,
    Notes,
    account,
    envelope,
    in_the_clear,
    loopback_policy,
    quick_deadlines,
    transport_to,
)

WAITING = Reuse("anna", 100, timedelta(seconds=60), 2)


@pytest.fixture
def server() -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(security="none") as running:
        yield running


@pytest.fixture
def transport(server: ScriptedSmtpServer) -> Iterator[SmtpTransport]:
    made = transport_to(server.port)
    yield made
    made.close_all()


class Clock:
    """The time of the whole process, which can be moved on."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._passed = 0.0

    def __call__(self) -> float:
        return self._real() + self._passed

    def passes(self, seconds: float) -> None:
        self._passed += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


def target(server: ScriptedSmtpServer) -> SmtpServer:
    return in_the_clear(server.port)


def turn(transport: SmtpTransport, server: SmtpServer, reuse: Reuse = WAITING, messages: int = 1) -> None:
    sender = transport.open(server, reuse)
    for _ in range(messages):
        outcome = sender.send(envelope(), b"", MESSAGE, Notes())
        assert isinstance(outcome, Accepted), outcome
    sender.close()


def test_the_next_turn_goes_on_with_the_connection_of_the_last(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    for _ in range(3):
        turn(transport, target(server), messages=2)
    assert server.connections == 1 and len(server.messages) == 6


@pytest.mark.parametrize(
    "reuse",
    [replace(WAITING, idle=timedelta(0)), replace(WAITING, key=""), replace(WAITING, messages=1)],
    ids=["no idling", "no key", "one message"],
)
def test_nothing_waits_where_it_may_not(
    server: ScriptedSmtpServer, transport: SmtpTransport, reuse: Reuse
) -> None:
    for _ in range(2):
        turn(transport, target(server), reuse)
    assert server.connections == 2


def test_the_limit_of_messages_counts_over_all_turns(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    for _ in range(7):
        turn(transport, target(server), replace(WAITING, messages=3))
    assert [message.connection for message in server.messages] == [1, 1, 1, 2, 2, 2, 3]


def test_what_has_waited_too_long_is_closed(
    server: ScriptedSmtpServer, transport: SmtpTransport, clock: Clock
) -> None:
    turn(transport, target(server))
    clock.passes(40)
    turn(transport, target(server))
    clock.passes(61)
    turn(transport, target(server))
    assert [message.connection for message in server.messages] == [1, 1, 2]


def test_a_connection_grows_no_older_than_five_minutes(
    server: ScriptedSmtpServer, transport: SmtpTransport, clock: Clock
) -> None:
    for _ in range(8):
        turn(transport, target(server))
        clock.passes(50)
    assert [message.connection for message in server.messages] == [1] * 6 + [2] * 2


def test_the_age_counts_within_a_turn_as_well(
    server: ScriptedSmtpServer, transport: SmtpTransport, clock: Clock
) -> None:
    sender = transport.open(target(server), WAITING)
    for _ in range(3):
        assert isinstance(sender.send(envelope(), b"", MESSAGE, Notes()), Accepted)
        clock.passes(200)
    sender.close()
    assert [message.connection for message in server.messages] == [1, 1, 2]


def test_no_more_wait_for_an_account_than_allowed(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    senders = [transport.open(target(server), WAITING) for _ in range(4)]
    for sender in senders:
        sender.send(envelope(), b"", MESSAGE, Notes())
    for sender in senders:
        sender.close()
    assert len(transport._pool) == 2
    again = [transport.open(target(server), WAITING) for _ in range(3)]
    for sender in again:
        sender.send(envelope(), b"", MESSAGE, Notes())
        sender.send(envelope(), b"", MESSAGE, Notes())
    for sender in again:
        sender.close()
    assert server.connections == 5


def test_the_oldest_leaves_when_too_many_wait_in_all(server: ScriptedSmtpServer) -> None:
    transport = transport_to(server.port)
    transport._pool = SmtpPool(max_waiting=3)
    for key in "abcd":
        turn(transport, target(server), replace(WAITING, key=key))
    assert len(transport._pool) == 3
    for key in "dcb":
        turn(transport, target(server), replace(WAITING, key=key))
    assert server.connections == 4
    turn(transport, target(server), replace(WAITING, key="a"))
    assert server.connections == 5
    transport.close_all()
    assert len(transport._pool) == 0


def test_a_stale_connection_from_the_pool_is_replaced_in_silence(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    turn(transport, target(server))
    server.stop()
    server.start()
    turn(transport, target(server))
    assert server.connections == 2


def test_equal_keys_open_nothing_where_anything_else_differs(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users={**USERS, "berta": PASSWORD}) as server:
        transport = transport_to(server.port)
        same = account(server.port)
        others = [
            account(server.port, username="berta"),
            account(server.port, auth=Auth.LOGIN),
            account(server.port, host="127.0.0.1"),
        ]
        for each in (same, *others):
            turn(transport, each, replace(WAITING, connections=10))
        wrong = transport.open(account(server.port, password="wrong"), WAITING)
        assert not isinstance(wrong.send(envelope(), b"", MESSAGE, Notes()), Accepted)
        assert server.connections == 5
        turn(transport, same, replace(WAITING, connections=10))
        assert server.connections == 5
        transport.close_all()


def test_no_message_goes_out_under_another_login(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS) as server:
        transport = SmtpTransport(loopback_policy(server.port), quick_deadlines(60))

        def work(seed: int) -> None:
            choice = random.Random(seed)
            for _ in range(15):
                name = choice.choice(list(USERS))
                reuse = Reuse(name, choice.choice([1, 2, 10]), timedelta(seconds=60), 2)
                sender = transport.open(account(server.port, username=name, password=USERS[name]), reuse)
                for _ in range(choice.randrange(1, 4)):
                    mine = envelope(sender=f"{name}@sender.example")
                    assert isinstance(sender.send(mine, b"", MESSAGE, Notes()), Accepted)
                sender.close()

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        transport.close_all()
    assert len(server.messages) >= 60
    assert server.connections < len(server.messages)
    assert [message for message in server.messages if message.sender.split("@")[0] != message.user] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_begins_without_connections_and_leaves_its_parents_alone(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    turn(transport, target(server))
    transport._pool._lock.acquire()
    child = os.fork()
    if child == 0:
        is_empty = False
        try:
            transport._pool._lock.acquire(timeout=5)
            transport._pool._lock.release()
            is_empty = len(transport._pool) == 0
            transport.close_all()
        finally:
            os._exit(0 if is_empty else 1)
    transport._pool._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    turn(transport, target(server))
    assert server.connections == 1


def test_a_waiting_connection_keeps_nobodys_lease(
    server: ScriptedSmtpServer, transport: SmtpTransport
) -> None:
    notes = Notes()
    sender = transport.open(target(server), WAITING)
    sender.send(envelope(), b"", MESSAGE, notes)
    sender.close()
    (waiting,) = transport._pool._waiting
    assert isinstance(waiting.dialogue, Dialogue) and waiting.dialogue._progress is not notes
