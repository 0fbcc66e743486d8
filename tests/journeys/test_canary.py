"""A secret goes through the whole service and fails at every stage; then it is searched for everywhere.

The secret has letters outside ASCII, and is looked for raw and in every form that mail, URLs, Python and
the SMTP login give it: in Redis, the database, logs, spans, Celery's events and the pages of the admin.
"""

import base64
import json
import quopri
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import redis
from celery import Celery

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import RawServer, Script, ScriptedSmtpServer
from gobii_email.testing.stack import Stack

SECRET = "kanárí-S3cret-Žluť-7391"
USERNAME = "canary-login@sender.example"

# What a real server says at a stage; from MAIL on after a good login.
REPLIES = {
    "auth": {"AUTH": f"535 5.7.8 {SECRET} is not the password of {USERNAME}"},
    "mail": {"MAIL": f"550 5.7.1 {SECRET} may not send"},
    "rcpt": {"RCPT": f"550 5.1.1 {SECRET} unknown"},
    "data": {"DATA": f"554 5.7.1 {SECRET}"},
    "dot": {"DOT": f"554 5.7.1 {SECRET} is spam"},
    "sent": {},
}


def blob(secret: str = SECRET) -> str:
    """What AUTH PLAIN sends."""
    return base64.b64encode(f"\0{USERNAME}\0{secret}".encode()).decode()


def forms(secret: str) -> set[bytes]:
    """`secret` as it may be written down somewhere by somebody."""
    raw = secret.encode()
    encoded = base64.b64encode(raw)
    written = {
        raw,
        secret.encode("latin-1", "ignore"),
        secret.encode("utf-16-le"),
        encoded,
        base64.urlsafe_b64encode(raw),
        base64.b32encode(raw),
        quote(secret).encode(),
        quote_plus(secret).encode(),
        quopri.encodestring(raw),
        raw.hex().encode(),
        raw.hex().upper().encode(),
        json.dumps(secret)[1:-1].encode(),
        secret.encode("unicode_escape"),
        repr(raw)[2:-1].encode(),
        "".join(f"\\x{byte:02x}" for byte in raw).encode(),
        secret.encode("ascii", "xmlcharrefreplace"),
        blob(secret).encode(),
        # Inside a longer base64 text, at each of the three alignments, without the edges.
        *(base64.b64encode(b" " * shift + raw)[4:-4] for shift in range(3)),
    }
    # The part in ASCII alone betrays the secret as well.
    return written | {b"S3cret", base64.b64encode(b"S3cret")[:8], b"S3cret".hex().encode()}


def found_in(haystack: bytes) -> list[bytes]:
    return sorted(form for form in forms(SECRET) if form in haystack)


@pytest.mark.parametrize(
    "told",
    [
        f"login failed for {SECRET}",
        f"AUTH PLAIN {blob()}",
        repr({"password": SECRET}),
        json.dumps({"password": SECRET}),
        repr(SECRET.encode()),
        f"smtp://x:{quote(SECRET)}@host",
        base64.b64encode(f"the password is {SECRET}, keep it".encode()).decode(),
    ],
)
def test_the_search_finds_the_secret_in_any_of_its_forms(told: str) -> None:
    assert found_in(told.encode())


def test_the_search_finds_nothing_in_an_innocent_text() -> None:
    assert found_in(b"535 5.7.8 Username and Password not accepted for canary-login@sender.example") == []


@dataclass
class Places:
    """Everything the service left behind, by the name of the place."""

    texts: dict[str, bytes] = field(default_factory=dict)

    def keep(self, name: str, content: bytes | str) -> None:
        self.texts[name] = (
            content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace")
        )

    def with_the_secret(self) -> dict[str, list[bytes]]:
        return {name: found for name, text in self.texts.items() if (found := found_in(text))}


@dataclass
class Aftermath:
    """Everything the service left behind, by the name of the place, and what became of each mail."""

    places: dict[str, bytes] = field(default_factory=dict)
    endings: dict[str, list[str]] = field(default_factory=dict)
    logins: list[tuple[str, str, bool]] = field(default_factory=list)

    def with_the_secret(self) -> dict[str, list[bytes]]:
        return {name: found for name, content in self.places.items() if (found := found_in(content))}


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aftermath]:
    """A mail fails at each stage through a real worker; then everything is gathered."""
    directory = tmp_path_factory.mktemp("canary")
    authority = ThrowAwayAuthority(directory)
    with ExitStack() as servers:

        def real(tls: ssl.SSLContext, replies: dict[str, str]) -> ScriptedSmtpServer:
            server = ScriptedSmtpServer(tls=tls, users={USERNAME: SECRET})
            server.faults.replies |= replies
            return servers.enter_context(server)

        started = {name: real(authority.good(), replies) for name, replies in REPLIES.items()}
        echo = servers.enter_context(RawServer(lambda script: echoes(script, authority.good())))
        # Bound, so that nobody else listens there meanwhile either.
        silent = servers.enter_context(socket.socket())
        silent.bind(("127.0.0.1", 0))
        ports = {name: server.port for name, server in started.items()}
        ports |= {
            "connect": silent.getsockname()[1],
            "tls": real(authority.self_signed(), {}).port,
            "ehlo": real(authority.good(), {"EHLO": "554 5.7.1 Go away"}).port,
            "echo": echo.port,
            "undecryptable": started["sent"].port,
        }
        made = gather(directory, authority, ports)
        made.logins = started["sent"].logins
        yield made


def echoes(script: Script, tls: ssl.SSLContext) -> None:
    """A server that answers a login with what it was sent, as the rudest ones do."""
    script.encrypt(tls)
    script.say(b"220 mail.test ESMTP")
    script.answer(b"250-mail.test", b"250 AUTH PLAIN LOGIN")
    login = script.hear().strip()
    clear = base64.b64decode(login.split()[-1]).replace(b"\0", b" ")
    script.say(b"535-5.7.8 cannot use " + login, b"535 5.7.8 that is " + clear)
    script.hang()


def gather(directory: Path, authority: ThrowAwayAuthority, ports: dict[str, int]) -> Aftermath:
    env = {
        "BYO_EMAIL_ALLOWED_PORTS": ",".join(map(str, ports.values())),
        "SSL_CERT_FILE": str(authority.ca_file),
        "OTEL_TRACES_EXPORTER": "console",
        "LOG_LEVEL": "DEBUG",
    }
    made = Aftermath()
    with Stack(directory, env=env) as stack, EventRecorder(stack.valkey.url) as events:
        worker, dispatcher = stack.start_worker(options=("-l", "DEBUG")), stack.start_dispatcher()
        facts = {"ports": ports, "secret": SECRET, "username": USERNAME}
        made.endings = json.loads(stack.python(FAIL_EVERYWHERE, input=json.dumps(facts)))
        made.places["admin"] = stack.python(READ_ADMIN).encode()
        made.places["redis"] = redis_content(stack.valkey.url)
        worker.stop()
        dispatcher.stop()
        made.places["worker: log and spans"] = worker.log.read_bytes()
        made.places["dispatcher: log"] = dispatcher.log.read_bytes()
        made.places["metrics"] = b"".join(
            path.read_bytes() for path in sorted((directory / "var" / "metrics").iterdir())
        )
        made.places["events"] = json.dumps(events.recorded, ensure_ascii=False).encode()
        made.places["database"] = database_content(directory / "stack.sqlite3")
        made.places["database file"] = b"".join(
            path.read_bytes() for path in sorted(directory.glob("stack.sqlite3*"))
        )
    return made


FAIL_EVERYWHERE = """
import json, sys, time
from gobii_email import api
from gobii_email.models import (
    AgentEmailAccount, OutboundMessageAttempt, PersistentAgent, PersistentAgentCommsEndpoint
)
facts = json.load(sys.stdin)
messages = {}
# A host that cannot be reached is left alone for a while, so that one has a name of its own.
for stage, port in facts["ports"].items():
    agent = PersistentAgent.objects.create(name=stage)
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=f"{stage}@sender.example"
    )
    account = AgentEmailAccount(
        endpoint=endpoint, smtp_host="127.0.0.1" if stage == "connect" else "localhost",
        smtp_port=port, smtp_auth="plain",
        smtp_security="ssl" if stage == "echo" else "starttls", smtp_username=facts["username"],
    )
    account.set_smtp_password(facts["secret"])
    if stage == "undecryptable":
        account.smtp_password_encrypted = account.smtp_password_encrypted[:-1] + b"!"
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.is_outbound_enabled = True
    account.save()
    messages[stage] = api.send_agent_email(
        from_endpoint=endpoint, to="to@rcpt.example", subject="S", body="B"
    )

def tried(attempt):
    is_over = attempt.status not in ("queued", "sending")
    return is_over or attempt.held_reason or (attempt.status == "queued" and attempt.error_code)

def first(message):
    return OutboundMessageAttempt.objects.get(message=message, number=1)

deadline = time.monotonic() + 120
while not all(tried(first(message)) for message in messages.values()) and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps({
    stage: [found.status, found.stage]
    for stage, found in ((stage, first(message)) for stage, message in messages.items())
}))
"""

READ_ADMIN = """
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
client = Client(HTTP_HOST="127.0.0.1")
client.force_login(User.objects.create_superuser("staff"))
for model in admin.site._registry:
    if model._meta.app_label != "gobii_email":
        continue
    name = f"admin:{model._meta.app_label}_{model._meta.model_name}"
    pages = [reverse(f"{name}_changelist")]
    pages += [reverse(f"{name}_change", args=[row.pk]) for row in model._default_manager.all()]
    for page in pages:
        answer = client.get(page, follow=True)
        print(page, answer.status_code)
        print(answer.content.decode())
"""


def redis_content(url: str) -> bytes:
    """Each key with its value, whatever its type: as it is served, and as it would be dumped."""
    client = redis.Redis.from_url(url)
    readers = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"hash": client.hgetall,
        b"stream": client.xrange,
    }
    content = b""
    for key in client.scan_iter():
        kind = client.type(key)
        content += key + b" " + str(readers[kind](key)).encode() + (client.dump(key) or b"") + b"\n"
    return content


def database_content(path: Path) -> bytes:
    """Each column of each row of each table."""
    with sqlite3.connect(path) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for table in tables for row in database.execute(f'SELECT * FROM "{table}"')]
    return b"\n".join(
        value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row
    )


class EventRecorder:
    """All of Celery's events, while entered."""

    def __init__(self, broker_url: str) -> None:
        self.recorded: list[dict[str, object]] = []
        self._app = Celery("canary", broker=broker_url, set_as_current=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "EventRecorder":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(60)

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"*": self.recorded.append})
            while not self._stopping.is_set():
                try:
                    receiver.capture(limit=None, timeout=0.5, wakeup=False)
                except TimeoutError:
                    continue


STAGES_REACHED = {
    "connect": "connect",
    "tls": "tls",
    "ehlo": "ehlo",
    "auth": "auth",
    "echo": "auth",
    "mail": "mail",
    "rcpt": "rcpt",
    "data": "data",
    "dot": "dot",
    "undecryptable": "auth",
    "sent": "",
}


def test_mail_failed_at_every_stage_with_the_secret_in_use(aftermath: Aftermath) -> None:
    assert {name: stage for name, (_, stage) in aftermath.endings.items()} == STAGES_REACHED
    assert [name for name, (status, _) in aftermath.endings.items() if status == "sent"] == ["sent"]
    assert (USERNAME, "PLAIN", True) in aftermath.logins, "the secret was really used"


@pytest.mark.parametrize(
    ("place", "sign"),
    [
        ("worker: log and spans", b'"name": "email.smtp.send"'),
        ("worker: log and spans", b'"event": "smtp.send.failed"'),
        ("dispatcher: log", b"dispatcher.started"),
        ("events", b"task-succeeded"),
        ("metrics", b"gobii_email_attempts_total"),
        ("redis", b"_kombu"),
        ("database", USERNAME.encode()),
        ("database file", USERNAME.encode()),
        ("admin", b"undecryptable@sender.example"),
    ],
)
def test_the_places_searched_are_not_empty(aftermath: Aftermath, place: str, sign: bytes) -> None:
    assert sign in aftermath.places[place]


def test_the_secret_is_nowhere(aftermath: Aftermath) -> None:
    assert aftermath.with_the_secret() == {}
