"""The flow of an SMTP submission pinned without a network: the dialler hands out a socket of our making."""

import base64
import socket
import ssl
from collections.abc import Callable

import pytest

from gobii_email.adapters import smtp_dialogue
from gobii_email.adapters.dialer import DialFailed
from gobii_email.adapters.smtp import SmtpTransport
from gobii_email.adapters.smtp_session import SmtpSession
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.smtp_replies import Stage
from gobii_email.ports import Auth, Security
from tests.adapters.conftest import MESSAGE, Notes, account, envelope, loopback_policy, quick_deadlines

PORT = 587


class FakeSocket:
    """Answers each chunk the client sends by `respond`, one line to a packet, and then hangs up."""

    def __init__(self, respond: Callable[[bytes], bytes], greeting: bytes) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False
        self._respond = respond
        self._ready = bytearray(greeting)
        self._timeout: float | None = None
        # Readable for whoever asks the system; what there is to be read, `recv` knows.
        self._pair = socket.socketpair()
        self._pair[1].send(b".")

    def fileno(self) -> int:
        return self._pair[0].fileno()

    def settimeout(self, seconds: float) -> None:
        self._timeout = seconds

    def send(self, data: bytes) -> int:
        self.sent.append(bytes(data))
        self._ready += self._respond(bytes(data))
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self._ready and self._timeout == 0:
            raise BlockingIOError
        data = bytes(self._ready.splitlines(keepends=True)[0][:size]) if self._ready else b""
        del self._ready[: len(data)]
        return data

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", PORT)

    def close(self) -> None:
        self.is_closed = True
        for end in self._pair:
            end.close()


class Bench:
    """A transport whose dialler and TLS are replaced; `events` is the order in which they were used."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: dict[bytes, bytes]) -> None:
        self.events: list[str] = []
        self.answers = {**ANSWERS, **answers}
        self.socket = FakeSocket(self._respond, b"220 hi\r\n")
        monkeypatch.setattr(smtp_dialogue, "dial", self._dial)
        monkeypatch.setattr(SmtpSession, "encrypt", self._encrypt)
        self.transport = SmtpTransport(loopback_policy(PORT), quick_deadlines(60))

    def _dial(self, host: str, port: int, *_: object) -> FakeSocket:
        self.events.append(f"dial {host}:{port}")
        return self.socket

    def _encrypt(self, context: ssl.SSLContext) -> str:
        assert context.verify_mode is ssl.CERT_REQUIRED
        self.events.append("encrypt")
        return "TLSv1.3"

    def _respond(self, data: bytes) -> bytes:
        self.events.append(data.decode().split("\r\n")[0])
        word = data.split()[0] if data.split() else b""
        return self.answers.get(word, b"")


EHLO = b"250-hi\r\n250-STARTTLS\r\n250 AUTH PLAIN LOGIN\r\n"
ANSWERS = {
    b"EHLO": EHLO,
    b"STARTTLS": b"220 go\r\n",
    b"AUTH": b"235 ok\r\n",
    b"MAIL": b"250 ok\r\n",
    b"RCPT": b"250 ok\r\n",
    b"DATA": b"354 go\r\n",
    b".": b"250 queued as 7\r\n",
    b"QUIT": b"221 bye\r\n",
}
BODY = "From: a@sender.example"


def test_starttls_with_a_login_says_each_thing_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {})
    target = account(PORT, host="mail.example", password="pw")
    outcome = bench.transport.send(target, envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Accepted)
    assert bench.events == [
        "dial mail.example:587",
        "EHLO [127.0.0.1]",
        "STARTTLS",
        "encrypt",
        "EHLO [127.0.0.1]",
        "AUTH PLAIN " + base64.b64encode(b"\0anna\0pw").decode(),
        "MAIL FROM:<a@sender.example>",
        "RCPT TO:<b@rcpt.example>",
        "DATA",
        BODY,
        ".",
        "QUIT",
    ]
    assert bench.socket.is_closed
    assert b"\r\n..dotted line\r\n" in b"".join(bench.socket.sent)


def test_implicit_tls_without_a_login_encrypts_before_the_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {})
    target = account(PORT, host="mail.example", security=Security.SSL, auth=Auth.NONE)
    outcome = bench.transport.send(target, envelope("x@r.example", "y@r.example"), MESSAGE, Notes())
    assert isinstance(outcome, Accepted)
    assert bench.events == [
        "dial mail.example:587",
        "encrypt",
        "EHLO [127.0.0.1]",
        "MAIL FROM:<a@sender.example>",
        "RCPT TO:<x@r.example>",
        "RCPT TO:<y@r.example>",
        "DATA",
        BODY,
        ".",
        "QUIT",
    ]


def test_the_mark_falls_between_the_text_and_the_dot(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {})
    notes = Notes(on_mark=lambda: bench.events.append("mark"))
    bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, notes)
    assert bench.events[-4:] == [BODY, "mark", ".", "QUIT"]


def test_a_refused_login_ends_with_quit_and_a_closed_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b"AUTH": b"535 5.7.8 no\r\n"})
    outcome = bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Refused) and outcome.stage is Stage.AUTH
    assert bench.events[-1] == "QUIT"
    assert bench.socket.is_closed


def test_421_has_ended_the_session_already(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b"AUTH": b"421 4.7.0 bye\r\n"})
    outcome = bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Refused) and outcome.reply.code == 421
    assert bench.events[-1].startswith("AUTH")
    assert bench.socket.is_closed


def test_clear_text_in_a_packet_of_its_own_is_injected_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b"STARTTLS": b"220 go\r\n250 injected\r\n"})
    outcome = bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.TLS, Cause.STARTTLS_INJECTION)
    assert bench.events[-1] == "STARTTLS"


def test_a_lost_answer_to_a_command_is_followed_by_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b"MAIL": b"garbage\r\n"})
    outcome = bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Lost) and outcome.stage is Stage.MAIL
    assert bench.events[-1].startswith("MAIL")
    assert bench.socket.is_closed


def test_a_lost_answer_to_the_dot_is_followed_by_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b".": b""})
    outcome = bench.transport.send(account(PORT, host="mail.example"), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Lost) and outcome.is_marked
    assert bench.events[-1] == "."
    assert bench.socket.is_closed


def test_a_host_that_may_not_be_dialled_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise DialFailed(Cause.ADDRESS_NOT_ALLOWED, "The host x is not for us.")

    monkeypatch.setattr(smtp_dialogue, "dial", refuse)
    outcome = SmtpTransport(loopback_policy(PORT)).send(
        account(PORT, host="mail.example"), envelope(), MESSAGE, Notes()
    )
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.text) == (
        Stage.CONNECT,
        Cause.ADDRESS_NOT_ALLOWED,
        "The host x is not for us.",
    )


def test_the_token_of_an_oauth_account_goes_out_by_xoauth2(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {b"EHLO": EHLO.replace(b"PLAIN LOGIN", b"XOAUTH2")})
    target = account(PORT, host="mail.example", auth=Auth.OAUTH2, password="t0ken")
    bench.transport.send(target, envelope(), MESSAGE, Notes())
    (said,) = [event for event in bench.events if event.startswith("AUTH")]
    assert base64.b64decode(said.split()[2]) == b"user=anna\x01auth=Bearer t0ken\x01\x01"
