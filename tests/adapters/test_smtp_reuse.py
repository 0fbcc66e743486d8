"""Connections that carry more than one message: how many, after what endings, and when they are stale."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest

from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Reuse, Sender
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import Faults, RawServer, Script, ScriptedSmtpServer
from gobii_email.testing.stack import eventually
from tests.adapters.conftest import (
    MANY,
    MESSAGE,
    USERS,
    Notes,
    account,
    envelope,
    in_the_clear,
    quick_deadlines,
    transport_to,
)

# Longer than any server here is waited for, and twice as long as a busy machine may take.
PLAY_SECONDS = 60


@pytest.fixture(params=[True, False], ids=["in one go", "in turn"])
def server(request: pytest.FixtureRequest, authority: ThrowAwayAuthority) -> Iterator[ScriptedSmtpServer]:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS, offers_pipelining=request.param) as running:
        yield running


def sender_to(server: ScriptedSmtpServer, reuse: Reuse = MANY) -> Sender:
    return transport_to(server.port).open(account(server.port), reuse)


def clear_sender_to(server: RawServer) -> Sender:
    return transport_to(server.port).open(in_the_clear(server.port), MANY)


def send(sender: Sender, notes: Notes | None = None) -> Outcome:
    return sender.send(envelope(), b"", MESSAGE, notes or Notes())


def test_messages_share_a_connection_and_dial_once(server: ScriptedSmtpServer) -> None:
    sender, first, second = sender_to(server), Notes(), Notes()
    outcomes = [send(sender, first), send(sender, second)]
    assert all(isinstance(outcome, Accepted) for outcome in outcomes), outcomes
    assert server.connections == 1 and len(server.logins) == 1
    assert first.told[0] == "connect"
    assert second.told == ["mail", "rcpt", "data", "mark"]
    assert set(outcomes[1].facts.stage_ms) == {"mail", "rcpt", "data", "dot"}
    assert outcomes[1].facts.tls == outcomes[0].facts.tls != ""
    assert outcomes[1].facts.extensions == outcomes[0].facts.extensions
    sender.close()


def test_a_connection_carries_no_more_messages_than_allowed(server: ScriptedSmtpServer) -> None:
    sender = sender_to(server, replace(MANY, messages=3))
    for _ in range(7):
        assert isinstance(send(sender), Accepted)
    sender.close()
    assert [message.connection for message in server.messages] == [1, 1, 1, 2, 2, 2, 3]


def test_a_server_may_change_its_extensions_between_connections(server: ScriptedSmtpServer) -> None:
    sender = sender_to(server, replace(MANY, messages=2))
    outcomes = []
    for _ in range(3):
        outcomes += [send(sender), send(sender)]
        server.offers_pipelining = not server.offers_pipelining
    assert all(isinstance(outcome, Accepted) for outcome in outcomes)
    assert len({outcome.facts.extensions for outcome in outcomes}) == 2


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "DOT"])
def test_a_refused_message_leaves_the_connection_to_the_next(
    server: ScriptedSmtpServer, command: str
) -> None:
    server.faults = Faults(replies={command: "550 5.7.1 No"}, times={command: 1})
    sender = sender_to(server)
    refused, accepted = send(sender), send(sender)
    assert isinstance(refused, Refused) and refused.stage == command.lower()
    assert isinstance(accepted, Accepted)
    assert server.connections == 1
    sender.close()


@pytest.mark.parametrize(
    ("command", "reply", "connections"),
    [
        ("MAIL", "451 4.7.1 Not now", 2),
        ("MAIL", "550 5.7.1 No", 1),
        ("RCPT", "451 4.7.1 Not now", 1),
        ("DATA", "451 4.7.1 Not now", 1),
    ],
)
def test_a_sender_refused_for_now_is_the_last_on_a_used_connection(
    server: ScriptedSmtpServer, command: str, reply: str, connections: int
) -> None:
    sender, notes = sender_to(server), Notes()
    assert isinstance(send(sender), Accepted)
    server.faults = Faults(replies={command: reply}, times={command: 1})
    refused = send(sender, notes)
    assert isinstance(refused, Refused) and (refused.stage, str(refused.reply)) == (command.lower(), reply)
    assert "connect" not in notes.told, "it is not offered again in silence"
    assert isinstance(send(sender), Accepted)
    assert server.connections == connections
    sender.close()


def test_a_sender_refused_for_now_on_a_new_connection_leaves_it_to_the_next(
    server: ScriptedSmtpServer,
) -> None:
    server.faults = Faults(replies={"MAIL": "451 4.7.1 Not now"}, times={"MAIL": 1})
    sender = sender_to(server)
    refused, accepted = send(sender), send(sender)
    assert isinstance(refused, Refused) and isinstance(accepted, Accepted)
    assert server.connections == 1
    sender.close()


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "DOT"])
def test_421_costs_the_next_message_a_new_connection(server: ScriptedSmtpServer, command: str) -> None:
    server.faults = Faults(replies={command: "421 4.3.2 Closing"}, times={command: 1})
    sender = sender_to(server)
    refused, accepted = send(sender), send(sender)
    assert isinstance(refused, Refused) and refused.stage == command.lower()
    assert isinstance(accepted, Accepted)
    assert server.connections == 2
    sender.close()


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "DOT", "AFTER_DOT"])
def test_a_lost_connection_costs_the_next_message_a_new_one(server: ScriptedSmtpServer, command: str) -> None:
    server.faults = Faults(drops={command}, times={command: 1})
    sender = sender_to(server)
    lost, accepted = send(sender), send(sender)
    assert isinstance(lost, Lost), lost
    assert isinstance(accepted, Accepted)
    assert server.connections == 2
    sender.close()


def test_a_login_that_is_refused_is_tried_anew_with_the_next_message(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS) as server:
        sender = transport_to(server.port).open(account(server.port, password="wrong"), MANY)
        outcomes = [send(sender), send(sender)]
        sender.close()
    assert all(isinstance(outcome, Refused) and outcome.stage is Stage.AUTH for outcome in outcomes)
    assert server.connections == 2


def test_an_exception_of_the_callers_own_drops_the_connection(server: ScriptedSmtpServer) -> None:
    def fail() -> None:
        raise RuntimeError("the database is gone")

    sender = sender_to(server)
    assert isinstance(send(sender), Accepted)
    with pytest.raises(RuntimeError):
        send(sender, Notes(on_mark=fail))
    assert isinstance(send(sender), Accepted)
    assert len(server.messages) == 2 and server.connections == 2
    sender.close()


def test_an_exception_in_the_middle_of_an_envelope_drops_the_connection(server: ScriptedSmtpServer) -> None:
    class Failing(Notes):
        def reached(self, stage: Stage) -> None:
            if stage is Stage.RCPT:
                raise RuntimeError("the database is gone")

    sender = sender_to(server)
    with pytest.raises(RuntimeError):
        send(sender, Failing())
    assert isinstance(send(sender), Accepted)
    assert len(server.messages) == 1 and server.connections == 2
    sender.close()


def test_a_message_too_large_for_the_server_costs_the_next_a_new_connection(
    authority: ThrowAwayAuthority,
) -> None:
    size = len(MESSAGE) + 100
    with ScriptedSmtpServer(tls=authority.good(), users=USERS, max_message_bytes=size) as server:
        sender = sender_to(server)
        lost = sender.send(envelope(), b"", MESSAGE + b"x" * 100, Notes())
        assert isinstance(lost, Lost) and lost.cause is Cause.MESSAGE_TOO_LARGE
        assert isinstance(send(sender), Accepted)
        assert server.connections == 2
        sender.close()


def test_our_own_mistakes_cost_neither_a_dial_nor_the_connection(server: ScriptedSmtpServer) -> None:
    sender = sender_to(server)
    for header, message in [
        (b"X: 1", MESSAGE),
        (b"X: 1\nY: 2\r\n", MESSAGE),
        (b"", b"a\nb"),
        (b"", b"a\rb\r\n"),
    ]:
        with pytest.raises(ValueError):
            sender.send(envelope(), header, message, Notes())
    assert server.connections == 0
    send(sender)
    with pytest.raises(ValueError):
        sender.send(envelope("b@r.example\r\nRSET"), b"", MESSAGE, Notes())
    assert isinstance(send(sender), Accepted)
    assert server.connections == 1
    sender.close()


Play = Callable[[Script], object]
GREETING = (b"220 hi", b"250-hi\r\n250 PIPELINING")


def _one_message(it: Script) -> None:
    it.say(GREETING[0])
    it.answer(GREETING[1])
    for _ in range(2):
        it.answer(b"250 ok")
    it.answer(b"354 go on")
    it.hear(b"\r\n.\r\n")
    it.say(b"250 queued as 1")


def _then(misbehave: Play) -> Play:
    """Takes a message, then misbehaves on its first connection and takes one on each later one."""
    seen: list[Script] = []

    def play(it: Script) -> None:
        seen.append(it)
        _one_message(it)
        if len(seen) == 1:
            misbehave(it)
        else:
            it.hang()

    return play


def _after_reset(answers: bytes) -> Play:
    def play(it: Script) -> None:
        it.hear(b"DATA\r\n")
        it.write(answers)

    return play


STALE: dict[str, Play] = {
    "closed after each mail": lambda it: None,
    "reset": Script.reset,
    "said 421 and closed": lambda it: it.say(b"421 4.4.2 idle for too long"),
    "said 421 and waits": lambda it: (it.say(b"421 4.4.2 idle for too long"), it.hang()),
    "says something unasked": lambda it: (it.say(b"250 hello again"), it.hang()),
    "closes when asked": lambda it: it.hear(b"DATA\r\n"),
    "answers 421 to RSET": _after_reset(b"421 4.4.2 idle for too long\r\n"),
    "knows no RSET": _after_reset(b"502 5.5.1 what?\r\n"),
    "answers RSET with nonsense": _after_reset(b"banana\r\n"),
    "is silent": Script.hang,
    "closes after RSET": _after_reset(b"250 ok\r\n"),
    "answers 421 to MAIL": _after_reset(b"250 ok\r\n421 4.7.0 too many messages\r\n"),
}


# They misbehave without being asked for anything, so before the next message.
UNASKED = list(STALE)[:5]


def has_acted(script: Script) -> bool:
    """Whether it has hung up, or has said what nobody asked for."""
    return script.connection.fileno() < 0 or script.said.endswith((b"too long\r\n", b"again\r\n"))


@pytest.mark.parametrize("name", STALE)
def test_a_stale_connection_costs_one_silent_reconnect(name: str) -> None:
    with RawServer(_then(STALE[name])) as server:
        deadlines = replace(quick_deadlines(PLAY_SECONDS), reset=timedelta(seconds=0.3))
        sender = transport_to(server.port, deadlines).open(in_the_clear(server.port), MANY)
        first, notes = send(sender), Notes()
        eventually(lambda: name not in UNASKED or has_acted(server.scripts[0]))
        server.scripts[0].wait(0.05)
        began = time.monotonic()
        second = send(sender, notes)
        assert time.monotonic() - began < PLAY_SECONDS / 2
        assert len(server.scripts) == 2
        sender.close()
    assert isinstance(first, Accepted) and isinstance(second, Accepted), (first, second)
    assert notes.told.count("connect") == 1 and notes.told.count("mark") == 1


def test_the_second_reconnect_is_a_failure_that_is_told() -> None:
    def play(it: Script) -> None:
        if len(server.scripts) == 1:
            _one_message(it)

    with RawServer(play) as server:
        sender = clear_sender_to(server)
        first, second = send(sender), send(sender)
        assert len(server.scripts) == 2
    assert isinstance(first, Accepted)
    assert isinstance(second, Lost)
    assert (second.stage, second.cause) == (Stage.CONNECT, Cause.CONNECTION_LOST)


@pytest.mark.parametrize(
    ("answers", "stage"),
    [
        (b"250 ok\r\n250 ok\r\n", Stage.RCPT),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n", Stage.DATA),
        (b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n", Stage.DATA),
    ],
)
def test_what_was_taken_in_part_is_not_begun_again_in_silence(answers: bytes, stage: Stage) -> None:
    with RawServer(_then(_after_reset(answers))) as server:
        sender = clear_sender_to(server)
        first, second = send(sender), send(sender)
        assert len(server.scripts) == 1
    assert isinstance(first, Accepted)
    assert isinstance(second, Lost) and (second.stage, second.is_marked) == (stage, False)


def test_a_server_that_answered_unasked_is_not_used_on() -> None:
    def play(it: Script) -> None:
        it.say(b"220 hi")
        it.answer(b"250 hi")
        it.answer(b"250 ok", b"550 5.7.1 and another thing")
        while True:
            it.answer(b"250 ok")

    with RawServer(play) as server:
        sender = clear_sender_to(server)
        outcomes = [send(sender), send(sender)]
        assert len(server.scripts) == 2
    assert all(isinstance(outcome, Refused) and outcome.stage is Stage.RCPT for outcome in outcomes)


def test_a_lease_lost_on_a_stale_connection_dials_no_more() -> None:
    with RawServer(_then(lambda it: None)) as server:
        sender = clear_sender_to(server)
        send(sender)
        lost = send(sender, Notes(lose_at="mail"))
        assert len(server.scripts) == 1
    assert isinstance(lost, Lost) and lost.cause is Cause.LEASE_LOST


def test_leave_is_taken_of_those_that_waited() -> None:
    with RawServer(_then(Script.hear)) as server:
        transport = transport_to(server.port)
        sender = transport.open(in_the_clear(server.port), replace(MANY, idle=timedelta(seconds=60)))
        send(sender)
        sender.close()
        assert not server.heard.endswith(b"QUIT\r\n")
        transport.close_all()
        eventually(lambda: server.heard.endswith(b"QUIT\r\n"))


def test_leave_is_taken_without_waiting_for_the_answer() -> None:
    with RawServer(_then(Script.hear)) as server:
        transport = transport_to(server.port, quick_deadlines(5, quit=30))
        sender = transport.open(in_the_clear(server.port), MANY)
        send(sender)
        sender.close()
        sender.close()
        eventually(lambda: server.heard.endswith(b"QUIT\r\n"))
