"""A mailbox whose Sent folder is a scripted server's, mail in doubt, and time that passes when told to."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from gobii_email import api
from gobii_email.domain.composition import with_attempt_header
from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import (
    AgentEmailAccount,
    Mailbox,
    OutboundMessageAttempt,
    PersistentAgentMessage,
    SentCopy,
)
from gobii_email.models.queue import load_mime
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.lease import Lease
from gobii_email.services.reconcile import look_at_doubt
from gobii_email.services.settle import settle
from gobii_email.services.visit import visit_sent
from gobii_email.testing.imap_server import ScriptedImapServer
from tests.conftest import row_of, taken


def connect_imap(account: AgentEmailAccount, port: int, **values: Any) -> AgentEmailAccount:
    """Lets `account` read from the local server at `port`, as tested."""
    settings = {"imap_host": "localhost", "imap_port": port, "imap_username": "anna", **values}
    for name, value in settings.items():
        setattr(account, name, value)
    account.set_imap_password("pw")
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.save()
    return account


@dataclass
class Scene:
    """One account, its Sent folder, and the time as its visits see it: `passed` ahead of ours."""

    account: AgentEmailAccount
    server: ScriptedImapServer
    passed: timedelta = timedelta(0)

    @property
    def now(self) -> datetime:
        return timezone.now() + self.passed

    @property
    def sent(self) -> list[bytes]:
        return self.server.folders["Sent"]

    def write(self, **values: Any) -> PersistentAgentMessage:
        facts = {
            "from_endpoint": "agent@sender.example",
            "to": ["to@rcpt.example"],
            "subject": "S",
            "body": "B",
        }
        return api.send_agent_email(**(facts | values))

    def doubtful(self, **values: Any) -> OutboundMessageAttempt:
        """A mail whose server was lost after the dot."""
        message = self.write(**values)
        work = taken(message)
        lease = Lease(work, Provider.SMTP)
        lease.reached(Stage.CONNECT)
        lease.mark()
        lost = Lost(Stage.DOT, Cause.TIMEOUT, "No answer came.", is_marked=True)
        attempt = row_of(work)
        settle(attempt, lost, provider=Provider.SMTP, now=timezone.now())
        return attempt

    def copy_of(self, attempt: OutboundMessageAttempt) -> bytes:
        return with_attempt_header(bytes(load_mime(attempt.message_id)), str(attempt.pk))

    def file(self, attempt: OutboundMessageAttempt, *, at: datetime | None = None) -> None:
        """As the server does by itself."""
        copy = self.copy_of(attempt)
        self.sent.append(copy)
        self.server.dates[copy] = at or self.now

    def has_filed(self, *, times: int = 3, missed: int = 0, lag: float = 2, days_ago: float = 1) -> None:
        """The habit that `times` + `missed` ordinary mails have shown."""
        for number in range(times + missed):
            message = self.write()
            attempt = message.attempts.get()
            since = self.now - timedelta(days=days_ago, minutes=number)
            rows = OutboundMessageAttempt.objects.filter(pk=attempt.pk)
            rows.update(status=AttemptStatus.SENT, sent_at=since, due_at=None, provider=Provider.SMTP)
            SentCopy.objects.create(
                attempt=attempt,
                endpoint_id=self.account.pk,
                since=since,
                state="found" if number < times else "absent",
                lag_seconds=lag,
                folder="Sent",
                uid_validity=self.server.uid_validity,
                uid=number + 1000,
            )

    def later(self, **span: float) -> str:
        """Time passes; the dispatcher and a visit do what is due then. What the visit answered."""
        self.passed += timedelta(**span)
        for attempt in OutboundMessageAttempt.objects.filter(status="in_doubt", due_at__lte=self.now):
            look_at_doubt(
                OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk), self.now
            )
        if not Mailbox.objects.filter(pk=self.account.pk, sent_look_at__lte=self.now).exists():
            return "not due"
        return visit_sent(str(self.account.pk), clock=lambda: self.now)


def statuses(message: PersistentAgentMessage) -> list[str]:
    message.refresh_from_db()
    attempts = message.attempts.order_by("number").values_list("status", flat=True)
    return [message.latest_status, *attempts]


def told(message: PersistentAgentMessage, name: str = "looked") -> Sequence[str]:
    return list(message.events.filter(event=name).values_list("text", flat=True))


__all__ = ["Scene", "connect_imap", "dispatch_round", "statuses", "told"]
