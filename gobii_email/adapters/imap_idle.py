"""A mailbox's connection that waits for news (IDLE, RFC 2177) and takes no thread for it.

Opened by the dialogue that opens all, then without blocking: whoever waits on many sockets says when there
is something to read, and what time it is. Hears that mail came, and reads none; what the news is good for is
left to others.
"""

import contextlib
import random
import re
import socket
import ssl
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import NoReturn

from gobii_email.adapters.dialer import Deadline, DialFailed, DialPolicy
from gobii_email.adapters.imap_dialogue import Folder, ImapDeadlines, ImapDialogue
from gobii_email.adapters.imap_session import Declined
from gobii_email.adapters.wire import Broken
from gobii_email.domain.imap_replies import category_of, refusal_from
from gobii_email.domain.outcomes import Cause
from gobii_email.ports import ImapServer, NotWatched

MAX_LINE_BYTES = 8 * 1024
BUDGET_BYTES = 1024 * 1024
"""What a server may say in one IDLE, which is several ten thousand changes of a mailbox."""
REISSUE_JITTER = 0.1

_LASTING = re.compile("auth|folder-missing|imap-disabled|tls-required|account-suspended")
_COUNT = re.compile(rb"\* (\d{1,10}) (EXISTS|EXPUNGE)\b", re.IGNORECASE)
_KEEP_ALIVE = {"TCP_KEEPIDLE": 120, "TCP_KEEPINTVL": 30, "TCP_KEEPCNT": 4}
"""Seconds and a count: a way that is gone is noticed in four minutes, and a NAT does not forget it."""


@dataclass(frozen=True, slots=True)
class IdleSpans:
    """`open` bounds the opening as a whole, `answer` each answer; an IDLE lasts `reissue` at most."""

    open: timedelta = timedelta(seconds=60)
    answer: timedelta = timedelta(seconds=30)
    reissue: timedelta = timedelta(minutes=25)


class _Phase(Enum):
    ASKED = auto()
    IDLE = auto()
    DONE = auto()


class ImapIdle:
    """Opens connections that wait for news."""

    def __init__(self, policy: DialPolicy, deadlines: ImapDeadlines, spans: IdleSpans = IdleSpans()) -> None:
        self._policy = policy
        self._deadlines = deadlines
        self._spans = spans

    def open(self, server: ImapServer) -> "tuple[IdleConnection, Folder]":
        """A connection signed in, with the folder of `server` open for reading; IDLE is not begun yet.

        Raises NotWatched, its text a sentence.
        """
        dialogue = ImapDialogue(server, self._policy, self._deadlines, Deadline(self._spans.open))
        try:
            dialogue.open()
            if "IDLE" not in dialogue.capabilities:
                raise _without_idle(server.host)
            folder = dialogue.examine(server.folder)
            sock, received = dialogue.session.hand_over()
        except (Broken, Declined, DialFailed, TimeoutError) as ended:
            raise _not_watched(ended, server.host) from None
        finally:
            dialogue.close()
        return IdleConnection(sock, server.host, self._spans, folder.messages, received), folder


class IdleConnection:
    """One connection in IDLE; `begin` it, `receive` when its socket has something, `tend` it now and then.

    All of them raise NotWatched when it is over, and none of them waits. `now` is monotonic, in seconds.
    """

    def __init__(
        self, sock: socket.socket, host: str, spans: IdleSpans, messages: int, received: bytes = b""
    ) -> None:
        self._sock = sock
        self._host = host
        self._spans = spans
        self._messages = messages
        self._received = bytearray(received)
        self._budget = BUDGET_BYTES
        self._number = 0
        self._phase = _Phase.ASKED
        self._due = 0.0
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEP_ALIVE.items():
                if hasattr(socket, name):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def begin(self, now: float) -> None:
        """Asks for news from now on."""
        self._number += 1
        self._budget = BUDGET_BYTES
        self._send(b"%s IDLE\r\n" % self._tag)
        self._await_answer(_Phase.ASKED, now)

    def receive(self, now: float) -> bool:
        """Hears all that has come, TLS records that the socket does not show included; whether mail came."""
        has_news = False
        while True:
            has_news |= self._hear_lines(now)
            try:
                data = self._sock.recv(16 * 1024)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return has_news
            except OSError:
                data = b""
            if not data:
                self._lost("closed the connection")
            self._budget -= len(data)
            if self._budget < 0:
                self._lost("sent more than there can be news")
            self._received += data

    def tend(self, now: float) -> None:
        """Begins IDLE anew when its time has come, and notices a server that does not answer."""
        if now < self._due:
            return
        if self._phase is not _Phase.IDLE:
            self._lost("did not answer in time")
        self._send(b"DONE\r\n")
        self._await_answer(_Phase.DONE, now)

    def leave(self) -> None:
        """Takes leave without waiting for the answer, and closes."""
        with contextlib.suppress(NotWatched):
            done = b"DONE\r\n" if self._phase is _Phase.IDLE else b""
            self._send(done + b"BYE LOGOUT\r\n")
        self.close()

    def close(self) -> None:
        self._sock.close()

    @property
    def _tag(self) -> bytes:
        return b"IDLE%d" % self._number

    def _await_answer(self, phase: _Phase, now: float) -> None:
        self._phase, self._due = phase, now + self._spans.answer.total_seconds()

    def _hear_lines(self, now: float) -> bool:
        has_news = False
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end]).rstrip(b"\r")
            del self._received[: end + 1]
            self._hear(line, now)
            has_news |= self._is_news(line)
        if len(self._received) > MAX_LINE_BYTES:
            self._lost("sent a line without an end")
        return has_news

    def _hear(self, line: bytes, now: float) -> None:
        if line[:5].upper() == b"* BYE":
            refusal = refusal_from("IDLE", "BYE", line[6:])
            raise NotWatched(f"{self._host} ended the connection.", category_of(refusal))
        if line[:1] == b"+" and self._phase is _Phase.ASKED:
            span = self._spans.reissue.total_seconds()
            self._phase, self._due = _Phase.IDLE, now + span * random.uniform(1 - REISSUE_JITTER, 1)
        elif line.startswith(self._tag + b" "):
            self._hear_end(now)

    def _hear_end(self, now: float) -> None:
        """An IDLE is over: because it was asked to be, or because the server knows or wants none."""
        match self._phase:
            case _Phase.ASKED:
                raise _without_idle(self._host)
            case _Phase.IDLE:
                self._lost("stopped telling")
        self.begin(now)

    def _is_news(self, line: bytes) -> bool:
        """Whether there is more mail than before: some servers repeat the number to say that they live."""
        found = _COUNT.match(line)
        if not found:
            return False
        if found.group(2).upper() == b"EXPUNGE":
            self._messages = max(0, self._messages - 1)
            return False
        before, self._messages = self._messages, int(found.group(1))
        return self._messages > before

    def _send(self, data: bytes) -> None:
        try:
            is_sent = self._sock.send(data) == len(data)
        except OSError:
            is_sent = False
        if not is_sent:
            self._lost("closed the connection")

    def _lost(self, what: str) -> NoReturn:
        raise NotWatched(f"{self._host} {what}.", "connection_lost")


def _without_idle(host: str) -> NotWatched:
    return NotWatched(f"{host} does not offer IDLE.", "no_idle", is_lasting=True)


def _not_watched(ended: Exception, host: str) -> NotWatched:
    match ended:
        case Declined(refusal=refusal):
            is_sign_in = refusal.command in {"LOGIN", "AUTHENTICATE"}
            text = f"{host} refused {'the login' if is_sign_in else 'to open the folder'}."
            category = category_of(refusal)
            return NotWatched(text, category, is_lasting=bool(_LASTING.match(category)))
        case Broken(cause=cause, text=text) | DialFailed(cause=cause, text=text):
            return NotWatched(text, str(cause), is_lasting=cause is Cause.ADDRESS_NOT_ALLOWED)
    return NotWatched(f"{host} did not let itself be opened in time.", str(Cause.TIMEOUT))
