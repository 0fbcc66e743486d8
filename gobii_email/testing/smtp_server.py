"""Submission servers on loopback, for tests and for the demonstration.

`ScriptedSmtpServer` is a real server (aiosmtpd) that keeps what it accepted and fails on request;
`RawServer` plays a script of bytes, for everything no real server would say. Each listens on a
free port, in its own thread, and stops by its own handle.
"""

import asyncio
import base64
import collections
import contextlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from aiosmtpd.smtp import Envelope as WireEnvelope
from aiosmtpd.smtp import Session as WireSession

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class AcceptedMessage:
    """One message the server said 250 to; `connection` counts the server's connections from 1.

    `mail_parameters` and `rcpt_parameters` are the ESMTP parameters as they came, by recipient.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    user: str
    mechanism: str
    connection: int
    is_encrypted: bool
    mail_parameters: tuple[str, ...] = ()
    rcpt_parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass
class Faults:
    """What goes wrong, and where; change it while the server runs.

    `recipients` maps an address to the replies its next RCPTs get, one after the other;
    `always` maps an address to the reply it always gets. `replies` gives a command (`EHLO`, `AUTH`,
    `MAIL`, `RCPT`, `RSET`, `DATA`, `DOT`) another reply than the real one, `delays` a wait before its reply,
    and `holds` one until its event is set.
    `drops` are commands at which the connection is cut without a reply; "AFTER_DOT" cuts it after
    the message was kept and before the 250. `times` limits how often `drops`, `replies`,
    `delays` and `holds` strike at a command.
    """

    recipients: dict[str, list[str]] = field(default_factory=dict)
    always: dict[str, str] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    delays: dict[str, timedelta] = field(default_factory=dict)
    holds: dict[str, threading.Event] = field(default_factory=dict)
    drops: set[str] = field(default_factory=set)
    times: dict[str, int] = field(default_factory=dict)

    def strikes(self, command: str) -> bool:
        """Whether a fault set for `command` is still to be played; counts `times` down."""
        if not any(command in kind for kind in (self.replies, self.delays, self.holds, self.drops)):
            return False
        left = self.times.get(command)
        if left is None:
            return True
        self.times[command] = left - 1
        return left > 0

    def recipient_reply(self, address: str) -> str | None:
        queue = self.recipients.get(address)
        return queue.pop(0) if queue else self.always.get(address)


class _Dialogue(SMTP):
    """aiosmtpd's dialogue with DSN, XOAUTH2 and the faults of its server."""

    command_size_limits = collections.defaultdict(lambda: 16_384)
    line_length_limit = 65_536

    def __init__(self, owner: "ScriptedSmtpServer", **parameters: Any) -> None:
        self.owner = owner
        self.number = 0
        self.mechanism = ""
        self.mail_parameters: tuple[str, ...] = ()
        self.rcpt_parameters: dict[str, tuple[str, ...]] = {}
        super().__init__(owner, authenticator=self._check, **parameters)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self.number:
            self.number = self.owner.count_connection()
        super().connection_made(transport)

    async def smtp_EHLO(self, hostname: str) -> None:
        if await self._goes_on("EHLO"):
            self.owner.ehlo_names.append(hostname)
            await super().smtp_EHLO(hostname)

    async def smtp_STARTTLS(self, arg: str) -> None:
        if await self._goes_on("STARTTLS"):
            await super().smtp_STARTTLS(arg)

    async def smtp_AUTH(self, arg: str) -> None:
        if await self._goes_on("AUTH"):
            await super().smtp_AUTH(arg)

    async def smtp_MAIL(self, arg: str | None) -> None:
        if self.owner.needs_login and not (self.session and self.session.authenticated):
            await self.push("530 5.7.0 Authentication required")
            return
        if not await self._goes_on("MAIL"):
            return
        address, parameters = _parted(arg)
        self.mail_parameters, self.rcpt_parameters = parameters, {}
        known = [part for part in parameters if part.split("=")[0].upper() in ("SIZE", "BODY", "SMTPUTF8")]
        await super().smtp_MAIL(" ".join([address, *known]))

    async def smtp_RCPT(self, arg: str | None) -> None:
        if not await self._goes_on("RCPT"):
            return
        address, parameters = _parted(arg)
        recipient = address.partition("<")[2].rstrip(">")
        if reply := self.owner.faults.recipient_reply(recipient):
            await self.push(reply)
            return
        self.rcpt_parameters[recipient] = parameters
        await super().smtp_RCPT(address)

    async def smtp_RSET(self, arg: str) -> None:
        if await self._goes_on("RSET"):
            await super().smtp_RSET(arg)

    async def smtp_DATA(self, arg: str) -> None:
        if await self._goes_on("DATA"):
            await super().smtp_DATA(arg)

    async def auth_XOAUTH2(self, _: object, args: list[str]) -> AuthResult:
        fields = base64.b64decode(args[1]).decode().split("\x01") if len(args) > 1 else []
        user = next((part[5:] for part in fields if part.startswith("user=")), "")
        token = next((part[12:] for part in fields if part.startswith("auth=Bearer ")), "")
        result = self._check(None, None, None, "XOAUTH2", LoginPassword(user.encode(), token.encode()))
        if not result.success:
            await self.challenge_auth('{"status":"400","schemes":"Bearer"}')
        return result

    def _check(self, _server: Any, _session: Any, _envelope: Any, mechanism: str, login: Any) -> AuthResult:
        user, password = login.login.decode(), login.password.decode()
        self.mechanism = mechanism
        is_right = self.owner.lets_in(user, password, mechanism)
        self.owner.logins.append((user, mechanism, is_right))
        return AuthResult(success=is_right, handled=False, auth_data=LoginPassword(login.login, b""))

    async def _goes_on(self, command: str) -> bool:
        """Plays the fault for `command`, if there is one; False when that was the whole answer."""
        reply = await self.fault(command)
        if reply:
            await self.push(reply)
        return reply is None

    async def fault(self, command: str) -> str | None:
        """After the delay set for it: the reply to give in place of the real one, "" when cut off."""
        faults = self.owner.faults
        if not faults.strikes(command):
            return None
        await asyncio.sleep(faults.delays.get(command, timedelta()).total_seconds())
        while (hold := faults.holds.get(command)) is not None and not hold.is_set():
            await asyncio.sleep(0.01)
        if command in faults.drops:
            self.cut()
            return ""
        return faults.replies.get(command)

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]


class ScriptedSmtpServer:
    """A submission server for `users` (name to password or token), encrypted by `security`.

    `security` is "starttls", "ssl" or "none"; the first two need a server-side `tls` context.
    Without `users` nobody has to log in. `takes_token`, where given, is asked about users and access tokens
    in place of `users`. `offers_pipelining` counts from the next connection on.
    Each accepted message is in `messages`, and, when `journal` is given, a JSON line in that file
    that is on disk before the client sees its 250:
    `{"recipients", "sender", "message_id", "attempt_id", "user", "connection", "at"}`.
    Use as a context manager, or `start()` and `stop()`.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        security: str = "starttls",
        users: Mapping[str, str] | None = None,
        faults: Faults | None = None,
        journal: Path | None = None,
        max_message_bytes: int = 33_554_432,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN", "XOAUTH2"),
        offers_smtputf8: bool = True,
        offers_pipelining: bool = True,
        takes_token: Callable[[str, str], bool] | None = None,
        port: int = 0,
    ) -> None:
        if security != "none" and tls is None:
            raise ValueError(f"a server with security {security!r} needs a TLS context")
        self.users = dict(users or {})
        self.takes_token = takes_token
        self.needs_login = bool(self.users) or takes_token is not None
        self.faults = faults or Faults()
        self.messages: list[AcceptedMessage] = []
        self.logins: list[tuple[str, str, bool]] = []
        self.ehlo_names: list[str] = []
        self.connections = 0
        self.port = port
        self.host = LOOPBACK
        self._security = security
        self._tls = tls
        self._journal = journal
        self._mechanisms = mechanisms
        self._max_message_bytes = max_message_bytes
        self._offers_smtputf8 = offers_smtputf8
        self.offers_pipelining = offers_pipelining
        self._arrived = threading.Condition()
        self._controller: _Controller | None = None

    def start(self) -> Self:
        """Listens; after a `stop()` again on the same port."""
        self._controller = _Controller(self, self._dialogue)
        self._controller.start()
        self.port = self._controller.bound_port
        return self

    def stop(self) -> None:
        if self._controller is not None:
            self._controller.stop()
            self._controller = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def wait_for(self, count: int, *, seconds: float = 60) -> list[AcceptedMessage]:
        """The messages, once there are `count`; raises TimeoutError when they do not come."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self.messages) >= count, seconds):
                raise TimeoutError(f"{len(self.messages)} messages came, not {count}")
            return list(self.messages)

    def lets_in(self, user: str, secret: str, mechanism: str) -> bool:
        if self.takes_token is not None and mechanism in {"XOAUTH2", "OAUTHBEARER"}:
            return self.takes_token(user, secret)
        return self.users.get(user) == secret

    def count_connection(self) -> int:
        self.connections += 1
        return self.connections

    async def handle_EHLO(
        self, server: _Dialogue, session: WireSession, envelope: WireEnvelope, hostname: str, lines: list[str]
    ) -> list[str]:
        session.host_name = hostname
        further = ["DSN", "ENHANCEDSTATUSCODES", *(["PIPELINING"] if self.offers_pipelining else [])]
        offered = [*lines[:-1], *(f"250-{name}" for name in further), lines[-1]]
        return [line for line in offered if self.needs_login or not line.startswith("250-AUTH")]

    async def handle_DATA(self, server: _Dialogue, session: WireSession, envelope: WireEnvelope) -> str:
        reply = await server.fault("DOT")
        if reply is not None:
            return reply or "421 cut off"
        number = self._keep(server, session, envelope)
        reply = await server.fault("AFTER_DOT")
        if reply is not None:
            return reply or "421 cut off"
        return f"250 2.0.0 Ok: queued as {number:08X}"

    def _keep(self, server: _Dialogue, session: WireSession, envelope: WireEnvelope) -> int:
        content = bytes(envelope.original_content or b"")
        user = getattr(session.auth_data, "login", b"").decode()
        message = AcceptedMessage(
            sender=envelope.mail_from or "",
            recipients=tuple(envelope.rcpt_tos),
            content=content,
            user=user,
            mechanism=server.mechanism,
            connection=server.number,
            is_encrypted=session.ssl is not None or self._security == "ssl",
            mail_parameters=server.mail_parameters,
            rcpt_parameters=dict(server.rcpt_parameters),
        )
        if self._journal is not None:
            _append_durably(self._journal, _journal_line(message))
        with self._arrived:
            self.messages.append(message)
            self._arrived.notify_all()
            return len(self.messages)

    def _dialogue(self) -> _Dialogue:
        return _Dialogue(
            self,
            hostname="mail.test",
            data_size_limit=self._max_message_bytes,
            enable_SMTPUTF8=self._offers_smtputf8,
            tls_context=self._tls if self._security == "starttls" else None,
            require_starttls=self._security == "starttls",
            auth_require_tls=self._security == "starttls",
            auth_exclude_mechanism={"PLAIN", "LOGIN", "XOAUTH2"} - set(self._mechanisms),
        )


class _Controller(Controller):
    """aiosmtpd's thread, without its trial connection."""

    def __init__(self, owner: ScriptedSmtpServer, make_dialogue: Callable[[], _Dialogue]) -> None:
        implicit_tls = owner._tls if owner._security == "ssl" else None
        super().__init__(owner, hostname=LOOPBACK, port=owner.port, ssl_context=implicit_tls)
        self._make_dialogue = make_dialogue

    def factory(self) -> _Dialogue:
        return self._make_dialogue()

    @property
    def bound_port(self) -> int:
        assert isinstance(self.server, asyncio.Server)
        return int(self.server.sockets[0].getsockname()[1])

    def _trigger_server(self) -> None:
        self._factory_invoked.set()
        self.smtpd = True


def _parted(arg: str | None) -> tuple[str, tuple[str, ...]]:
    """`FROM:<a@b> X=1` as its path and its parameters."""
    path, _, rest = (arg or "").partition(">")
    return path + ">", tuple(rest.split())


def _journal_line(message: AcceptedMessage) -> str:
    return json.dumps(
        {
            "recipients": list(message.recipients),
            "sender": message.sender,
            "message_id": _header(message.content, "message-id"),
            "attempt_id": _header(message.content, "x-gobii-message-id"),
            "user": message.user,
            "connection": message.connection,
            "at": time.time(),
        }
    )


def _header(content: bytes, name: str) -> str:
    for line in content.partition(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(name.encode() + b":"):
            return line.partition(b":")[2].strip().decode("utf-8", "replace")
    return ""


def _append_durably(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Script:
    """One connection of a RawServer, seen from the server: read, write, wait, cut."""

    def __init__(self, connection: socket.socket, stopping: threading.Event) -> None:
        self.connection = connection
        self.heard = bytearray()
        self.said = bytearray()
        self._stopping = stopping
        self._unread = bytearray()

    def say(self, *texts: bytes) -> None:
        """Each text with CRLF after it."""
        self.write(b"".join(text + b"\r\n" for text in texts))

    def write(self, data: bytes) -> None:
        self.connection.sendall(data)
        self.said += data

    def drip(self, data: bytes, *, every: float) -> None:
        for byte in data:
            self.write(bytes([byte]))
            self.wait(every)

    def hear(self, until: bytes = b"\r\n") -> bytes:
        """What the client says, up to and with `until`; raises ConnectionError when it hangs up."""
        while until not in self._unread:
            data = self.connection.recv(65_536)
            if not data:
                raise ConnectionError("the client hung up")
            self.heard += data
            self._unread += data
        end = self._unread.index(until) + len(until)
        said = bytes(self._unread[:end])
        del self._unread[:end]
        return said

    def hear_exactly(self, size: int) -> bytes:
        """The next `size` bytes that the client says."""
        while len(self._unread) < size:
            data = self.connection.recv(65_536)
            if not data:
                raise ConnectionError("the client hung up")
            self._unread += data
        said = bytes(self._unread[:size])
        del self._unread[:size]
        return said

    def heard_within(self, seconds: float) -> bool:
        """Whether the client says a line within `seconds`, which `hear` then answers."""
        self.connection.settimeout(seconds)
        try:
            self._unread[:0] = self.hear()
        except TimeoutError:
            self.wait(0)
            return False
        finally:
            self.connection.settimeout(None)
        return True

    def answer(self, *texts: bytes) -> None:
        """Hears one line, then says `texts`."""
        self.hear()
        self.say(*texts)

    def encrypt(self, context: ssl.SSLContext) -> None:
        self.connection = context.wrap_socket(self.connection, server_side=True)

    def wait(self, seconds: float) -> None:
        """Raises ConnectionError when the server is stopped meanwhile."""
        if self._stopping.wait(seconds):
            raise ConnectionError("the server stops")

    def hang(self) -> None:
        """Says nothing more, until the client hangs up or the server stops."""
        while self.connection.recv(65_536):
            self.wait(0)

    def ignore(self) -> None:
        """Neither reads nor writes, until the server stops."""
        self.wait(3600)

    def reset(self) -> None:
        """Ends with RST instead of FIN."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.connection.close()


class RawServer:
    """Plays `script` on each connection and closes it; `scripts` has the connections so far.

    A script ends early, without a word, when its client hangs up. Use as a context manager.
    """

    def __init__(self, script: Callable[[Script], object]) -> None:
        self._script = script
        self._listener = socket.create_server((LOOPBACK, 0))
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.host = LOOPBACK
        self.port = int(self._listener.getsockname()[1])
        self.scripts: list[Script] = []

    def __enter__(self) -> Self:
        self._spawn(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        # Closing alone does not wake a thread that waits in accept or recv.
        for sock in [self._listener, *(script.connection for script in self.scripts)]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(30)

    @property
    def heard(self) -> bytes:
        """All that clients said, in the order of their connections."""
        return b"".join(bytes(script.heard) for script in self.scripts)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = Script(connection, self._stopping)
            self.scripts.append(script)
            self._spawn(lambda script=script: self._play(script))  # type: ignore[misc]

    def _play(self, script: Script) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._script(script)
        script.connection.close()

    def _spawn(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()
