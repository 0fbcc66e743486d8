"""A submission server that remembers: a process of its own, which outlives everything it judges.

Every finished message and every accepted copy is a line in a journal that is on disk before the client sees
the reply. Faults strike by stage, by rules that may change while it runs; a trap stops one connection at a
stage until its owner has done something terrible to the other end. Linux only where traps name a process.
"""

import argparse
import asyncio
import base64
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

LOOPBACK = "127.0.0.1"
STAGES = (
    "connect",
    "ehlo",
    "auth",
    "mail",
    "rcpt",
    "data",
    "body",
    "before_dot",
    "dot",
    "after_dot",
    "replied",
)
"""Where rules strike: before the reply to that command; half of the body read; all of it but the dot; the
dot seen and nothing kept; kept and not answered; answered."""

_BEFORE_THE_DOT = re.compile(rb"(?:^|\r\n)--[^\r\n]*--\r\n$")
_PATH = re.compile(r"<([^>]*)>")
_SIZE = re.compile(r"\bSIZE=(\d+)", re.IGNORECASE)
_TRAP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens at `stage`, `times` times (None: always), to a `share` of the connections there.

    `do` is "reply" (with `reply`, in place of the real one; 421 closes), "reset", "stall" (until the client
    leaves, at most `seconds`), "late" (goes on after `seconds`) or "trap" (asks the owner, then goes on).
    Counting starts after the first `skip` passages.
    """

    stage: str
    do: str
    reply: str = ""
    seconds: float = 5.0
    times: int | None = 1
    share: float = 1.0
    skip: int = 0
    name: str = ""


class Cut(Exception):
    """This connection is over."""


class Conversation:
    """One connection: reads commands, however they are bundled, and plays the rules."""

    def __init__(self, server: "Server", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.number = server.next_number()
        self.peer = int(writer.get_extra_info("peername")[1])
        self.user = ""
        self.is_encrypted = False
        self.messages = 0
        self.sender: str | None = None
        self.size = 0
        self.recipients: list[str] = []

    async def run(self) -> None:
        with contextlib.suppress(Cut, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError, OSError):
            if await self._goes_on("connect"):
                await self._say("220 oracle.test ESMTP")
            while True:
                line = (await self.reader.readuntil(b"\r\n")).decode("utf-8", "replace").strip()
                await self._obey(*line.partition(" ")[::2])
        self.server.note("closed", conn=self.number, messages=self.messages)
        self.writer.transport.abort()

    async def _obey(self, verb: str, rest: str) -> None:
        act = {
            "EHLO": self._ehlo,
            "HELO": self._ehlo,
            "STARTTLS": self._starttls,
            "AUTH": self._auth,
            "MAIL": self._mail,
            "RCPT": self._rcpt,
            "DATA": self._data,
            "RSET": self._rset,
            "QUIT": self._quit,
            "NOOP": self._noop,
        }.get(verb.upper())
        await (act(rest) if act else self._say("500 5.5.1 What?"))

    async def _ehlo(self, rest: str) -> None:
        if await self._goes_on("ehlo"):
            offers = ["PIPELINING", "SIZE 33554432", "8BITMIME", "ENHANCEDSTATUSCODES", "DSN"]
            if self.server.tls and not self.is_encrypted:
                offers.append("STARTTLS")
            else:
                offers.append("AUTH PLAIN LOGIN")
            await self._say("\r\n".join(["250-oracle.test", *(f"250-{o}" for o in offers), "250 HELP"]))

    async def _starttls(self, rest: str) -> None:
        await self._say("220 2.0.0 Go ahead")
        await self.writer.start_tls(self.server.tls)  # type: ignore[arg-type]
        self.is_encrypted = True

    async def _auth(self, rest: str) -> None:
        mechanism, _, first = rest.partition(" ")
        if not first and mechanism.upper() == "PLAIN":
            first = await self._ask("334 ")
        if mechanism.upper() == "LOGIN":
            user, password = first or await self._ask("334 VXNlcm5hbWU6"), await self._ask("334 UGFzc3dvcmQ6")
            name, secret = _decoded(user), _decoded(password)
        else:
            _, name, secret = [*_decoded(first).split("\0"), "", ""][:3]
        if await self._goes_on("auth"):
            is_right = self.server.password is None or secret == self.server.password
            self.user = name if is_right else ""
            await self._say("235 2.7.0 Welcome" if is_right else "535 5.7.8 Wrong")

    async def _ask(self, prompt: str) -> str:
        await self._say(prompt)
        return (await self.reader.readuntil(b"\r\n")).decode().strip()

    async def _mail(self, rest: str) -> None:
        if await self._goes_on("mail"):
            found, size = _PATH.search(rest), _SIZE.search(rest)
            self.sender, self.recipients = found.group(1) if found else "", []
            self.size = int(size.group(1)) if size else 0
            await self._say("250 2.1.0 Ok")

    async def _rcpt(self, rest: str) -> None:
        if self.sender is None:
            await self._say("503 5.5.1 MAIL first")
        elif await self._goes_on("rcpt"):
            found = _PATH.search(rest)
            self.recipients.append(found.group(1) if found else "")
            await self._say("250 2.1.5 Ok")

    async def _data(self, rest: str) -> None:
        if not self.recipients:
            await self._say("503 5.5.1 RCPT first")
            return
        if not await self._goes_on("data"):
            self._forget()
            return
        await self._say("354 Go ahead")
        content = await self._body()
        facts = self._facts(content)
        self.messages += 1
        self.server.note("dot", durable=True, **facts)
        if await self._goes_on("dot", facts):
            self.server.note("copy", durable=True, **facts)
            if await self._goes_on("after_dot", facts):
                await self._say(f"250 2.0.0 Ok: queued as {self.number:X}-{self.messages}")
            self.server.note("replied", **facts)
            self._forget()
            await self._goes_on("replied", facts)
        self._forget()

    async def _body(self) -> bytes:
        """The message without its final dot; half of it and its end are stages of their own."""
        content = bytearray()
        half_is_due, end_is_due = True, True
        while not (content.endswith(b"\r\n.\r\n")):
            if half_is_due and len(content) >= max(self.size // 2, 1):
                half_is_due = False
                await self._goes_on("body")
            if end_is_due and _BEFORE_THE_DOT.search(content[-200:]):
                end_is_due = False
                await self._goes_on("before_dot")
            chunk = await self.reader.read(65_536)
            if not chunk:
                raise Cut
            content += chunk
        return bytes(content[:-3])

    async def _rset(self, rest: str) -> None:
        self._forget()
        await self._say("250 2.0.0 Ok")

    async def _noop(self, rest: str) -> None:
        await self._say("250 2.0.0 Ok")

    async def _quit(self, rest: str) -> None:
        await self._say("221 2.0.0 Bye")
        raise Cut

    def _forget(self) -> None:
        self.sender, self.recipients, self.size = None, [], 0

    def _facts(self, content: bytes) -> dict[str, Any]:
        head = content.partition(b"\r\n\r\n")[0]
        return {
            "conn": self.number,
            "peer": self.peer,
            "message_id": _header(head, "message-id"),
            "attempt_id": _header(head, "x-gobii-message-id"),
            "subject": _header(head, "subject"),
            "sender": self.sender,
            "recipients": list(self.recipients),
        }

    async def _say(self, text: str) -> None:
        self.writer.write(text.encode() + b"\r\n")
        await self.writer.drain()

    async def _goes_on(self, stage: str, facts: Mapping[str, Any] | None = None) -> bool:
        """Plays the rule for `stage`, if one strikes; False when its reply was the whole answer."""
        rule = self.server.rule_for(stage)
        if rule is None:
            return True
        known = dict(facts or {"conn": self.number, "peer": self.peer})
        self.server.note("fault", stage=stage, do=rule.do, rule=rule.name, reply=rule.reply, **known)
        match rule.do:
            case "late":
                await asyncio.sleep(rule.seconds)
            case "trap":
                await self.server.spring(stage, rule, known)
            case "reset":
                self._reset()
            case "stall":
                await asyncio.sleep(rule.seconds)
                self._reset()
            case "reply":
                await self._say(rule.reply)
                if rule.reply.startswith("421"):
                    raise Cut
                return False
        return True

    def _reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        raise Cut


class Server:
    """The listening ports, the rules in force, the journal, and the line to the owner."""

    def __init__(self, journal: Path, *, tls: ssl.SSLContext | None, password: str | None, seed: int) -> None:
        self.tls, self.password = tls, password
        self._chance = random.Random(seed)
        self._journal = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._rules: list[tuple[Rule, list[int]]] = []
        self._owner: asyncio.StreamWriter | None = None
        self._sprung: dict[int, asyncio.Future[None]] = {}
        self._numbers = 0

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def note(self, what: str, *, durable: bool = False, **facts: Any) -> None:
        os.write(self._journal, json.dumps({"what": what, "at": time.time(), **facts}).encode() + b"\n")
        if durable:
            os.fsync(self._journal)

    def rule_for(self, stage: str) -> Rule | None:
        for rule, state in self._rules:
            if rule.stage != stage or (rule.times is not None and state[0] >= rule.times):
                continue
            state[1] += 1
            if state[1] > rule.skip and self._chance.random() < rule.share:
                state[0] += 1
                return rule
        return None

    async def spring(self, stage: str, rule: Rule, facts: Mapping[str, Any]) -> None:
        if self._owner is None:
            return
        number = self.next_number()
        self._sprung[number] = asyncio.get_running_loop().create_future()
        self._tell({"trap": number, "stage": stage, "name": rule.name, **facts})
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._sprung[number], _TRAP_SECONDS)

    def _tell(self, facts: Mapping[str, Any]) -> None:
        if self._owner is not None:
            self._owner.write(json.dumps(facts).encode() + b"\n")

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves smtp on one connection."""
        await Conversation(self, reader, writer).run()

    async def obey(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the owner: one JSON order a line."""
        self._owner = writer
        while line := await reader.readline():
            order = json.loads(line)
            if "rules" in order:
                self._rules = [(Rule(**rule), [0, 0]) for rule in order["rules"]]
            if "add" in order:
                self._rules.append((Rule(**order["add"]), [0, 0]))
            if "release" in order and not (found := self._sprung.pop(order["release"])).done():
                found.set_result(None)
            self._tell({"done": order["order"]})
        self._owner = None


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text).decode()
    except ValueError:
        return ""


def _header(head: bytes, name: str) -> str:
    unfolded = re.sub(rb"\r\n[ \t]+", b" ", head)
    for line in unfolded.split(b"\r\n"):
        if line.lower().startswith(name.encode() + b":"):
            return line.partition(b":")[2].strip().decode("utf-8", "replace")
    return ""


async def _serve(arguments: argparse.Namespace) -> None:
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate)
    server = Server(arguments.journal, tls=tls, password=arguments.password, seed=arguments.seed)
    listening = [await asyncio.start_server(server.talk, LOOPBACK, 0) for _ in range(arguments.ports)]
    control = await asyncio.start_server(server.obey, LOOPBACK, 0)
    ports = [each.sockets[0].getsockname()[1] for each in (*listening, control)]
    print(json.dumps(ports), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


@dataclass(frozen=True, slots=True)
class Trap:
    """One connection that waits at `stage`: `peer` is the port its client dialled from."""

    number: int
    stage: str
    name: str
    peer: int
    facts: Mapping[str, Any] = field(default_factory=dict)


class Oracle:
    """The owner's end: starts the process, changes its rules, hears of traps, reads the journal.

    `on_trap` is called in a thread of its own for each sprung trap; when it returns, the connection goes on.
    """

    def __init__(
        self,
        directory: Path,
        *,
        ports: int = 1,
        certificate: Path | None = None,
        password: str | None = None,
        seed: int = 0,
    ) -> None:
        self.journal = directory / "oracle.ndjson"
        self.ports: list[int] = []
        self.on_trap: Callable[[Trap], None] = lambda trap: None
        self._log = directory / "oracle.log"
        # By path and with the standard library alone: it starts at once, from any directory.
        self._command = [sys.executable, "-P", str(Path(__file__).resolve())]
        self._command += [str(self.journal), "--ports", str(ports), "--seed", str(seed)]
        self._command += ["--certificate", str(certificate)] if certificate else []
        self._command += ["--password", password] if password is not None else []
        self._process: subprocess.Popen[str] | None = None
        self._control: socket.socket | None = None
        self._orders = 0
        self._done: dict[int, threading.Event] = {}
        self._lock = threading.Lock()

    def start(self) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the oracle did not start: {self._log.read_text()[-2000:]}")
        *self.ports, control = json.loads(line)
        self._control = socket.create_connection((LOOPBACK, control))
        threading.Thread(target=self._listen, name="oracle", daemon=True).start()
        return self

    def stop(self) -> None:
        if self._process is not None:
            self.thaw()
            self._process.terminate()
            self._process.wait(60)
            self._process = None
        if self._control is not None:
            self._control.close()
            self._control = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def set_rules(self, *rules: Rule) -> None:
        """These rules and no others; in force when this returns."""
        self._order({"rules": [asdict(rule) for rule in rules]})

    def add_rule(self, rule: Rule) -> None:
        self._order({"add": asdict(rule)})

    def lines(self) -> list[dict[str, Any]]:
        """The journal so far."""
        if not self.journal.exists():
            return []
        whole = self.journal.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def noted(self, *what: str) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line["what"] in what]

    def _order(self, order: dict[str, Any], *, wait: bool = True) -> None:
        assert self._control is not None
        with self._lock:
            self._orders += 1
            number = self._orders
            done = self._done[number] = threading.Event()
            self._control.sendall(json.dumps({"order": number, **order}).encode() + b"\n")
        if wait and not done.wait(_TRAP_SECONDS):
            raise TimeoutError("the oracle does not answer")

    def _listen(self) -> None:
        assert self._control is not None
        with contextlib.suppress(OSError), self._control.makefile("r") as lines:
            for line in lines:
                facts = json.loads(line)
                if "trap" in facts:
                    threading.Thread(target=self._caught, args=(facts,), daemon=True).start()
                elif done := self._done.pop(facts["done"], None):
                    done.set()

    def _caught(self, facts: dict[str, Any]) -> None:
        trap = Trap(facts["trap"], facts["stage"], facts["name"], facts["peer"], facts)
        try:
            self.on_trap(trap)
        finally:
            with contextlib.suppress(OSError, AssertionError):
                self._order({"release": trap.number}, wait=False)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def process_behind(peer: int, groups: Iterable[int]) -> int | None:
    """The process, of those in `groups` of processes, whose socket has the local port `peer`."""
    inodes = {f"socket:[{inode}]" for inode in _inodes_of(peer)}
    for pid in _members(set(groups)):
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        return pid
    return None


def _inodes_of(port: int) -> Sequence[str]:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[9] for row in rows if int(row[1].rpartition(":")[2], 16) == port and row[9] != "0"]


def _members(groups: set[int]) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if os.getpgid(int(path.name)) in groups:
                    found.append(int(path.name))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("journal", type=Path)
    parser.add_argument("--ports", type=int, default=1)
    parser.add_argument("--certificate")
    parser.add_argument("--password")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
