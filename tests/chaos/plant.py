"""A whole service under test: real workers, dispatchers, broker and database, and the server outside.

Connects the accounts, starts and replaces what the faults end, and reads the rows without the service's own
code. What goes wrong, and when, is decided in faults.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gobii_email.ports import SEND_QUEUE
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.oracle import Oracle
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.stack import Process, Stack, eventually
from tests.chaos.arena import PASSWORD, Arena, Database
from tests.chaos.books import SETTLED, Rows

LEASE_SECONDS = 3.0
PATIENT = {f"GOBII_DEADLINE_{name}": "60s" for name in ("CONNECT", "STEP", "ENVELOPE")}
WIDE_OPEN = {"per_minute": 1_000_000_000, "per_hour": 1_000_000_000, "per_day": 1_000_000_000}
REUSING = WIDE_OPEN | {"max_connections": 8, "messages_per_connection": 20, "pool_ttl": 5}
SINGLE = WIDE_OPEN | {"max_connections": 8, "messages_per_connection": 1}

_APPLY = """
import json, sys
from pathlib import Path
from django.core.management import call_command
for path in json.load(sys.stdin):
    address = json.loads(Path(path).read_text())["address"]
    call_command("email_account", "apply", path, "--json", stdout=sys.stderr)
    call_command("email_account", "test", address, "--smtp", "--json", stdout=sys.stderr)
    call_command("email_account", "enable", address, "--outbound", "--json", stdout=sys.stderr)
"""
_MESSAGES = (
    "SELECT id, rfc_message_id, latest_status, on_doubt, subject FROM gobii_email_persistentagentmessage"
)
_ATTEMPTS = "SELECT id, message_id, number, status, marked_at FROM gobii_email_outboundmessageattempt"
_RECIPIENTS = "SELECT message_id, address, status FROM gobii_email_outboundmessagerecipient"
_DOUBTS = "SELECT attempt_id FROM gobii_email_outboundmessageevent WHERE event = 'in_doubt'"
_OPEN = "SELECT latest_status, count(*) FROM gobii_email_persistentagentmessage GROUP BY 1"
_HELD = "SELECT id, lease_token FROM gobii_email_outboundmessageattempt WHERE status = 'sending'"


class Plant(Arena):
    """Use as a context manager. `database` is "sqlite" or "postgresql", with a server of the plant's own."""

    queue = SEND_QUEUE

    def __init__(
        self,
        directory: Path,
        *,
        database: str = "sqlite",
        accounts: int = 10,
        workers: int = 2,
        threads: int = 4,
        dispatchers: int = 2,
        beats: int = 0,
        seed: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.authority = ThrowAwayAuthority(directory)
        certificate = directory / "oracle.pem"
        self.authority.good_certificate().private_key_and_cert_chain_pem.write_to_path(str(certificate))
        oracle = Oracle(directory, ports=accounts, certificate=certificate, password=PASSWORD, seed=seed)
        postgres = EmbeddedPostgres(own=True) if database == "postgresql" else None
        super().__init__(directory, oracle, postgres)
        self.senders = [f"agent{number}@sender.example" for number in range(accounts)]
        self.clock = directory / "clock"
        self.dispatchers: list[Process] = []
        self._given = dict(env or {})
        self._counts = (workers, dispatchers, beats)
        self._threads = threads

    def _open(self) -> None:
        url = self._database_url()
        self.stack = Stack(self.directory, url, self._environment(), broker=self.valkey)
        self._opened.enter_context(self.stack)
        self.database = Database(url)
        self._connect_accounts()
        workers, dispatchers, beats = self._counts
        for _ in range(workers):
            self.start_worker()
        for _ in range(dispatchers):
            self.start_dispatcher()
        for number in range(beats):
            schedule = str(self.directory / f"beat{number}")
            command = [sys.executable, "-m", "celery", "-A", "worker", "beat", "-s", schedule]
            self.stack.start_process(f"beat{number}", command)

    def _database_url(self) -> str:
        if self.postgres is not None:
            return self.postgres.url
        return f"sqlite:///{self.directory / 'stack.sqlite3'}"

    def _environment(self) -> dict[str, str]:
        settings = {
            "DJANGO_SETTINGS_MODULE": "tests.chaos.hurried_settings",
            "CHAOS_CLOCK": str(self.clock),
            "BYO_EMAIL_ALLOWED_PORTS": ",".join(str(port) for port in self.oracle.ports),
            "SSL_CERT_FILE": str(self.authority.ca_file),
            "GOBII_LEASE": f"{LEASE_SECONDS}s",
            "GOBII_RETRY_SCHEDULE": "1s",
            "GOBII_RING_GRACE": "1s",
            "GOBII_HINT_LIFETIME": "2s",
            "GOBII_BREAKER_PAUSE": "1s",
            "GOBII_DISPATCH_EVERY": "200ms",
            "GOBII_DEADLINE_CONNECT": "3s",
            "GOBII_DEADLINE_STEP": "3s",
            "GOBII_DEADLINE_ENVELOPE": "3s",
            "GOBII_DEADLINE_BODY": "3s",
            "GOBII_DEADLINE_DOT": "6s",
            "GOBII_DOUBT_RESEND_AFTER": "5s",
        }
        if self.postgres is not None:
            settings["GOBII_DB_POOL"] = "8"
        return settings | self._given

    def _connect_accounts(self) -> None:
        paths = []
        for number, (sender, port) in enumerate(zip(self.senders, self.oracle.ports, strict=True)):
            smtp = {"host": "localhost", "port": port, "security": "starttls", "auth": "plain"}
            document = {
                "agent": f"Agent {number}",
                "address": sender,
                "smtp": smtp | {"username": sender, "password": PASSWORD},
                "limits": SINGLE if number % 2 else REUSING,
            }
            path = self.directory / f"account{number}.json"
            path.write_text(json.dumps(document))
            paths.append(str(path))
        hurried, self.stack.env = self.stack.env, self.stack.env | PATIENT
        self.stack.python(_APPLY, input=json.dumps(paths))
        self.stack.env = hurried

    def start_worker(
        self, *, threads: int | None = None, wait: bool = True, options: Sequence[str] = (), **env: str
    ) -> Process:
        with self._lock:
            worker = self.stack.start_worker(
                threads or self._threads, extra_env=env, options=tuple(options), wait=wait
            )
            self.workers.append(worker)
        return worker

    def start_dispatcher(self) -> Process:
        with self._lock:
            dispatcher = self.stack.start_dispatcher()
            self.dispatchers.append(dispatcher)
        return dispatcher

    def submit(
        self, mails: int, *, per_second: float, seed: int, big_share: float = 0.03, plain: bool = False
    ) -> Process:
        command = [
            sys.executable,
            "-m",
            "tests.chaos.submitter",
            str(self.submissions),
            "--mails",
            str(mails),
        ]
        command += ["--per-second", str(per_second), "--seed", str(seed), "--big-share", str(big_share)]
        command += ["--plain"] if plain else []
        return self.stack.start_process("submitter", [*command, *self.senders])

    def send(self, **mail: Any) -> str:
        """Submits one mail from the first account; its id in the books' spelling."""
        facts = {"from_endpoint": self.senders[0], "to": "to@rcpt.example", "subject": "one", "body": "Hello"}
        return _hex(self.stack.send(facts | mail)[0])

    def copies(self, message_id: str) -> int:
        """How often the server took this message, by its own journal."""
        rfc_message_id = self.rows().messages[message_id]["rfc_message_id"]
        return sum(line["message_id"] == rfc_message_id for line in self.oracle.noted("copy"))

    def history(self, message_id: str) -> list[str]:
        """The statuses of its attempts, in order."""
        mine = [row for row in self.rows().attempts.values() if row["message_id"] == message_id]
        return [row["status"] for row in sorted(mine, key=lambda row: row["number"])]

    def wait(self, message_id: str, *statuses: str, seconds: float = 180) -> str:
        """The message's status, once it is one of `statuses`."""
        status = lambda: self.rows().messages[message_id]["status"]  # noqa: E731
        eventually(lambda: status() in statuses, seconds=seconds, every=0.2)
        return str(status())

    def open_messages(self) -> dict[str, int]:
        """How many messages are neither settled nor in doubt, by status."""
        found = dict(self.database.rows(_OPEN))
        return {status: count for status, count in found.items() if status not in SETTLED | {"in_doubt"}}

    def leases(self) -> set[tuple[str, str]]:
        return {(_hex(pk), _hex(token)) for pk, token in self.database.rows(_HELD)}

    def submitted(self) -> list[dict[str, Any]]:
        if not self.submissions.exists():
            return []
        return [json.loads(line) for line in self.submissions.read_text().rpartition("\n")[0].splitlines()]

    def rows(self) -> Rows:
        messages = {
            _hex(pk): {"rfc_message_id": rfc, "status": status, "on_doubt": on_doubt, "subject": subject}
            for pk, rfc, status, on_doubt, subject in self.database.rows(_MESSAGES)
        }
        attempts = {
            _hex(pk): {
                "id": _hex(pk),
                "message_id": _hex(message),
                "number": number,
                "status": status,
                "marked_at": marked_at,
            }
            for pk, message, number, status, marked_at in self.database.rows(_ATTEMPTS)
        }
        recipients = [
            {"message_id": _hex(message), "address": address, "status": status}
            for message, address, status in self.database.rows(_RECIPIENTS)
        ]
        doubts = frozenset(_hex(pk) for (pk,) in self.database.rows(_DOUBTS))
        return Rows(messages, attempts, recipients, doubts)


def _hex(value: object) -> str:
    """One spelling of an id: SQLite has 32 digits, PostgreSQL a UUID, the wire 36 characters."""
    return str(value).replace("-", "")
