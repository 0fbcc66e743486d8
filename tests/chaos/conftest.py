"""A whole stack of real processes with one connected mailbox, on each database."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from gobii_email.testing.stack import Stack
from tests.conftest import PASSWORD

SENDER = "agent@sender.example"

CONNECT = """
from gobii_email.models import *
agent = PersistentAgent.objects.create(name="Ada")
endpoint = PersistentAgentCommsEndpoint.objects.create(owner_agent=agent, channel="email", address={sender!r})
account = AgentEmailAccount(endpoint=endpoint, smtp_host="localhost", smtp_port={port})
account.smtp_security, account.smtp_auth, account.smtp_username = "starttls", "plain", {sender!r}
account.set_smtp_password({password!r})
account.smtp_tested_fingerprint = account.smtp_fingerprint()
account.is_outbound_enabled = True
account.full_clean()
account.save()
"""

SEND = """
from gobii_email.api import send_agent_email
for n in range({count}):
    message = send_agent_email(
        from_endpoint={sender!r}, to=f"to{{n}}@rcpt.example", subject=f"{{n}}", body="Hello", **{options!r}
    )
    print(message.pk)
"""

STATUSES = """
import json
from gobii_email.models import PersistentAgentMessage
print(json.dumps(list(PersistentAgentMessage.objects.values_list("rfc_message_id", "latest_status"))))
"""


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    try:
        with EmbeddedPostgres() as server:
            yield server
    except ServerUnavailable as problem:
        pytest.skip(f"PostgreSQL IS NOT TESTED HERE: {problem}")


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None for a SQLite file of the stack's own, else a fresh PostgreSQL database."""
    if request.param == "sqlite":
        return None
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    import psycopg

    name = f"chaos_{time.monotonic_ns()}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    base, _, query = server.url.partition("?")
    return f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")


class Plant:
    """The stack, the mail server that counts what it accepted, and what an agent runtime would do."""

    def __init__(self, stack: Stack, server: ScriptedSmtpServer, journal: Path) -> None:
        self.stack, self.server, self.journal = stack, server, journal

    def connect(self) -> None:
        self.stack.python(CONNECT.format(sender=SENDER, port=self.server.port, password=PASSWORD))

    def send(self, count: int = 1, **options: Any) -> list[str]:
        """Submits `count` mails; answers their ids."""
        return self.stack.python(SEND.format(count=count, sender=SENDER, options=options)).split()

    def status(self, message_id: str) -> dict[str, Any]:
        code = (
            "import json; from gobii_email.api import delivery_status\n"
            f"print(json.dumps(delivery_status({message_id!r}).as_document()))"
        )
        return json.loads(self.stack.python(code))

    def wait(self, message_id: str, *statuses: str, seconds: float = 40) -> dict[str, Any]:
        """The status document once the status is one of `statuses`."""
        deadline = time.monotonic() + seconds
        while True:
            document = self.status(message_id)
            if document["status"] in statuses:
                return document
            assert time.monotonic() < deadline, (
                f"still {document['status']}: {json.dumps(document, indent=1)}"
            )
            time.sleep(0.3)

    def statuses(self) -> dict[str, str]:
        """Every message's status by its Message-ID."""
        return dict(json.loads(self.stack.python(STATUSES)))

    def accepted(self) -> Counter[str]:
        """How often the mail server said 250 to each Message-ID, by its own durable journal."""
        lines = self.journal.read_text().splitlines() if self.journal.exists() else []
        return Counter(json.loads(line)["message_id"] for line in lines)

    def copies(self, document: dict[str, Any]) -> int:
        return self.accepted()[document["rfc_message_id"]]


@pytest.fixture
def plant(
    tmp_path: Path, authority: ThrowAwayAuthority, database_url: str | None
) -> Iterator[Callable[..., Plant]]:
    """Builds a plant; each test says with which settings."""
    opened: list[Any] = []

    def build(**env: str) -> Plant:
        journal = tmp_path / "accepted.ndjson"
        server = ScriptedSmtpServer(
            tls=authority.good("localhost", "127.0.0.1"), users={SENDER: PASSWORD}, journal=journal
        ).start()
        opened.append(server)
        settings = {
            "BYO_EMAIL_ALLOWED_NETWORKS": "127.0.0.0/8,::1/128",
            "BYO_EMAIL_ALLOWED_PORTS": str(server.port),
            "SSL_CERT_FILE": str(authority.ca_file),
            "GOBII_LEASE": "2s",
            "GOBII_RETRY_SCHEDULE": "1s",
            "GOBII_RING_GRACE": "1s",
            "GOBII_HINT_LIFETIME": "2s",
            "GOBII_DISPATCH_EVERY": "200ms",
        }
        stack = Stack(tmp_path, database_url, settings | env).start()
        opened.append(stack)
        made = Plant(stack, server, journal)
        made.connect()
        return made

    yield build
    for part in reversed(opened):
        part.stop()
