"""Running the peers beside the service: their virtual environment, their queue, their processes.

Same database server, broker, sink, mails and accounts as the service's own rows; which program does what is
in `benchmarks.peers`. What cannot be installed is skipped with one loud line.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
import venv
from dataclasses import dataclass

from benchmarks.rig import Rig
from benchmarks.sink import PASSWORD
from gobii_email.testing.stack import ROOT

_LOCK = ROOT / "requirements" / "benchmarks.txt"
_PLACE = ROOT / "var" / "benchmarks"
_NODEMAILER = "nodemailer@10"
INSTALL_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Peer:
    """`fill` names the function of `peers.fill` that queues the mails, `command` what then sends them."""

    title: str
    command: tuple[str, ...]
    fill: str = ""
    reuse: bool = False
    workers: int = 1
    delay: float = 0.0


def _worker(app: str, queue: str) -> tuple[str, ...]:
    options = ("--pool", "threads", "-c", "{threads}", "-Q", queue, "--without-gossip", "--without-mingle")
    return ("-m", "celery", "-A", f"benchmarks.peers.{app}", "worker", *options, "-l", "WARNING")


_HAND = _worker("celery_task", "hand")
_BARE = ("-m", "benchmarks.peers.bare")
_ADMIN = ("-m", "django")

PEERS = {
    "hand-reuse": Peer("Celery task by hand, reused, 1 worker", _HAND, "hand", reuse=True),
    "hand-single": Peer("Celery task by hand, new each, 1 worker", _HAND, "hand"),
    "hand-reuse2": Peer("Celery task by hand, reused, 2 workers", _HAND, "hand", reuse=True, workers=2),
    "hand-single2": Peer("Celery task by hand, new each, 2 workers", _HAND, "hand", workers=2),
    "hand-wide": Peer("Celery task by hand, reused, 128 threads", _HAND, "hand", reuse=True),
    "hand-slow": Peer("the same at 50 ms a reply", _HAND, "hand", reuse=True, delay=0.05),
    "bare-pipelined": Peer("smtplib alone, pipelined", (*_BARE, "pipelined", "{facts}")),
    "bare-reused": Peer("smtplib alone, reused", (*_BARE, "reused", "{facts}")),
    "bare-new": Peer("smtplib alone, new each", (*_BARE, "new", "{facts}")),
    "post-office": Peer("django-post_office send_queued_mail", (*_ADMIN, "send_queued_mail"), "post_office"),
    "mailer": Peer("django-mailer send_mail", (*_ADMIN, "send_mail"), "mailer"),
    "celery-email": Peer("django-celery-email", _worker("celery_email", "celery_email"), "celery_email"),
    "nodemailer": Peer("nodemailer's pool", ("nodemailer.js", "{facts}"), reuse=True),
}


class Rivals:
    """The peers that can run here, ready to be started on `rig`."""

    def __init__(self, rig: Rig, names: list[str]) -> None:
        self._rig = rig
        self._runs = 0
        self.names = [name for name in names if name in PEERS]
        self._node = self._modules = None
        if any(name.startswith("nodemailer") for name in self.names):
            self._prepare_node()
        if any(not name.startswith("nodemailer") for name in self.names):
            self._prepare_python()

    def start(self, name: str, mails: int, senders: list[str], threads: int) -> None:
        """Queues the mails, resets the sink and starts the peer as the rig's workers."""
        peer, rig = PEERS[name], self._rig
        self._runs += 1
        facts = self._facts(mails, senders)
        file = rig.directory / "peer.json"
        file.write_text(json.dumps(facts))
        env = self._env(peer, senders)
        if peer.fill:
            self._run([str(self._python), "-m", "benchmarks.peers.fill", peer.fill], env, json.dumps(facts))
        rig.sink.reset()
        rig.sink.set(delay=peer.delay)
        words = {"threads": str(threads), "facts": str(file)}
        for number in range(peer.workers):
            arguments = [word.format(**words) for word in peer.command]
            if arguments[0].endswith(".js"):
                command = [str(self._node), str(ROOT / "benchmarks" / "peers" / arguments[0]), *arguments[1:]]
            else:
                command = [str(self._python), *arguments]
            if "celery" in arguments:
                command += ["-n", f"{name}{number}@%h"]
            rig.workers.append(rig.stack.start_process(f"{name}-{self._runs}-{number}", command, env))

    def _facts(self, mails: int, senders: list[str]) -> dict[str, object]:
        """What to send: the bytes of the service's own mails, with a Message-ID to be filled in."""
        if not hasattr(self, "_sample"):
            self._sample = sample(self._rig, senders)
        return {
            "count": mails,
            "run": f"{self._runs}.{time.time_ns()}",
            "senders": senders,
            "mime": re.sub(r"(?im)^(message-id:\s*)\S+", r"\1MESSAGE-ID", self._sample, count=1),
            "text": "A line of a report, as agents write them, that says little.\n"
            * max(1, (len(self._sample) - 400) // 61),
        }

    def _env(self, peer: Peer, senders: list[str]) -> dict[str, str]:
        assert self._rig.postgres is not None
        return {
            "PYTHONPATH": str(ROOT),
            "DJANGO_SETTINGS_MODULE": "benchmarks.peers.settings",
            "PEER_DATABASE_URL": self._rig.postgres.url.removesuffix("/postgres") + "/peers",
            "PEER_BROKER_URL": self._rig.stack.valkey.url.removesuffix("/0") + "/1",
            "PEER_SMTP_PORT": str(self._rig.sink.port),
            "PEER_SMTP_USER": senders[0],
            "PEER_SMTP_PASSWORD": PASSWORD,
            "PEER_REUSE": str(int(peer.reuse)),
            "PEER_LOCK": str(self._rig.directory / "peer-lock"),
            "PEER_NODEMAILER": str(self._modules or ""),
        }

    # Installing

    def _prepare_python(self) -> None:
        digest = hashlib.sha256(_LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
        place = _PLACE / f"peers-{digest}"
        self._python = place / "bin" / "python"
        try:
            if not (place / "complete").exists():
                print(f"Installing the peers into {place.relative_to(ROOT)} …", flush=True)
                venv.create(place, with_pip=True, clear=True)
                pip = [str(self._python), "-m", "pip", "install", "-q", "--only-binary", ":all:"]
                self._must([*pip, "--require-hashes", "-r", str(_LOCK)])
                (place / "complete").touch()
            self._prepare_database()
        except (OSError, subprocess.SubprocessError, RuntimeError) as problem:
            self._skip("the peers in Python", problem, lambda name: not name.startswith("nodemailer"))

    def _prepare_database(self) -> None:
        self._rig.sql("CREATE DATABASE peers")
        env = self._env(PEERS["mailer"], ["nobody@sender.example"])
        self._run([str(self._python), *_ADMIN, "migrate", "--verbosity", "0"], env)

    def _prepare_node(self) -> None:
        place = _PLACE / "node"
        self._node, npm = shutil.which("node"), shutil.which("npm")
        self._modules = place / "node_modules" / "nodemailer"
        try:
            if not self._node or not npm:
                raise RuntimeError("node and npm are not installed")
            if not self._modules.exists():
                place.mkdir(parents=True, exist_ok=True)
                self._must(
                    [npm, "install", "--silent", "--ignore-scripts", "--prefix", str(place), _NODEMAILER]
                )
        except (OSError, subprocess.SubprocessError, RuntimeError) as problem:
            self._skip("nodemailer", problem, lambda name: name.startswith("nodemailer"))

    def _skip(self, what: str, problem: Exception, concerns: object) -> None:
        print(f"SKIPPED: {what}: {problem}", flush=True)
        self.names = [name for name in self.names if not concerns(name)]

    def _must(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode:
            raise RuntimeError((done.stderr or done.stdout).strip()[-300:])

    def _run(self, command: list[str], env: dict[str, str], text: str = "") -> None:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=self._rig.stack.env | env,
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-600:])


def sample(rig: Rig, senders: list[str]) -> str:
    """One of the service's own mails as it went over the wire."""
    if not rig.sink.sample():
        rig.submit(senders[:1], 1)
        rig.start()
        rig.sink.wait_for(1, seconds=30)
        rig.stop()
    return rig.sink.sample().decode("latin-1")
