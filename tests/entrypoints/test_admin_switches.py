"""Suspensions and the rollout in the admin, and wherever else they are to be seen."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.management.examinations.switched import switched
from gobii_email.models import AgentEmailAccount, RolloutChange, Suspension
from gobii_email.services.browse import Whose
from gobii_email.services.enlist import watchable
from gobii_email.services.look import obstacle
from gobii_email.services.overview import needs
from gobii_email.services.poll import obstacle_to_polls
from gobii_email.services.poll_schedule import schedule
from gobii_email.services.suspend import change_rollout, suspend
from tests.entrypoints.commands import run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("real_switches", "doorbell")]

ADD = "admin:gobii_email_suspension_add"
LIST = "admin:gobii_email_suspension_changelist"
ROLLOUT = "admin:gobii_email_rolloutchange_add"


def given(**values: Any) -> dict[str, Any]:
    facts = {"scope": "all", "subject": "", "reason": "A provider is down.", "ends_at_0": "", "ends_at_1": ""}
    return facts | values


def test_a_suspension_is_made_by_whom_it_was_made_and_until_when(admin_client: Client) -> None:
    until = timezone.now() + timedelta(hours=1)
    admin_client.post(
        reverse(ADD), given(ends_at_0=until.strftime("%Y-%m-%d"), ends_at_1=until.strftime("%H:%M:%S"))
    )
    made = Suspension.objects.get()
    assert (made.scope, made.reason, made.created_by) == ("all", "A provider is down.", "admin")
    assert made.ends_at is not None and abs(made.ends_at - until) < timedelta(seconds=2)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"reason": ""}, "required"),
        ({"scope": "account", "subject": "nobody@sender.example"}, "no mailbox"),
        ({"ends_at_0": "2020-01-01", "ends_at_1": "00:00"}, "That is past"),
    ],
)
def test_what_makes_no_sense_is_not_made(admin_client: Client, wrong: dict[str, str], told: str) -> None:
    answer = admin_client.post(reverse(ADD), given(**wrong))
    assert answer.status_code == 422 and told in answer.content.decode()
    assert not Suspension.objects.exists()


def test_a_suspension_is_lifted_and_stays_to_be_seen(admin_client: Client) -> None:
    made = suspend(Suspension.Scope.ALL, "", reason="Stop.", until=None, by="x")
    admin_client.post(reverse(LIST), {"action": "lift", "_selected_action": [made.pk]})
    made.refresh_from_db()
    assert made.lifted_by == "admin" and made.lifted_at is not None
    assert "Stop." in admin_client.get(reverse(LIST)).content.decode()


def test_it_takes_permission_and_a_post(client: Client) -> None:
    made = suspend(Suspension.Scope.ALL, "", reason="Stop.", until=None, by="x")
    viewer = User.objects.create_user("viewer", is_staff=True)
    client.force_login(viewer)
    assert client.post(reverse(ADD), given()).status_code == 403
    assert client.post(reverse(LIST), {"action": "lift", "_selected_action": [made.pk]}).status_code == 403
    assert client.post(reverse(ROLLOUT), {"rollout": "5%"}).status_code == 403
    assert Suspension.objects.in_force(timezone.now()).count() == 1 and not RolloutChange.objects.exists()


def test_rows_are_neither_changed_nor_deleted(admin_client: Client) -> None:
    made = suspend(Suspension.Scope.ALL, "", reason="Stop.", until=None, by="x")
    change = reverse("admin:gobii_email_suspension_change", args=[made.pk])
    assert admin_client.post(change, given(reason="Other")).status_code == 403
    delete = reverse("admin:gobii_email_suspension_delete", args=[made.pk])
    assert admin_client.post(delete, {"post": "yes"}).status_code == 403


def test_the_rollout_is_changed_for_a_reason(admin_client: Client) -> None:
    facts = {"is_enabled": "true", "rollout": "5%", "reason": "Stage 1"}
    admin_client.post(reverse(ROLLOUT), facts)
    made = RolloutChange.objects.get()
    assert (made.is_enabled, made.rollout, made.changed_by) == (True, "5%", "admin")
    answer = admin_client.post(reverse(ROLLOUT), facts | {"rollout": "500%"})
    assert answer.status_code == 422 and RolloutChange.objects.count() == 1


def test_what_is_switched_is_seen_by_whoever_asks(admin_client: Client) -> None:
    suspend(Suspension.Scope.ALL, "", reason="A provider is down.", until=None, by="x")
    change_rollout(is_enabled=None, rollout="5%", reason="", by="x")
    row = switched()
    assert row.status == "warn" and "A provider is down." in row.text and "5%" in row.text
    queue = run("email_queue")
    assert "A provider is down." in queue.out and "served for 5%" in queue.out
    assert run("email_queue", "--json").document["switched"]["rollout"] == "5%"
    everybodys = [need.what for need in needs(Whose.everybodys(), timezone.now())]
    assert any("A provider is down." in what for what in everybodys)
    assert [need for need in needs(Whose(()), timezone.now()) if need.kind == "suspended"] == []
    page = admin_client.get(reverse("console:overview")).content.decode()
    assert "A provider is down." in page


@pytest.fixture
def read(account: AgentEmailAccount) -> AgentEmailAccount:
    account.imap_host, account.imap_port, account.imap_username = "localhost", 993, "agent"
    account.set_imap_password("secret")
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.is_inbound_enabled = account.imap_idle_enabled = True
    account.save()
    schedule(account)
    return account


@pytest.mark.parametrize("how", ["off", "rollout", "suspended"])
def test_whoever_reads_mail_stops_as_well(read: AgentEmailAccount, how: str) -> None:
    now = timezone.now()
    assert not obstacle_to_polls(read) and obstacle(read, now) is None and list(watchable())
    match how:
        case "off":
            change_rollout(is_enabled=False, rollout="", reason="", by="x")
        case "rollout":
            change_rollout(is_enabled=None, rollout="0%", reason="", by="x")
        case _:
            suspend(Suspension.Scope.ACCOUNT, read.endpoint.address, reason="A loop.", until=None, by="x")
    assert obstacle_to_polls(read) and obstacle(read, now) is not None and list(watchable()) == []
