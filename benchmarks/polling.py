"""What polls cost: unchanged mailboxes a second by one inbound worker, and the memory of a large backlog.

A server in processes of its own answers over TLS as fast as it can; worker, dispatcher, PostgreSQL and Valkey
are the real ones. `python -m benchmarks.polling --mailboxes 2000 --backlog 5000`.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.rig import resident_bytes
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import Process, Stack, eventually

PASSWORD = "S3cret"
MB = 1024 * 1024
ACCOUNTS, INTERVAL = 10_000, 120
"""What is to be polled on time."""

_CONNECT = """
import json, sys
from django.utils import timezone
from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgent, PersistentAgentCommsEndpoint
facts = json.load(sys.stdin)
agent = PersistentAgent.objects.create(name=facts["name"], whitelist_policy="unrestricted")
addresses = [f"{facts['name']}{number}@poll.example" for number in range(facts["mailboxes"])]
endpoints = PersistentAgentCommsEndpoint.objects.bulk_create([
    PersistentAgentCommsEndpoint(owner_agent=agent, channel="email", address=address) for address in addresses
])
accounts = []
for endpoint in endpoints:
    account = AgentEmailAccount(
        endpoint=endpoint, imap_host="localhost", imap_port=facts["port"], imap_username=endpoint.address,
        last_seen_uid="v:1:0", is_inbound_enabled=True, poll_interval_sec=86400,
    )
    account.set_imap_password(facts["password"])
    account.imap_tested_fingerprint = account.imap_fingerprint()
    accounts.append(account)
AgentEmailAccount.objects.bulk_create(accounts)
now = timezone.now()
Mailbox.objects.bulk_create([
    Mailbox(account=account, due_at=now, look_at=now, baseline_at=now) for account in accounts
])
"""
_POLLED = "SELECT count(*) FROM gobii_email_agentemailaccount WHERE imap_last_ok_at IS NOT NULL"
_TAKEN_IN = "SELECT count(*) FROM gobii_email_receivedmail WHERE state <> 'stored'"


class _Server:
    """Mailboxes of `backlog` small mails each; as much of IMAP as a poll needs."""

    def __init__(self, backlog: int) -> None:
        self._backlog = backlog

    async def serve(self, certificate: ssl.SSLContext, orders: Connection) -> None:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=certificate, backlog=1000)
        orders.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"* OK ready\r\n")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                tag, _, command = line.strip().partition(b" ")
                writer.write(b"".join(self._answer(command)) + tag + b" OK done\r\n")
                await writer.drain()
        writer.close()

    def _answer(self, command: bytes) -> Iterator[bytes]:
        if command == b"CAPABILITY":
            yield b"* CAPABILITY IMAP4rev1\r\n"
        elif command.startswith(b"EXAMINE"):
            facts = (self._backlog, self._backlog + 1)
            yield b"* %d EXISTS\r\n* OK [UIDVALIDITY 1] x\r\n* OK [UIDNEXT %d] x\r\n" % facts
        elif found := re.match(rb"UID SEARCH UID (\d+):(\d+)", command):
            yield b"* SEARCH %s\r\n" % b" ".join(
                b"%d" % uid for uid in range(int(found[1]), int(found[2]) + 1)
            )
        elif found := re.match(rb"UID FETCH ([\d,]+) ", command):
            for uid in map(int, found[1].split(b",")):
                yield _fetched(uid, is_whole=b"PEEK[]" in command)


def _fetched(uid: int, *, is_whole: bool) -> bytes:
    header = b"From: friend@rcpt.example\r\nSubject: Mail %d\r\nMessage-ID: <%d@rcpt.example>\r\n\r\n" % (
        uid,
        uid,
    )
    whole = header + b"A line of a mail that says little.\r\n" * 60
    name, said = (b"BODY[]", whole) if is_whole else (b"BODY[HEADER]<0>", header)
    date = b'"21-Nov-2026 10:00:00 +0000"'
    facts = b"UID %d RFC822.SIZE %d INTERNALDATE %s" % (uid, len(whole), date)
    return b"* %d FETCH (%s %s {%d}\r\n%s)\r\n" % (uid, facts, name, len(said), said)


def _serve(orders: Connection, pem: str, backlog: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    asyncio.run(_Server(backlog).serve(context, orders))


@dataclass(frozen=True, slots=True)
class Polls:
    """How many unchanged mailboxes one worker polls a second, and what of its processor each takes."""

    mailboxes: int
    threads: int
    per_second: float
    cpu_ms: float

    @property
    def workers_needed(self) -> float:
        """For ACCOUNTS mailboxes every INTERVAL seconds."""
        return ACCOUNTS / INTERVAL / self.per_second


@dataclass(frozen=True, slots=True)
class Backlog:
    """One mailbox with `mails` new ones: how fast they are taken in, and the worker's memory meanwhile."""

    mails: int
    per_second: float
    before_mb: float
    at_half_mb: float
    after_mb: float
    peak_mb: float


@dataclass(frozen=True, slots=True)
class _Installation:
    stack: Stack
    port: int
    worker: Process
    database: "psycopg.Connection[Any]"

    def connect(self, name: str, mailboxes: int) -> None:
        facts = {"name": name, "mailboxes": mailboxes, "port": self.port, "password": PASSWORD}
        self.stack.python(_CONNECT, input=json.dumps(facts))

    def count(self, question: str) -> int:
        row = self.database.execute(question).fetchone()
        return int(row[0]) if row else 0


@contextlib.contextmanager
def _installation(threads: int, backlog: int) -> "Iterator[_Installation]":
    """One inbound worker, and a server whose mailboxes have `backlog` mails each."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        authority = ThrowAwayAuthority(Path(name))
        pem = Path(name) / "server.pem"
        authority.good_certificate().private_key_and_cert_chain_pem.write_to_path(str(pem))
        orders, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, str(pem), backlog))
        server.start()
        stack.callback(server.join)
        stack.callback(server.kill)
        port = orders.recv()
        postgres = stack.enter_context(EmbeddedPostgres(own=True))
        env = {
            "SSL_CERT_FILE": str(authority.ca_file),
            "BYO_EMAIL_ALLOWED_PORTS": str(port),
            "GOBII_DB_POOL": "8",
            "LOG_LEVEL": "WARNING",
        }
        installation = stack.enter_context(Stack(Path(name), postgres.url, env))
        worker = installation.start_worker(threads, "email.inbound", {"LOG_LEVEL": "INFO"})
        database = stack.enter_context(psycopg.connect(postgres.url, autocommit=True))
        yield _Installation(installation, port, worker, database)


def unchanged(mailboxes: int, threads: int, seconds: float) -> Polls:
    """Polls of `mailboxes` that have nothing new, each once, all due at the same moment."""
    with _installation(threads, 0) as here:
        here.connect("box", mailboxes)
        here.stack.start_dispatcher()
        eventually(lambda: here.count(_POLLED), seconds=60, every=0.01)
        first, cpu, began = here.count(_POLLED), _cpu_seconds(here.worker), time.monotonic()
        eventually(lambda: here.count(_POLLED) >= mailboxes, seconds=seconds)
        took, used, polled = time.monotonic() - began, _cpu_seconds(here.worker) - cpu, mailboxes - first
        return Polls(mailboxes, threads, round(polled / took, 1), round(used / polled * 1000, 2))


def backlog(mails: int, threads: int, seconds: float) -> Backlog:
    """Takes in `mails` that wait in one mailbox."""
    with _installation(threads, mails) as here:
        before, samples = resident_bytes(here.worker.pid)[0], [(0, 0)]
        here.connect("backlog", 1)
        here.stack.start_dispatcher()
        began = time.monotonic()

        def is_done() -> bool:
            samples.append((here.count(_TAKEN_IN), resident_bytes(here.worker.pid)[0]))
            return samples[-1][0] >= mails

        eventually(is_done, seconds=seconds, every=0.25)
        took = time.monotonic() - began
        half = next(resident for count, resident in samples if count >= mails / 2)
        sizes = (before, half, samples[-1][1], resident_bytes(here.worker.pid)[1])
        return Backlog(mails, round(mails / took, 1), *(round(size / MB, 1) for size in sizes))


def _cpu_seconds(process: Process) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def polls_line(found: Polls) -> str:
    return (
        f"{found.mailboxes} unchanged mailboxes, one worker of {found.threads} threads:"
        f" {found.per_second:.0f} polls/s, {found.cpu_ms:.1f} ms of its processor each; {ACCOUNTS:,}"
        f" mailboxes every {INTERVAL} s take {found.workers_needed:.2f} such workers"
    )


def backlog_line(found: Backlog) -> str:
    return (
        f"a backlog of {found.mails} mails in one mailbox: {found.per_second:.0f} mails/s taken in; the"
        f" worker has {found.before_mb:.0f} MB before, {found.at_half_mb:.0f} half way, {found.after_mb:.0f}"
        f" after, {found.peak_mb:.0f} MB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mailboxes", type=int, default=2000)
    parser.add_argument("--backlog", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    polls = unchanged(options.mailboxes, options.threads, options.seconds)
    print(polls_line(polls), flush=True)
    taken = backlog(options.backlog, options.threads, options.seconds)
    print(backlog_line(taken), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"unchanged": asdict(polls), "backlog": asdict(taken)}, indent=1))


if __name__ == "__main__":
    main()
