"""Mail in doubt, and a real Dovecot that knows: filed by the server, or not, or nobody can look.

The submission server cuts the connection at the final dot, with the mail or without it. What it takes, it
files by APPEND, as a provider does. Time passes when told to.
"""

import imaplib
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.models import AgentEmailAccount, Mailbox, OutboundMessageAttempt, SentCopy
from gobii_email.services import learn
from gobii_email.services.accounts import apply_account
from gobii_email.services.deliver import deliver
from gobii_email.services.diagnose import test_imap
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell
from tests.services.sent import Scene, statuses, told

pytestmark = pytest.mark.django_db

ADDRESS, PASSWORD = "agent@sender.example", "imap-S3cret"
SENT = "Versendet"
"""No name that anybody would guess: found by its special use alone."""


@pytest.fixture(scope="module")
def dovecot(authority: ThrowAwayAuthority) -> Iterator[RealDovecot]:
    try:
        with RealDovecot(
            authority.good_certificate(), {ADDRESS: PASSWORD}, marked={SENT: "\\Sent"}
        ) as running:
            yield running
    except ServerUnavailable as problem:
        pytest.skip(f"A REAL DOVECOT IS NOT TESTED HERE: {problem}")


class Provider(Scene):
    """A submission server and a Dovecot, one beside the other."""

    smtp: ScriptedSmtpServer
    dovecot: RealDovecot

    def mailbox(self) -> imaplib.IMAP4_SSL:
        context = ssl.create_default_context()
        client = imaplib.IMAP4_SSL("localhost", self.dovecot.ports["implicit"], ssl_context=context)
        client.login(ADDRESS, PASSWORD)
        return client

    def file_all(self) -> None:
        """Files what the submission server has taken and not filed yet."""
        with self.mailbox() as client:
            for message in self.smtp.messages[self.filed :]:
                date = imaplib.Time2Internaldate(time.time())
                assert client.append(SENT, "(\\Seen)", date, message.content)[0] == "OK"
        self.filed = len(self.smtp.messages)

    filed = 0

    def lies_there(self) -> list[bytes]:
        with self.mailbox() as client:
            client.select(SENT, readonly=True)
            numbers = client.search(None, "ALL")[1][0].split()
            return [client.fetch(number.decode(), "(BODY.PEEK[] FLAGS)")[1][0][1] for number in numbers]

    def send(self, **values: Any) -> OutboundMessageAttempt:
        attempt = self.write(**values).attempts.get()
        deliver(str(attempt.pk), owner="worker")
        attempt.refresh_from_db()
        return attempt

    def learns(self) -> None:
        """Three ordinary mails of an hour ago, which the provider has filed."""
        attempts = [self.send() for _ in range(3)]
        self.file_all()
        self.later(seconds=70)
        assert learn.habit_of(self.account, self.now).files_itself
        moments = [attempt.pk for attempt in attempts]
        SentCopy.objects.filter(pk__in=moments).update(since=timezone.now() - timedelta(hours=1))
        self.passed = timedelta(0)


@pytest.fixture
def provider(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    dovecot: RealDovecot,
    settings: Any,
    doorbell: RecordingDoorbell,
) -> Provider:
    learn.asked.forget()
    settings.BYO_EMAIL_ALLOWED_PORTS = {smtp_server.port, *dovecot.ports.values()}
    read = {"host": "localhost", "port": dovecot.ports["implicit"], "security": "ssl", "password": PASSWORD}
    account = apply_account({"address": ADDRESS, "imap": read | {"username": ADDRESS}})
    assert test_imap(account).ok
    account.refresh_from_db()
    made = Provider(account, ScriptedImapServer())
    made.smtp, made.dovecot = smtp_server, dovecot
    return made


def cut(provider: Provider, at: str) -> None:
    provider.smtp.faults.drops.add(at)
    provider.smtp.faults.times[at] = 1


def test_a_mail_that_was_taken_is_found_and_called_sent(provider: Provider) -> None:
    provider.learns()
    cut(provider, "AFTER_DOT")
    attempt = provider.send()
    assert attempt.status == "in_doubt"
    provider.file_all()
    provider.later(seconds=31)
    assert statuses(attempt.message) == ["sent", "sent"]
    (evidence,) = told(attempt.message, "doubt_found")
    assert f'Found in "{SENT}" (UIDVALIDITY ' in evidence
    assert len(provider.smtp.messages) == 4, "sent once"


def test_a_mail_that_was_not_taken_is_proven_absent_and_sent_once(provider: Provider) -> None:
    provider.learns()
    cut(provider, "DOT")
    attempt = provider.send()
    message = attempt.message
    assert attempt.status == "in_doubt"
    provider.later(seconds=31)
    assert "on its absence proves that it was not sent" in told(message)[0]
    provider.later(minutes=5)
    assert statuses(message) == ["queued", "deferred", "queued"]
    second = message.attempts.get(number=2)
    OutboundMessageAttempt.objects.filter(pk=second.pk).update(
        due_at=timezone.now(), not_before=timezone.now()
    )
    assert deliver(str(second.pk), owner="worker") == "sent"
    assert statuses(message) == ["sent", "deferred", "sent"]
    ours = [kept for kept in provider.smtp.messages if message.rfc_message_id.encode() in kept.content]
    assert len(ours) == 1, "sent once, under the same Message-ID"


def test_a_mailbox_that_cannot_be_read_leaves_the_doubt(provider: Provider) -> None:
    provider.learns()
    cut(provider, "DOT")
    attempt = provider.send()
    provider.account.refresh_from_db()
    provider.account.set_imap_password("another")
    provider.account.imap_tested_fingerprint = provider.account.imap_fingerprint()
    provider.account.save()
    for _ in range(3):
        provider.later(minutes=6)
    assert statuses(attempt.message) == ["in_doubt", "in_doubt"]
    assert "proves nothing" in told(attempt.message)[0]
    provider.account.refresh_from_db()
    assert "AUTHENTICATIONFAILED" in provider.account.imap_error


def test_a_copy_is_filed_where_the_provider_files_none(provider: Provider) -> None:
    AgentEmailAccount.objects.update(copies_to_sent=True)
    before = len(provider.lies_there())
    attempt = provider.send(subject="A copy, please")
    provider.later(seconds=70)
    assert provider.lies_there()[before:] == [provider.smtp.messages[-1].content]
    copy = SentCopy.objects.get(pk=attempt.pk)
    assert (copy.state, copy.folder) == ("appended", SENT) and copy.uid and copy.uid_validity
    Mailbox.objects.update(sent_look_at=provider.now)
    SentCopy.objects.update(look_at=provider.now, uid=None)
    provider.later(seconds=1)
    assert len(provider.lies_there()) == before + 1, "looked for before it is filed again"
    with provider.mailbox() as client:
        client.select(SENT, readonly=True)
        said = client.fetch(str(before + 1), "(FLAGS INTERNALDATE)")[1][0]
    assert b"\\Seen" in said
    filed_at = time.mktime(imaplib.Internaldate2tuple(said))
    assert attempt.sent_at and abs(filed_at - attempt.sent_at.timestamp()) < 2
