"""One vetted socket under a deadline: what lines of SMTP and IMAP are read from and written to.

Every wait ends with the deadline of its step, every answer has a budget, TLS is verified, and what was
hidden is masked wherever a server echoes it. What the bytes mean is left to the sessions.
"""

import base64
import re
import select
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from gobii_email.adapters.dialer import Deadline
from gobii_email.adapters.tls import Endpoint, forget_session, remember_session, session_to_resume, tls_loss
from gobii_email.domain.outcomes import Cause

CHUNK_BYTES = 64 * 1024
# How long to wait in silence before the caller is told that the step goes on.
HEARTBEAT_SECONDS = 10.0

_MASK = b"********"
_BLANKS = bytes(range(33))
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/=]{8,}")

A = TypeVar("A")
T = TypeVar("T")


class Broken(Exception):
    """The dialogue cannot go on, and no reply of the server says why.

    `advice` is the key of one that fits better than the cause's.
    """

    def __init__(self, cause: Cause, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.cause = cause
        self.text = text
        self.advice = advice


class Wire:
    """The socket of a session, which a session is beside its library's class; set `deadline` and `doing`.

    `doing` names the step in sentences. `on_wait` is called at the start of each wait for the
    network, and again at least every `HEARTBEAT_SECONDS`. With an `endpoint`, TLS sessions are resumed.
    """

    sock: socket.socket | None

    def __init__(self, host: str, deadline: Deadline, on_wait: Callable[[], None]) -> None:
        self.peer_name = host
        self.endpoint: Endpoint | None = None
        self.deadline = deadline
        self.doing = "the connection"
        self._on_wait = on_wait
        self._timeout: float | None = None
        self._received = bytearray()
        self._secrets: list[bytes] = []
        self._blobs: list[bytes] = []

    def attach(self, sock: socket.socket) -> str:
        """Takes `sock`, which is connected, and answers its peer's address."""
        self.sock = sock
        try:
            return str(sock.getpeername()[0])
        except OSError:
            self._break(Cause.CONNECTION_LOST, "{host} closed the connection at once.")

    def hand_over(self) -> tuple[socket.socket, bytes]:
        """The socket, for somebody else to go on with, and what was received and not read yet."""
        sock, received = self._socket, bytes(self._received)
        self.sock = None
        self._received.clear()
        return sock, received

    def _read_line(self, budget: int) -> bytes:
        searched = 0
        while (end := self._received.find(b"\n", searched, budget)) < 0:
            if len(self._received) >= budget:
                self._too_large()
            searched = len(self._received)
            self._receive()
        line = bytes(self._received[: end + 1])
        del self._received[: end + 1]
        return line

    def _read_exactly(self, size: int) -> bytes:
        while len(self._received) < size:
            self._receive()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def _receive(self) -> None:
        data = self._wait(self._socket.recv, 16 * 1024)
        if not data:
            self._hung_up()
        self._received += data

    def _receive_what_is_there(self) -> None:
        if not self._is_readable():
            return
        self._limit_to(0)
        try:
            data = self._socket.recv(16 * 1024)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            self._hung_up()
        if not data:
            self._hung_up()
        self._received += data

    def _is_readable(self) -> bool:
        """Whether anything may have come, asked with one system call instead of three."""
        sock = self._socket
        if isinstance(sock, ssl.SSLSocket) and sock.pending():
            return True
        looker = select.poll()
        looker.register(sock, select.POLLIN)
        return bool(looker.poll(0))

    def send(self, s: bytes | bytearray | memoryview | str) -> None:
        """Writes all of `s` within the deadline, however slowly the server reads."""
        rest = memoryview(s.encode("utf-8") if isinstance(s, str) else s)
        while rest:
            rest = rest[self._wait(self._socket.send, rest[:CHUNK_BYTES]) :]

    def raise_injection(self) -> None:
        """Raises Broken when clear text follows the consent to STARTTLS (RFC 3207 section 5)."""
        if not self._received:
            self._receive_what_is_there()
        if self._received:
            text = "{host} sent clear text after it had agreed to encrypt; somebody may have inserted it."
            self._break(Cause.STARTTLS_INJECTION, text)

    def encrypt(self, context: ssl.SSLContext) -> str:
        """Turns the connection into a verified TLS one; returns its version."""
        resumed = self.endpoint and session_to_resume(context, self.endpoint)
        try:
            secured = context.wrap_socket(
                self._socket, server_hostname=self.peer_name, do_handshake_on_connect=False, session=resumed
            )
        except (OSError, ValueError) as error:
            raise Broken(*tls_loss(error)) from None
        self.sock = secured
        self._timeout = None
        try:
            self._shake_hands(secured)
        except Broken:
            if self.endpoint:
                forget_session(context, self.endpoint)
            raise
        return secured.version() or ""

    def remember_encryption(self) -> None:
        """Lets the next connection to this endpoint resume the session of this one."""
        if self.endpoint and isinstance(self.sock, ssl.SSLSocket):
            remember_session(self.sock, self.endpoint)

    def _shake_hands(self, secured: ssl.SSLSocket) -> None:
        while True:
            self._on_wait()
            try:
                self._limit_to(min(self.deadline.seconds_left(), HEARTBEAT_SECONDS))
                return secured.do_handshake()
            except TimeoutError as error:
                if self._is_too_late():
                    raise Broken(*tls_loss(error)) from None
            except (OSError, ValueError) as error:
                raise Broken(*tls_loss(error)) from None

    def hide(self, secrets: Sequence[bytes]) -> None:
        """From now on no reply shows these, in clear or in base64, whole or broken over lines."""
        self._blobs += [base64.b64encode(secret) for secret in secrets]
        compact = [secret.translate(None, _BLANKS) for secret in (*secrets, *self._blobs)]
        self._secrets += filter(None, compact)

    def masked(self, text: bytes) -> bytes:
        if not self._secrets:
            return text
        compact = text.translate(None, _BLANKS)
        for secret in self._secrets:
            if secret in compact:
                text = _without(secret, text)
                compact = text.translate(None, _BLANKS)
        return _BASE64_RUN.sub(self._mask_if_part_of_a_blob, text)

    def _mask_if_part_of_a_blob(self, found: re.Match[bytes]) -> bytes:
        return _MASK if any(found.group() in blob for blob in self._blobs) else found.group()

    @property
    def _socket(self) -> "ssl.SSLSocket":
        if self.sock is None:
            self._hung_up()
        return self.sock  # type: ignore[return-value]

    def _wait(self, operation: Callable[[A], T], argument: A) -> T:
        while True:
            self._on_wait()
            try:
                self._limit_to(min(self.deadline.seconds_left(), HEARTBEAT_SECONDS))
                return operation(argument)
            except TimeoutError:
                if self._is_too_late():
                    text = f"{{host}} did not complete {{doing}} within {self.deadline.seconds:g} seconds."
                    self._break(Cause.TIMEOUT, text)
            except OSError:
                self._hung_up()

    def _limit_to(self, seconds: float) -> None:
        # A system call, so only where it changes something.
        if seconds != self._timeout:
            self._socket.settimeout(seconds)
            self._timeout = seconds

    def _is_too_late(self) -> bool:
        try:
            self.deadline.seconds_left()
        except TimeoutError:
            return True
        return False

    def _hung_up(self) -> NoReturn:
        self._break(Cause.CONNECTION_LOST, "{host} closed the connection during {doing}.")

    def _too_large(self) -> NoReturn:
        self._break(Cause.REPLY_TOO_LARGE, "{host} sent more than an answer may hold, during {doing}.")

    def _break(self, cause: Cause, text: str) -> NoReturn:
        raise Broken(cause, text.format(host=self.peer_name, doing=self.doing)) from None


def _without(secret: bytes, text: bytes) -> bytes:
    """`text` with `secret` masked, also where blanks or line ends have been put into it."""
    compact = text.translate(None, _BLANKS)
    starts = []
    at = compact.find(secret)
    while at >= 0:
        starts.append(at)
        at = compact.find(secret, at + len(secret))
    places = [place for place, byte in enumerate(text) if byte not in _BLANKS] if starts else []
    for start in reversed(starts):
        text = text[: places[start]] + _MASK + text[places[start + len(secret) - 1] + 1 :]
    return text
