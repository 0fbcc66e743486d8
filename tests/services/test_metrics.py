"""What is counted of real sends, polls and doubts, and that the gauges say what the rows say."""

import logging
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from gobii_email import api, metrics
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.domain.lifecycle import Move, Provider
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.smtp_replies import Stage
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    Mailbox,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    Suspension,
)
from gobii_email.ports import LimiterUnavailable
from gobii_email.services import attend, expose, overview
from gobii_email.services import poll as poll_service
from gobii_email.services.browse import Whose
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.hold import pause
from gobii_email.services.poll import poll
from gobii_email.services.resolve import resolve
from gobii_email.services.settle import settle
from gobii_email.services.share import Shares
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.conftest import PASSWORD, RecordingDoorbell, live_until, row_of, taken
from tests.entrypoints.commands import run
from tests.services.measuring import Counted
from tests.services.polling import AGENT, receiving

pytestmark = pytest.mark.django_db

Deliver = Callable[[], list[str]]
ENDED = "gobii_email_attempts_total"


@pytest.fixture
def counted(settings: Any, tmp_path: Path) -> Iterator[Counted]:
    settings.GOBII_RETRY_SCHEDULE = "60s"
    made = Counted(settings, tmp_path / "counts")
    yield made
    made.begin_anew()


@pytest.fixture
def deliver_now(
    deliver_all: Deliver, django_capture_on_commit_callbacks: Any, doorbell: RecordingDoorbell
) -> Deliver:
    """As deliver_all, with what follows each commit."""

    def act() -> list[str]:
        with django_capture_on_commit_callbacks(execute=True):
            return deliver_all()

    return act


def send(to: str = "to@rcpt.example", **values: Any) -> PersistentAgentMessage:
    facts = {"from_endpoint": "agent@sender.example", "to": to, "subject": "Hello", "body": "Good morning"}
    return api.send_agent_email(**(facts | values))


def test_accepted_mails_are_counted_to_the_one(
    account: AgentEmailAccount, counted: Counted, deliver_now: Deliver
) -> None:
    for _ in range(3):
        send()
    assert "sent" in deliver_now()
    labels = {"transport": "smtp", "provider": "other", "stage": "none", "blame": "none"}
    assert counted.of(ENDED, outcome="sent", **labels) == counted.of(ENDED) == 3
    assert counted.of("gobii_email_accept_seconds_count", transport="smtp") == 3
    assert counted.of("gobii_email_queue_wait_seconds_count") == 3
    assert counted.of("gobii_email_stage_seconds_count", stage="dot") == 3
    assert counted.of("gobii_email_pool_events_total", event="opened") >= 1


@pytest.mark.parametrize(
    ("command", "reply", "outcome", "stage", "blame"),
    [
        ("RCPT", "550 5.1.1 No such user", "failed", "rcpt", "recipient"),
        ("AUTH", "535 5.7.8 Bad credentials", "deferred", "auth", "user"),
        ("DATA", "451 4.3.0 Local error", "deferred", "data", "provider"),
        ("MAIL", "421 4.3.2 Shutting down", "deferred", "mail", "provider"),
    ],
)
def test_a_refusal_is_counted_at_its_stage_and_charged_to_whose_doing_it_was(
    command: str, reply: str, outcome: str, stage: str, blame: str,
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, counted: Counted, deliver_now: Deliver,
) -> None:  # fmt: skip
    smtp_server.faults.replies[command] = reply
    send()
    deliver_now()
    assert counted.of(ENDED, outcome=outcome, stage=stage, blame=blame) == counted.of(ENDED) == 1
    assert counted.of("gobii_email_retries_total") == (1 if outcome == "deferred" else 0)


def test_nothing_names_a_person_a_secret_or_a_host(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, counted: Counted, deliver_now: Deliver
) -> None:
    send()
    deliver_now()
    smtp_server.faults.replies["RCPT"] = f"550 5.1.1 {PASSWORD} <to@rcpt.example> unknown to localhost"
    send(subject="Private")
    deliver_now()
    told = " ".join(f"{name} {values}" for name, values in counted.shown().items())
    assert "recipient" in told
    for private in (PASSWORD, "sender.example", "rcpt.example", "localhost", "127.0.0.1", "Private"):
        assert private not in told
    for one in (account.pk, account.endpoint_id, account.endpoint.owner_agent_id):
        assert str(one) not in told


def test_a_simulated_mail_is_no_smtp_send(
    endpoint: PersistentAgentCommsEndpoint, counted: Counted, deliver_now: Deliver
) -> None:
    send()
    assert deliver_now() == ["delivered"]
    assert counted.of(ENDED, transport="postmark_simulation", provider="none", outcome="delivered") == 1
    assert counted.of(ENDED, transport="smtp") == 0


def test_mail_without_a_transport_is_our_failure(
    endpoint: PersistentAgentCommsEndpoint, counted: Counted, deliver_now: Deliver, settings: Any
) -> None:
    settings.SIMULATE_EMAIL_DELIVERY = False
    send()
    deliver_now()
    assert counted.of(ENDED, outcome="failed", blame="system", transport="none") == 1


def test_mail_that_expires_is_charged_to_what_it_waited_for(
    account: AgentEmailAccount,
    counted: Counted,
    deliver_now: Deliver,
    django_capture_on_commit_callbacks: Any,
) -> None:
    pause(account, reason="holidays")
    send()
    deliver_now()
    assert counted.of("gobii_email_postponed_total", cause="paused") == 1
    live_until(timezone.now() - timedelta(seconds=1))
    with django_capture_on_commit_callbacks(execute=True):
        assert dispatch_round().expired == 1
    assert counted.of(ENDED, outcome="failed", blame="user", transport="smtp") == counted.of(ENDED) == 1


def test_a_lost_worker_leaves_a_doubt_that_is_counted_until_it_ends(
    account: AgentEmailAccount, counted: Counted, doorbell: RecordingDoorbell,
    django_capture_on_commit_callbacks: Any,
) -> None:  # fmt: skip
    message = send()
    attempt = row_of(taken(message))
    lost = Lost(Stage.DOT, Cause.WORKER_LOST, "It was lost.", is_marked=True)
    with django_capture_on_commit_callbacks(execute=True):
        assert settle(attempt, lost, provider=Provider.SMTP, now=timezone.now())
    assert counted.of("gobii_email_doubts_total") == 1
    assert counted.of(ENDED, outcome="in_doubt", blame="system", stage="dot") == 1
    assert counted.shown()["gobii_email_messages"]["in_doubt"] == 1
    with django_capture_on_commit_callbacks(execute=True):
        assert resolve(attempt, Move.FOUND, evidence="It lies in Sent.", now=timezone.now())
    assert counted.of("gobii_email_doubts_ended_total", how="found") == 1
    assert counted.shown()["gobii_email_messages"]["in_doubt"] == 0


def test_what_was_rolled_back_is_not_counted(
    account: AgentEmailAccount, counted: Counted, doorbell: RecordingDoorbell,
    django_capture_on_commit_callbacks: Any,
) -> None:  # fmt: skip
    attempt = row_of(taken(send()))
    with django_capture_on_commit_callbacks(execute=False) as callbacks:
        settle(attempt, Lost(Stage.CONNECT, Cause.TIMEOUT, "x"), provider=Provider.SMTP, now=timezone.now())
    assert callbacks
    assert counted.of(ENDED) == 0


@pytest.fixture
def imap_server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good("localhost", "127.0.0.1"), users={AGENT: PASSWORD}) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = str(server.port)
        yield server


def test_polls_are_counted_with_whose_doing_it_was_that_they_failed(
    endpoint: PersistentAgentCommsEndpoint, imap_server: ScriptedImapServer, counted: Counted
) -> None:
    account = receiving(endpoint, imap_server.port)
    Mailbox.objects.update_or_create(
        account=account, defaults={"due_at": timezone.now() - timedelta(minutes=3), "look_at": timezone.now()}
    )
    assert poll(account.pk, owner="test") == "baseline"
    assert counted.of("gobii_email_polls_total", outcome="baseline", blame="none", provider="other") == 1
    assert counted.of("gobii_email_poll_lag_seconds_sum") >= 179
    imap_server.users[AGENT] = "another"
    assert poll(account.pk, owner="test", is_asked_for=True) == "held"
    assert counted.of("gobii_email_polls_total", outcome="held", blame="user") == 1
    assert counted.of("gobii_email_imap_failures_total", purpose="poll", blame="user") == 1


def test_the_lag_of_a_poll_is_counted_once_it_is_made(
    endpoint: PersistentAgentCommsEndpoint,
    counted: Counted,
    imap_server: ScriptedImapServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    places = Shares()
    places.threads = 8
    monkeypatch.setattr(poll_service, "poll_shares", places)
    account = receiving(endpoint, imap_server.port)
    due_at = timezone.now() - timedelta(seconds=40)
    Mailbox.objects.update_or_create(account=account, defaults={"due_at": due_at, "look_at": due_at})
    host = f"{account.imap_host}:{account.imap_port}"
    assert places.enter(host, "somebody")
    assert poll(account.pk, owner="test") == "waits its turn"
    assert counted.of("gobii_email_poll_lag_seconds_count") == 0
    places.leave(host, "somebody")
    assert poll(account.pk, owner="test") == "baseline"
    assert poll(account.pk, owner="test", is_asked_for=True) == "0 new"
    assert counted.of("gobii_email_poll_lag_seconds_count") == 1
    assert counted.of("gobii_email_poll_lag_seconds_sum") >= 40


def test_gauges_email_queue_and_the_console_say_the_same(
    account: AgentEmailAccount, counted: Counted, deliver_now: Deliver, settings: Any
) -> None:
    settings.GOBII_BROKER_URL = "memory://"
    now = timezone.now()
    for _ in range(4):
        send()
    OutboundMessageAttempt.objects.update(queued_at=now - timedelta(minutes=7))
    pause(account, reason="holidays")
    MailHost.objects.create(name=account.smtp_server_name, backoff_until=now + timedelta(minutes=5))
    Lane.objects.create(
        endpoint=account.endpoint, code="rate_limit", reason="x", look_at=now + timedelta(minutes=5)
    )
    shown, document = counted.shown(), run("email_queue", "--json").document
    page = overview.overview(Whose.everybodys(), timezone.now())
    assert shown["gobii_email_messages"]["queued"] == document["messages"]["queued"] == page.waiting == 4
    assert shown["gobii_email_ready"][""] == document["waiting"]["ready"] == 0
    oldest = shown["gobii_email_oldest_waiting_seconds"][""]
    assert document["waiting"]["oldest_seconds"] - oldest < 5
    assert page.oldest_waiting_since == now - timedelta(minutes=7)
    assert shown["gobii_email_lanes_waiting"]["rate_limit"] == document["causes"]["rate_limit"] == 1
    causes = shown["gobii_email_accounts_in_backoff"]
    assert causes["host_backoff,other"] == document["causes"]["host_backoff"] == 1
    assert causes["paused,other"] == document["causes"]["paused"] == 1
    assert shown["gobii_email_accounts"] == {"other,paused": 1}
    assert shown["gobii_email_accounts_held_back"] == {"other": 1}


def test_paused_accounts_are_in_nobodys_trouble(account: AgentEmailAccount, counted: Counted) -> None:
    pause(account, reason="holidays")
    assert "gobii_email_accounts_held_back" not in counted.shown()
    AgentEmailAccount.objects.update(state="auth_needed", state_until=None)
    assert counted.shown()["gobii_email_accounts_held_back"] == {"other": 1}
    AgentEmailAccount.objects.update(state_until=timezone.now() - timedelta(seconds=1))
    assert counted.shown()["gobii_email_accounts"] == {"other,active": 1}


def test_mailboxes_that_are_late_are_told_but_not_those_that_are_held(
    account: AgentEmailAccount, counted: Counted
) -> None:
    ago = timezone.now() - timedelta(minutes=9)
    Mailbox.objects.update_or_create(account=account, defaults={"due_at": ago, "look_at": ago})
    shown = counted.shown()
    assert shown["gobii_email_mailboxes_overdue"][""] == 1
    assert 540 <= shown["gobii_email_mailbox_overdue_seconds"][""] < 600
    Mailbox.objects.update(hold_code="auth_needed")
    assert counted.shown()["gobii_email_mailboxes_overdue"][""] == 0


def test_turns_that_redis_does_not_let_begin_are_counted(
    account: AgentEmailAccount,
    counted: Counted,
    deliver_now: Deliver,
    limiter: RedisLimiter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(*_: object) -> Any:
        raise LimiterUnavailable("gone")

    monkeypatch.setattr(limiter, "admit", away)
    send()
    assert deliver_now() == ["postponed"]
    assert counted.of("gobii_email_limiter_unavailable_total") == 1


def test_mail_that_nothing_holds_is_told_by_its_age(account: AgentEmailAccount, counted: Counted) -> None:
    send()
    OutboundMessageAttempt.objects.update(due_at=timezone.now() - timedelta(minutes=7))
    assert 420 <= counted.shown()["gobii_email_oldest_ready_seconds"][""] < 430
    until = timezone.now() + timedelta(minutes=5)
    Lane.objects.create(endpoint=account.endpoint, code="rate_limit", reason="x", look_at=until)
    assert counted.shown()["gobii_email_oldest_ready_seconds"][""] == 0


def test_the_last_round_and_tick_are_told_while_they_are_known(
    counted: Counted, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = timezone.now()
    seen = {"gobii_email_dispatcher_seen_seconds": 40, "gobii_email_beat_tick_seconds": 70}
    for (name, seconds), whose in zip(seen.items(), ("dispatchers", "ticks"), strict=True):
        rows = {"one": ("", now - timedelta(seconds=seconds)), "older": ("", now - timedelta(hours=1))}
        monkeypatch.setattr(attend, whose, lambda rows=rows: rows)
        assert seconds <= counted.shown()[name][""] < seconds + 10
        monkeypatch.setattr(attend, whose, dict)
        assert name not in counted.shown()


@pytest.mark.usefixtures("real_switches")
def test_switches_are_told(counted: Counted, db: None, settings: Any) -> None:
    settings.BYO_EMAIL_ROLLOUT = "25%"
    Suspension.objects.create(scope="all", reason="drill", created_at=timezone.now())
    shown = counted.shown()
    assert shown["gobii_email_suspensions"] == {"all": 1}
    assert (shown["gobii_email_enabled"][""], shown["gobii_email_rollout_percent"][""]) == (1, 25)


def test_a_counter_that_nobody_raised_is_shown_as_zero_so_that_the_first_time_is_an_increase(
    counted: Counted, db: None
) -> None:
    assert counted.shown()["gobii_email_decrypt_failures_total"] == {"": 0}
    metrics.DECRYPT_FAILURES.inc()
    assert counted.shown()["gobii_email_decrypt_failures_total"] == {"": 1}


def test_the_stock_is_taken_once_in_ten_seconds(counted: Counted, django_assert_num_queries: Any) -> None:
    counted.shown()
    with django_assert_num_queries(0):
        expose.exposition()


def test_without_the_database_the_counts_are_shown_all_the_same(
    counted: Counted, db: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: object) -> None:
        raise ConnectionError("the database is away")

    monkeypatch.setattr(expose, "take_stock", broken)
    monkeypatch.setattr(metrics, "_said", set())
    metrics.LEASES_LOST.inc()
    with caplog.at_level(logging.WARNING):
        shown = counted.shown()
        counted.shown()
    assert shown["gobii_email_leases_lost_total"][""] == 1
    assert shown["gobii_email_gauges_read"][""] == 0
    assert "gobii_email_messages" not in shown
    assert [one.message for one in caplog.records if one.name == metrics.__name__] == ["metrics.failed"]


def test_a_directory_that_cannot_be_written_is_said_once_and_keeps_no_mail(
    account: AgentEmailAccount, settings: Any, tmp_path: Path, deliver_now: Deliver,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    settings.GOBII_METRICS_DIR = str(tmp_path / "file")
    metrics.counts.begin_anew()
    monkeypatch.setattr(metrics, "_said", set())
    send()
    send()
    with caplog.at_level(logging.WARNING):
        assert set(deliver_now()) <= {"sent", "not due"}
    assert [one.message for one in caplog.records if one.name == metrics.__name__] == ["metrics.failed"]


def test_deliver_never_meets_a_bug_of_metrics(
    account: AgentEmailAccount, deliver_now: Deliver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics.counts, "add", None)
    monkeypatch.setattr(metrics.counts, "observe", None)
    message = send()
    deliver_now()
    assert PersistentAgentMessage.objects.get(pk=message.pk).latest_status == "sent"
    assert deliver(str(message.attempts.get().pk), owner="test") == "not due"
