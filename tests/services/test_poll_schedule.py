"""Which mailbox is handed out when: due ones, the longest overdue first, once, and no more than fit."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgent, PersistentAgentCommsEndpoint
from gobii_email.services import poll_schedule
from gobii_email.services.accounts import disable, edit_account, enable, save_account
from gobii_email.services.dispatch import dispatch_round
from gobii_email.services.poll_schedule import hand_out_polls, heal, poll_now, schedule
from tests.conftest import RecordingDoorbell
from tests.services.polling import mailbox, receiving

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def settled(doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poll_schedule, "_healing", poll_schedule._Healing())


def accounts(agent: PersistentAgent, count: int) -> list[AgentEmailAccount]:
    made = []
    for number in range(count):
        endpoint = PersistentAgentCommsEndpoint.objects.create(
            owner_agent=agent, channel="email", address=f"a{number}@sender.example"
        )
        made.append(receiving(endpoint, 993))
    return made


def due(account: AgentEmailAccount, ago: timedelta) -> datetime:
    at = timezone.now() - ago
    schedule(account)
    Mailbox.objects.filter(pk=account.pk).update(due_at=at, look_at=at)
    return at


def called(doorbell: RecordingDoorbell) -> list[str]:
    assert {(call.task, call.queue) for call in doorbell.called} <= {
        ("gobii_email.poll_mailbox", "email.inbound")
    }
    return [call.subject for call in doorbell.called]


def test_the_longest_overdue_is_handed_out_first_and_each_once(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    first, second, later = accounts(agent, 3)
    due(second, timedelta(minutes=1))
    due(first, timedelta(minutes=9))
    due(later, timedelta(minutes=-1))
    assert dispatch_round().polls == 2
    assert called(doorbell) == [str(first.pk), str(second.pk)]
    assert hand_out_polls(timezone.now()) == 0


def test_a_hint_that_nobody_took_is_repeated_when_it_has_expired(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    (account,) = accounts(agent, 1)
    due(account, timedelta(0))
    now = timezone.now()
    assert hand_out_polls(now) == 1
    assert hand_out_polls(now + timedelta(seconds=59)) == 0
    assert hand_out_polls(now + timedelta(seconds=61)) == 1


def test_the_queue_does_not_grow_where_no_worker_takes_from_it(
    agent: PersistentAgent, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll_schedule, "QUEUE", 3)
    for account in accounts(agent, 5):
        due(account, timedelta(0))
    now = timezone.now()
    handed_out = [hand_out_polls(now + timedelta(minutes=2 * number)) for number in range(4)]
    assert handed_out == [3, 0, 0, 0] and len(doorbell.called) == 3


def test_a_mailbox_that_is_held_being_read_or_switched_off_is_not_handed_out(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    held, off = accounts(agent, 2)
    due(held, timedelta(0))
    due(off, timedelta(0))
    Mailbox.objects.filter(pk=held.pk).update(hold_code="auth_needed")
    disable(off, inbound=True)
    assert hand_out_polls(timezone.now()) == 0
    assert mailbox(off).due_at is None


def test_nothing_is_handed_out_while_the_flag_is_off(
    agent: PersistentAgent, doorbell: RecordingDoorbell, settings: Any
) -> None:
    due(accounts(agent, 1)[0], timedelta(0))
    settings.BYO_EMAIL_ENABLED = False
    assert hand_out_polls(timezone.now()) == 0 and doorbell.called == []


def test_a_broker_that_is_away_is_tried_again_when_its_pause_is_over(
    agent: PersistentAgent, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (account,) = accounts(agent, 1)
    due(account, timedelta(0))
    monkeypatch.setattr(doorbell, "call", lambda calls: False)
    hand_out_polls(timezone.now())
    look_at = mailbox(account).look_at
    assert look_at is not None and look_at < timezone.now() + timedelta(seconds=6)


@pytest.mark.django_db(transaction=True)
def test_poll_now_without_a_broker_is_looked_at_soon(
    agent: PersistentAgent, doorbell: RecordingDoorbell, monkeypatch: pytest.MonkeyPatch
) -> None:
    (account,) = accounts(agent, 1)
    monkeypatch.setattr(doorbell, "call", lambda calls: False)
    assert poll_now(account)
    look_at = mailbox(account).look_at
    assert look_at is not None and look_at < timezone.now() + timedelta(seconds=6)


def test_accounts_that_nobody_scheduled_are_found(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    new, switched_on = accounts(agent, 2)
    Mailbox.objects.create(account=switched_on)
    assert heal(timezone.now()) == 2 and heal(timezone.now()) == 0
    assert hand_out_polls(timezone.now()) == 2
    assert sorted(called(doorbell)) == sorted([str(new.pk), str(switched_on.pk)])


def test_a_mailbox_is_due_as_soon_as_receiving_is_switched_on(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    (account,) = accounts(agent, 1)
    disable(account, inbound=True)
    assert not Mailbox.objects.exists() or mailbox(account).due_at is None
    enable(account, inbound=True)
    assert hand_out_polls(timezone.now()) == 1


def test_another_interval_counts_at_once(agent: PersistentAgent) -> None:
    (account,) = accounts(agent, 1)
    due(account, timedelta(hours=-2))
    save_account(account, edit_account(account, {"poll_interval_sec": 60}))
    due_at = mailbox(account).due_at
    assert due_at is not None and due_at <= timezone.now()


def test_another_folder_makes_the_cursor_worthless(agent: PersistentAgent) -> None:
    (account,) = accounts(agent, 1)
    AgentEmailAccount.objects.update(last_seen_uid="v:1:700")
    account.refresh_from_db()
    save_account(account, edit_account(account, {"imap_folder": "Agent"}))
    assert AgentEmailAccount.objects.get().last_seen_uid == ""


def test_settings_for_sending_leave_polls_as_they_are(agent: PersistentAgent) -> None:
    (account,) = accounts(agent, 1)
    at = due(account, timedelta(hours=-2))
    save_account(account, edit_account(account, {"per_minute": 7}))
    assert mailbox(account).due_at == at


@pytest.mark.django_db(transaction=True)
def test_poll_now_rings_when_its_caller_has_committed(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    (account,) = accounts(agent, 1)
    account.backoff_until = timezone.now() + timedelta(hours=1)
    account.save()
    assert poll_now(account)
    assert called(doorbell) == [str(account.pk)]
    assert AgentEmailAccount.objects.get().backoff_until is None
    row = mailbox(account)
    assert row.due_at is not None and row.due_at <= timezone.now()
    assert hand_out_polls(timezone.now()) == 0, "its hint is under way"


@pytest.mark.django_db(transaction=True)
def test_two_dispatchers_hand_out_no_mailbox_twice(
    agent: PersistentAgent, doorbell: RecordingDoorbell
) -> None:
    for account in accounts(agent, 12):
        due(account, timedelta(minutes=1))
    now = timezone.now()

    def round_() -> None:
        try:
            hand_out_polls(now)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=round_) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(called(doorbell)) == len(set(called(doorbell))) == 12
