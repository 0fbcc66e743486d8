"""`python -m tests.chaos --peers`: the same server, faults and seed for each sender, and one table.

Installs the others into `var/peers/venv`. Counts copies by subject, since not all of them keep one Message-ID
over their attempts.
"""

import json
import os
import random
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from gobii_email.testing.oracle import Oracle
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import ROOT, Process
from tests.chaos.arena import PASSWORD, Arena
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.plant import Plant
from tests.chaos.run import QUIET_SECONDS, run, torment

PER_SECOND = 5.0
VENV = ROOT / "var" / "peers" / "venv"
PACKAGES = (
    "django-post-office==3.12.0",
    "django-mailer==2.3.2",
    "django-celery-email==3.0.0",
    "django>=5.2,<6",
    "celery>=5.7,<6",
    "redis",
    "packaging",  # celery's Redis transport needs it and does not ask for it
    "psycopg[binary]",
)
NAMES = {
    "gobii_email": "gobii_email",
    "post_office": "django-post-office",
    "mailer": "django-mailer",
    "celery_early": "django-celery-email",
    "celery_late": "django-celery-email, late ack",
    "transaction": "SMTP inside the transaction",
}
STRUCK_BY = (
    *(f"kill:{stage}" for stage in ("connect", "auth", "mail", "rcpt", "data", "body", "dot")),
    *("kill:after_dot", "kill:replied", "kill:any", "sigterm", "freeze:rcpt", "freeze:after_dot"),
    *(f"reset:{stage}" for stage in ("connect", "rcpt", "body", "dot", "after_dot")),
    *(f"4xx:{stage}" for stage in ("connect", "auth", "mail", "rcpt", "data", "dot")),
    *("too_late:after_dot", "redis:flush", "redis:lost", "redis:restart"),
    *("postgres:fast", "postgres:immediate"),
)


@dataclass(slots=True)
class Row:
    """What became of the mails that a caller was told are on their way.

    lost: no server has it, and nobody says so. given_up: no server has it, and it is called failed.
    wrongly_failed: a server has it, and it is called failed. in_doubt: it says that it does not know.
    stuck: still waiting when all had been quiet for long. seconds: from the last fault to the last mail.
    """

    name: str
    mails: int = 0
    once: int = 0
    doubled: int = 0
    lost: int = 0
    wrongly_failed: int = 0
    given_up: int = 0
    in_doubt: int = 0
    stuck: int = 0
    seconds: float = 0.0
    faults: int = 0


class Peer(Arena):
    """One of the others: two workers, or two loops, on PostgreSQL."""

    queue = "celery"

    def __init__(self, name: str, directory: Path, seed: int) -> None:
        oracle = Oracle(directory, password=PASSWORD, seed=seed)
        super().__init__(directory, oracle, EmbeddedPostgres(own=True))
        self.name = name
        self._started = 0

    def _open(self) -> None:
        self._opened.callback(self._stop_workers)
        self.valkey.start()
        self._opened.callback(self.valkey.stop)
        assert self.postgres is not None
        self.env = {
            **{key: value for key, value in os.environ.items() if key in {"HOME", "LANG"}},
            "PATH": f"{VENV / 'bin'}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "DJANGO_SETTINGS_MODULE": "tests.chaos.peers.settings",
            "PEER": self.name,
            "DATABASE_URL": self.postgres.url,
            "REDIS_URL": self.valkey.url,
            "SMTP_PORT": str(self.oracle.ports[0]),
            "SMTP_PASSWORD": PASSWORD,
            "TMPDIR": str(self.directory),
        }
        self._python("-m", "django", "migrate", "--run-syncdb", "--verbosity", "0")
        for _ in range(2):
            self.start_worker()

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.thaw()
            worker.kill()

    def start_worker(self, *, wait: bool = True) -> Process:
        with self._lock:
            self._started += 1
            name = f"worker{self._started}"
            command = ["-m", "tests.chaos.peers.work", "send"]
            if self.name.startswith("celery"):
                command = ["-m", "celery", "-A", "tests.chaos.peers.celery_app", "worker", "-c", "4"]
                command += ["-n", f"{name}@%h", "--without-gossip", "--without-mingle"]
            worker = self._process(name, command)
            self.workers.append(worker)
        return worker

    def submit(self, mails: int, *, per_second: float, seed: int) -> Process:
        numbers = ["--mails", str(mails), "--per-second", str(per_second)]
        return self._process("submit", ["-m", "tests.chaos.peers.submit", str(self.submissions), *numbers])

    def outcomes(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self._python("-m", "tests.chaos.peers.work", "outcomes"))
        return found

    def waiting(self) -> int:
        """What is still to be sent, as far as the sender knows itself."""
        if not self.name.startswith("celery"):
            return Counter(self.outcomes().values())["queued"]
        client = self.redis()
        return int(client.llen(self.queue)) + int(client.hlen("unacked"))  # type: ignore[arg-type]

    def _process(self, name: str, command: list[str]) -> Process:
        python = str(VENV / "bin" / "python")
        return Process(name, [python, *command], self.env, self.directory / f"{name}.log")

    def _python(self, *arguments: str) -> str:
        command = [str(VENV / "bin" / "python"), *arguments]
        result = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(result.stderr[-2000:])
        return result.stdout


def faults() -> list[Fault]:
    return [FAULTS[name] for name in STRUCK_BY]


def compare(mails: int, seed: int, report: Path | None, only: str, directory: Path) -> int:
    """Measures all of them, or `only` some, and prints the table; `report` gets it as JSON."""
    _install()
    rows = []
    for key in only.split(",") if only else NAMES:
        print(f"== {NAMES[key]}", flush=True)
        place = directory / key
        place.mkdir(parents=True)
        measure: Callable[[str, Path, int, int], Row] = ours if key == "gobii_email" else theirs
        rows.append(measure(key, place, mails, seed))
        print(rows[-1], flush=True)
    if report is not None:
        report.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(markdown(rows))
    return 0


def _install() -> None:
    if not (VENV / "bin" / "python").exists():
        venv.create(VENV, with_pip=True)
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", *PACKAGES]
    subprocess.run(command, check=True, stdout=sys.stderr)


def ours(key: str, directory: Path, mails: int, seed: int) -> Row:
    with Plant(directory, database="postgresql", seed=seed) as plant:
        report = run(
            plant,
            faults(),
            mails=mails,
            seed=seed,
            per_second=PER_SECOND,
            big_share=0.1,
            repeat=False,
            plain=True,
            say=_say,
        )
    books = report.books
    return Row(
        NAMES[key],
        mails=books.submitted,
        once=books.statuses["sent"],
        doubled=len(books.doubled) + books.allowed_doubles,
        lost=len(books.lost) + len(books.false_sent),
        wrongly_failed=len(books.false_failed),
        given_up=books.statuses["failed"],
        in_doubt=books.statuses["in_doubt"],
        stuck=len(books.stuck),
        seconds=round(report.drained_seconds, 1),
        faults=sum(report.struck.values()),
    )


def theirs(key: str, directory: Path, mails: int, seed: int) -> Row:
    with Peer(key, directory, seed) as peer:
        submitter = peer.submit(mails, per_second=PER_SECOND, seed=seed)
        struck, _ = torment(peer, faults(), submitter, random.Random(seed), repeat=False, say=_say)
        last_fault = time.time()
        _wait_until_quiet(peer, submitter)
        row = judge(peer, NAMES[key])
        copied = [line["at"] for line in peer.oracle.noted("copy")]
        row.seconds = round(max(0.0, max(copied, default=0.0) - last_fault), 1)
        row.faults = sum(struck.values())
    return row


def _wait_until_quiet(peer: Peer, submitter: Process) -> None:
    """Until nothing waits and nothing is sent; or until no healthy sender would need more time."""
    deadline = time.monotonic() + QUIET_SECONDS
    before = -1
    while time.monotonic() < deadline:
        sent = len(peer.oracle.noted("copy"))
        if not submitter.is_running and not peer.waiting() and sent == before:
            return
        before = sent
        time.sleep(4)


def judge(peer: Peer, name: str) -> Row:
    """Compares what callers were told, what the server has, and what the sender's own record says."""
    accepted = [json.loads(line) for line in peer.submissions.read_text().splitlines()]
    copies = Counter(line["subject"] for line in peer.oracle.noted("copy"))
    said = peer.outcomes()
    row = Row(name, mails=len(accepted))
    for submission in accepted:
        # Each failed submission may have been stored all the same: those doubles are the caller's.
        count, status = copies[submission["subject"]], said.get(submission["subject"], "")
        row.once += count == 1
        row.doubled += count > 1
        row.lost += not count and status in {"", "sent"}
        row.given_up += not count and status == "failed"
        row.wrongly_failed += count > 0 and status == "failed"
        row.stuck += status == "queued"
    return row


def _say(text: str) -> None:
    print(text, flush=True)


def markdown(rows: list[Row]) -> str:
    """The table for docs/chaos.md."""
    titles = ["", "mails", "once", "doubled", "lost", "wrongly failed", "given up", "in doubt", "stuck"]
    lines = [" | ".join([*titles, "seconds"]), "|".join(["---", *["---:"] * 9])]
    for row in rows:
        facts = [row.mails, row.once, row.doubled, row.lost, row.wrongly_failed, row.given_up]
        facts += [row.in_doubt, row.stuck, row.seconds]  # type: ignore[list-item]
        lines.append(" | ".join([row.name, *map(str, facts)]))
    return "\n".join(f"| {line} |" if " | " in line else f"|{line}|" for line in lines)
