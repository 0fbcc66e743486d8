"""Servers that no standard foresaw: each one costs a bounded time and ends in a sentence.

Every case plays on a real socket; afterwards no thread and no socket of ours is left.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from gobii_email.adapters.smtp import Deadlines, SmtpTransport
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Auth, Security, SmtpServer
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import RawServer, Script
from tests.adapters.conftest import (
    MESSAGE,
    PASSWORD,
    Notes,
    account,
    envelope,
    loopback_policy,
    quick_deadlines,
)

Play = Callable[[Script], object]
# Longer than any answer that comes takes on a busy machine; no case waits for it.
AMPLE_SECONDS = 60.0
# The longest any case may take: what ends it is neither of the spans above.
BOUND_SECONDS = 30.0

HELLO = b"250-mail.test\r\n"
GOOD_ANSWERS = {
    Stage.CONNECT: b"220 mail.test",
    Stage.EHLO: HELLO + b"250 AUTH PLAIN LOGIN",
    Stage.AUTH: b"235 2.7.0 welcome",
    Stage.MAIL: b"250 2.1.0 ok",
    Stage.RCPT: b"250 2.1.5 ok",
    Stage.DATA: b"354 go on",
    Stage.DOT: b"250 2.0.0 Ok: queued as ABC123",
}


@pytest.fixture(autouse=True)
def _nothing_is_left_over() -> Iterator[None]:
    threads, sockets = set(threading.enumerate()), _open_sockets()
    yield
    end = time.monotonic() + 30
    while time.monotonic() < end and (set(threading.enumerate()) - threads or _open_sockets() > sockets):
        time.sleep(0.01)
    assert not set(threading.enumerate()) - threads
    assert _open_sockets() <= sockets


def _open_sockets() -> int:
    """How many this process holds; 0 where the system does not tell."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        return 0
    return sum(_is_socket(descriptor) for descriptor in descriptors.iterdir())


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except OSError:
        return False


def until(stage: Stage, misbehave: Play) -> Play:
    """A good server up to the point where it owes its answer for `stage`."""

    def play(it: Script) -> None:
        for step, answer in GOOD_ANSWERS.items():
            if step is Stage.DOT:
                it.hear(b"\r\n.\r\n")
            elif step is not Stage.CONNECT:
                it.hear()
            if step is stage:
                misbehave(it)
                return
            it.say(answer)

    return play


def offering_pipelining(play: Play) -> Play:
    """The same server, which reads ahead: each answer follows its own command as before."""

    def whole(it: Script) -> None:
        say = it.say
        it.say = lambda *texts: say(*(text.replace(HELLO, HELLO + b"250-PIPELINING\r\n") for text in texts))  # type: ignore[method-assign]
        play(it)

    return whole


def says(*texts: bytes) -> Play:
    """Says `texts` and leaves the rest to the client."""

    def play(it: Script) -> None:
        it.say(*texts)
        it.hang()

    return play


def in_turn(*plays: Play) -> Play:
    def play(it: Script) -> None:
        for part in plays:
            part(it)

    return play


def floods(text: bytes) -> Play:
    def play(it: Script) -> None:
        while True:
            it.write(text * 200)

    return play


def _reset(it: Script) -> None:
    it.reset()


def _drip(it: Script) -> None:
    it.drip(b"250-" * 1000, every=0.05)


def _drip_lines(it: Script) -> None:
    for _ in range(1000):
        it.say(b"250-more")
        it.wait(0.1)


@dataclass(frozen=True)
class Ending:
    """What must come of it: a refusal with `code`, or a loss by `cause`."""

    code: int = 0
    cause: Cause | None = None


CLOSED, TIMEOUT = Ending(cause=Cause.CONNECTION_LOST), Ending(cause=Cause.TIMEOUT)
NOT_SMTP, TOO_LARGE = Ending(cause=Cause.PROTOCOL_ERROR), Ending(cause=Cause.REPLY_TOO_LARGE)

# What is waited for in vain at a stage, and how long. The envelope has one span for MAIL and RCPT, so the
# first leaves the second more of it than a busy machine takes.
WAITED_FOR = {
    Stage.CONNECT: ("banner", 0.4),
    Stage.EHLO: ("ehlo", 0.4),
    Stage.TLS: ("tls", 0.4),
    Stage.AUTH: ("auth", 0.4),
    Stage.MAIL: ("envelope", 0.4),
    Stage.RCPT: ("envelope", 1.5),
    Stage.DATA: ("body", 0.4),
    Stage.DOT: ("dot", 0.4),
}


def ample(**others: float) -> Deadlines:
    return quick_deadlines(AMPLE_SECONDS, **others)


def deadlines_for(stage: Stage, ending: Ending) -> Deadlines:
    """Brief where the case waits in vain, and ample everywhere else."""
    return ample(**dict([WAITED_FOR[stage]])) if ending.cause is Cause.TIMEOUT else ample()


AT_EVERY_STAGE: dict[str, tuple[Play, Ending]] = {
    "hangs up": (lambda it: None, CLOSED),
    "hangs up in the middle of a line": (lambda it: it.write(b"25"), CLOSED),
    "hangs up in the middle of a reply": (lambda it: it.say(b"250-first"), CLOSED),
    "resets the connection": (_reset, CLOSED),
    "stays silent": (Script.hang, TIMEOUT),
    "drips bytes": (_drip, TIMEOUT),
    "drips lines": (_drip_lines, TIMEOUT),
    "goes on for lines": (floods(b"250-again and again\r\n"), TOO_LARGE),
    "never ends its line": (floods(b"250 " + b"x" * 1000), TOO_LARGE),
    "mixes codes": (says(b"250-yes", b"550 no"), NOT_SMTP),
    "mixes codes of a kind": (says(b"550-no", b"551 no"), NOT_SMTP),
    "speaks HTTP": (says(b"HTTP/1.1 400 Bad Request"), NOT_SMTP),
    "says NUL bytes": (says(b"\0\0\0\0"), NOT_SMTP),
    "says binary": (says(bytes(range(128, 256))), NOT_SMTP),
    "says a code of two digits": (says(b"25 ok"), NOT_SMTP),
    "says a code of four digits": (says(b"2500 ok"), NOT_SMTP),
    "says a code below 200": (says(b"120 wait"), NOT_SMTP),
    "says a code beyond 599": (says(b"650 what"), NOT_SMTP),
    "says digits of another script": (says("٢٥٠ ok".encode()), NOT_SMTP),
    "says an empty line": (says(b""), NOT_SMTP),
    "says the wrong kind of yes": (says(b"299 maybe"), NOT_SMTP),
    "closes with 421": (says(b"421 4.3.2 closing"), Ending(code=421)),
    "closes with 421 and hangs up": (lambda it: it.say(b"421 4.3.2 closing"), Ending(code=421)),
    "refuses for now": (says(b"451 4.7.1 later"), Ending(code=451)),
    "refuses for good": (says(b"554-5.7.1 no", b"554 5.7.1 never"), Ending(code=554)),
}

FURTHER: dict[str, tuple[Play, Stage, Ending]] = {
    "answers AUTH with 503": (until(Stage.AUTH, says(b"503 5.5.1 already")), Stage.AUTH, Ending(code=503)),
    "answers AUTH with 250": (until(Stage.AUTH, says(b"250 ok")), Stage.AUTH, NOT_SMTP),
    "answers AUTH with 334 for ever": (
        until(Stage.AUTH, in_turn(lambda it: it.say(b"334 "), *[lambda it: it.answer(b"334 ")] * 50)),
        Stage.AUTH,
        NOT_SMTP,
    ),
    "answers MAIL with 354": (until(Stage.MAIL, says(b"354 go on")), Stage.MAIL, NOT_SMTP),
    "answers RCPT with 354": (until(Stage.RCPT, says(b"354 go on")), Stage.RCPT, NOT_SMTP),
    "answers DATA with 250": (until(Stage.DATA, says(b"250 ok")), Stage.DATA, NOT_SMTP),
    "answers the dot with 354": (until(Stage.DOT, says(b"354 more")), Stage.DOT, NOT_SMTP),
    "greets with 250": (until(Stage.CONNECT, says(b"250 hello")), Stage.CONNECT, NOT_SMTP),
    "answers EHLO before it is asked": (says(GOOD_ANSWERS[Stage.CONNECT], b"250 ok"), Stage.EHLO, NOT_SMTP),
    "promises every answer in advance": (
        says(b"220 hi", b"250 AUTH PLAIN", b"235 ok", b"250 ok", b"250 ok", b"354 go", b"250 ok"),
        Stage.EHLO,
        NOT_SMTP,
    ),
    "answers twice to MAIL": (until(Stage.MAIL, says(b"250 ok", b"250 ok")), Stage.RCPT, NOT_SMTP),
    "says one line too many": (until(Stage.MAIL, says(*[b"250-x"] * 128, b"250 x")), Stage.MAIL, TOO_LARGE),
    "acknowledges the message before its end": (
        until(Stage.DATA, says(b"354 go on", b"250 2.0.0 queued as FAKE")),
        Stage.DATA,
        NOT_SMTP,
    ),
    "refuses the message before its end": (
        until(Stage.DATA, says(b"354 go on", b"552 5.3.4 too large")),
        Stage.DATA,
        Ending(code=552),
    ),
    "hangs up right after 354": (until(Stage.DATA, lambda it: it.say(b"354 go on")), Stage.DATA, CLOSED),
    "offers no AUTH": (
        until(Stage.EHLO, says(b"250 mail.test")),
        Stage.AUTH,
        Ending(cause=Cause.AUTH_NOT_OFFERED),
    ),
    "offers another AUTH": (
        until(Stage.EHLO, says(b"250-mail.test", b"250 AUTH CRAM-MD5 XPLAIN")),
        Stage.AUTH,
        Ending(cause=Cause.AUTH_NOT_OFFERED),
    ),
    "knows no EHLO, and no AUTH": (
        until(
            Stage.EHLO, in_turn(lambda it: it.say(b"502 what?"), lambda it: it.answer(b"250 hi"), Script.hang)
        ),
        Stage.AUTH,
        Ending(cause=Cause.AUTH_NOT_OFFERED),
    ),
    "knows neither EHLO nor HELO": (
        until(
            Stage.EHLO,
            in_turn(lambda it: it.say(b"502 what?"), lambda it: it.answer(b"502 what?"), Script.hang),
        ),
        Stage.EHLO,
        Ending(code=502),
    ),
    "is full to the last word": (
        until(Stage.CONNECT, says(*[b"220-x"] * 127, b"220 x", b"421 tired")),
        Stage.EHLO,
        Ending(code=421),
    ),
    "paints on screens": (
        until(Stage.MAIL, says("550 5.7.1 \x1b[2J\u202eevil\x07 <script>".encode())),
        Stage.MAIL,
        Ending(code=550),
    ),
}


# Seen before the dot, or a moment too late: either is true to what was done.
BEFORE_OR_AFTER_THE_MARK = {"hangs up right after 354"}


def _cases() -> Iterator[object]:
    for name, (misbehave, ending) in AT_EVERY_STAGE.items():
        stages = [
            stage for stage in GOOD_ANSWERS if name != "says the wrong kind of yes" or stage is not Stage.DOT
        ]
        for stage in stages:
            yield pytest.param(until(stage, misbehave), stage, ending, id=f"{name} at {stage}")
    for name, (play, stage, ending) in FURTHER.items():
        yield pytest.param(play, stage, ending, id=name)


@pytest.mark.parametrize(("play", "stage", "ending"), _cases())
def test_a_misbehaving_server_ends_in_its_bound_with_a_sentence(
    play: Play, stage: Stage, ending: Ending, request: pytest.FixtureRequest
) -> None:
    outcome, notes = _send(play, deadlines=deadlines_for(stage, ending))
    if request.node.callspec.id in BEFORE_OR_AFTER_THE_MARK:
        assert outcome.stage in (Stage.DATA, Stage.DOT)
        stage = outcome.stage
    _assert_ending(outcome, stage, ending)
    if isinstance(outcome, Lost):
        assert outcome.is_marked is (stage is Stage.DOT)
        assert ("mark" in notes.told) is outcome.is_marked


# Where it shows that the commands were said in one go: a reset takes along what had not been read
# yet, and one answer too many passes for the next one's.
IN_ONE_GO = {
    "answers twice to MAIL": (Stage.DATA, TIMEOUT),
    "resets the connection at rcpt": (None, CLOSED),
    "resets the connection at data": (None, CLOSED),
}


@pytest.mark.parametrize(("play", "stage", "ending"), _cases())
def test_it_ends_likewise_where_the_envelope_is_said_in_one_go(
    play: Play,
    stage: Stage,
    ending: Ending,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gobii_email.adapters.smtp_submission.HEARING_OUT", timedelta(seconds=0.4))
    name = request.node.callspec.id
    expected, ending = IN_ONE_GO.get(name, (stage, ending))
    outcome, notes = _send(offering_pipelining(play), deadlines=deadlines_for(expected or stage, ending))
    assert not isinstance(outcome, Accepted)
    if name in BEFORE_OR_AFTER_THE_MARK:
        expected = stage = outcome.stage
    _assert_ending(outcome, expected or outcome.stage, ending)
    assert ("mark" in notes.told) is (stage is Stage.DOT)


def _send(
    play: Play,
    message: bytes = MESSAGE,
    *recipients: str,
    deadlines: Deadlines | None = None,
    notes: Notes | None = None,
    **target: object,
) -> tuple[Outcome, Notes]:
    notes = notes or Notes()
    with RawServer(play) as server:
        settings = {"security": Security.NONE, **target}
        transport = SmtpTransport(loopback_policy(server.port), deadlines or ample())
        began = time.monotonic()
        outcome = transport.send(account(server.port, **settings), envelope(*recipients), message, notes)  # type: ignore[arg-type]
        assert time.monotonic() - began < BOUND_SECONDS
    return outcome, notes


def _assert_ending(outcome: Outcome, stage: Stage, ending: Ending) -> None:
    assert isinstance(outcome, Refused if ending.code else Lost), outcome
    assert outcome.stage is stage, outcome
    assert PASSWORD not in repr(outcome)
    if isinstance(outcome, Refused):
        assert outcome.reply.code == ending.code
        assert not re.search("[\x00-\x1f\u202e]", outcome.reply.text)
    elif isinstance(outcome, Lost):
        assert outcome.cause is ending.cause, outcome
        assert re.fullmatch(r"[A-Zl][^\n\x00-\x1f]{15,1200}\.", outcome.text), outcome.text


STARTTLS_OFFER = b"250-mail.test\r\n250-AUTH PLAIN LOGIN\r\n250 STARTTLS"


def _to_starttls(misbehave: Play) -> Play:
    def play(it: Script) -> None:
        it.say(b"220 hi")
        it.answer(STARTTLS_OFFER)
        it.hear()
        misbehave(it)

    return play


AROUND_TLS: dict[str, tuple[Play, Security, Stage, Ending]] = {
    "STARTTLS is not offered": (
        until(Stage.EHLO, says(b"250-mail.test", b"250 AUTH PLAIN")),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.STARTTLS_NOT_OFFERED),
    ),
    "STARTTLS is offered under another name": (
        until(Stage.EHLO, says(b"250-mail.test", b"250-XSTARTTLS", b"250 AUTH PLAIN")),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.STARTTLS_NOT_OFFERED),
    ),
    "EHLO is refused, HELO taken": (
        until(
            Stage.EHLO, in_turn(lambda it: it.say(b"500 what?"), lambda it: it.answer(b"250 hi"), Script.hang)
        ),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.STARTTLS_NOT_OFFERED),
    ),
    "STARTTLS is put off": (
        _to_starttls(says(b"454 4.7.0 not now")),
        Security.STARTTLS,
        Stage.TLS,
        Ending(454),
    ),
    "STARTTLS is refused": (_to_starttls(says(b"502 5.5.1 no")), Security.STARTTLS, Stage.TLS, Ending(502)),
    "STARTTLS is answered 250": (_to_starttls(says(b"250 ok")), Security.STARTTLS, Stage.TLS, NOT_SMTP),
    "STARTTLS is not answered": (_to_starttls(Script.hang), Security.STARTTLS, Stage.TLS, TIMEOUT),
    "a reply is injected behind the 220": (
        _to_starttls(says(b"220 go", b"250-injected", b"250 AUTH PLAIN")),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.STARTTLS_INJECTION),
    ),
    "half a reply is injected behind the 220": (
        _to_starttls(in_turn(lambda it: it.write(b"220 go\r\n25"), Script.hang)),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.STARTTLS_INJECTION),
    ),
    "clear text follows the client's hello": (
        _to_starttls(
            in_turn(
                lambda it: it.say(b"220 go"),
                lambda it: it.wait(0.1),
                lambda it: it.say(b"250 ok"),
                Script.hang,
            )
        ),
        Security.STARTTLS,
        Stage.TLS,
        Ending(cause=Cause.TLS_FAILED),
    ),
    "the handshake is not answered": (_to_starttls(says(b"220 go")), Security.STARTTLS, Stage.TLS, TIMEOUT),
    "the handshake drips": (
        lambda it: it.drip(b"\x16\x03\x03\x40\x00" + b"\x02" * 999, every=0.05),
        Security.SSL,
        Stage.TLS,
        TIMEOUT,
    ),
    "the handshake is cut off": (
        _to_starttls(lambda it: it.say(b"220 go")),
        Security.STARTTLS,
        Stage.TLS,
        CLOSED,
    ),
    "the handshake is reset": (
        _to_starttls(
            in_turn(lambda it: it.say(b"220 go"), lambda it: it.connection.recv(1), lambda it: it.reset())
        ),
        Security.STARTTLS,
        Stage.TLS,
        CLOSED,
    ),
    "the TLS port speaks in clear": (
        says(b"220 mail.test ESMTP"),
        Security.SSL,
        Stage.TLS,
        Ending(cause=Cause.TLS_FAILED),
    ),
    "the TLS port says nothing": (Script.hang, Security.SSL, Stage.TLS, TIMEOUT),
    "the TLS port hangs up": (lambda it: None, Security.SSL, Stage.TLS, CLOSED),
}


@pytest.mark.parametrize(("play", "security", "stage", "ending"), AROUND_TLS.values(), ids=AROUND_TLS.keys())
def test_a_server_that_fails_to_encrypt_hears_no_password(
    authority: ThrowAwayAuthority, play: Play, security: Security, stage: Stage, ending: Ending
) -> None:
    with RawServer(play) as server:
        transport = SmtpTransport(loopback_policy(server.port), deadlines_for(stage, ending))
        began = time.monotonic()
        outcome = transport.send(account(server.port, security=security), envelope(), MESSAGE, Notes())
        assert time.monotonic() - began < BOUND_SECONDS
        assert b"AUTH" not in server.heard
    _assert_ending(outcome, stage, ending)


def _behind_tls(authority: ThrowAwayAuthority, play: Play, *, encrypted_first: bool = True) -> Play:
    context = authority.good()

    def whole(it: Script) -> None:
        if not encrypted_first:
            it.say(b"220 hi")
            it.answer(STARTTLS_OFFER)
            it.answer(b"220 go")
        it.encrypt(context)
        play(it)

    return whole


@pytest.mark.parametrize("stage", list(GOOD_ANSWERS))
@pytest.mark.parametrize(
    "name", ["hangs up", "stays silent", "drips bytes", "never ends its line", "mixes codes"]
)
def test_misbehaviour_ends_likewise_behind_tls(
    authority: ThrowAwayAuthority, name: str, stage: Stage
) -> None:
    misbehave, ending = AT_EVERY_STAGE[name]
    play, deadlines = _behind_tls(authority, until(stage, misbehave)), deadlines_for(stage, ending)
    outcome, _ = _send(play, security=Security.SSL, deadlines=deadlines)
    _assert_ending(outcome, stage, ending)
    assert outcome.facts.tls.startswith("TLSv1")


def test_what_was_offered_in_clear_is_forgotten_behind_tls(authority: ThrowAwayAuthority) -> None:
    def second_half(it: Script) -> None:
        it.answer(b"250 no extensions here")
        it.hang()

    play = _behind_tls(authority, second_half, encrypted_first=False)
    outcome, _ = _send(play, security=Security.STARTTLS)
    _assert_ending(outcome, Stage.AUTH, Ending(cause=Cause.AUTH_NOT_OFFERED))
    assert outcome.facts.extensions == ()


def test_a_server_of_old_tls_is_refused(authority: ThrowAwayAuthority) -> None:
    context = authority.old_tls_only()
    outcome, _ = _send(in_turn(lambda it: it.encrypt(context), Script.hang), security=Security.SSL)
    _assert_ending(outcome, Stage.TLS, Ending(cause=Cause.TLS_FAILED))


def test_a_password_is_not_said_in_clear_beyond_the_opened_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(until(Stage.AUTH, Script.hang)) as server:
        policy = loopback_policy(server.port)
        # The connection itself is to loopback; it passes for one to a public address.
        monkeypatch.setattr(type(policy), "allows", lambda *_: False)
        monkeypatch.setattr("gobii_email.adapters.dialer.is_public", lambda _: True)
        transport = SmtpTransport(policy, ample())
        target = account(server.port, security=Security.NONE)
        transport_host = SmtpServer("mail.example", *_rest(target))
        outcome = transport.send(transport_host, envelope(), MESSAGE, Notes())
        assert b"AUTH" not in server.heard
    _assert_ending(outcome, Stage.AUTH, Ending(cause=Cause.AUTH_WITHOUT_TLS))


def _rest(server: SmtpServer) -> tuple[int, Security, Auth, str, Secret | None]:
    return (server.port, server.security, server.auth, server.username, server.secret)


LARGE = b"Subject: x\r\n\r\n" + (b"x" * 70 + b"\r\n") * 400_000


def test_a_server_that_stops_reading_is_left() -> None:
    def play(it: Script) -> None:
        it.say(b"354 go on")
        it.ignore()

    with RawServer(until(Stage.DATA, play)) as server:
        deadlines = replace(ample(body=0.4), body_bytes_per_second=10**9)
        transport = SmtpTransport(loopback_policy(server.port), deadlines)
        began = time.monotonic()
        outcome = transport.send(account(server.port, security=Security.NONE), envelope(), LARGE, Notes())
        assert time.monotonic() - began < BOUND_SECONDS
    _assert_ending(outcome, Stage.DATA, TIMEOUT)


def test_the_refusal_of_a_server_that_stopped_reading_is_heard() -> None:
    def play(it: Script) -> None:
        it.say(b"354 go on", b"552 5.3.4 Message too big for system")
        it.hear(b"x" * 60)

    outcome, notes = _send(until(Stage.DATA, play), LARGE)
    _assert_ending(outcome, Stage.DATA, Ending(code=552))
    assert "mark" not in notes.told


def test_421_among_the_recipients_ends_the_session_for_all_not_yet_refused() -> None:
    def play(it: Script) -> None:
        it.say(b"550 5.1.1 no such user")
        it.answer(b"250 2.1.5 ok")
        it.answer(b"421 4.7.0 too many")
        it.hang()

    four = [f"{name}@rcpt.example" for name in "abcd"]
    with RawServer(until(Stage.RCPT, play)) as server:
        outcome = SmtpTransport(loopback_policy(server.port), ample()).send(
            account(server.port, security=Security.NONE), envelope(*four), MESSAGE, Notes()
        )
        assert server.heard.count(b"RCPT") == 3
    _assert_ending(outcome, Stage.RCPT, Ending(code=421))
    assert [outcome.refused[address].code for address in four] == [550, 421, 421, 421]


def test_refusals_heard_before_the_loss_are_kept() -> None:
    outcome, _ = _send(until(Stage.RCPT, lambda it: it.say(b"550 no")), MESSAGE, "a@r.example", "b@r.example")
    _assert_ending(outcome, Stage.RCPT, CLOSED)
    assert {address: reply.code for address, reply in outcome.refused.items()} == {"a@r.example": 550}


def test_the_envelope_has_one_deadline_for_all_its_recipients() -> None:
    def play(it: Script) -> None:
        while True:
            it.wait(0.15)
            it.say(b"250 ok")
            it.hear()

    many = [f"r{number}@rcpt.example" for number in range(30)]
    outcome, _ = _send(until(Stage.RCPT, play), MESSAGE, *many, deadlines=ample(envelope=1.5))
    _assert_ending(outcome, Stage.RCPT, TIMEOUT)


def test_the_sender_counts_against_the_deadline_of_the_envelope() -> None:
    def play(it: Script) -> None:
        it.wait(0.5)
        it.say(b"250 ok")
        it.hear()
        it.wait(1.8)
        it.say(b"250 ok")
        it.hang()

    outcome, _ = _send(until(Stage.MAIL, play), deadlines=ample(envelope=2))
    _assert_ending(outcome, Stage.RCPT, TIMEOUT)


def _good(answers: dict[Stage, bytes], goodbye: Play = Script.hang, *, drip: float = 0) -> Play:
    def play(it: Script) -> None:
        for step, answer in {**GOOD_ANSWERS, **answers}.items():
            if step is Stage.DOT:
                it.hear(b"\r\n.\r\n")
            elif step is not Stage.CONNECT:
                it.hear()
            if drip:
                it.drip(answer + b"\r\n", every=drip)
            else:
                it.say(answer)
        goodbye(it)

    return play


ODD_BUT_FINE: dict[str, Play] = {
    "hangs up after the 250": _good({}, lambda it: None),
    "resets after the 250": _good({}, _reset),
    "is silent to QUIT": _good({}),
    "answers QUIT with nonsense": _good({}, lambda it: it.answer(b"banana")),
    "answers QUIT with a flood": _good({}, floods(b"221-bye\r\n")),
    "ends lines in LF": _good({stage: text.replace(b"\r\n", b"\n") for stage, text in GOOD_ANSWERS.items()}),
    "says codes without text": _good({Stage.MAIL: b"250", Stage.RCPT: b"250 ", Stage.DATA: b"354"}),
    "says several lines everywhere": _good(
        {Stage.CONNECT: b"220-a\r\n220 b", Stage.DOT: b"250-a\r\n250 queued as ABC123"}
    ),
    "says letters beyond ASCII": _good(
        {Stage.CONNECT: "220 grüß Gott".encode(), Stage.MAIL: b"250 gr\xfc\xdfe"}
    ),
    "will forward": _good({Stage.RCPT: b"251 will forward"}),
    "cannot verify": _good({Stage.RCPT: b"252 will try"}),
    "says each byte alone": _good({}, drip=0.001),
    "says another 2xx to the dot": _good({Stage.DOT: b"299 queued as ABC123"}),
}


@pytest.mark.parametrize("name", ODD_BUT_FINE)
def test_an_odd_server_that_says_250_has_the_message(name: str) -> None:
    outcome, _ = _send(ODD_BUT_FINE[name])
    assert isinstance(outcome, Accepted), outcome
    assert outcome.provider_message_id == "ABC123"


def test_plain_is_said_again_to_a_server_that_asks_for_it() -> None:
    def play(it: Script) -> None:
        it.say(b"334 ")
        it.hear()
        it.say(b"535 5.7.8 heard it twice")
        it.hang()

    outcome, _ = _send(until(Stage.AUTH, play))
    _assert_ending(outcome, Stage.AUTH, Ending(code=535))


def test_an_old_server_without_ehlo_takes_mail_where_no_login_is_needed() -> None:
    def play(it: Script) -> None:
        it.say(b"220 hi")
        it.answer(b"502 5.5.2 what?")
        it.answer(b"250 hello")
        for answer in (b"250 ok", b"250 ok", b"354 go"):
            it.answer(answer)
        it.hear(b"\r\n.\r\n")
        it.say(b"250 queued as OLD")
        it.hang()

    outcome, _ = _send(play, auth=Auth.NONE)
    assert isinstance(outcome, Accepted), outcome


def test_a_late_250_within_the_dots_budget_counts() -> None:
    def late(it: Script) -> None:
        it.wait(1.0)
        it.say(b"250 2.0.0 queued as LATE")
        it.hang()

    with RawServer(until(Stage.DOT, late)) as server:
        transport = SmtpTransport(loopback_policy(server.port), ample())
        outcome = transport.send(account(server.port, security=Security.NONE), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Accepted)
    assert outcome.facts.stage_ms["dot"] >= 500


def test_the_lease_is_renewed_while_a_slow_server_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.smtp_dialogue.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("gobii_email.adapters.wire.HEARTBEAT_SECONDS", 0.1)
    notes = Notes()

    def slow(it: Script) -> None:
        while notes.told.count("mail") < 3:
            it.wait(0.01)

    outcome, _ = _send(until(Stage.MAIL, slow), notes=notes)
    _assert_ending(outcome, Stage.MAIL, CLOSED)


def test_nobody_is_told_anything_after_the_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.smtp_dialogue.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("gobii_email.adapters.wire.HEARTBEAT_SECONDS", 0.1)
    outcome, notes = _send(until(Stage.DOT, Script.hang), deadlines=ample(dot=0.4))
    _assert_ending(outcome, Stage.DOT, TIMEOUT)
    assert notes.told[-1] == "mark"


def test_a_lease_lost_while_waiting_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.smtp_dialogue.HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr("gobii_email.adapters.wire.HEARTBEAT_SECONDS", 0.1)
    notes = Notes()

    def steal(it: Script) -> None:
        notes.lose_at = "mail"
        it.hang()

    with RawServer(until(Stage.MAIL, steal)) as server:
        transport = SmtpTransport(loopback_policy(server.port), ample())
        outcome = transport.send(account(server.port, security=Security.NONE), envelope(), MESSAGE, notes)
    _assert_ending(outcome, Stage.MAIL, Ending(cause=Cause.LEASE_LOST))


@pytest.mark.parametrize("stage", [stage for stage in GOOD_ANSWERS if stage not in (Stage.DATA, Stage.DOT)])
@pytest.mark.parametrize(
    "name", ["hangs up", "stays silent", "drips bytes", "never ends its line", "refuses for good"]
)
def test_a_probe_ends_in_its_own_bound_at_every_stage(
    name: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gobii_email.adapters.second_look.BRIEF", timedelta(seconds=0.4))
    misbehave, ending = AT_EVERY_STAGE[name]
    with RawServer(until(stage, misbehave)) as server:
        transport = SmtpTransport(loopback_policy(server.port), deadlines_for(stage, ending))
        probe = transport.probe(
            account(server.port, security=Security.NONE), "a@sender.example", recipient="b@rcpt.example"
        )
    if stage is Stage.RCPT:
        assert probe.is_ok and [step.id for step in probe.steps if step.status == "warn"][-1] == "rcpt"
        return
    assert probe.failure is not None and probe.failure.stage is stage
    if ending.code:
        assert probe.failure.reply is not None and probe.failure.reply.code == ending.code
    else:
        assert probe.failure.lost is not None and probe.failure.lost.cause is ending.cause
    assert [step.status for step in probe.steps].count("fail") == 1


def test_a_probe_has_one_budget_for_all_its_steps() -> None:
    def slow(it: Script) -> None:
        for answer in GOOD_ANSWERS.values():
            it.wait(0.3)
            it.answer(answer) if answer != GOOD_ANSWERS[Stage.CONNECT] else it.say(answer)

    with RawServer(slow) as server:
        brief = replace(ample(), probe=timedelta(seconds=0.7))
        transport = SmtpTransport(loopback_policy(server.port), brief)
        began = time.monotonic()
        probe = transport.probe(account(server.port, security=Security.NONE), "a@sender.example")
        assert time.monotonic() - began < BOUND_SECONDS
    assert probe.failure is not None and probe.failure.lost is not None
    assert probe.failure.lost.cause is Cause.TIMEOUT


def test_a_probe_does_not_mind_fumbled_farewells() -> None:
    def play(it: Script) -> None:
        it.say(b"250 ok")
        it.answer(b"250 ok")
        it.answer(b"500 RSET?")

    with RawServer(until(Stage.MAIL, play)) as server:
        transport = SmtpTransport(loopback_policy(server.port), ample(quit=AMPLE_SECONDS))
        probe = transport.probe(
            account(server.port, security=Security.NONE), "a@sender.example", recipient="b@rcpt.example"
        )
    assert probe.is_ok and probe.steps[-1].id == "rcpt"
    assert b"RSET" in server.heard


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.NONE])
def test_silence_where_a_greeting_belongs_suggests_tls_from_the_start(security: Security) -> None:
    with RawServer(Script.hang) as server:
        outcome = SmtpTransport(loopback_policy(server.port), ample(banner=0.4)).send(
            account(server.port, security=security), envelope(), MESSAGE, Notes()
        )

    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.CONNECT, Cause.TIMEOUT)
    assert outcome.text.endswith("SSL may be the right setting.")
