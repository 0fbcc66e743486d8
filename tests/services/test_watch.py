"""Mailboxes that are watched: what rings for a poll, whose they are, and what ends a connection."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from django.db import OperationalError, connection
from django.utils import timezone

from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    Mailbox,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
)
from gobii_email.ports import NotWatched
from gobii_email.services import enlist, watch
from gobii_email.services.accounts import InvalidAccount, apply_account
from gobii_email.services.enlist import watchable
from gobii_email.services.poll_schedule import POLL_MAILBOX, poll_for_news
from gobii_email.services.watch import Watcher, pause_after
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import RawServer, Script
from gobii_email.testing.stack import eventually
from gobii_email.testing.valkey import EmbeddedValkey
from tests.conftest import RecordingDoorbell

pytestmark = pytest.mark.django_db(transaction=True)

PASSWORD = "S3cret"
VALIDITY = 1795292296
"""The scripted server's."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(valkey: EmbeddedValkey, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.REDIS_URL = valkey.url
    settings.IMAP_IDLE_SCAN_INTERVAL_SEC = "100ms"
    settings.IMAP_IDLE_DEBOUNCE_SEC = "300ms"
    settings.IMAP_IDLE_LEASE_TTL_SEC = "60s"
    monkeypatch.setattr(watch, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(watch, "AGAIN_AFTER", 0.1)


@pytest.fixture
def server(authority: ThrowAwayAuthority, settings: Any) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}) as made:
        settings.BYO_EMAIL_ALLOWED_PORTS = str(made.port)
        yield made


def a_mailbox(port: int, address: str = "ada@agents.example", **values: Any) -> AgentEmailAccount:
    """An account that asks to be watched, tested and read up to its end."""
    agent = PersistentAgent.objects.create(name=address)
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel="email", address=address
    )
    given = {"imap_host": "localhost", "imap_username": "anna", "imap_idle_enabled": True}
    given |= {"last_seen_uid": f"v:{VALIDITY}:0"}
    account = AgentEmailAccount(endpoint=endpoint, imap_port=port, **(given | values))
    account.set_imap_password(PASSWORD)
    return switched_on(account)


def switched_on(account: AgentEmailAccount) -> AgentEmailAccount:
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.is_inbound_enabled = True
    account.save()
    Mailbox.objects.get_or_create(account=account)
    return account


@contextmanager
def watching(most: int = 100) -> Iterator[Watcher]:
    """A watcher at work, until it has ended in order."""
    watcher, stop, problems = Watcher(most), threading.Event(), []

    def run() -> None:
        try:
            watcher.run(stop)
        except BaseException as problem:
            problems.append(problem)
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield watcher
    finally:
        stop.set()
        thread.join(120)
    assert not thread.is_alive() and not problems, problems


def polls(doorbell: RecordingDoorbell) -> list[str]:
    assert {call.task for call in doorbell.called} <= {POLL_MAILBOX}
    return [call.subject for call in doorbell.called]


def mailbox() -> Mailbox:
    return Mailbox.objects.get()


# News


def test_new_mail_is_polled_for_at_once_and_many_mails_together(
    server: ScriptedImapServer, doorbell: RecordingDoorbell
) -> None:
    account = a_mailbox(server.port)
    with watching():
        eventually(lambda: server.waiting)
        assert polls(doorbell) == []
        server.deliver(b"hello")
        eventually(lambda: polls(doorbell))
        assert mailbox().due_at <= timezone.now()
        for number in range(10):
            server.deliver(f"mail {number}".encode())
        eventually(lambda: len(polls(doorbell)) > 1)
    assert set(polls(doorbell)) == {str(account.pk)} and len(polls(doorbell)) < 5
    assert b"FETCH" not in server.heard and b"STORE" not in server.heard


@pytest.mark.parametrize(
    ("seen", "is_polled"),
    [(f"v:{VALIDITY}:2", False), (f"v:{VALIDITY}:1", True), ("v:1:2", True), ("", True)],
    ids=["read to its end", "one more", "other UIDs", "never read"],
)
def test_what_came_while_nobody_waited_is_polled_for(
    server: ScriptedImapServer, doorbell: RecordingDoorbell, seen: str, is_polled: bool
) -> None:
    server.folders["INBOX"] += [b"one", b"two"]
    a_mailbox(server.port, last_seen_uid=seen)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        if is_polled:
            eventually(lambda: polls(doorbell))
    assert len(polls(doorbell)) == is_polled


@pytest.mark.parametrize("kept", ["backoff", "hold"])
def test_news_does_not_wake_what_is_held_or_left_alone(
    server: ScriptedImapServer,
    doorbell: RecordingDoorbell,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    kept: str,
) -> None:
    settings.IMAP_IDLE_SCAN_INTERVAL_SEC = "1h"
    settings.IMAP_IDLE_LEASE_TTL_SEC = "1h"
    account = a_mailbox(server.port)
    rung = []
    monkeypatch.setattr(watch, "poll_for_news", lambda keys: rung.append(poll_for_news(keys)))
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        if kept == "backoff":
            until = timezone.now() + timedelta(minutes=5)
            AgentEmailAccount.objects.filter(pk=account.pk).update(backoff_until=until)
        else:
            Mailbox.objects.update(hold_code="auth")
        server.deliver(b"hello")
        eventually(lambda: rung)
    assert rung == [0] and polls(doorbell) == [] and mailbox().due_at is None


def test_news_is_no_success(server: ScriptedImapServer, doorbell: RecordingDoorbell) -> None:
    account = a_mailbox(server.port)
    past = timezone.now() - timedelta(minutes=1)
    AgentEmailAccount.objects.filter(pk=account.pk).update(backoff_until=past)
    Mailbox.objects.update(failures=3)
    assert poll_for_news([account.pk]) == 1
    assert polls(doorbell) == [str(account.pk)]
    account.refresh_from_db()
    assert mailbox().failures == 3 and account.backoff_until == past


def test_news_of_many_mailboxes_costs_two_statements(
    doorbell: RecordingDoorbell, django_assert_num_queries: Any
) -> None:
    keys = [a_mailbox(993, f"box{number}@agents.example").pk for number in range(5)]
    with django_assert_num_queries(2):
        assert poll_for_news(keys) == 5
    assert sorted(polls(doorbell)) == sorted(map(str, keys))


def test_without_a_broker_the_dispatcher_looks_soon(
    doorbell: RecordingDoorbell, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.GOBII_BREAKER_PAUSE = "3s"
    settings.GOBII_HINT_LIFETIME = "10m"
    monkeypatch.setattr(doorbell, "call", lambda calls: False)
    assert poll_for_news([a_mailbox(993).pk]) == 1
    assert mailbox().look_at < timezone.now() + timedelta(seconds=4)


def test_news_outlives_a_database_that_is_away(
    server: ScriptedImapServer, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_mailbox(server.port)
    left = [OperationalError("away")] * 3

    def failing(account_ids: Iterable[UUID]) -> int:
        if left:
            raise left.pop()
        return poll_for_news(account_ids)

    monkeypatch.setattr(watch, "poll_for_news", failing)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        server.deliver(b"hello")
        eventually(lambda: polls(doorbell))
    assert left == []


# Whether and how


def test_only_mailboxes_that_ask_for_it_and_may_be_read_are_watched(settings: Any) -> None:
    def addresses() -> set[str]:
        return {wanted.address for wanted in watchable()}

    accounts = {name: a_mailbox(993, f"{name}@agents.example") for name in ("asks", "other", "oauth", "held")}
    a_mailbox(993, "silent@agents.example", imap_idle_enabled=False)
    off = a_mailbox(993, "off@agents.example")
    AgentEmailAccount.objects.filter(pk=off.pk).update(is_inbound_enabled=False)
    edited = a_mailbox(993, "edited@agents.example")
    AgentEmailAccount.objects.filter(pk=edited.pk).update(imap_folder="Elsewhere")
    Mailbox.objects.filter(account=accounts["held"]).update(hold_code="auth")
    AgentEmailAccount.objects.filter(pk=accounts["oauth"].pk).update(
        imap_auth="oauth2",
        state="auth_needed",
        imap_tested_fingerprint=fingerprint_by_token(accounts["oauth"]),
    )
    assert addresses() == {"asks@agents.example", "other@agents.example"}
    settings.BYO_EMAIL_ROLLOUT = "asks@agents.example"
    assert addresses() == {"asks@agents.example"}
    settings.BYO_EMAIL_ROLLOUT = str(accounts["other"].endpoint.owner_agent_id)
    assert addresses() == {"other@agents.example"}
    settings.BYO_EMAIL_ROLLOUT = "all"
    settings.IMAP_IDLE_ENABLED = "0"
    assert addresses() == set()
    settings.IMAP_IDLE_ENABLED = "1"
    settings.BYO_EMAIL_ENABLED = "0"
    assert addresses() == set()


def test_a_mailbox_that_is_connected_asks_to_be_watched_unless_it_says_otherwise(db: None) -> None:
    document = {"agent": "Ada", "address": "ada@agents.example"}
    imap = {"host": "localhost", "username": "ada", "password": PASSWORD}
    account = apply_account({**document, "imap": imap})
    assert account.imap_idle_enabled and account.poll_interval_sec == 120
    account = apply_account({**document, "imap": {"idle": False, "poll_interval": 300}})
    assert not account.imap_idle_enabled and account.poll_interval_sec == 300
    assert not apply_account(document).imap_idle_enabled
    for wrong in ({"idle": "yes"}, {"idle": 1}, {"poll_interval": 29}, {"poll_interval": True}):
        with pytest.raises(InvalidAccount, match=rf"imap\.{next(iter(wrong))}: "):
            apply_account({**document, "imap": wrong})


def test_another_token_is_another_connection(settings: Any) -> None:
    account = a_mailbox(993)
    account.imap_auth = "oauth2"
    switched_on(account)
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    found = [signature()]
    for token in ("one", "two"):
        credential.set_access_token(token)
        credential.save()
        found.append(signature())
    assert found[-1] == signature() and len(set(found)) == 3


def signature() -> str:
    (found,) = watchable()
    return found.signature


def fingerprint_by_token(account: AgentEmailAccount) -> str:
    account.imap_auth = "oauth2"
    return account.imap_fingerprint()


def test_one_statement_reads_what_is_watched_and_not_the_whole_row(
    django_assert_num_queries: Any,
) -> None:
    for number in range(3):
        a_mailbox(993, f"box{number}@agents.example")
    with django_assert_num_queries(1) as captured:
        assert len(list(watchable())) == 3
    assert "smtp_password" not in captured.captured_queries[0]["sql"]


def test_a_server_without_idle_is_told_of_once_and_left_alone(
    authority: ThrowAwayAuthority, settings: Any, doorbell: RecordingDoorbell
) -> None:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}, has_idle=False) as server:
        settings.BYO_EMAIL_ALLOWED_PORTS = str(server.port)
        account = a_mailbox(server.port)
        with watching():
            eventually(lambda: mailbox().watch_problem == "localhost does not offer IDLE.")
            with pytest.raises(TimeoutError):
                eventually(lambda: server.connections > 1, seconds=0.5)
    account.refresh_from_db()
    assert account.imap_error == "" and account.backoff_until is None and mailbox().hold_code == ""


def test_what_cannot_be_watched_takes_nobody_s_room(
    authority: ThrowAwayAuthority, server: ScriptedImapServer, settings: Any
) -> None:
    with ScriptedImapServer(tls=authority.good(), users={"anna": PASSWORD}, has_idle=False) as other:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{server.port},{other.port}"
        a_mailbox(other.port)
        with watching(1) as watcher:
            eventually(lambda: mailbox().watch_problem)
            a_mailbox(server.port, "second@agents.example")
            eventually(lambda: server.waiting and watcher.connected)


def test_a_problem_is_shown_no_more_once_it_is_over(server: ScriptedImapServer) -> None:
    a_mailbox(server.port)
    Mailbox.objects.update(watch_problem="localhost did not answer in time.")
    with watching():
        eventually(lambda: mailbox().watch_problem == "")


def test_a_lost_connection_is_opened_anew_and_a_server_that_drops_all_is_told_of(
    server: ScriptedImapServer, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.2)
    a_mailbox(server.port)
    with watching():
        for number in range(watch.TOLD_AFTER):
            eventually(lambda number=number: server.waiting == 1 and server.connections == number + 1)
            if number + 1 == watch.TOLD_AFTER:
                server.faults.drops.add("LOGIN")  # until it was seen what is told
            server.announce(b"")
        eventually(lambda: mailbox().watch_problem == "localhost closed the connection.")
        server.faults.drops.clear()
        eventually(lambda: mailbox().watch_problem == "" and server.waiting)
        server.deliver(b"hello")
        eventually(lambda: polls(doorbell))
    assert server.connections >= watch.TOLD_AFTER + 1


def test_pauses_double_to_a_quarter_of_an_hour_and_what_lasts_waits_an_hour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 5.0)
    monkeypatch.setattr(watch.random, "uniform", lambda low, high: (low + high) / 2)
    lost = NotWatched("gone", "connection_lost")
    assert [pause_after(number, lost) for number in (1, 2, 3, 8, 9, 10_000)] == [5, 10, 20, 640, 900, 900]
    assert pause_after(1, NotWatched("none", "no_idle", is_lasting=True)) == 3600
    monkeypatch.undo()
    assert len({pause_after(1, lost) for _ in range(5)}) > 1


# Settings that change


@pytest.mark.parametrize("changed", ["password", "folder", "user"])
def test_a_connection_never_outlives_what_it_was_opened_by(
    server: ScriptedImapServer, doorbell: RecordingDoorbell, changed: str
) -> None:
    server.users["berta"] = PASSWORD
    account = a_mailbox(server.port)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        before = server.connections
        if changed == "password":
            server.users["anna"] = "another"
            account.set_imap_password("another")
        elif changed == "folder":
            account.imap_folder = "Sent"
        else:
            account.imap_username = "berta"
        switched_on(account)
        eventually(lambda: server.connections > before and server.waiting == 1)
    said = {"password": b'"another"', "folder": b'EXAMINE "Sent"', "user": b'LOGIN "berta"'}[changed]
    assert said in server.heard
    assert server.connections == before + 1


def test_a_wrong_password_is_tried_once_and_again_when_it_has_changed(server: ScriptedImapServer) -> None:
    account = a_mailbox(server.port)
    server.users["anna"] = "another"
    with watching():
        eventually(lambda: mailbox().watch_problem == "localhost refused the login.")
        account.set_imap_password("another")
        switched_on(account)
        eventually(lambda: server.waiting and mailbox().watch_problem == "")
    assert [is_right for _, _, is_right in server.logins] == [False, True]


def test_a_mailbox_that_asks_no_more_is_left_politely_and_free(
    server: ScriptedImapServer, valkey: EmbeddedValkey
) -> None:
    account = a_mailbox(server.port)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        AgentEmailAccount.objects.filter(pk=account.pk).update(imap_idle_enabled=False)
        eventually(lambda: not server.waiting and not watcher.connected)
        eventually(lambda: leases(valkey) == set())
    assert b"DONE\r\nBYE LOGOUT" in server.heard


def test_a_deleted_mailbox_is_left(server: ScriptedImapServer) -> None:
    account = a_mailbox(server.port)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        account.delete()
        eventually(lambda: not watcher.connected)


# Whose


def leases(valkey: EmbeddedValkey) -> set[bytes]:
    with redis.Redis.from_url(valkey.url) as client:
        return set(client.keys("gobii:lease:idle:*"))


def test_watchers_share_the_mailboxes_and_take_over_what_another_gave_back(
    server: ScriptedImapServer, valkey: EmbeddedValkey
) -> None:
    for number in range(5):
        a_mailbox(server.port, f"box{number}@agents.example")
    with ExitStack() as first:
        one = first.enter_context(watching(3))
        eventually(lambda: one.connected == 3 and server.waiting == 3)
        with watching(3) as two:
            eventually(lambda: server.waiting == 5)
            assert (one.connected, two.connected) == (3, 2)
            assert len(leases(valkey)) == 5
            first.close()
            eventually(lambda: two.connected == 3)
    assert leases(valkey) == set()


def test_who_was_killed_is_followed_within_a_lease(
    server: ScriptedImapServer, valkey: EmbeddedValkey
) -> None:
    account = a_mailbox(server.port)
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"gobii:lease:idle:{account.pk}", "dead:1", px=700)
        with watching() as watcher:
            eventually(lambda: watcher.connected == 1)
            assert client.get(f"gobii:lease:idle:{account.pk}") != b"dead:1"


def test_without_redis_connections_end_with_their_lease_and_come_back_after_it(
    server: ScriptedImapServer, settings: Any, doorbell: RecordingDoorbell
) -> None:
    settings.IMAP_IDLE_LEASE_TTL_SEC = "5s"
    with EmbeddedValkey() as own:
        settings.REDIS_URL = own.url
        a_mailbox(server.port)
        with watching() as watcher:
            eventually(lambda: server.waiting and watcher.connected)
            own.kill()
            a_mailbox(server.port, "new@agents.example")
            server.deliver(b"still heard")
            eventually(lambda: polls(doorbell))
            eventually(lambda: not watcher.connected)
            with pytest.raises(TimeoutError):
                eventually(lambda: server.connections > 1, seconds=0.5)
            own.start()
            eventually(lambda: watcher.connected == 2)


def test_a_database_that_is_away_ends_no_connection(
    server: ScriptedImapServer,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.IMAP_IDLE_LEASE_TTL_SEC = "4s"
    a_mailbox(server.port)
    with watching() as watcher:
        eventually(lambda: server.waiting and watcher.connected)
        monkeypatch.setattr(enlist, "watchable", lambda: (_ for _ in ()).throw(OperationalError("away")))
        eventually(lambda: caplog.messages.count("idle.round_failed") >= 51)
        assert server.waiting == 1 and server.connections == 1


# Bad servers


def test_servers_that_keep_everybody_waiting_delay_no_other_mailbox(
    server: ScriptedImapServer, settings: Any
) -> None:
    with RawServer(Script.ignore) as tarpit:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{server.port},{tarpit.port}"
        for number in range(20):
            a_mailbox(tarpit.port, f"slow{number}@agents.example", imap_host="127.0.0.1")
        a_mailbox(server.port)
        with watching() as watcher:
            eventually(lambda: server.waiting and watcher.connected)
            assert 1 <= len(tarpit.scripts) <= 8


def test_a_flood_ends_one_connection_and_no_other(server: ScriptedImapServer, settings: Any) -> None:
    def flood(script: Script) -> None:
        script.say(b"* OK [CAPABILITY IMAP4rev1] ready")
        while True:
            script.write(b"* OK " + b"x" * 60_000 + b"\r\n")

    with RawServer(flood) as bad:
        settings.BYO_EMAIL_ALLOWED_PORTS = f"{server.port},{bad.port}"
        a_mailbox(bad.port, "bad@agents.example", imap_security="none")
        a_mailbox(server.port)
        with watching() as watcher:
            eventually(lambda: server.waiting and watcher.connected)
            eventually(lambda: len(bad.scripts) > 2)
            assert watcher.connected == 1
