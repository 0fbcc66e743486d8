"""The envelope said in one go: the same outcomes as in turn, in two round trips on a used connection."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from gobii_email.adapters.smtp_session import SmtpSession
from gobii_email.adapters.smtp_submission import COMMANDS_AT_ONCE
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Sender
from gobii_email.testing.smtp_server import Faults, RawServer, Script, ScriptedSmtpServer
from gobii_email.testing.stack import eventually
from tests.adapters.conftest import (
    MANY,
    MESSAGE,
    Notes,
    account,
    envelope,
    in_the_clear,
    quick_deadlines,
    transport_to,
)

OFFERS = {"in one go": b"250-hi\r\n250 PIPELINING\r\n", "in turn": b"250 hi\r\n"}
OK, NO, GONE, GO_ON = b"250 ok\r\n", b"550 5.7.1 no\r\n", b"421 4.3.2 closing\r\n", b"354 go on\r\n"


class Relay:
    """Answers each command by `answers`, a list by its first word; notes who spoke in which order.

    They hold until RSET; a command without any left gets its usual yes. The answers to what came in
    one piece go out in one piece, or byte by byte where `drips`.
    """

    USUAL = {b"RSET": OK, b"MAIL": OK, b"RCPT": OK, b"DATA": GO_ON, b".": b"250 queued as 7\r\n", b"QUIT": OK}

    def __init__(self, offer: bytes, answers: dict[bytes, list[bytes]], *, drips: bool = False) -> None:
        self.texts: list[bytes] = []
        self.pieces: list[bytes] = []
        self._offer = offer
        self._answers = {word: list(replies) for word, replies in answers.items()}
        self._drips = drips

    def __call__(self, it: Script) -> None:
        it.say(b"220 hi")
        it.hear()
        it.write(self._offer)
        self._text: list[bytes] | None = None
        while piece := it.connection.recv(65_536):
            self.pieces.append(piece)
            answers = b"".join(map(self._answer, piece.splitlines(keepends=True)))
            if self._drips:
                it.drip(answers, every=0.001)
            elif answers:
                it.write(answers)
            if b"421" in answers:
                return

    def _answer(self, line: bytes) -> bytes:
        if self._text is not None and line != b".\r\n":
            self._text.append(line)
            return b""
        if self._text is not None:
            self.texts.append(b"".join(self._text))
            self._text = None
        word = line.split()[0]
        if word == b"RSET":
            self._answers.clear()
        replies = self._answers.get(word)
        reply = replies.pop(0) if replies else self.USUAL[word]
        if word == b"DATA" and reply.startswith(b"354"):
            self._text = []
        return reply


def sender_to(server: RawServer | ScriptedSmtpServer, **spans: float) -> Sender:
    return transport_to(server.port, quick_deadlines(60, **spans)).open(in_the_clear(server.port), MANY)


def play(offer: str, answers: dict[bytes, list[bytes]], **options: bool) -> tuple[Outcome, Outcome, Relay]:
    """A message to a, b, c at a server of such answers, then one to d; both by the same sender."""
    relay = Relay(OFFERS[offer], answers, **options)
    with RawServer(relay) as server:
        sender = sender_to(server)
        first = sender.send(envelope("a@r.example", "b@r.example", "c@r.example"), b"", MESSAGE, Notes())
        second = sender.send(envelope("d@r.example"), b"", MESSAGE, Notes())
        sender.close()
        relay.connections = len(server.scripts)  # type: ignore[attr-defined]
    return first, second, relay


def in_short(outcome: Outcome) -> tuple[object, ...]:
    refused = {address[0]: reply.code for address, reply in outcome.refused.items()}
    match outcome:
        case Accepted(reply=reply):
            return ("accepted", reply.code, refused)
        case Refused(stage=stage, reply=reply):
            return (str(stage), reply.code, refused)
        case Lost(stage=stage, cause=cause, is_marked=is_marked):
            return (str(stage), str(cause), is_marked, refused)


EXPECTED: dict[str, tuple[dict[bytes, list[bytes]], tuple[object, ...]]] = {
    "all taken": ({}, ("accepted", 250, {})),
    "the first refused": ({b"RCPT": [NO]}, ("accepted", 250, {"a": 550})),
    "the second refused": ({b"RCPT": [OK, NO]}, ("accepted", 250, {"b": 550})),
    "the last refused": ({b"RCPT": [OK, OK, NO]}, ("accepted", 250, {"c": 550})),
    "all but the last refused": ({b"RCPT": [NO, NO]}, ("accepted", 250, {"a": 550, "b": 550})),
    "all refused, and DATA": (
        {b"RCPT": [NO, NO, NO], b"DATA": [b"503 no recipients\r\n"]},
        ("rcpt", 550, {"a": 550, "b": 550, "c": 550}),
    ),
    "all refused, yet 354": (
        {b"RCPT": [NO, NO, NO], b".": [b"554 no recipients\r\n"]},
        ("rcpt", 550, {"a": 550, "b": 550, "c": 550}),
    ),
    "all refused, yet 354, and 250 to nothing": (
        {b"RCPT": [NO, NO, NO]},
        ("rcpt", 550, {"a": 550, "b": 550, "c": 550}),
    ),
    "MAIL refused, and all": (
        {b"MAIL": [NO], b"RCPT": [b"503 no sender\r\n"] * 3, b"DATA": [b"503 no sender\r\n"]},
        ("mail", 550, {}),
    ),
    "MAIL refused, yet 354": ({b"MAIL": [NO], b"RCPT": [b"503 no sender\r\n"] * 3}, ("mail", 550, {})),
    "MAIL refused, all else taken": ({b"MAIL": [NO]}, ("mail", 550, {})),
    "DATA refused": ({b"DATA": [b"451 4.3.0 later\r\n"]}, ("data", 451, {})),
    "DATA and one recipient refused": (
        {b"RCPT": [OK, NO], b"DATA": [b"451 4.3.0 later\r\n"]},
        ("data", 451, {"b": 550}),
    ),
    "the dot refused": ({b".": [NO]}, ("dot", 550, {})),
    "421 to MAIL": ({b"MAIL": [GONE]}, ("mail", 421, {})),
    "421 to the first": ({b"RCPT": [GONE]}, ("rcpt", 421, {"a": 421, "b": 421, "c": 421})),
    "421 to the second": ({b"RCPT": [NO, GONE]}, ("rcpt", 421, {"a": 550, "b": 421, "c": 421})),
    "421 to the last": ({b"RCPT": [OK, OK, GONE]}, ("rcpt", 421, {"a": 421, "b": 421, "c": 421})),
    "421 to DATA": ({b"DATA": [GONE]}, ("data", 421, {})),
    "421 to the dot": ({b".": [GONE]}, ("dot", 421, {})),
    "421 to DATA after all were refused": (
        {b"RCPT": [NO, NO, NO], b"DATA": [GONE]},
        ("rcpt", 550, {"a": 550, "b": 550, "c": 550}),
    ),
    "354 to a recipient": ({b"RCPT": [OK, GO_ON]}, ("rcpt", "protocol_error", False, {})),
    "250 to DATA": ({b"DATA": [OK]}, ("data", "protocol_error", False, {})),
}
# After these the connection is not used on.
NEW_CONNECTION = {name for name in EXPECTED if "421" in name} | {"354 to a recipient", "250 to DATA"}
# Nobody knows whom an empty text would go to.
IN_ONE_GO_ALSO = {"MAIL refused, all else taken"}


@pytest.mark.parametrize("drips", [False, True], ids=["in one burst", "byte by byte"])
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("name", EXPECTED)
def test_each_answer_is_judged_at_its_own_stage_and_the_next_message_goes_out(
    name: str, offer: str, drips: bool
) -> None:
    answers, expected = EXPECTED[name]
    first, second, relay = play(offer, answers, drips=drips)
    assert in_short(first) == expected
    assert in_short(second) == ("accepted", 250, {})
    is_new = name in NEW_CONNECTION - (
        {"421 to DATA after all were refused"} if offer == "in turn" else set()
    )
    is_new = is_new or (name in IN_ONE_GO_ALSO and offer == "in one go")
    assert relay.connections == (2 if is_new else 1)  # type: ignore[attr-defined]
    whole = [text for text in relay.texts if text]
    assert len(whole) == 1 + (expected[0] in ("accepted", "dot"))


def test_an_empty_text_for_nobody_is_not_marked() -> None:
    notes = Notes()
    relay = Relay(OFFERS["in one go"], {b"RCPT": [NO]})
    with RawServer(relay) as server:
        sender_to(server).send(envelope(), b"", MESSAGE, notes)
    assert relay.texts == [b""]
    assert "mark" not in notes.told and "data" not in notes.told


def test_no_dot_goes_to_a_server_that_took_a_recipient_without_a_sender() -> None:
    relay = Relay(OFFERS["in one go"], {b"MAIL": [NO]})
    with RawServer(relay) as server:
        sender_to(server).send(envelope(), b"", MESSAGE, Notes())
    assert relay.texts == []


class Turns:
    """Counts how often the client went from speaking to listening, by its own system calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._spoke = False
        say, listen = SmtpSession.send, SmtpSession._receive

        def send(session: SmtpSession, data: bytes) -> None:
            self._spoke = True
            say(session, data)

        def receive(session: SmtpSession) -> None:
            self.count += self._spoke
            self._spoke = False
            listen(session)

        monkeypatch.setattr(SmtpSession, "send", send)
        monkeypatch.setattr(SmtpSession, "_receive", receive)


@pytest.mark.parametrize(("offer", "trips"), [("in one go", 2), ("in turn", 6)])
def test_a_used_connection_costs_two_round_trips_a_message(
    monkeypatch: pytest.MonkeyPatch, offer: str, trips: int
) -> None:
    relay = Relay(OFFERS[offer], {})
    with RawServer(relay) as server:
        sender = sender_to(server)
        sender.send(envelope(), b"", MESSAGE, Notes())
        del relay.pieces[:]
        turns = Turns(monkeypatch)
        sender.send(envelope("b@r.example", "c@r.example"), b"X-Attempt: 2\r\n", MESSAGE, Notes())
        assert turns.count == trips
        sender.close()
    said = b"".join(relay.pieces)
    words = [line.split()[0] for line in said.partition(b"DATA\r\n")[0].splitlines()]
    assert words == [b"RSET", b"MAIL", b"RCPT", b"RCPT"]
    assert relay.texts[1].startswith(b"X-Attempt: 2\r\n" + MESSAGE[:20])
    assert (relay.pieces[0].endswith(b"DATA\r\n")) is (offer == "in one go")


def test_nothing_of_the_dot_is_written_before_the_mark() -> None:
    relay = Relay(OFFERS["in one go"], {})
    seen: list[bytes] = []

    def look() -> None:
        eventually(lambda: relay.pieces[-1].endswith(b"last line\r\n"), every=0.001)
        seen.append(b"".join(relay.pieces))

    with RawServer(relay) as server:
        outcome = sender_to(server).send(envelope(), b"", MESSAGE, Notes(on_mark=look))
    assert isinstance(outcome, Accepted)
    assert seen[0].endswith(b"last line\r\n")


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("count", [COMMANDS_AT_ONCE - 2, COMMANDS_AT_ONCE - 1, 500])
def test_hundreds_of_recipients_go_in_groups(
    server: ScriptedSmtpServer, count: int, pipelining: bool
) -> None:
    many = [f"r{number}@rcpt.example" for number in range(count)]
    server.faults = Faults(always={many[0]: "550 5.1.1 No", many[-1]: "452 4.2.2 Full"})
    server.offers_pipelining = pipelining
    sender = transport_to(server.port, quick_deadlines(60)).open(account(server.port), MANY)
    outcomes = [sender.send(envelope(*many), b"", MESSAGE, Notes()) for _ in range(2)]
    sender.close()
    for outcome, message in zip(outcomes, server.messages, strict=True):
        assert isinstance(outcome, Accepted), outcome
        assert {address: reply.code for address, reply in outcome.refused.items()} == {
            many[0]: 550,
            many[-1]: 452,
        }
        assert message.recipients == tuple(many[1:-1])


def test_a_refused_sender_spares_the_further_groups() -> None:
    relay = Relay(OFFERS["in one go"], {b"MAIL": [NO], b"RCPT": [b"503 no\r\n"] * 500})
    with RawServer(relay) as server:
        outcome = sender_to(server).send(
            envelope(*(f"r{number}@rcpt.example" for number in range(300))), b"", MESSAGE, Notes()
        )
    assert in_short(outcome) == ("mail", 550, {})
    assert b"".join(relay.pieces).count(b"RCPT") == COMMANDS_AT_ONCE - 1


def _silent_after(answers: bytes) -> Callable[[Script], None]:
    def silent(it: Script) -> None:
        it.say(b"220 hi")
        it.hear()
        it.write(OFFERS["in one go"])
        it.hear(b"DATA\r\n")
        it.write(answers)
        it.hang()

    return silent


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (b"", ("mail", "timeout", False, {})),
        (OK, ("rcpt", "timeout", False, {})),
        (OK + NO, ("rcpt", "timeout", False, {"a": 550})),
        (OK + OK + OK, ("data", "timeout", False, {})),
    ],
)
def test_silence_is_judged_where_it_begins(answers: bytes, expected: tuple[object, ...]) -> None:
    with RawServer(_silent_after(answers)) as server:
        outcome = sender_to(server, envelope=1.5, body=0.4).send(
            envelope("a@r.example", "b@r.example"), b"", MESSAGE, Notes()
        )
    assert in_short(outcome) == expected


def test_a_refusal_stands_whatever_follows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.smtp_submission.HEARING_OUT", timedelta(seconds=0.2))
    with RawServer(_silent_after(NO)) as server:
        outcome = sender_to(server).send(envelope(), b"", MESSAGE, Notes())
        assert b"QUIT" not in server.heard
    assert in_short(outcome) == ("mail", 550, {})


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA])
def test_a_lease_lost_in_the_middle_of_a_group_leaves_the_connection(stage: Stage) -> None:
    relay = Relay(OFFERS["in one go"], {})
    with RawServer(relay) as server:
        sender = sender_to(server)
        lost = sender.send(envelope(), b"", MESSAGE, Notes(lose_at=stage))
        sent = sender.send(envelope(), b"", MESSAGE, Notes())
        sender.close()
        assert len(server.scripts) == 2
    assert isinstance(lost, Lost) and (lost.stage, lost.cause) == (stage, Cause.LEASE_LOST)
    assert isinstance(sent, Accepted)
    assert len(relay.texts) == 1
