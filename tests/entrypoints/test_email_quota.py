"""`email_quota`: limits and their sources, what is used, and when many more would be out."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from gobii_email import api
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.models import AgentEmailAccount, SendingLimit
from gobii_email.ports import LimiterUnavailable, Spent
from gobii_email.services import allow, hold
from tests.entrypoints.commands import SENDER, an_endpoint, run

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_broker(settings: Any) -> Iterator[None]:
    settings.GOBII_BROKER_URL = "memory://"
    allow.forget_shared_limits()
    yield
    allow.forget_shared_limits()


@pytest.fixture
def account() -> AgentEmailAccount:
    return AgentEmailAccount.objects.create(
        endpoint=an_endpoint(), smtp_host="smtp.office365.com", smtp_port=587, per_hour=40
    )


def spend(limiter: RedisLimiter, account: AgentEmailAccount, cost: int) -> None:
    for scope in allow.scopes_of(account, timezone.now()):
        limiter.restore(scope, [Spent(cost)])


def test_each_limit_is_shown_with_its_source_and_what_is_used(
    limiter: RedisLimiter, account: AgentEmailAccount
) -> None:
    SendingLimit.objects.create(kind="host", name="smtp.office365.com:587", per_day=900, max_connections=7)
    spend(limiter, account, 12)
    document = run("email_quota", SENDER, "--json").document
    assert document["limits"]["per_minute"] == {"limit": 30, "source": "Microsoft 365"}
    assert document["limits"]["per_hour"] == {"limit": 40, "source": "set for this account"}
    own, host = document["scopes"]
    assert own["windows"][1] == {"window": "hour", "limit": 40, "used": 12}
    assert own["connections"] == {"limit": 3, "in_use": 0}
    assert (host["scope"], host["connections"]["limit"]) == ("host:smtp.office365.com:587", 7)
    text = run("email_quota", SENDER).out
    assert "30 a minute (Microsoft 365): 12 used" in text
    assert "40 an hour (set for this account): 12 used" in text
    assert "3 connections (Microsoft 365): 0 in use" in text
    assert "smtp.office365.com's limit of 900 a day: 12 used" in text


def test_what_waits_goes_before_the_messages_asked_about(account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.update(per_minute=2)
    for number in range(3):
        api.send_agent_email(
            from_endpoint=account.endpoint, to="bob@example.com", subject=f"{number}", body="x"
        )
    document = run("email_quota", SENDER, "--messages", 2, "--json").document
    assert (document["queued_recipients"], document["messages"]) == (3, 2)
    wait = parse_datetime(document["out_at"]) - timezone.now()  # type: ignore[operator]
    assert timedelta(seconds=110) < wait <= timedelta(seconds=120)
    assert "those and 2 messages more would all be out at" in run("email_quota", SENDER, "--messages", 2).out


def test_what_was_learned_is_shown_with_its_reason_while_it_lasts(account: AgentEmailAccount) -> None:
    learned = {"learned_per_minute": 5, "learned_reason": "450 4.7.0 slow down"}
    AgentEmailAccount.objects.update(learned_at=timezone.now(), **learned)
    answer = run("email_quota", SENDER, "--json").document
    assert answer["limits"]["per_minute"] == {"limit": 5, "source": "its server asked to slow down"}
    assert answer["learned"]["reason"] == "450 4.7.0 slow down"
    AgentEmailAccount.objects.update(learned_at=timezone.now() - timedelta(hours=3))
    answer = run("email_quota", SENDER, "--json").document
    assert (answer["limits"]["per_minute"]["limit"], answer["learned"]) == (30, None)


def test_a_held_mailbox_says_so(account: AgentEmailAccount) -> None:
    hold.pause(account, reason="Moving house")
    assert "held: the mailbox is paused. Moving house" in run("email_quota", SENDER).out
    assert run("email_quota", SENDER, "--json").document["held"]["state"] == "paused"


def test_without_redis_the_limits_are_shown_and_the_command_fails(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise LimiterUnavailable

    monkeypatch.setattr(RedisLimiter, "usage", away)
    answer = run("email_quota", SENDER)
    assert answer.code == 1
    assert "30 a minute (Microsoft 365)\n" in answer.out
    assert "Redis do not answer" in answer.error
    document = run("email_quota", SENDER, "--json").document
    assert document["limits"]["per_hour"]["limit"] == 40
    assert "Redis" in document["error"]["reason"]


def test_an_address_without_an_account_fails() -> None:
    answer = run("email_quota", "nobody@example.com", "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "address"


@pytest.mark.parametrize("number", ["0", "-1", "1000001", "many", "9" * 5000, "1.5"])
def test_a_number_of_messages_that_makes_no_sense_is_wrong_usage(
    account: AgentEmailAccount, number: str
) -> None:
    answer = run("email_quota", SENDER, f"--messages={number}")
    assert answer.code != 0
    assert "from 1 to 1,000,000" in answer.error
