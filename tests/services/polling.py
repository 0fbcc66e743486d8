"""A mailbox on a scripted server for tests of polls: its account, its mails, and what came of them."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.utils import timezone

from gobii_email.models import (
    AgentEmailAccount,
    CommsAllowlistEntry,
    Mailbox,
    PersistentAgentCommsEndpoint,
    ReceivedMail,
)
from gobii_email.testing.imap_server import ScriptedImapServer
from tests.conftest import PASSWORD

AGENT = "agent@sender.example"
FRIEND = "friend@rcpt.example"


def mail(
    number: int | str, *, sender: str = FRIEND, size: int = 0, message_id: str | None = None, date: str = ""
) -> bytes:
    """A small mail; the same number makes the same bytes."""
    lines = [
        f"From: Friend <{sender}>",
        f"To: <{AGENT}>",
        f"Subject: Mail {number}",
        f"Date: {date}" if date else "",
        f"Message-ID: {message_id or f'<{number}@rcpt.example>'}" if message_id != "" else "",
        "Content-Type: text/plain",
    ]
    return "\r\n".join([*filter(None, lines), "", f"Body {number}", "x" * size, ""]).encode()


def receiving(endpoint: PersistentAgentCommsEndpoint, port: int, **values: Any) -> AgentEmailAccount:
    """An account of `endpoint` that is read at the local server's `port`, tested and enabled."""
    facts = {"imap_host": "localhost", "imap_port": port, "imap_username": AGENT, "imap_security": "ssl"}
    account = AgentEmailAccount(endpoint=endpoint, **(facts | values))
    account.set_imap_password(PASSWORD)
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.is_inbound_enabled = True
    account.full_clean()
    account.save()
    return account


def is_friend(endpoint: PersistentAgentCommsEndpoint, address: str = FRIEND) -> None:
    CommsAllowlistEntry.objects.create(
        agent=endpoint.owner_agent, channel="email", address=address, allow_inbound=True
    )


def stored(state: str | None = None) -> Sequence[ReceivedMail]:
    rows = ReceivedMail.objects.order_by("uid_validity", "uid")
    return list(rows if state is None else rows.filter(state=state))


def subjects(mails: Sequence[ReceivedMail]) -> list[str]:
    return [
        line.removeprefix("Subject: ")
        for found in mails
        for line in bytes(found.raw or b"").decode().splitlines()
        if line.startswith("Subject: ")
    ]


def cursor(account: AgentEmailAccount) -> str:
    return AgentEmailAccount.objects.get(pk=account.pk).last_seen_uid


def mailbox(account: AgentEmailAccount) -> Mailbox:
    return Mailbox.objects.get(pk=account.pk)


def make_due(account: AgentEmailAccount) -> None:
    past = timezone.now() - timedelta(seconds=1)
    Mailbox.objects.filter(pk=account.pk).update(due_at=past, look_at=past)


def inbox(server: ScriptedImapServer) -> list[bytes]:
    return server.folders["INBOX"]
