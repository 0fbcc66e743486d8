"""Mail that comes back through real servers: Postfix writes the report, and it is read at a Dovecot."""

import smtplib
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from gobii_email import api
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.models import AgentEmailAccount, OutboundMessageEvent, PersistentAgentMessage, ReceivedMail
from gobii_email.services.accounts import apply_account, enable
from gobii_email.services.diagnose import test_imap, test_smtp
from gobii_email.services.poll import poll
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.dovecot import RealDovecot
from gobii_email.testing.postfix import RealPostfix
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.smtp_server import Faults, ScriptedSmtpServer
from tests.conftest import AMPLE, RecordingDoorbell

pytestmark = pytest.mark.django_db

ANNA, PASSWORD = "anna@mail.example", "a long password"
NOBODY, GRACE = "nobody@remote.example", "grace@remote.example"
FAULTS = Faults(always={NOBODY: "550 5.1.1 There is no such mailbox here"})


@dataclass
class Provider:
    postfix: RealPostfix
    dovecot: RealDovecot
    remote: ScriptedSmtpServer


@pytest.fixture(scope="module")
def provider(authority: ThrowAwayAuthority) -> Iterator[Provider]:
    """Anna's servers, and a remote one that knows Grace alone."""
    users = {ANNA: PASSWORD}
    try:
        with ScriptedSmtpServer(security="none", faults=FAULTS) as remote:
            routes = {"remote.example": remote.port}
            aliases = {"friend@mail.example": NOBODY}
            with RealPostfix(authority, users, aliases=aliases, routes=routes) as postfix:
                mail = postfix.directory / "mailboxes"
                with RealDovecot(authority.good_certificate(), users, mail=mail) as dovecot:
                    yield Provider(postfix, dovecot, remote)
    except ServerUnavailable as problem:
        pytest.skip(f"REAL BOUNCES ARE NOT TESTED HERE: {problem}")


@pytest.fixture
def anna(provider: Provider, settings: Any, doorbell: RecordingDoorbell) -> AgentEmailAccount:
    """Her mailbox, tested, enabled both ways, and read up to now."""
    settings.BYO_EMAIL_ALLOWED_PORTS = {*provider.postfix.ports.values(), *provider.dovecot.ports.values()}
    login = {"username": ANNA, "password": PASSWORD}
    smtp = {"host": "localhost", "port": provider.postfix.ports["starttls"], "security": "starttls"}
    imap = {"host": "localhost", "port": provider.dovecot.ports["implicit"], "security": "ssl"}
    account = apply_account(
        {"agent": "Anna", "address": ANNA, "smtp": smtp | login, "imap": imap | login, "limits": dict(AMPLE)}
    )
    assert test_smtp(account).ok and test_imap(account).ok
    account.refresh_from_db()
    enable(account, inbound=True, outbound=True)
    polled(account)
    return account


def polled(account: AgentEmailAccount) -> str:
    return poll(str(account.pk), owner="test", is_asked_for=True)


def sent(deliver_all: Callable[[], list[str]], *to: str) -> PersistentAgentMessage:
    message = api.send_agent_email(from_endpoint=ANNA, to=to, subject="Hello", body="Hi")
    assert deliver_all() == ["sent"]
    return message


def until_returned(provider: Provider, count: int) -> None:
    """Waits until Postfix has put `count` mails into Anna's mailbox."""
    give_up_at = time.monotonic() + 120
    while len(provider.postfix.mailbox(ANNA)) < count:
        assert time.monotonic() < give_up_at, provider.postfix.log[-3000:]
        time.sleep(0.05)


def waiting(provider: Provider) -> int:
    return len(provider.postfix.mailbox(ANNA))


def test_a_mail_to_an_unknown_remote_user_is_failed_within_one_poll(
    provider: Provider, anna: AgentEmailAccount, deliver_all: Callable[[], list[str]]
) -> None:
    before = waiting(provider)
    message = sent(deliver_all, GRACE, NOBODY)
    until_returned(provider, before + 1)
    polled(anna)
    message.refresh_from_db()
    recipients = {row.address: row for row in message.recipients.all()}
    assert (recipients[GRACE].status, recipients[NOBODY].status) == ("accepted", "bounced")
    assert (recipients[NOBODY].smtp_code, recipients[NOBODY].enhanced_status) == (550, "5.1.1")
    assert message.latest_status == "partially_sent"
    bounced = OutboundMessageEvent.objects.get(message=message, event="bounced")
    assert bounced.data["matched_by"] == "its envelope id" and "no such mailbox" in bounced.text
    report = ReceivedMail.objects.get(about__message=message)
    assert (report.state, report.kind) == ("report", "dsn-failed")
    with pytest.raises(InvalidMail, match=NOBODY):
        api.send_agent_email(from_endpoint=ANNA, to=NOBODY, subject="Again", body="Hi")


def test_when_all_come_back_the_attempt_is_failed(
    provider: Provider, anna: AgentEmailAccount, deliver_all: Callable[[], list[str]]
) -> None:
    before = waiting(provider)
    message = sent(deliver_all, NOBODY)
    until_returned(provider, before + 1)
    polled(anna)
    message.refresh_from_db()
    attempt = message.attempts.get()
    assert (message.latest_status, attempt.status, attempt.error_code) == ("failed", "failed", "bounced")
    assert (attempt.smtp_code, attempt.enhanced_status) == (550, "5.1.1")
    assert "no such mailbox" in attempt.error_message
    polled(anna)
    assert OutboundMessageEvent.objects.filter(message=message, event="bounced").count() == 1


def test_what_an_alias_leads_to_is_told_by_the_address_that_was_written_to(
    provider: Provider, anna: AgentEmailAccount, deliver_all: Callable[[], list[str]]
) -> None:
    before = waiting(provider)
    message = sent(deliver_all, "friend@mail.example")
    until_returned(provider, before + 1)
    polled(anna)
    message.refresh_from_db()
    assert (message.latest_status, message.recipients.get().status) == ("failed", "bounced")


def test_a_bounce_of_what_the_owner_sent_by_another_program_changes_nothing(
    provider: Provider,
    anna: AgentEmailAccount,
    deliver_all: Callable[[], list[str]],
    authority: ThrowAwayAuthority,
) -> None:
    message = sent(deliver_all, GRACE)
    before = waiting(provider)
    with smtplib.SMTP("localhost", provider.postfix.ports["starttls"], timeout=60) as client:
        client.starttls(context=ssl.create_default_context(cafile=str(authority.ca_file)))
        client.login(ANNA, PASSWORD)
        text = f"From: {ANNA}\nTo: {NOBODY}\nMessage-ID: <own@mail.example>\nSubject: Mine\n\nHi\n"
        client.sendmail(ANNA, [NOBODY], text)
    until_returned(provider, before + 1)
    polled(anna)
    message.refresh_from_db()
    assert message.latest_status == "sent"
    report = ReceivedMail.objects.latest("stored_at")
    assert report.about_id is None and "names no mail" in report.reason
