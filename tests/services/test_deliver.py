"""The walk of an attempt against a real submission server."""

from collections.abc import Callable
from datetime import timedelta
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from gobii_email import api
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Refused
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import AgentEmailAccount, MailHost, OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services.deliver import deliver
from gobii_email.services.hold import pause, resume
from gobii_email.services.settle import settle
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import RecordingDoorbell, live_until, row_of, taken

Deliver = Callable[[], list[str]]

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"


def send(**values: Any) -> PersistentAgentMessage:
    facts = {
        "from_endpoint": "agent@sender.example",
        "to": "to@rcpt.example",
        "subject": "Hello",
        "body": "Good *morning*",
    }
    return api.send_agent_email(**(facts | values))


def fresh(message: PersistentAgentMessage) -> PersistentAgentMessage:
    return PersistentAgentMessage.objects.get(pk=message.pk)


def make_due(message: PersistentAgentMessage) -> None:
    OutboundMessageAttempt.objects.filter(message=message, status="queued").update(
        not_before=timezone.now(), due_at=timezone.now()
    )


def test_an_accepted_mail_is_sent_once_with_its_attempt_header(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    message = send(cc=["cc@rcpt.example"], bcc=["bcc@rcpt.example"])
    assert deliver_all() == ["sent"]
    (kept,) = smtp_server.messages
    attempt = message.attempts.get()
    mail = message_from_bytes(kept.content, policy=policy.SMTP)
    assert kept.sender == "agent@sender.example"
    assert set(kept.recipients) == {"to@rcpt.example", "cc@rcpt.example", "bcc@rcpt.example"}
    assert (kept.user, kept.mechanism, kept.is_encrypted) == ("agent@sender.example", "PLAIN", True)
    assert mail["X-Gobii-Message-ID"] == str(attempt.pk)
    assert mail["Bcc"] is None
    assert mail["Date"] is not None
    assert mail["Message-ID"] == fresh(message).rfc_message_id
    assert mail["Message-ID"].endswith("@sender.example>")
    assert fresh(message).latest_status == "sent"
    assert (attempt.provider, attempt.status, attempt.smtp_code) == ("smtp", "sent", 250)
    assert attempt.provider_message_id != "" or attempt.reply != ""
    assert {row.status for row in message.recipients.all()} == {"accepted"}


def statements(act: Callable[[], object]) -> list[str]:
    """What `act` asks of the database."""
    with CaptureQueriesContext(connection) as queries:
        act()
    frames = ("SAVEPOINT", "RELEASE", "BEGIN", "COMMIT")
    return [row["sql"] for row in queries if not row["sql"].startswith(frames)]


def a_turn() -> list[str]:
    """What one turn with everything that waits asks of the database."""
    waiting = OutboundMessageAttempt.objects.filter(status="queued").first()
    assert waiting is not None
    return statements(lambda: deliver(str(waiting.pk), owner="test"))


@pytest.fixture
def known(account: AgentEmailAccount, deliver_all: Deliver) -> AgentEmailAccount:
    """An account in everyday use: its counters are in Redis, and its last success is noted."""
    send()
    assert deliver_all() == ["sent"]
    return account


def test_an_ordinary_accepted_mail_costs_five_statements(known: AgentEmailAccount) -> None:
    """Origin, claim, connection, mark, acceptance; SQLite has no round trips to save and takes small ones."""
    message = send()
    work = a_turn()
    assert len(work) <= (5 if connection.vendor == "postgresql" else 12), "\n".join(work)
    assert fresh(message).latest_status == "sent"


def test_ten_mails_on_one_connection_cost_three_statements_each(
    known: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    AgentEmailAccount.objects.update(messages_per_connection=10)
    messages = [send(to=f"to{number}@rcpt.example") for number in range(10)]
    work = a_turn()
    assert len(work) <= 10 * (3 if connection.vendor == "postgresql" else 7), "\n".join(work)
    assert {fresh(message).latest_status for message in messages} == {"sent"}
    assert len({kept.connection for kept in smtp_server.messages[1:]}) == 1


def test_a_mail_refused_for_now_is_tried_again_with_the_same_message_id(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.recipients["to@rcpt.example"] = ["451 4.7.1 Greylisted", "451 4.7.1 Greylisted"]
    message = send()
    for _ in range(3):
        make_due(message)
        deliver_all()
    statuses = list(message.attempts.order_by("number").values_list("number", "status"))
    assert statuses == [(1, "deferred"), (2, "deferred"), (3, "sent")]
    assert fresh(message).latest_status == "sent"
    assert len(smtp_server.messages) == 1


def test_only_the_refused_address_is_tried_again(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.recipients["slow@rcpt.example"] = ["450 4.2.0 Greylisted, try again later"]
    message = send(to=["to@rcpt.example", "slow@rcpt.example"])
    assert deliver_all() == ["sent"]
    assert fresh(message).latest_status == "queued"
    make_due(message)
    assert deliver_all() == ["sent"]
    assert [kept.recipients for kept in smtp_server.messages] == [
        ("to@rcpt.example",),
        ("slow@rcpt.example",),
    ]
    first, second = (message_from_bytes(kept.content) for kept in smtp_server.messages)
    assert first["Message-ID"] == second["Message-ID"]
    assert first["To"] == second["To"]
    assert fresh(message).latest_status == "sent"


def test_one_recipient_of_three_refused_leaves_the_message_partially_sent(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.always["no@rcpt.example"] = "550 5.1.1 No such user"
    message = send(to=["a@rcpt.example", "no@rcpt.example", "b@rcpt.example"])
    deliver_all()
    assert fresh(message).latest_status == "partially_sent"
    refused = message.recipients.get(address="no@rcpt.example")
    assert (refused.status, refused.smtp_code, refused.enhanced_status) == ("refused", 550, "5.1.1")


def test_a_mail_refused_for_good_fails_with_the_servers_words(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.always["no@rcpt.example"] = "550 5.1.1 No such user"
    message = send(to="no@rcpt.example")
    assert deliver_all() == ["failed"]
    attempt = message.attempts.get()
    assert (attempt.stage, attempt.verdict, attempt.scope) == ("rcpt", "permanent", "recipient")
    assert "No such user" in attempt.error_message
    assert fresh(message).latest_status == "failed"


def test_a_refused_login_holds_the_account_and_fails_no_mail(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.replies["AUTH"] = "535 5.7.8 Username and Password not accepted"
    message, other = send(), send(to="other@rcpt.example")
    deliver_all()
    account.refresh_from_db()
    assert account.state == "auth_needed"
    assert [fresh(found).latest_status for found in (message, other)] == ["queued", "queued"]
    assert other.attempts.get().status == "queued", "the second mail was held without a word to the server"
    assert "5.7.8" in (api.delivery_status(message.pk).waiting_for or "") or "password" in str(
        api.delivery_status(message.pk).waiting_for
    )
    smtp_server.faults.replies.clear()
    assert resume(account) == 2
    deliver_all()
    assert [fresh(found).latest_status for found in (message, other)] == ["sent", "sent"]


def test_a_quota_behind_a_5xx_holds_the_account_until_it_frees(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.replies["DOT"] = "550 5.4.5 Daily user sending quota exceeded"
    message = send()
    assert deliver_all() == ["deferred"]
    account.refresh_from_db()
    assert account.state == "quota"
    assert account.state_until is not None and account.state_until > timezone.now()
    assert fresh(message).latest_status == "queued"


def test_a_connection_lost_after_the_mark_is_in_doubt_and_never_repeated(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.drops.add("AFTER_DOT")
    message = send()
    assert deliver_all() == ["in_doubt"]
    assert fresh(message).latest_status == "in_doubt"
    assert deliver_all() == []
    assert len(smtp_server.messages) == 1
    assert "doubt" in (api.delivery_status(message.pk).waiting_for or "")


def test_a_connection_lost_before_the_mark_is_tried_again(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.drops.add("MAIL")
    smtp_server.faults.times["MAIL"] = 1
    message = send()
    assert deliver_all() == ["deferred"]
    make_due(message)
    assert deliver_all() == ["sent"]
    assert len(smtp_server.messages) == 1


def test_a_server_that_asks_to_be_left_alone_is(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.replies["EHLO"] = "421 4.3.2 Shutting down"
    first, second = send(), send(to="b@rcpt.example")
    outcomes = deliver_all()
    assert outcomes == ["deferred", "postponed"]
    assert MailHost.objects.get().name == f"localhost:{smtp_server.port}"
    assert second.attempts.get().number == 1
    assert "left alone" in (api.delivery_status(second.pk).waiting_for or "")
    assert first.attempts.count() == 2


def test_mail_of_an_account_that_became_unusable_is_held_and_never_rerouted(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    message = send()
    AgentEmailAccount.objects.update(smtp_port=account.smtp_port, smtp_username="somebody else")
    assert deliver_all() == ["postponed"]
    assert "test" in (api.delivery_status(message.pk).waiting_for or "")
    AgentEmailAccount.objects.all().delete()
    make_due(message)
    assert deliver_all() == ["postponed"]
    assert smtp_server.messages == []
    assert fresh(message).latest_status == "queued"


def test_mail_without_an_account_is_simulated(endpoint: Any, deliver_all: Deliver) -> None:
    message = send()
    assert deliver_all() == ["delivered"]
    attempt = message.attempts.get()
    assert (attempt.provider, attempt.status) == ("postmark_simulation", "delivered")
    assert fresh(message).latest_status == "delivered"


def test_mail_that_no_transport_can_take_fails_and_says_what_would_change_it(
    endpoint: Any, deliver_all: Deliver, settings: Any
) -> None:
    settings.SIMULATE_EMAIL_DELIVERY = False
    message = send()
    assert deliver_all() == ["failed"]
    attempt = message.attempts.get()
    assert attempt.error_code == "no_transport"
    assert (
        "SIMULATE_EMAIL_DELIVERY" in attempt.error_message
        and "POSTMARK_SERVER_TOKEN" in attempt.error_message
    )


def test_a_message_that_expired_is_not_sent(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    message = send(expires_at=timezone.now() + timedelta(seconds=60))
    live_until(timezone.now() - timedelta(seconds=1))
    assert deliver_all() == ["failed"]
    assert smtp_server.messages == []
    assert fresh(message).latest_error_code == "expired"


def test_a_password_that_cannot_be_decrypted_holds_the_account(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    account.smtp_host = "127.0.0.1"
    account.smtp_tested_fingerprint = account.smtp_fingerprint()
    account.save()
    message = send()
    assert deliver_all() == ["deferred"]
    account.refresh_from_db()
    assert account.state == "config_needed"
    assert "password" in account.state_reason
    assert smtp_server.messages == []
    assert fresh(message).latest_status == "queued"


def test_nobody_can_send_the_same_attempt_twice(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    attempt = send().attempts.get()
    assert [deliver(str(attempt.pk), owner="a"), deliver(str(attempt.pk), owner="b")] == ["sent", "not due"]
    assert len(smtp_server.messages) == 1


def test_a_lost_connection_is_no_reason_to_leave_the_server_alone(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, deliver_all: Deliver
) -> None:
    smtp_server.faults.drops.add("EHLO")
    smtp_server.faults.times["EHLO"] = 1
    first, second = send(), send(to="b@rcpt.example")
    assert deliver_all() == ["deferred", "sent"]
    assert not MailHost.objects.exists()
    account.refresh_from_db()
    assert account.smtp_error == "", "the success that followed is the newer news"
    assert (fresh(first).latest_status, fresh(second).latest_status) == ("queued", "sent")


def test_a_hold_that_waits_for_a_person_is_not_shortened_by_a_slower_answer(
    account: AgentEmailAccount,
) -> None:
    attempt = row_of(taken(send()))
    pause(account, reason="holidays")
    quota = Refused(Stage.DOT, Reply(550, "5.4.5", "Daily user sending quota exceeded"))
    settle(attempt, quota, provider=Provider.SMTP, now=timezone.now())
    account.refresh_from_db()
    assert (account.state, account.state_reason) == ("paused", "holidays")
