"""Everything at once, as an operator would see it: faults under load, and then what the service says of it.

PostgreSQL, Valkey, a submission server that remembers, and the processes of the Procfile. Once all is
settled, the books balance, /metrics is right to the count, and nobody was told a secret.
"""

import base64
import json
import urllib.request
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from gobii_email.testing.oracle import Rule, Trap
from gobii_email.testing.processes import free_port
from gobii_email.testing.stack import Process, eventually
from tests.chaos.arena import PASSWORD
from tests.chaos.books import balance
from tests.chaos.conftest import BuildPlant
from tests.chaos.hearsay import Eavesdropper, betrayed, content_of_postgresql, content_of_redis
from tests.chaos.plant import Plant

MAILS, SEED, THREADS = 300, 6, 4
TOKEN = "scrape-T0ken-8264"
SLOW = Rule("data", "late", seconds=0.5, times=None, name="slow")
"""So that turns last, and somebody is at work whenever something strikes."""

SIGNS = {
    "log of worker": b'"name": "email.smtp.send"',
    "log of dispatcher": b'"event": "attempt.rescued"',
    "PostgreSQL": b"agent0@sender.example",
    "Redis": b"_kombu",
    "commands to Redis": b"celeryev",
    "/metrics": b"gobii_email_attempts_total",
}
"""What shows that a place was read."""

_ATTEMPTS = """
    SELECT a.status, a.lease_owner, a.lease_token, count(e.id) > 0
    FROM gobii_email_outboundmessageattempt AS a
    LEFT JOIN gobii_email_outboundmessageevent AS e ON e.attempt_id = a.id AND e.event = 'in_doubt'
    GROUP BY a.id
"""
_WAITING = """
    SELECT DISTINCT a.status, m.from_address
    FROM gobii_email_outboundmessageattempt AS a
    JOIN gobii_email_persistentagentmessage AS m ON m.id = a.message_id
    WHERE a.status IN ('queued', 'sending')
"""


class Attempts:
    """The rows of all attempts, as they stand."""

    def __init__(self, plant: Plant) -> None:
        names = ("status", "owner", "turn", "was_in_doubt")
        self.rows: list[dict[str, Any]] = [
            dict(zip(names, row, strict=True)) for row in plant.database.rows(_ATTEMPTS)
        ]

    @property
    def sent(self) -> list[dict[str, Any]]:
        """Those that a server answered; a doubt that ended well is counted as a doubt."""
        return [row for row in self.rows if row["status"] == "sent" and not row["was_in_doubt"]]

    @property
    def doubted(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["was_in_doubt"]]

    @property
    def doubters(self) -> Counter[str]:
        """How many doubts each worker has left."""
        return Counter(row["owner"].partition("@")[0] for row in self.doubted)

    def most_uncounted(self, killed: Process) -> int:
        """How many of the sent ones the worker `killed` may have left uncounted.

        A turn counts its acceptances at the end of each batch, and each thread was in one turn at most.
        """
        turns = Counter(row["turn"] for row in self.sent if row["owner"].startswith(f"{killed.name}@"))
        return sum(count for _, count in turns.most_common(THREADS))


class Scrape:
    """What /metrics says at this moment."""

    def __init__(self, port: int) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            self.text = answer.read()
        families = text_string_to_metric_families(self.text.decode())
        self.samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples of that name with these labels."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def attempts(self, outcome: str) -> float:
        return self.value("gobii_email_attempts_total", outcome=outcome)

    @property
    def gauges(self) -> dict[str, float]:
        return {
            **{
                status: self.value("gobii_email_messages", status=status)
                for status in ("queued", "sending", "in_doubt")
            },
            "ready": self.value("gobii_email_ready"),
            "suspensions": self.value("gobii_email_suspensions"),
            "lanes": self.value("gobii_email_lanes_waiting"),
        }


def gauges_by_email_queue(plant: Plant) -> dict[str, float]:
    queue = json.loads(plant.stack.manage("email_queue", "--json").stdout)
    return {
        "queued": queue["waiting"]["attempts"],
        "sending": queue["messages"]["sending"],
        "in_doubt": queue["messages"]["in_doubt"],
        "ready": queue["waiting"]["ready"],
        "suspensions": len(queue["switched"]["suspensions"]),
        "lanes": len(queue["lanes"]),
    }


def suspend(plant: Plant, address: str) -> int:
    made = plant.stack.manage(
        "email_suspend", "--account", address, "--reason", "a bad day", "--for", "1h", "--json"
    )
    assert made.returncode == 0, made.stderr
    return int(json.loads(made.stdout)["number"])


def lift(plant: Plant, suspension: int) -> None:
    lifted = plant.stack.manage("email_suspend", "--cancel", str(suspension), "--json")
    assert lifted.returncode == 0, lifted.stderr


def submitted(plant: Plant, count: int) -> None:
    eventually(lambda: len(plant.submitted()) >= count, seconds=120)


def kill_a_worker(plant: Plant) -> Process:
    """With SIGKILL, while a server that has the mail has not answered; another one takes its place."""
    killed: list[Process] = []

    def kill(trap: Trap, worker: Process) -> None:
        worker.kill()
        killed.append(worker)

    assert plant.trap(Rule("after_dot", "trap", name="kill"), kill).wait(60)
    plant.replace(killed[0])
    return killed[0]


def roll(plant: Plant) -> None:
    """A new worker for each, and then SIGTERM for the old one."""
    old = list(plant.workers)
    new = [plant.start_worker(wait=False) for _ in old]
    for worker in new:
        worker.wait_for("worker.ready")
    for worker in old:
        assert worker.stop() == 0
        plant.workers.remove(worker)


def only_waits_for(plant: Plant, address: str) -> bool:
    """Whether no mail is open but that of `address`."""
    rows = plant.database.rows(_WAITING)
    return {(status, sender) for status, sender in rows} == {("queued", address)}


def settled(plant: Plant, port: int) -> Scrape:
    """What /metrics says once its gauges, which may be ten seconds old, say the same as `email_queue`."""
    gauges = gauges_by_email_queue(plant)
    found: list[Scrape] = eventually(
        lambda: [one for one in [Scrape(port)] if one.gauges == gauges], seconds=60, every=1
    )
    return found[0]


def secrets_of(plant: Plant) -> Mapping[str, str]:
    env, sender = plant.stack.env, plant.senders[0]
    return {
        "the password": PASSWORD,
        "the login": base64.b64encode(f"\0{sender}\0{PASSWORD}".encode()).decode(),
        "the encryption key": env["GOBII_ENCRYPTION_KEY"].partition(":")[2],
        "METRICS_TOKEN": TOKEN,
        "SECRET_KEY": env["SECRET_KEY"],
        "the database's password": str(urlsplit(env["DATABASE_URL"]).password),
    }


def procfile(build_plant: BuildPlant, port: int) -> Plant:
    """Its processes, but those that take in mail and pages; /metrics is at `port`."""
    env = {
        "GOBII_METRICS_PORT": str(port),
        "METRICS_TOKEN": TOKEN,
        "OTEL_TRACES_EXPORTER": "console",
        # Longer than the database is away, so that whoever lives keeps its mail.
        "GOBII_LEASE": "20s",
    }
    plant = build_plant(
        "postgresql", accounts=4, workers=0, dispatchers=1, beats=1, threads=THREADS, seed=SEED, env=env
    )
    plant.stack.start_worker(4, queues="email.control", wait=False)
    for worker in [plant.start_worker(wait=False) for _ in range(2)]:
        worker.wait_for("worker.ready")
    return plant


def suffer(plant: Plant) -> Process:
    """All that goes wrong while mail is submitted; the worker that was killed."""
    assert plant.postgres is not None
    killed = kill_a_worker(plant)
    submitted(plant, 100)
    plant.redis().flushall()
    submitted(plant, 150)
    plant.valkey.kill()
    submitted(plant, 170)
    plant.valkey.start()
    submitted(plant, 230)
    plant.postgres.restart()
    submitted(plant, MAILS)
    return killed


def kinds_that_run(plant: Plant) -> set[str]:
    return {process.name.rstrip("0123456789") for process in plant.stack.processes if process.is_running}


def told(plant: Plant) -> dict[str, bytes]:
    """All that is to be read of the service afterwards, by the place."""
    assert plant.postgres is not None
    return {
        "PostgreSQL": content_of_postgresql(plant.postgres.url),
        "Redis": content_of_redis(plant.redis()),
        **{f"log of {process.name}": process.log.read_bytes() for process in plant.stack.processes},
    }


def test_a_bad_day_ends_in_true_books_right_counts_and_no_secret_told(build_plant: BuildPlant) -> None:
    port = free_port()
    plant = procfile(build_plant, port)
    with Eavesdropper(plant.valkey.port) as eavesdropper:
        plant.oracle.set_rules(SLOW)
        plant.submit(MAILS, per_second=18, seed=SEED, big_share=0, plain=True)
        submitted(plant, 20)
        suspension = suspend(plant, plant.senders[0])
        killed = suffer(plant)
        eventually(lambda: only_waits_for(plant, plant.senders[0]), seconds=120, every=0.5)
        before, held = Attempts(plant), settled(plant, port)
        meanwhile = told(plant)

        # From here on nobody is killed.
        lift(plant, suspension)
        roll(plant)
        eventually(lambda: not plant.open_messages(), seconds=120, every=0.5)
        after, ended = Attempts(plant), settled(plant, port)
    assert {"beat", "dispatcher", "worker"} <= kinds_that_run(plant)

    books = balance(plant.submitted(), plant.oracle.lines(), plant.rows())
    assert books.violations() == []
    assert books.submitted == MAILS and books.statuses.keys() <= {"sent", "in_doubt"}
    assert killed.name in after.doubters
    # Nobody knows of a mark whose commit PostgreSQL did not confirm before it went away.
    assert sum(count for name, count in after.doubters.items() if name != killed.name) <= 2

    assert held.gauges["queued"] > 20 and held.gauges["suspensions"] == held.gauges["lanes"] == 1
    assert ended.gauges["queued"] == ended.gauges["suspensions"] == ended.gauges["lanes"] == 0
    assert 0 <= len(before.sent) - held.attempts("sent") <= before.most_uncounted(killed)
    assert ended.attempts("sent") - held.attempts("sent") == len(after.sent) - len(before.sent)
    assert ended.attempts("in_doubt") == held.attempts("in_doubt") == len(after.doubted)

    places = told(plant) | {f"{name} meanwhile": content for name, content in meanwhile.items()}
    places |= {"commands to Redis": bytes(eavesdropper.heard), "/metrics": held.text + ended.text}
    for place, sign in SIGNS.items():
        assert any(sign in content for name, content in places.items() if name.startswith(place)), place
    assert betrayed(secrets_of(plant), places) == []
    shown = {name: content for name, content in places.items() if not name.startswith("PostgreSQL")}
    assert betrayed({"a recipient": "@rcpt.example"}, shown) == []
