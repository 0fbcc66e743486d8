"""One SMTP connection that cannot be held up, flooded or talked into a secret.

Puts smtplib's commands over a vetted socket, with a total deadline for each step and a budget for
each reply, and reads replies strictly (RFC 5321 section 4.2). Which commands to give, and what an
ending means, is left to the transport.
"""

import base64
import re
import smtplib
import ssl
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from gobii_email.adapters.dialer import Deadline
from gobii_email.adapters.tls import Endpoint, forget_session, remember_session, session_to_resume, tls_loss
from gobii_email.domain.outcomes import Cause
from gobii_email.domain.smtp_replies import Reply, reply_from

MAX_REPLY_BYTES = 64 * 1024
MAX_REPLY_LINES = 128
BODY_CHUNK_BYTES = 64 * 1024
# How long to wait in silence before the caller is told that the step goes on.
HEARTBEAT_SECONDS = 10.0

_MASK = b"********"
_BLANKS = bytes(range(33))
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/=]{8,}")

A = TypeVar("A")
T = TypeVar("T")


class Broken(Exception):
    """The dialogue cannot go on, and no reply of the server says why."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause = cause
        self.text = text


class Denied(Exception):
    """The server said no, in a well-formed reply."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class SmtpSession(smtplib.SMTP):
    """smtplib's dialogue under a deadline; set `deadline` and `doing` before each step.

    `doing` names the step in sentences. `on_wait` is called at the start of each wait for the
    network, and again at least every `HEARTBEAT_SECONDS`. `owed` counts the replies to what was
    asked that have not been heard yet; a session that once was answered unasked `is_out_of_step`.
    With an `endpoint`, TLS sessions are resumed.
    """

    def __init__(
        self, host: str, *, local_hostname: str, deadline: Deadline, on_wait: Callable[[], None]
    ) -> None:
        super().__init__(local_hostname=local_hostname)
        self.peer_name = host
        self.endpoint: Endpoint | None = None
        self.deadline = deadline
        self.doing = "the connection"
        self.owed = 0
        self.is_out_of_step = False
        self._on_wait = on_wait
        self._timeout: float | None = None
        self._received = bytearray()
        self._secrets: list[bytes] = []
        self._blobs: list[bytes] = []

    def getreply(self) -> tuple[int, bytes]:
        """The next complete reply; raises Broken for whatever is not one, or not in time."""
        texts: list[bytes] = []
        code = b""
        budget = MAX_REPLY_BYTES
        while True:
            line = self._read_line(budget)
            budget -= len(line)
            found = _REPLY_LINE.fullmatch(line.rstrip(b"\r\n"))
            if not found or (code and found.group(1) != code):
                self._break(Cause.PROTOCOL_ERROR, "What {host} sent during {doing} is not SMTP.")
            code, sign, text = found.groups(b"")
            texts.append(text.strip())
            if sign != b"-":
                return int(code), b"\n".join(texts)
            if len(texts) >= MAX_REPLY_LINES:
                self._too_large()

    def read_reply(self) -> Reply:
        code, text = self.getreply()
        return reply_from(code, self.masked(text))

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

    def _receive(self) -> None:
        data = self._wait(self._socket.recv, 16 * 1024)
        if not data:
            self._hung_up()
        self._received += data

    def raise_early_answer(self) -> None:
        """Raises when the server has already said something, or hung up, before it was its turn.

        Otherwise a reply sent in advance would pass for the answer to what is said next.
        """
        if not self._received:
            self._receive_what_is_there()
        if not self._received:
            return
        self.is_out_of_step = True
        reply = self.read_reply()
        if reply.code >= 400:
            raise Denied(reply)
        self._break(Cause.PROTOCOL_ERROR, "{host} answered before it was asked, during {doing}.")

    def _receive_what_is_there(self) -> None:
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

    def command(self, name: str, arguments: str = "") -> Reply:
        """The reply to one command, whatever it is."""
        self.raise_early_answer()
        self.putcmd(name, arguments)
        return self.read_reply()

    def ask(self, commands: Sequence[str]) -> None:
        """Says `commands` in one go; each owes a reply, to be heard in the same order (RFC 2920)."""
        self.raise_early_answer()
        self.owed = len(commands)
        self.send("\r\n".join(commands) + "\r\n")

    def hear(self, *welcome: int) -> Reply | None:
        """The next reply that is owed; None when its code is `welcome`, whatever else it says."""
        code, text = self.getreply()
        self.owed -= 1
        return None if code in welcome else reply_from(code, self.masked(text))

    def introduce(self) -> Reply:
        """The reply to EHLO, or to HELO where EHLO is not known; the extensions are kept."""
        self.raise_early_answer()
        self.esmtp_features = {}
        code, text = self.docmd("EHLO", self.local_hostname)
        if code == 250:
            self.esmtp_features = _extensions(text)
        elif code in (500, 502):
            code, text = self.docmd("HELO", self.local_hostname)
        return reply_from(code, self.masked(text))

    def send(self, s: bytes | bytearray | memoryview | str) -> None:  # type: ignore[override]
        """Writes all of `s` within the deadline, however slowly the server reads."""
        rest = memoryview(s.encode("utf-8") if isinstance(s, str) else s)
        while rest:
            rest = rest[self._wait(self._socket.send, rest[:BODY_CHUNK_BYTES]) :]

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


def _extensions(text: bytes) -> dict[str, str]:
    """The keywords in an answer to EHLO, in lower case, with their parameters (RFC 5321 section 4.1.1.1)."""
    found: dict[str, str] = {}
    for line in text.decode("latin-1").split("\n")[1:]:
        if line[:5].upper() == "AUTH=":
            # Said by old servers, beside the line that counts or in its place.
            line = f"AUTH {line[5:]}"
        keyword, _, parameters = line.partition(" ")
        keyword, parameters = keyword.lower(), parameters.strip()
        is_more = keyword == "auth" and keyword in found
        found[keyword] = f"{found[keyword]} {parameters}" if is_more else parameters
    return found


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
