"""What it costs to watch mailboxes: memory and processor of one `run_imap_idlers`, and how soon news counts.

A server in a process of its own holds thousands of connections over TLS; the watcher is the real process, on
a Valkey and a SQLite database of its own. `python -m benchmarks.idle --mailboxes 1000 4000`.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import ssl
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import redis

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.stack import Process, Stack, eventually

PASSWORD = "S3cret"
QUEUE = "email.inbound"

_CONNECT = """
import json, sys
from django.db import transaction
from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgent, PersistentAgentCommsEndpoint
facts = json.load(sys.stdin)
agent = PersistentAgent.objects.create(name="idle")
transaction.set_autocommit(False)
for number in range(facts["mailboxes"]):
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=f"box{number}@idle.example"
    )
    account = AgentEmailAccount(
        endpoint=endpoint, imap_host="localhost", imap_port=facts["port"], imap_username=endpoint.address,
        last_seen_uid="v:1:0", imap_idle_enabled=True, is_inbound_enabled=True, poll_interval_sec=86400,
    )
    account.set_imap_password(facts["password"])
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.save()
    Mailbox.objects.create(account=account)
transaction.commit()
"""


class _Server:
    """As much of IMAP as a watcher needs; a pipe asks it to count its clients, and to tell some of news."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders
        self._waiting: list[asyncio.StreamWriter] = []

    async def serve(self, certificate: ssl.SSLContext) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=certificate, backlog=1000)
        self._orders.send(server.sockets[0].getsockname()[1])
        asyncio.get_running_loop().add_reader(self._orders.fileno(), self._obey)
        await server.serve_forever()

    def _obey(self) -> None:
        for writer in self._waiting[: self._orders.recv()]:
            writer.write(b"* 1 EXISTS\r\n")
        self._orders.send(len(self._waiting))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                tag, _, command = line.strip().partition(b" ")
                writer.write(self._answer(tag, command.split(b" ")[0].upper(), writer))
                await writer.drain()
        if writer in self._waiting:
            self._waiting.remove(writer)
        writer.close()

    def _answer(self, tag: bytes, command: bytes, writer: asyncio.StreamWriter) -> bytes:
        done = tag + b" OK done\r\n"
        match command:
            case b"CAPABILITY":
                return b"* CAPABILITY IMAP4rev1 IDLE\r\n" + done
            case b"EXAMINE":
                return b"* 0 EXISTS\r\n* OK [UIDVALIDITY 1] x\r\n* OK [UIDNEXT 1] x\r\n" + done
            case b"IDLE":
                self._waiting.append(writer)
                return b"+ idling\r\n"
        return b"" if tag == b"DONE" else done


def _serve(orders: Connection, pem: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    asyncio.run(_Server(orders).serve(context))


@dataclass(frozen=True, slots=True)
class Cost:
    """`mb` is all resident memory, `kb_a_mailbox` what it has more than a watcher without mailboxes.

    So is the processor to open one; what it takes while nothing happens is a share of one core.
    """

    mailboxes: int
    seconds_to_open: float
    cpu_ms_to_open_one: float
    mb: float
    kb_a_mailbox: float
    idle_cpu_percent: float
    ms_to_first_poll: float
    ms_to_all_polls: float
    told: int


def measure(mailboxes: int, *, idle_seconds: float, told: int) -> Cost:
    """Watches `mailboxes`, waits `idle_seconds` with nothing to do, then tells `told` of them of mail."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        authority = ThrowAwayAuthority(Path(name))
        pem = Path(name) / "server.pem"
        authority.good_certificate().private_key_and_cert_chain_pem.write_to_path(str(pem))
        orders, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, str(pem)))
        server.start()
        stack.callback(server.join)
        stack.callback(server.kill)
        port = orders.recv()
        env = {"SSL_CERT_FILE": str(authority.ca_file), "BYO_EMAIL_ALLOWED_PORTS": str(port)}
        installation = stack.enter_context(Stack(Path(name), env=env))
        empty = _watcher(installation, 0)
        base = {"mb": _resident_mb(empty), "cpu": _cpu_seconds(empty)}
        empty.stop()
        facts = {"mailboxes": mailboxes, "port": port, "password": PASSWORD}
        installation.python(_CONNECT, input=json.dumps(facts))
        return _watched(installation, orders, facts | base, idle_seconds, min(told, mailboxes))


def _watcher(installation: Stack, mailboxes: int) -> Process:
    env = {"IMAP_IDLE_MAX_CONNECTIONS": str(mailboxes)}
    process = installation.start_process(
        f"idle{mailboxes}", ["python", "manage.py", "run_imap_idlers"], installation.env | env
    )
    process.wait_for("idle.started")
    time.sleep(2)
    return process


def _watched(
    installation: Stack, orders: Connection, facts: dict[str, Any], idle_seconds: float, told: int
) -> Cost:
    mailboxes = facts["mailboxes"]
    began = time.monotonic()
    process = _watcher(installation, mailboxes)
    eventually(lambda: _ask(orders, 0) == mailboxes, seconds=60 + mailboxes / 20, every=0.25)
    opened, cpu = time.monotonic() - began, _cpu_seconds(process)
    time.sleep(idle_seconds)
    idle_cpu = _cpu_seconds(process) - cpu
    resident = _resident_mb(process)
    first, last = _told(installation, orders, told)
    return Cost(
        mailboxes=mailboxes,
        seconds_to_open=round(opened, 1),
        cpu_ms_to_open_one=round((cpu - facts["cpu"]) / mailboxes * 1000, 1),
        mb=round(resident, 1),
        kb_a_mailbox=round((resident - facts["mb"]) * 1024 / mailboxes, 1),
        idle_cpu_percent=round(idle_cpu / idle_seconds * 100, 2),
        ms_to_first_poll=round(first * 1000),
        ms_to_all_polls=round(last * 1000),
        told=told,
    )


def _told(installation: Stack, orders: Connection, told: int) -> tuple[float, float]:
    """Seconds until the first and the last of the mailboxes that were told of mail are to be polled."""
    with redis.Redis.from_url(installation.valkey.url) as client:
        began = time.monotonic()
        _ask(orders, told)
        eventually(lambda: client.llen(QUEUE) >= 1, every=0.001)
        first = time.monotonic() - began
        eventually(lambda: client.llen(QUEUE) >= told, seconds=120, every=0.005)
        return first, time.monotonic() - began


def _ask(orders: Connection, told: int) -> int:
    orders.send(told)
    found: int = orders.recv()
    return found


def _cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mb(process: Process) -> float:
    found = Path(f"/proc/{process.pid}/status").read_text()
    return int(found.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailboxes", type=int, nargs="+", default=[1000])
    parser.add_argument("--idle-seconds", type=float, default=30.0)
    parser.add_argument("--told", type=int, default=100)
    given = parser.parse_args()
    for mailboxes in given.mailboxes:
        cost = measure(mailboxes, idle_seconds=given.idle_seconds, told=given.told)
        print(json.dumps(asdict(cost)), flush=True)


if __name__ == "__main__":
    main()
