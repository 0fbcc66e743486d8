"""Limits in force, counters restored from the rows, and what a server's answer teaches."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.domain.classification import read_reply
from gobii_email.domain.quotas import Window
from gobii_email.domain.readings import Reading
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    SendingLimit,
)
from gobii_email.ports import Entered, Forgotten, LimiterUnavailable, Wait
from gobii_email.services import allow

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
LEASE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def no_shared_limits() -> Iterator[None]:
    allow.forget_shared_limits()
    yield
    allow.forget_shared_limits()


@pytest.fixture(autouse=True)
def counters(limiter: RedisLimiter) -> RedisLimiter:
    """The limiter, at noon."""
    limiter._clock = lambda: NOW
    return limiter


def an_account(
    address: str = "ada@agents.example", host: str = "smtp.example.com", **values: Any
) -> AgentEmailAccount:
    agent = PersistentAgent.objects.create(name="Ada")
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=address
    )
    return AgentEmailAccount.objects.create(endpoint=endpoint, smtp_host=host, smtp_port=587, **values)


def an_attempt(account: AgentEmailAccount, status: str = "sent", recipients: int = 1, **values: Any) -> None:
    message = PersistentAgentMessage.objects.create(from_endpoint=account.endpoint, body="x")
    OutboundMessageAttempt.objects.create(
        message=message,
        number=1,
        from_endpoint=account.endpoint,
        provider="smtp",
        status=status,
        addresses=[f"{n}@rcpt.example" for n in range(recipients)],
        **{"queued_at": NOW, "not_before": NOW} | values,
    )


def forgotten(scopes: Any) -> Forgotten:
    return Forgotten(tuple(scope.key for scope in scopes))


# Scopes


def test_an_account_alone_has_one_scope_with_its_limits() -> None:
    account = an_account(per_minute=7, max_connections=2)
    (scope,) = allow.scopes_of(account, NOW)
    assert scope.key == f"account:{account.endpoint_id}"
    assert (scope.owner, scope.windows) == ("the account's", (Window("minute", timedelta(minutes=1), 7),))
    assert scope.connections == 2


def test_limits_of_the_server_and_of_the_domain_are_scopes_of_their_own() -> None:
    account = an_account(per_minute=7)
    SendingLimit.objects.create(kind="host", name="smtp.example.com:587", per_hour=90)
    SendingLimit.objects.create(kind="domain", name="Agents.Example", max_connections=4)
    SendingLimit.objects.create(kind="host", name="smtp.example.com:465", per_hour=1)
    _, host, domain = allow.scopes_of(account, NOW)
    assert (host.owner, host.windows) == ("smtp.example.com's", (Window("hour", HOUR, 90),))
    assert (domain.owner, domain.windows, domain.connections) == ("agents.example's", (), 4)


def test_no_transaction_has_more_recipients_than_a_limit_above_the_account() -> None:
    account = an_account(per_minute=50)
    assert allow.limits_in_force(account, NOW).most_recipients == 50
    SendingLimit.objects.create(kind="domain", name="agents.example", per_minute=3)
    assert allow.limits_in_force(account, NOW).most_recipients == 3


def test_limits_above_accounts_are_read_once_in_ten_seconds(django_assert_num_queries: Any) -> None:
    account = an_account()
    allow.scopes_of(account, NOW)
    with django_assert_num_queries(0):
        allow.scopes_of(account, NOW + timedelta(seconds=9))
    with django_assert_num_queries(1):
        allow.scopes_of(account, NOW + timedelta(seconds=10))


def test_a_limit_that_was_made_anew_is_no_acquaintance() -> None:
    account = an_account()
    keys = []
    for _ in range(2):
        row = SendingLimit.objects.create(kind="domain", name="agents.example", per_day=3)
        keys.append(allow.scopes_of(account, NOW)[1].key)
        row.delete()
    assert len(set(keys)) == 2


# Restoring


def test_what_the_last_day_saw_is_restored_and_nothing_else(limiter: RedisLimiter) -> None:
    account = an_account(per_minute=100, per_hour=100, per_day=100)
    other = an_account("ben@agents.example")
    an_attempt(account, sent_at=NOW - timedelta(seconds=20), recipients=2)
    an_attempt(account, "delivered", sent_at=NOW - timedelta(minutes=30), recipients=4)
    an_attempt(account, "failed", sent_at=NOW - 23 * HOUR, recipients=8)  # bounced: the server took it
    an_attempt(account, sent_at=NOW - 25 * HOUR, recipients=16)
    an_attempt(account, "in_doubt", marked_at=NOW - 2 * HOUR, recipients=32)
    an_attempt(account, "failed", marked_at=NOW - HOUR, recipients=1)  # refused after its end
    an_attempt(account, "queued", due_at=NOW)
    an_attempt(other, sent_at=NOW)
    scopes = allow.scopes_of(account, NOW)
    allow.restore(scopes, forgotten(scopes), NOW)
    usage = limiter.usage(scopes[0])
    assert usage is not None
    assert usage.used == {"minute": 2, "hour": 6, "day": 46}


def test_what_is_being_sent_counts_as_spent_now_and_its_lease_as_a_connection(limiter: RedisLimiter) -> None:
    account = an_account(per_minute=100, max_connections=2)
    token = uuid.uuid4()
    lease = {"lease_token": token, "due_at": NOW + LEASE}
    an_attempt(account, "sending", recipients=3, **lease)
    an_attempt(account, "sending", recipients=2, **lease)
    an_attempt(account, "sending", recipients=1, lease_token=uuid.uuid4(), due_at=NOW - LEASE)
    scopes = allow.scopes_of(account, NOW)
    allow.restore(scopes, forgotten(scopes), NOW)
    usage = limiter.usage(scopes[0])
    assert usage is not None
    assert (usage.used, usage.lanes) == ({"minute": 6}, 1)
    assert limiter.enter("new", scopes, lease=LEASE) == Entered(94, 2)
    assert isinstance(limiter.enter("one too many", scopes, lease=LEASE), Wait)


def test_a_limit_above_is_restored_over_all_its_accounts(limiter: RedisLimiter) -> None:
    SendingLimit.objects.create(kind="host", name="smtp.example.com:587", per_day=50)
    SendingLimit.objects.create(kind="domain", name="agents.example", per_day=50)
    account = an_account()
    an_attempt(account, sent_at=NOW)
    an_attempt(an_account("ben@agents.example", "elsewhere.example"), sent_at=NOW, recipients=2)
    an_attempt(an_account("eve@other.example"), sent_at=NOW, recipients=4)
    an_attempt(an_account("mal@notagents.example", "elsewhere.example"), sent_at=NOW, recipients=8)
    scopes = allow.scopes_of(account, NOW)
    allow.restore(scopes, forgotten(scopes), NOW)
    used = [usage.used["day"] for scope in scopes if (usage := limiter.usage(scope))]
    assert used == [1, 5, 3]


def test_only_what_was_forgotten_is_restored(limiter: RedisLimiter) -> None:
    SendingLimit.objects.create(kind="domain", name="agents.example", per_day=50)
    scopes = allow.scopes_of(an_account(), NOW)
    allow.restore(scopes, Forgotten((scopes[1].key,)), NOW)
    assert [limiter.usage(scope) is None for scope in scopes] == [True, False]


def test_a_thousand_mails_are_restored_as_a_few_parts(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    account = an_account(per_minute=1000)
    message = [PersistentAgentMessage(from_endpoint=account.endpoint, body="x") for _ in range(1000)]
    PersistentAgentMessage.objects.bulk_create(message)
    OutboundMessageAttempt.objects.bulk_create(
        OutboundMessageAttempt(
            message=one,
            number=1,
            from_endpoint=account.endpoint,
            provider="smtp",
            status="sent",
            addresses=["b@rcpt.example"],
            queued_at=NOW,
            not_before=NOW,
            sent_at=NOW - timedelta(seconds=0.2 * number),
        )
        for number, one in enumerate(message)
    )
    told: list[Any] = []
    fake = type("Noting", (), {"restore": lambda self, scope, spent, lanes: told.extend(spent)})
    monkeypatch.setattr(allow.wiring, "limiter", fake)
    scopes = allow.scopes_of(account, NOW)
    with django_assert_num_queries(5):
        allow.restore(scopes, forgotten(scopes), NOW)
    assert sum(one.cost for one in told) == 1000
    assert len(told) < 70


# Learning


def reply(code: int, text: str, stage: Stage = Stage.DOT) -> Reading:
    return read_reply(stage, Reply(code, text.split()[0], text))


SLOW = "4.7.0 Sending rate limit exceeded, slow down"


def test_a_rate_limit_halves_the_pace_and_says_so() -> None:
    account = an_account(per_minute=30)
    text = allow.learn_from(account, reply(450, SLOW), "450 " + SLOW, NOW)
    assert text == (
        "The mailbox is slowed down to 15 recipients a minute at most, and will be let grow back: "
        "its server asked for it."
    )
    stored = AgentEmailAccount.objects.get()
    assert (stored.learned_per_minute, stored.learned_connections, stored.learned_at) == (15, None, NOW)
    assert stored.learned_reason == "450 " + SLOW
    assert allow.limits_in_force(stored, NOW).per_minute == 15
    assert allow.limits_in_force(stored, NOW + 2 * HOUR).per_minute == 30


def test_answers_that_come_together_halve_once() -> None:
    account = an_account(per_minute=30)
    stale = AgentEmailAccount.objects.get()
    assert allow.learn_from(account, reply(450, SLOW), SLOW, NOW)
    assert allow.learn_from(stale, reply(450, SLOW), SLOW, NOW + timedelta(seconds=59)) is None
    assert allow.learn_from(account, reply(450, SLOW), SLOW, NOW + timedelta(seconds=60))
    assert AgentEmailAccount.objects.get().learned_per_minute == 7


def test_without_a_limit_the_last_minute_is_halved() -> None:
    account = an_account(per_day=1000)
    for seconds in (5, 15, 70):
        an_attempt(account, sent_at=NOW - timedelta(seconds=seconds), recipients=6)
    allow.learn_from(account, reply(450, SLOW), SLOW, NOW)
    assert account.learned_per_minute == 6


@pytest.mark.parametrize(
    ("connections", "expected"), [(4, (None, 2)), (1, (15, None))], ids=["several", "only one: its pace"]
)
def test_too_many_connections_halve_connections_where_there_are_several(
    connections: int, expected: Any
) -> None:
    account = an_account(per_minute=30, max_connections=connections)
    said = "4.3.2 Concurrent connections limit exceeded"
    assert allow.learn_from(account, reply(432, said, Stage.CONNECT), said, NOW)
    assert (account.learned_per_minute, account.learned_connections) == expected


@pytest.mark.parametrize(
    ("code", "text", "stage"),
    [
        (550, "5.1.1 User unknown", Stage.RCPT),
        (451, "4.3.0 Try again later", Stage.DOT),
        (535, "5.7.8 Bad credentials", Stage.AUTH),
        (450, "4.2.1 The user you are trying to contact is receiving mail too quickly", Stage.RCPT),
    ],
    ids=["unknown user", "trouble", "password", "the recipient gets too much"],
)
def test_other_answers_teach_nothing(code: int, text: str, stage: Stage) -> None:
    account = an_account(per_minute=30)
    assert allow.learn_from(account, reply(code, text, stage), text, NOW) is None
    assert AgentEmailAccount.objects.get().learned_at is None


# Telling


def test_a_quota_counts_what_waits_before_what_is_asked_for() -> None:
    account = an_account(per_minute=2)
    an_attempt(account, sent_at=NOW - timedelta(seconds=20))
    an_attempt(account, "queued", due_at=NOW, recipients=2)
    found = allow.quota(account, 1, NOW)
    assert found.queued == 2
    assert found.scopes[0][1] is not None
    assert found.scopes[0][1].used == {"minute": 1}
    assert found.out_at == NOW + timedelta(seconds=60)
    assert allow.quota(account, 2, NOW).out_at == NOW + timedelta(seconds=100)
    assert allow.quota(an_account("idle@agents.example"), 0, NOW).out_at == NOW


def test_a_quota_without_redis_still_knows_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise LimiterUnavailable

    monkeypatch.setattr(RedisLimiter, "usage", away)
    found = allow.quota(an_account(per_minute=2), 5, NOW)
    assert (found.limits.per_minute, found.out_at) == (2, None)
    assert "Redis" in found.problem
