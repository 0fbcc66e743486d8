"""A sender's turn: what goes in it and in which order, what ends it, and what keeps it from beginning."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from email import message_from_bytes
from typing import Any

import pytest
from django.utils import timezone

from gobii_email import api, wiring
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.domain import quotas
from gobii_email.domain.lifecycle import Provider
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.queue import narrow
from gobii_email.ports import LimiterUnavailable
from gobii_email.services import account_turn, accounts, hold, intervene, share
from gobii_email.services import turn as turns
from gobii_email.services.deliver import deliver
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.lease import Lease
from gobii_email.services.share import Shares
from gobii_email.testing.processes import free_port
from gobii_email.testing.smtp_server import Faults, ScriptedSmtpServer
from tests.conftest import RecordingDoorbell, connect, taken

pytestmark = pytest.mark.django_db

QUOTA = "550 5.4.5 Daily user sending quota exceeded"


@pytest.fixture(autouse=True)
def shares(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shares]:
    """A process that has met no server yet."""
    monkeypatch.setattr(share.shares, "__dict__", vars(Shares()))
    yield share.shares


@pytest.fixture(autouse=True)
def quiet(doorbell: RecordingDoorbell, settings: Any) -> None:
    settings.GOBII_RETRY_SCHEDULE = "60s"
    settings.GOBII_RETRY_JITTER = "0"


def send(*to: str, **values: Any) -> PersistentAgentMessage:
    facts: dict[str, Any] = {
        "from_endpoint": "agent@sender.example",
        "to": to or ["to@rcpt.example"],
        "subject": "Hello",
        "body": "Good morning",
    }
    return api.send_agent_email(**(facts | values))


def several(count: int, **values: Any) -> list[PersistentAgentMessage]:
    return [send(f"to{number}@rcpt.example", **values) for number in range(count)]


def turn(message: PersistentAgentMessage) -> str:
    """A worker follows the hint to `message`."""
    last = message.attempts.last()
    assert last is not None
    return deliver(str(last.pk), owner="worker-1")


def statuses(messages: list[PersistentAgentMessage]) -> list[str]:
    return [PersistentAgentMessage.objects.get(pk=message.pk).latest_status for message in messages]


def received(server: ScriptedSmtpServer) -> list[tuple[str, ...]]:
    return [kept.recipients for kept in server.messages]


def waiting_for(message: PersistentAgentMessage) -> str:
    return api.delivery_status(message.pk).waiting_for or ""


def look_now() -> None:
    """Whatever lanes and mails wait for has come."""
    now = timezone.now()
    Lane.objects.update(look_at=now)
    OutboundMessageAttempt.objects.filter(status="queued").update(not_before=now, due_at=now)


def after_first_send(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Lets `act` happen while the first mail is with its server."""
    real, acts = account_turn.send_by_account, [act]

    def send_by_account(*args: Any) -> Any:
        outcome = real(*args)
        while acts:
            acts.pop()()
        return outcome

    monkeypatch.setattr(account_turn, "send_by_account", send_by_account)


# What goes in a turn


def test_a_turn_takes_everything_that_waits(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    messages = several(turns.AT_ONCE + 3)
    assert turn(messages[5]) == "sent"
    assert statuses(messages) == ["sent"] * len(messages)
    assert received(smtp_server) == [(f"to{number}@rcpt.example",) for number in range(len(messages))]
    assert turn(messages[0]) == "not due"


def test_the_interactive_go_before_the_bulk_and_the_older_before_the_newer(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    first = send("bulk1@rcpt.example", priority="bulk")
    send("bulk2@rcpt.example", priority="bulk")
    send("one@rcpt.example")
    send("two@rcpt.example")
    turn(first)
    assert [address.partition("@")[0] for (address,) in received(smtp_server)] == [
        *("one", "two"),
        *("bulk1", "bulk2"),
    ]


def test_a_mail_that_is_refused_does_not_end_the_turn(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, doorbell: RecordingDoorbell
) -> None:
    smtp_server.faults.always["to1@rcpt.example"] = "550 5.1.1 No such user"
    messages = several(3)
    turn(messages[0])
    assert statuses(messages) == ["sent", "failed", "sent"]


def test_a_mail_whose_sending_raises_keeps_only_itself(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = several(3)

    def broken(*_: object) -> Any:
        raise ValueError("no envelope")

    monkeypatch.setattr(account_turn, "send_by_account", broken)
    with pytest.raises(ValueError, match="no envelope"):
        turn(messages[0])
    assert statuses(messages) == ["sending", "queued", "queued"]


# What ends a turn


@pytest.mark.parametrize(("is_anybody_waiting", "expected"), [(True, 3), (False, 10)])
def test_a_backlog_gives_way_where_somebody_waits_for_the_thread(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    shares: Shares,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
    is_anybody_waiting: bool,
    expected: int,
) -> None:
    AgentEmailAccount.objects.update(max_connections=1)
    monkeypatch.setattr(account_turn, "FAIR_TURN", 3)
    shares.waiting = lambda: int(is_anybody_waiting)
    messages = several(10)
    doorbell.rung.clear()
    turn(messages[0])
    assert len(smtp_server.messages) == expected
    assert sorted(statuses(messages)) == sorted(["sent"] * expected + ["queued"] * (10 - expected))
    assert bool(doorbell.rung) is is_anybody_waiting, "it goes to the back of the line"


def test_no_turn_is_endless(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(account_turn, "MOST_A_TURN", 4)
    messages = several(6)
    doorbell.rung.clear()
    turn(messages[0])
    assert len(smtp_server.messages) == 4
    assert doorbell.rung != []


@pytest.mark.parametrize(
    ("connections", "again_after", "is_anybody_waiting", "calls"),
    [(2, 60.0, False, 1), (2, 0.0, False, 3), (2, 0.0, True, 0), (1, 0.0, False, 0)],
    ids=["once a while", "again", "others wait", "no connection left"],
)
def test_a_long_backlog_calls_for_another_turn_of_its_lane(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    shares: Shares,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
    connections: int,
    again_after: float,
    is_anybody_waiting: bool,
    calls: int,
) -> None:
    AgentEmailAccount.objects.update(max_connections=connections)
    monkeypatch.setattr(turns, "AT_ONCE", 3)
    monkeypatch.setattr(account_turn, "CALL_AGAIN_AFTER", again_after)
    shares.waiting = lambda: int(is_anybody_waiting)
    messages = several(10)
    doorbell.rung.clear()
    turn(messages[0])
    assert len(smtp_server.messages) == 10
    assert len(doorbell.rung) == calls


def test_a_turn_claims_what_it_will_send_before_it_makes_room(
    account: AgentEmailAccount, shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares.waiting = lambda: 1
    monkeypatch.setattr(shares, "pace", lambda host: account_turn.FAIR_SECONDS / 4)
    asked = []
    real = turns.claim
    monkeypatch.setattr(turns, "claim", lambda claim: asked.append(claim.limit) or real(claim))
    turn(several(10)[0])
    assert asked[0] == 4


def test_what_is_accepted_is_counted_batch_by_batch(
    account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    monkeypatch.setattr(turns, "AT_ONCE", 3)
    monkeypatch.setattr(turns.measure, "accepted", lambda rows, account: counted.append(len(rows)))
    turn(several(7)[0])
    assert counted[:2] == [3, 3] and sum(counted) == 7, "a worker that is killed has lost few of them"


def pause(account: AgentEmailAccount) -> None:
    hold.pause(account, reason="Moving house")


def disable(account: AgentEmailAccount) -> None:
    accounts.disable(account, outbound=True)


def edit(account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.filter(pk=account.pk).update(smtp_username="somebody else")


def delete(account: AgentEmailAccount) -> None:
    accounts.delete(account)


@pytest.mark.parametrize(
    ("act", "reason"), [(pause, "Moving house"), (disable, "off"), (edit, "test"), (delete, "removed")]
)
def test_what_happens_to_the_mailbox_meanwhile_ends_its_turn(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[AgentEmailAccount], None],
    reason: str,
) -> None:
    assert account_turn.READ_AGAIN_AFTER <= 1
    monkeypatch.setattr(account_turn, "READ_AGAIN_AFTER", -1)
    messages = several(4)
    after_first_send(monkeypatch, lambda: act(AgentEmailAccount.objects.get()))
    turn(messages[0])
    assert statuses(messages) == ["sent", "queued", "queued", "queued"]
    assert turn(messages[1]) == "postponed"
    assert reason in waiting_for(messages[1])
    assert len(smtp_server.messages) == 1
    assert messages[1].attempts.get().number == 1


def test_a_sender_refused_for_now_on_a_used_connection_concerns_that_mail_alone(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    AgentEmailAccount.objects.update(messages_per_connection=10)
    messages = several(3)
    faults = Faults(replies={"MAIL": "451 4.7.1 Not now"}, times={"MAIL": 1})
    after_first_send(monkeypatch, lambda: setattr(smtp_server, "faults", faults))
    turn(messages[0])
    assert statuses(messages) == ["sent", "queued", "sent"]
    first, second = messages[1].attempts.order_by("number")
    assert (first.status, first.stage, first.scope) == ("deferred", "mail", "message")
    assert second.not_before > timezone.now(), "tried again later, like any mail refused for now"
    assert AgentEmailAccount.objects.get().state == "active"
    assert smtp_server.connections == 2
    look_now()
    turn(messages[1])
    assert statuses(messages) == ["sent", "sent", "sent"]


# Holds that have run out


def held_until_now(account: AgentEmailAccount) -> None:
    past = timezone.now() - timedelta(seconds=1)
    AgentEmailAccount.objects.update(state="quota", state_reason="Daily quota", state_until=past)


def backed_off_until_now(account: AgentEmailAccount) -> None:
    past = timezone.now() - timedelta(seconds=1)
    MailHost.objects.create(name=account.smtp_server_name, failures=1, backoff_until=past, reason="421")


@pytest.mark.parametrize("wait", [held_until_now, backed_off_until_now])
def test_one_mail_finds_out_whether_a_hold_is_over_and_frees_the_others(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    wait: Callable[[AgentEmailAccount], None],
) -> None:
    wait(account)
    messages = several(4)
    doorbell.rung.clear()
    assert turn(messages[0]) == "sent"
    assert statuses(messages) == ["sent", "queued", "queued", "queued"]
    account.refresh_from_db()
    assert (account.state, MailHost.objects.count()) == ("active", 0)
    assert doorbell.rung != []
    turn(messages[1])
    assert statuses(messages) == ["sent"] * 4


def test_while_one_mail_finds_out_nobody_else_does(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_until_now(account)
    messages = several(3)
    outcomes: list[str] = []
    after_first_send(monkeypatch, lambda: outcomes.append(turn(messages[1])))
    assert turn(messages[0]) == "sent"
    assert outcomes == ["postponed"]
    assert len(smtp_server.messages) == 1


def test_a_hold_that_is_not_over_costs_one_mail_an_attempt_and_the_others_none(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    held_until_now(account)
    smtp_server.faults.replies["DOT"] = QUOTA
    messages = several(4)
    assert turn(messages[0]) == "deferred"
    assert [message.attempts.count() for message in messages] == [2, 1, 1, 1]
    account.refresh_from_db()
    assert account.state == "quota" and account.state_until > timezone.now()
    assert turn(messages[1]) == "postponed"
    assert "quota" in waiting_for(messages[1]).lower()


# Messages with more recipients than one transaction may have

ALL = [f"to{number}@rcpt.example" for number in range(5)]


@pytest.fixture
def two_at_once(account: AgentEmailAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quotas, "CAUTIOUS_RECIPIENTS", 2)


def go_on(message: PersistentAgentMessage) -> None:
    """Everything that is still to be sent of `message`, at most one turn a recipient."""
    for _ in ALL:
        look_now()
        if message.attempts.filter(status="queued").exists():
            turn(message)


@pytest.mark.usefixtures("two_at_once")
def test_a_message_for_many_goes_in_parts_and_to_each_once(smtp_server: ScriptedSmtpServer) -> None:
    message = send(*ALL)
    go_on(message)
    assert received(smtp_server) == [tuple(ALL[:2]), tuple(ALL[2:4]), tuple(ALL[4:])]
    mails = [message_from_bytes(kept.content) for kept in smtp_server.messages]
    assert {mail["Message-ID"] for mail in mails} == {message.rfc_message_id}
    assert {" ".join(mail["To"].split()) for mail in mails} == {", ".join(ALL)}
    assert statuses([message]) == ["sent"]
    assert {row.status for row in message.recipients.all()} == {"accepted"}


@pytest.mark.usefixtures("two_at_once")
def test_a_recipient_refused_in_one_part_is_refused_alone(smtp_server: ScriptedSmtpServer) -> None:
    smtp_server.faults.always[ALL[1]] = "550 5.1.1 No such user"
    smtp_server.faults.recipients[ALL[2]] = ["450 4.2.0 Greylisted"]
    message = send(*ALL)
    go_on(message)
    assert sorted(address for part in received(smtp_server) for address in part) == [ALL[0], *ALL[2:]]
    assert statuses([message]) == ["partially_sent"]


@pytest.mark.usefixtures("two_at_once")
@pytest.mark.parametrize(
    ("until", "settled_as", "missing"),
    [("claim", None, []), ("connect", None, []), ("mark", "resend", []), ("mark", "sent", ALL[:2])],
)
def test_a_worker_lost_between_parts_loses_and_doubles_nobody(
    smtp_server: ScriptedSmtpServer, until: str, settled_as: str | None, missing: list[str]
) -> None:
    message = send(*ALL)
    work = taken(message)
    if until != "claim":
        assert narrow(work, ALL[:2])
    if until == "mark":
        Lease(work, Provider.SMTP).mark()
    message.attempts.update(due_at=timezone.now() - timedelta(seconds=1))
    assert dispatch_round().rescued == 1
    if settled_as:
        intervene.resolve_by_hand(message, settled_as)
    go_on(message)
    got = [address for part in received(smtp_server) for address in part]
    assert sorted(got) == [address for address in ALL if address not in missing]
    assert statuses([message]) == ["sent"]


# Connections and limits


def test_whoever_leaves_answers_the_hint_that_found_all_connections_in_use(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    AgentEmailAccount.objects.update(max_connections=1)
    first = send("one@rcpt.example")
    later: list[PersistentAgentMessage] = []

    def knock() -> None:
        later.append(send("two@rcpt.example"))
        assert turn(later[0]) == "postponed"
        doorbell.rung.clear()

    after_first_send(monkeypatch, knock)
    assert turn(first) == "sent"
    assert doorbell.rung == [str(first.attempts.get().pk)]
    assert deliver(doorbell.rung[0], owner="worker-1") == "sent"
    assert statuses(later) == ["sent"]
    lane = Lane.objects.get()
    assert lane.look_at is None, "nothing keeps the next mail waiting"


def test_nobody_is_rung_for_where_nobody_asked(
    account: AgentEmailAccount, doorbell: RecordingDoorbell
) -> None:
    AgentEmailAccount.objects.update(max_connections=1)
    message = send()
    doorbell.rung.clear()
    turn(message)
    assert doorbell.rung == []


def test_a_limit_makes_the_lane_wait_for_the_next_slot_and_uses_up_no_attempt(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, doorbell: RecordingDoorbell
) -> None:
    AgentEmailAccount.objects.update(per_minute=2)
    messages = several(4)
    turn(messages[0])
    assert statuses(messages) == ["sent", "sent", "queued", "queued"]
    lane = Lane.objects.get()
    assert lane.code == "rate_limit" and lane.look_at is not None
    assert timedelta(seconds=50) < lane.look_at - timezone.now() <= timedelta(seconds=60)
    assert "2" in waiting_for(messages[2]) and "next at" in waiting_for(messages[2])
    assert [message.attempts.get().number for message in messages] == [1] * 4
    doorbell.rung.clear()
    assert dispatch_round().handed_out == 0, "nobody is woken before it is time"


# Without Redis


@pytest.fixture
def redis_away(monkeypatch: pytest.MonkeyPatch) -> None:
    away = RedisLimiter(f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setattr(wiring, "limiter", lambda: away)


def test_without_redis_nothing_is_sent_everything_is_taken_and_the_lane_says_why(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, limiter: RedisLimiter, redis_away: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    messages = several(3)
    assert turn(messages[0]) == "postponed"
    assert smtp_server.messages == []
    assert statuses(messages) == ["queued"] * 3
    assert "Redis" in waiting_for(messages[2])
    assert Lane.objects.get().code == "limiter_away"
    monkeypatch.setattr(wiring, "limiter", lambda: limiter)
    look_now()
    turn(messages[0])
    assert statuses(messages) == ["sent"] * 3
    assert {message.attempts.get().number for message in messages} == {1}


def test_mail_without_an_account_needs_no_redis(
    endpoint: PersistentAgentCommsEndpoint, redis_away: None
) -> None:
    assert turn(send()) == "delivered"


def test_mail_that_was_claimed_when_redis_went_away_is_given_back(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer, limiter: RedisLimiter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def away(*_: object) -> Any:
        raise LimiterUnavailable("gone")

    monkeypatch.setattr(limiter, "admit", away)
    messages = several(3)
    assert turn(messages[0]) == "postponed"
    assert smtp_server.messages == []
    assert statuses(messages) == ["queued"] * 3
    assert "Redis" in waiting_for(messages[0])


# Servers that answer slowly


def test_a_hint_of_a_server_that_has_its_share_is_parked_until_a_place_is_free(shares: Shares) -> None:
    shares.threads = 8
    assert shares.enter("slow:587", "turn-1", lane="a", attempt_id="1")
    assert not shares.enter("slow:587", "turn-2", lane="b", attempt_id="2")
    assert not shares.enter("slow:587", "turn-3", lane="b", attempt_id="3"), "a lane is parked once"
    assert shares.next_parked() is None
    assert shares.enter("other:587", "turn-4", lane="c", attempt_id="4")
    shares.leave("slow:587", "turn-1")
    assert shares.next_parked() == "3"
    assert shares.next_parked() is None


def test_a_quick_answer_widens_a_servers_share_and_a_stuck_one_takes_it_back(
    shares: Shares, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares.threads = 8
    for number in range(3):
        assert shares.enter("host:587", f"turn-{number}", lane=f"{number}", attempt_id=f"{number}")
        shares.done("host:587", f"turn-{number}")
    monkeypatch.setattr(share, "SLOW_AFTER", -1.0)
    assert not shares.enter("host:587", "turn-9", lane="9", attempt_id="9")


def test_an_answer_that_widens_a_share_calls_a_parked_hint_and_no_other_one_does(shares: Shares) -> None:
    shares.threads = 8
    assert shares.enter("host:587", "turn-1", lane="a", attempt_id="1")
    for lane in "bcdefghij":
        assert not shares.enter("host:587", f"turn-{lane}", lane=lane, attempt_id=f"of {lane}")
    called = [shares.done("host:587", "turn-1").parked for _ in range(12)]
    assert called == [f"of {lane}" for lane in "bcdefg"] + [None] * 6
    assert shares.next_parked() == "of h", "whoever comes to take its place asks as well"


def test_as_many_turns_end_as_others_wait_and_second_ones_of_a_lane_first(shares: Shares) -> None:
    shares.threads = 32
    for turn, lane in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c")]:
        assert shares.enter("host:587", turn, lane=lane)
    assert not shares.makes_room("host:587", "1"), "nobody waits"
    shares.enter("host:587", "5", lane="d", attempt_id="of d")
    shares.enter("host:587", "6", lane="a", attempt_id="one more of a")
    assert not shares.makes_room("host:587", "2"), "there is a lane that has two"
    assert shares.makes_room("host:587", "3") and shares.makes_room("host:587", "3")
    assert not shares.makes_room("host:587", "1"), "one is enough for the one that waits"
    shares.leave("host:587", "3")
    assert shares.next_parked() == "of d"
    assert shares.next_parked() == "one more of a", "that one waits for what is left"
    shares.waiting = lambda: 1
    assert shares.makes_room("host:587", "2"), "each lane has one"


def test_parked_hints_of_several_servers_take_turns(shares: Shares) -> None:
    shares.threads = 8
    for host in ("one", "two"):
        shares.enter(host, f"first at {host}")
        for number in range(2):
            shares.enter(host, f"{number}", lane=f"{host}-{number}", attempt_id=f"{host}-{number}")
    for host in ("one", "two"):
        shares.leave(host, f"first at {host}")
    assert [shares.next_parked() for _ in range(4)] == ["one-0", "two-0", "one-1", "two-1"]


def test_a_worker_that_has_not_said_how_many_threads_it_has_parks_nothing(shares: Shares) -> None:
    assert all(shares.enter("slow:587", f"{n}", lane=f"{n}", attempt_id=f"{n}") for n in range(50))


def test_a_failure_is_counted_in_a_row_and_forgotten_with_a_success(shares: Shares) -> None:
    shares.enter("host:587", "turn", lane="a", attempt_id="1")
    assert [shares.unwell("host:587") for _ in range(2)] == [1, 2]
    shares.well("host:587")
    assert shares.unwell("host:587") == 1


def test_several_servers_that_cannot_be_reached_in_a_row_are_left_alone(
    account: AgentEmailAccount, smtp_server: ScriptedSmtpServer
) -> None:
    smtp_server.faults.drops.add("EHLO")
    messages = several(account_turn.FAILURES_OF_A_HOST + 2)
    for number in range(account_turn.FAILURES_OF_A_HOST):
        assert not MailHost.objects.exists()
        turn(messages[number])
    assert MailHost.objects.get().name == account.smtp_server_name
    assert turn(messages[-1]) == "postponed"
    assert "left alone" in waiting_for(messages[-1])
    assert messages[-1].attempts.get().number == 1


@pytest.fixture
def full(account: AgentEmailAccount, shares: Shares) -> str:
    """The account's server, with its share of threads taken by somebody else's turn."""
    shares.threads = 8
    assert shares.enter(account.smtp_server_name, "somebody", lane="x", attempt_id="x")
    return account.smtp_server_name


def test_whoever_ends_a_turn_takes_up_what_is_parked(
    full: str, shares: Shares, smtp_server: ScriptedSmtpServer
) -> None:
    agent = PersistentAgent.objects.create(name="Berta")
    other = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address="b@else.example"
    )
    parked, simulated = send(), send(from_endpoint=other)
    assert turn(parked) == "parked"
    assert smtp_server.messages == []
    shares.leave(full, "somebody")
    assert turn(simulated) == "delivered"
    assert statuses([parked]) == ["sent"]


def test_a_share_that_widens_calls_for_what_is_parked(
    account: AgentEmailAccount, shares: Shares, doorbell: RecordingDoorbell
) -> None:
    shares.threads, host = 16, account.smtp_server_name
    for number in range(2):
        shares.enter(host, f"somebody-{number}", lane=f"{number}", attempt_id="")
    assert not shares.enter(host, "late", lane="late", attempt_id="parked")
    shares.leave(host, "somebody-0")
    turn(send())
    assert "parked" in doorbell.rung


def test_a_parked_lane_is_not_handed_out_again_at_once(full: str, doorbell: RecordingDoorbell) -> None:
    message = send()
    message.attempts.update(due_at=timezone.now() - timedelta(minutes=1))
    assert dispatch_round().handed_out == 1
    assert turn(message) == "parked"
    assert dispatch_round().handed_out == 0


def test_an_account_without_limits_of_its_own_is_sent_with_care(
    endpoint: PersistentAgentCommsEndpoint, smtp_server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = str(smtp_server.port)
    connect(endpoint, smtp_server.port, per_minute=None, per_hour=None, per_day=None, max_connections=None)
    messages = several(12)
    turn(messages[0])
    assert statuses(messages) == ["sent"] * 10 + ["queued"] * 2
    assert "10" in waiting_for(messages[-1])


def test_a_mail_for_more_than_is_left_waits_and_does_not_keep_its_thread(
    account: AgentEmailAccount,
    smtp_server: ScriptedSmtpServer,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "LONGEST_TURN", 0.5)
    AgentEmailAccount.objects.update(per_minute=10)
    send(*[f"to{number}@rcpt.example" for number in range(8)])
    message = send(*[f"to{number}@rcpt.example" for number in range(5)])
    doorbell.rung.clear()
    turn(message)
    assert len(smtp_server.messages) == 1
    assert "10" in waiting_for(message)
    assert not doorbell.rung, "nobody has to look before there is room"
