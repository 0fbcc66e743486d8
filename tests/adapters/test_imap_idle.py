"""Waiting for news on real sockets: what is news, and how a bad server loses its own connection alone."""

import queue
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest

from gobii_email.adapters.idle_loop import IdleLoop
from gobii_email.adapters.imap import ImapDeadlines
from gobii_email.adapters.imap_idle import BUDGET_BYTES, IdleSpans, ImapIdle
from gobii_email.domain.secret import Secret
from gobii_email.ports import Auth, ImapServer, NotWatched, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ImapFaults, ScriptedImapServer
from gobii_email.testing.smtp_server import RawServer, Script
from gobii_email.testing.stack import eventually
from tests.adapters.conftest import loopback_policy

PASSWORD = "S3cret"
SPANS = IdleSpans(open=timedelta(seconds=60), answer=timedelta(seconds=60))
FAR = 3600.0


@dataclass
class Notes:
    """What a loop called back."""

    news: "queue.SimpleQueue[str]" = field(default_factory=queue.SimpleQueue)
    lost: "queue.SimpleQueue[tuple[str, NotWatched]]" = field(default_factory=queue.SimpleQueue)

    def on_lost(self, key: str, why: NotWatched) -> None:
        self.lost.put((key, why))

    def why_lost(self) -> NotWatched:
        return self.lost.get(timeout=60)[1]


@contextmanager
def a_loop() -> Iterator[tuple[IdleLoop, Notes]]:
    notes = Notes()
    loop = IdleLoop(notes.news.put, notes.on_lost)
    loop.start()
    try:
        yield loop, notes
        assert loop.is_running
    finally:
        loop.close()
        assert not loop.is_running


def server_at(port: int, **settings: Any) -> ImapServer:
    made = ImapServer("localhost", port, Security.SSL, Auth.LOGIN, "anna", Secret(PASSWORD))
    return replace(made, **settings)


def idle(port: int, spans: IdleSpans = SPANS) -> ImapIdle:
    return ImapIdle(loopback_policy(port), ImapDeadlines(), spans)


def watch(loop: IdleLoop, port: int, key: str = "anna", spans: IdleSpans = SPANS, **settings: Any) -> None:
    connection, _ = idle(port, spans).open(server_at(port, **settings))
    loop.add(key, connection, time.monotonic() + FAR)


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}) as made:
        yield made


def test_new_mail_is_news_and_nothing_else_is(server: ScriptedImapServer) -> None:
    server.folders["INBOX"] += [b"one", b"two"]
    with a_loop() as (loop, notes):
        watch(loop, server.port)
        eventually(lambda: server.waiting)
        server.announce(b"* OK Still here\r\n* 2 EXISTS\r\n* 1 RECENT\r\n* 1 FETCH (FLAGS (\\Seen))\r\n")
        server.announce(b"* 1 EXPUNGE\r\n")
        server.announce(b"* 2 EXISTS\r\n")
        assert notes.news.get(timeout=60) == "anna"
        assert notes.news.empty() and notes.lost.empty()
    eventually(lambda: b"DONE\r\nBYE LOGOUT" in server.heard)
    assert b"SELECT" not in server.heard and b"FETCH" not in server.heard


def test_one_thread_waits_on_many_and_each_is_told_apart(server: ScriptedImapServer) -> None:
    with a_loop() as (loop, notes):
        for number in range(20):
            watch(loop, server.port, f"box{number}")
        eventually(lambda: server.waiting == 20)
        server.deliver(b"hello")
        assert {notes.news.get(timeout=60) for _ in range(20)} == {f"box{n}" for n in range(20)}
        loop.drop(["box3"])
        eventually(lambda: server.waiting == 19)
        assert len(loop) == 19


def test_idle_is_begun_anew_before_a_server_grows_tired_of_it(server: ScriptedImapServer) -> None:
    with a_loop() as (loop, notes):
        watch(loop, server.port, spans=replace(SPANS, reissue=timedelta(milliseconds=50)))
        eventually(lambda: b"IDLE3 IDLE" in server.heard)

        def told() -> bool:
            """Whoever is between two IDLE does not hear what is said then."""
            server.deliver(b"hello")
            return not notes.news.empty()

        eventually(told)
        assert notes.news.get() == "anna"
        assert notes.lost.empty()
    assert server.heard.index(b"IDLE1 IDLE\r\nDONE\r\nIDLE2 IDLE\r\nDONE\r\nIDLE3 IDLE") > 0


def test_half_a_line_waits_for_its_other_half(server: ScriptedImapServer) -> None:
    with a_loop() as (loop, notes):
        watch(loop, server.port)
        eventually(lambda: server.waiting)
        for part in (b"* 1 EX", b"IS", b"TS\r", b"\n"):
            assert notes.news.empty()
            server.announce(part)
        assert notes.news.get(timeout=60) == "anna"


ENDINGS = {
    "hangs up": (b"", "connection_lost", "closed the connection"),
    "says BYE": (b"* BYE [UNAVAILABLE] going down\r\n", "temporary", "ended the connection"),
    "BYE alone": (b"* BYE\r\n", "temporary", "ended the connection"),
    "ends IDLE by itself": (b"IDLE1 OK enough\r\n", "connection_lost", "stopped telling"),
    "a line without an end": (b"x" * 40_000, "connection_lost", "line without an end"),
    "a flood": (b"* OK flood\r\n" * (BUDGET_BYTES // 10), "connection_lost", "more than there can be"),
}


@pytest.mark.parametrize(("said", "category", "text"), ENDINGS.values(), ids=ENDINGS)
def test_a_bad_server_loses_its_own_connection_and_no_other(
    server: ScriptedImapServer, authority: ThrowAwayAuthority, said: bytes, category: str, text: str
) -> None:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}) as good:
        with a_loop() as (loop, notes):
            watch(loop, good.port, "good")
            watch(loop, server.port, "bad")
            eventually(lambda: server.waiting and good.waiting)
            server.announce(said)
            why = notes.why_lost()
            assert (why.category, why.is_lasting) == (category, False) and text in why.text
            assert len(loop) == 1
            good.deliver(b"hello")
            assert notes.news.get(timeout=60) == "good"


def test_what_was_lost_is_not_looked_at_again(server: ScriptedImapServer) -> None:
    with a_loop() as (loop, notes):
        watch(loop, server.port)
        eventually(lambda: server.waiting)
        server.announce(b"")
        notes.why_lost()
        before = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before < 0.3, "it spins"
        assert notes.lost.empty() and len(loop) == 0


@pytest.mark.parametrize("answer", [b"TAG BAD what?\r\n", b"TAG NO not now\r\n"])
def test_a_server_that_refuses_idle_is_one_without_it(server: ScriptedImapServer, answer: bytes) -> None:
    server.faults.answers["IDLE"] = answer
    with a_loop() as (loop, notes):
        watch(loop, server.port)
        why = notes.why_lost()
    assert (why.category, why.is_lasting) == ("no_idle", True)


@pytest.mark.parametrize("command", ["IDLE", "DONE"])
def test_a_server_that_does_not_answer_is_left_in_time(server: ScriptedImapServer, command: str) -> None:
    spans = replace(SPANS, answer=timedelta(milliseconds=100))
    if command == "IDLE":
        server.faults.answers["IDLE"] = b""
    else:
        server.faults.answers["IDLE"] = b"+ idling\r\n"
        server.faults.answers["DONE"] = b""
        spans = replace(spans, reissue=timedelta(milliseconds=50))
    with a_loop() as (loop, notes):
        watch(loop, server.port, spans=spans)
        assert "did not answer in time" in notes.why_lost().text


def test_a_connection_ends_with_its_lease_whoever_is_asleep(server: ScriptedImapServer) -> None:
    with a_loop() as (loop, notes):
        watch(loop, server.port)
        watch(loop, server.port, "kept")
        eventually(lambda: server.waiting == 2)
        loop.keep(["anna", "kept", "unknown"], time.monotonic())
        loop.keep(["kept"], time.monotonic() + FAR)
        assert notes.why_lost().category == "lease_over"
        eventually(lambda: server.waiting == 1)
        assert len(loop) == 1


# Opening


def opened(port: int, seconds: float = 60, **settings: Any) -> NotWatched:
    spans = replace(SPANS, open=timedelta(seconds=seconds))
    with pytest.raises(NotWatched) as caught:
        idle(port, spans).open(server_at(port, **settings))
    assert PASSWORD not in caught.value.text
    return caught.value


def test_a_server_without_idle_is_not_watched(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}, has_idle=False) as server:
        why = opened(server.port)
        eventually(lambda: b"LOGOUT" in server.heard)
    assert (why.category, why.is_lasting) == ("no_idle", True)


@pytest.mark.parametrize(
    ("faults", "settings", "category", "is_lasting"),
    [
        ({}, {"secret": Secret("wrong")}, "auth", True),
        ({}, {"folder": "Nowhere"}, "folder-missing", True),
        ({"answers": {"LOGIN": b"TAG NO [UNAVAILABLE] later\r\n"}}, {}, "temporary", False),
        ({"greeting": b"* BYE too many connections"}, {}, "login-limit", False),
        ({"greeting": b"nonsense"}, {}, "protocol_error", False),
        ({"answers": {"LOGIN": b""}}, {}, "timeout", False),
    ],
    ids=["password", "folder", "not now", "too many", "nonsense", "silence"],
)
def test_what_keeps_a_mailbox_from_being_opened_is_named(
    server: ScriptedImapServer,
    faults: dict[str, Any],
    settings: dict[str, Any],
    category: str,
    is_lasting: bool,
) -> None:
    server.faults = ImapFaults(**faults)
    why = opened(server.port, 0.5 if category == "timeout" else 60, **settings)
    assert (why.category, why.is_lasting) == (category, is_lasting)


@pytest.mark.parametrize(
    "script",
    [Script.ignore, lambda it: it.drip(b"* OK " + b"x" * 1000, every=0.01)],
    ids=["tarpit", "drip"],
)
def test_opening_is_bounded_as_a_whole(script: Callable[[Script], object]) -> None:
    with RawServer(script) as raw:
        began = time.monotonic()
        why = opened(raw.port, 0.5, security=Security.NONE)
    assert why.category == "timeout" and time.monotonic() - began < 30


def test_a_certificate_that_nobody_vouches_for_is_not_spoken_to(
    server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    assert opened(server.port).category == "certificate_untrusted"
    assert PASSWORD.encode() not in server.heard
