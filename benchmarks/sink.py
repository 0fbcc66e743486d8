"""A submission server that only counts: STARTTLS, AUTH, PIPELINING, nothing kept but who, what and when.

One process with an asyncio protocol written by hand, so that it is not what a benchmark measures; its own
ceiling is what `python -m benchmarks.sink` prints. `Sink` starts it and asks it over a line of JSON on
loopback; `PARAMETERS` may be changed while it runs.
"""

import asyncio
import base64
import contextlib
import gc
import json
import re
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.stack import ROOT

PASSWORD = "a password of the benchmark"
MAX_BYTES = 64 * 1024 * 1024
_MESSAGE_ID = re.compile(rb"^message-id:\s*<?([^>\s]+)", re.IGNORECASE | re.MULTILINE)
_ADDRESS = re.compile(rb"<([^>]*)>")
_EXTENSIONS = b"250-PIPELINING\r\n250-SIZE %d\r\n250-8BITMIME\r\n250-ENHANCEDSTATUSCODES\r\n" % MAX_BYTES
_NEVER = float("inf")


@dataclass
class Parameters:
    """`delay` passes before every reply, in seconds, as a long line would have it: pipelined commands wait
    together. Where the client logged in as one of `tarpit_users`, or dialled the second port, every reply
    takes `tarpit` seconds instead; infinity is never."""

    delay: float = 0.0
    tarpit: float = 0.0
    tarpit_users: frozenset[str] = frozenset()


@dataclass
class Journal:
    """What was accepted, in order: seconds (monotonic), Message-ID, sender, user, connection, bytes.

    `first` has the moment of each Message-ID's first acceptance.
    """

    accepted: list[tuple[float, str, str, str, int, int]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    open: int = 0
    most_open: int = 0
    turns: int = 0
    sample: bytes = b""
    cpu_at_start: float = field(default_factory=time.process_time)

    def summary(self) -> dict[str, Any]:
        return {
            "accepted": len(self.accepted),
            "distinct": len(self.first),
            "doubled": len(self.accepted) - len(self.first),
            "first_at": self.accepted[0][0] if self.accepted else None,
            "last_at": self.accepted[-1][0] if self.accepted else None,
            "bytes": sum(row[5] for row in self.accepted),
            "connections": self.connections,
            "most_open": self.most_open,
            "turns": self.turns,
            "commands": dict(self.commands),
            "cpu_seconds": time.process_time() - self.cpu_at_start,
            # Added to a moment it gives the wall clock's.
            "wall_offset": time.time() - time.monotonic(),
        }


class Session(asyncio.Protocol):
    """One connection. TLS runs over memory, which costs less than asyncio's own."""

    def __init__(self, server: "Server", *, is_tarpit: bool) -> None:
        self._server = server
        self._journal = server.journal
        self._is_tarpit = is_tarpit
        self._tls: ssl.SSLObject | None = None
        self._is_secure = False
        self._buffer = bytearray()
        self._replies: list[bytes] = []
        self._expect = self._command
        self._user = ""
        self._sender = ""
        self._recipients = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        journal = self._journal
        journal.connections += 1
        journal.open += 1
        journal.most_open = max(journal.most_open, journal.open)
        self._number = journal.connections
        self._replies.append(b"220 sink ESMTP\r\n")
        self._answer()

    def connection_lost(self, problem: Exception | None) -> None:
        self._server.journal.open -= 1
        del self._expect

    def data_received(self, data: bytes) -> None:
        if self._tls is None:
            self._buffer += data
        elif not self._decrypt(data):
            return
        while self._expect():
            pass
        if self._replies:
            self._journal.turns += 1
            self._answer()

    # TLS

    def _decrypt(self, data: bytes) -> bool:
        self._incoming.write(data)
        try:
            if not self._is_secure:
                self._tls.do_handshake()
                self._is_secure = True
            while True:
                self._buffer += self._tls.read(262144)
                if not self._incoming.pending and not self._tls.pending():
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self._transport.close()
            return False
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())
        return bool(self._buffer)

    def _start_tls(self) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._server.tls.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _write(self, data: bytes, then_secure: bool) -> None:
        if self._transport.is_closing():
            return
        if self._is_secure:
            self._tls.write(data)
            data = self._outgoing.read()
        self._transport.write(data)
        if then_secure:
            self._start_tls()

    def _answer(self) -> None:
        data = b"".join(self._replies)
        self._replies.clear()
        parameters = self._server.parameters
        is_slow = self._is_tarpit or (self._user and self._user in parameters.tarpit_users)
        delay = parameters.tarpit if is_slow else parameters.delay
        then_secure = data.startswith(b"220 2.0.0 go ahead")
        if delay == 0:
            self._write(data, then_secure)
        elif delay != _NEVER:
            self._server.loop.call_later(delay, self._write, data, then_secure)

    # SMTP

    def _command(self) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            return False
        line = bytes(self._buffer[:end]).rstrip(b"\r")
        del self._buffer[: end + 1]
        verb = line[:8].split(b" ", 1)[0].split(b":", 1)[0].upper().decode("latin-1")
        self._journal.commands[verb] += 1
        action = _ACTIONS.get(verb)
        self._replies.append(action(self, line) if action else b"500 5.5.1 what?\r\n")
        return True

    def _ehlo(self, line: bytes) -> bytes:
        last = b"250 AUTH PLAIN LOGIN\r\n" if self._is_secure else b"250 STARTTLS\r\n"
        return b"250-sink\r\n" + _EXTENSIONS + last

    def _starttls(self, line: bytes) -> bytes:
        return b"220 2.0.0 go ahead\r\n"

    def _auth(self, line: bytes) -> bytes:
        if not self._is_secure:
            return b"530 5.7.0 STARTTLS first\r\n"
        words = line.split()
        mechanism = words[1].upper() if len(words) > 1 else b""
        if mechanism == b"PLAIN" and len(words) > 2:
            return self._plain(words[2])
        if mechanism == b"PLAIN":
            self._expect = self._plain_line
            return b"334 \r\n"
        if mechanism == b"LOGIN":
            self._expect = self._login_line
            self._login = words[2:]
            return b"334 UGFzc3dvcmQ6\r\n" if self._login else b"334 VXNlcm5hbWU6\r\n"
        return b"504 5.5.4 PLAIN or LOGIN\r\n"

    def _plain(self, blob: bytes) -> bytes:
        parts = base64.b64decode(blob).split(b"\0")
        return self._enter(parts[1], parts[2])

    def _plain_line(self) -> bool:
        return self._credential(lambda blob: self._plain(blob))

    def _login_line(self) -> bool:
        return self._credential(self._login_word)

    def _login_word(self, blob: bytes) -> bytes:
        self._login.append(blob)
        if len(self._login) == 1:
            self._expect = self._login_line
            return b"334 UGFzc3dvcmQ6\r\n"
        return self._enter(*map(base64.b64decode, self._login))

    def _credential(self, use: Any) -> bool:
        end = self._buffer.find(b"\n")
        if end < 0:
            return False
        line = bytes(self._buffer[:end]).strip()
        del self._buffer[: end + 1]
        self._expect = self._command
        self._replies.append(use(line))
        return True

    def _enter(self, user: bytes, password: bytes) -> bytes:
        if password.decode() != PASSWORD:
            return b"535 5.7.8 no\r\n"
        self._user = user.decode()
        return b"235 2.7.0 welcome\r\n"

    def _mail(self, line: bytes) -> bytes:
        if not self._user:
            return b"530 5.7.0 log in first\r\n"
        found = _ADDRESS.search(line)
        self._sender = found.group(1).decode() if found else ""
        self._recipients = 0
        return b"250 2.1.0 ok\r\n"

    def _rcpt(self, line: bytes) -> bytes:
        if not self._sender:
            return b"503 5.5.1 MAIL first\r\n"
        self._recipients += 1
        return b"250 2.1.5 ok\r\n"

    def _data(self, line: bytes) -> bytes:
        if not self._recipients:
            return b"503 5.5.1 RCPT first\r\n"
        self._expect = self._body
        self._searched = 0
        return b"354 go on\r\n"

    def _body(self) -> bool:
        end = self._buffer.find(b"\r\n.\r\n", self._searched)
        if end < 0:
            self._searched = max(0, len(self._buffer) - 4)
            return False
        found = _MESSAGE_ID.search(self._buffer, 0, min(end + 2, 8192))
        message_id = found.group(1).decode("latin-1") if found else ""
        journal = self._journal
        if not journal.sample:
            journal.sample = bytes(self._buffer[: end + 2])
        del self._buffer[: end + 5]
        now = time.monotonic()
        journal.accepted.append((now, message_id, self._sender, self._user, self._number, end + 2))
        journal.first.setdefault(message_id, now)
        self._sender, self._recipients = "", 0
        self._expect = self._command
        self._replies.append(b"250 2.0.0 taken as %d\r\n" % len(journal.accepted))
        return True

    def _reset(self, line: bytes) -> bytes:
        self._sender, self._recipients = "", 0
        return b"250 2.0.0 ok\r\n"

    def _noop(self, line: bytes) -> bytes:
        return b"250 2.0.0 ok\r\n"

    def _quit(self, line: bytes) -> bytes:
        delay = self._server.parameters.delay
        self._server.loop.call_later(delay, self._transport.close)
        return b"221 2.0.0 bye\r\n"


_ACTIONS = {
    "EHLO": Session._ehlo,
    "HELO": Session._ehlo,
    "STARTTLS": Session._starttls,
    "AUTH": Session._auth,
    "MAIL": Session._mail,
    "RCPT": Session._rcpt,
    "DATA": Session._data,
    "RSET": Session._reset,
    "NOOP": Session._noop,
    "QUIT": Session._quit,
}


class Server:
    """The process: two submission ports (the second is the tarpit) and one for questions."""

    def __init__(self, certificate: str) -> None:
        self.journal = Journal()
        self.parameters = Parameters()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)

    async def run(self) -> None:
        self.loop = asyncio.get_running_loop()
        ports = [
            await self._listen(lambda: Session(self, is_tarpit=False)),
            await self._listen(lambda: Session(self, is_tarpit=True)),
        ]
        control = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        ports.append(control.sockets[0].getsockname()[1])
        print(json.dumps(ports), flush=True)
        await self._until_the_owner_is_gone()

    async def _listen(self, session: Any) -> int:
        server = await self.loop.create_server(session, "127.0.0.1", 0, backlog=1024)
        return int(server.sockets[0].getsockname()[1])

    async def _until_the_owner_is_gone(self) -> None:
        """The owner holds the other end of standard input."""
        reader = asyncio.StreamReader()
        await self.loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await reader.read()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                writer.write(json.dumps(self._reply(json.loads(line))).encode() + b"\n")
                await writer.drain()

    def _reply(self, request: dict[str, Any]) -> Any:
        match request["ask"]:
            case "count":
                return len(self.journal.accepted)
            case "summary":
                return self.journal.summary()
            case "accepted":
                return self.journal.accepted[request.get("start", 0) :]
            case "when":
                return self.journal.first.get(request["message_id"])
            case "sample":
                return self.journal.sample.decode("latin-1")
            case "reset":
                self.journal.__init__(open=self.journal.open)  # type: ignore[misc]
            case "set":
                self._set(request)
        return None

    def _set(self, request: dict[str, Any]) -> None:
        parameters = self.parameters
        parameters.delay = float(request.get("delay", parameters.delay))
        parameters.tarpit = float(request.get("tarpit", parameters.tarpit))
        parameters.tarpit_users = frozenset(request.get("tarpit_users", parameters.tarpit_users))


class Sink:
    """The server as a subprocess, ended by its own handle. `with Sink(directory) as sink: sink.port`."""

    def __init__(self, directory: Path) -> None:
        self.authority = ThrowAwayAuthority(directory)
        self._certificate = directory / "sink.pem"
        leaf = self.authority.good_certificate("localhost", "127.0.0.1")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(self._certificate))
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sink", "serve", str(self._certificate)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.port, self.tarpit_port, control = json.loads(self._process.stdout.readline())
        self._control = socket.create_connection(("127.0.0.1", control)).makefile("rwb")
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def count(self) -> int:
        return int(self._ask(ask="count"))

    def summary(self) -> dict[str, Any]:
        return dict(self._ask(ask="summary"))

    def accepted(self, start: int = 0) -> list[list[Any]]:
        """Rows as in `Journal.accepted`, from the `start`-th."""
        return list(self._ask(ask="accepted", start=start))

    def when(self, message_id: str) -> float | None:
        """The moment that message was first accepted, in this machine's monotonic seconds."""
        found = self._ask(ask="when", message_id=message_id)
        return None if found is None else float(found)

    def sample(self) -> bytes:
        """The first accepted message's bytes, dot-stuffed as they came."""
        return str(self._ask(ask="sample")).encode("latin-1")

    def reset(self) -> None:
        self._ask(ask="reset")

    def set(self, **parameters: Any) -> None:
        self._ask(ask="set", **parameters)

    def wait_for(self, count: int, *, seconds: float, every: float = 0.05) -> int:
        """The count once it reaches `count`, or as it is when `seconds` are over."""
        deadline = time.monotonic() + seconds
        while (found := self.count()) < count and time.monotonic() < deadline:
            time.sleep(every)
        return found

    def _ask(self, **request: Any) -> Any:
        with self._lock:
            self._control.write(json.dumps(request).encode() + b"\n")
            self._control.flush()
            return json.loads(self._control.readline())


def trusting(authority_file: Path) -> ssl.SSLContext:
    """A client's context that knows the throw-away authority."""
    return ssl.create_default_context(cafile=str(authority_file))


def log_in(port: int, context: ssl.SSLContext, user: str) -> smtplib.SMTP:
    client = smtplib.SMTP("localhost", port, local_hostname="client.example", timeout=60)
    client.starttls(context=context)
    client.login(user, PASSWORD)
    return client


def pipelined(client: smtplib.SMTP, sender: str, recipient: str, mime: bytes) -> None:
    """One mail in two round trips: envelope and DATA together, then the body."""
    client.sock.sendall(b"MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n" % (sender.encode(), recipient.encode()))
    codes = [client.getreply()[0] for _ in range(3)]
    client.sock.sendall(mime + b".\r\n")
    codes.append(client.getreply()[0])
    if codes != [250, 250, 354, 250]:
        raise RuntimeError(f"the sink said {codes}")


def _ceiling_client(port: int, authority_file: str, count: int) -> None:
    client = log_in(port, trusting(Path(authority_file)), "ceiling@sender.example")
    body = b"x" * 70 + b"\r\n"
    for number in range(count):
        mime = b"Message-ID: <%d.%d@ceiling>\r\nSubject: s\r\n\r\n" % (id(client), number) + body * 27
        pipelined(client, "ceiling@sender.example", "to@rcpt.example", mime)


def ceiling(count: int = 4000, clients: int = 2) -> Mapping[str, float]:
    """Mails a second that `clients` processes of bare, pipelined smtplib get through the sink."""
    with tempfile.TemporaryDirectory() as place, Sink(Path(place)) as sink:
        command = [sys.executable, "-m", "benchmarks.sink", "load", str(sink.port)]
        command += [str(sink.authority.ca_file), str(count // clients)]
        loaders = [subprocess.Popen(command, cwd=ROOT) for _ in range(clients)]
        for loader in loaders:
            loader.wait(120)
        found = sink.summary()
    per_second = (found["accepted"] - 1) / (found["last_at"] - found["first_at"])
    return {
        "per_second": per_second,
        "sink_ms": 1000 * found["cpu_seconds"] / found["accepted"],
        "round_trips": found["turns"] / found["accepted"],
    }


def main() -> None:
    match sys.argv[1:]:
        case ["serve", certificate]:
            gc.freeze()
            gc.set_threshold(100_000)
            asyncio.run(Server(certificate).run())
        case ["load", port, authority_file, count]:
            _ceiling_client(int(port), authority_file, int(count))
        case _:
            for clients in (1, 2):
                found = ceiling(clients=clients)
                print(
                    f"{clients} client(s): {found['per_second']:.0f} mails/s, "
                    f"{found['sink_ms']:.2f} ms of the sink's processor a mail, "
                    f"{found['round_trips']:.1f} round trips"
                )


if __name__ == "__main__":
    main()
