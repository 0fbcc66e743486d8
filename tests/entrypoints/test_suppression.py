"""`email_suppression`, and the same list in the admin."""

from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.models import PersistentAgentCommsEndpoint, Suppression
from gobii_email.services.suppress import Cause, suppress
from tests.entrypoints.commands import SENDER, an_endpoint, run

pytestmark = pytest.mark.django_db

A = "a@rcpt.example"


@pytest.fixture
def endpoint() -> PersistentAgentCommsEndpoint:
    return an_endpoint()


def enter(
    endpoint: PersistentAgentCommsEndpoint, address: str = A, reason: str = "It bounced."
) -> Suppression:
    suppress(endpoint.pk, address, cause=Cause.BOUNCED, reason=reason, now=timezone.now())
    return Suppression.objects.get(address=address, lifted_at=None)


def test_it_enters_shows_and_lifts(endpoint: PersistentAgentCommsEndpoint) -> None:
    assert f"{SENDER} may write to everybody" in run("email_suppression", SENDER).out
    assert run("email_suppression", SENDER, "--add", A.upper(), "--reason", "She asked").code == 0
    (row,) = run("email_suppression", SENDER.upper(), "--list", "--json").document["suppressed"]
    assert (row["recipient"], row["cause"]) == (A, "by_hand") and row["reason"].startswith("She asked")
    assert A in run("email_suppression", SENDER).out
    document = run("email_suppression", SENDER, "--lift", A, "--json").document
    assert document == {"address": SENDER, "recipient": A, "changed": True}
    assert run("email_suppression", SENDER, "--json").document["suppressed"] == []
    assert Suppression.objects.get().lifted_at is not None


def test_entering_twice_changes_nothing(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint)
    document = run("email_suppression", SENDER, "--add", A, "--reason", "Again", "--json").document
    assert document["changed"] is False and Suppression.objects.get().reason == "It bounced."


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        (["nobody@agents.example.org"], 1, "address"),
        ([SENDER, "--lift", "b@rcpt.example"], 1, "lift"),
        ([SENDER, "--lift", ""], 1, "lift"),
        ([SENDER, "--add", "no address", "--reason", "x"], 1, "recipient"),
        ([SENDER, "--add", A], 1, "reason"),
        ([SENDER, "--reason", "x"], 2, "reason"),
    ],
)
def test_what_cannot_be_done_is_said(
    endpoint: PersistentAgentCommsEndpoint, arguments: list[str], code: int, field: str
) -> None:
    answer = run("email_suppression", *arguments, "--json")
    problem = answer.document["error"]
    assert answer.code == code and problem["field"] == field
    assert problem["reason"][0] != " " and problem["remedy"] in answer.error
    assert not Suppression.objects.exists()


def test_the_servers_words_cannot_paint_on_a_terminal(endpoint: PersistentAgentCommsEndpoint) -> None:
    enter(endpoint, reason="\x1b[31mred")
    assert "\x1b" not in run("email_suppression", SENDER).out


def lifted_by(client: Client, row: Suppression) -> Any:
    address = reverse("admin:gobii_email_suppression_changelist")
    return client.post(address, {"action": "lift", "_selected_action": [row.pk]}, follow=True)


def test_the_admin_shows_and_lifts_and_keeps_who_did_it(
    endpoint: PersistentAgentCommsEndpoint, admin_client: Client
) -> None:
    row = enter(endpoint)
    page = admin_client.get(reverse("admin:gobii_email_suppression_changelist"), {"q": "a@rcpt"})
    assert A in page.content.decode() and "It bounced." in page.content.decode()
    assert (
        A in admin_client.get(reverse("admin:gobii_email_suppression_change", args=[row.pk])).content.decode()
    )
    assert "may be written to again: 1." in lifted_by(admin_client, row).content.decode()
    row.refresh_from_db()
    assert row.lifted_by == "admin" and A in LogEntry.objects.get().get_change_message()
    in_force = admin_client.get(reverse("admin:gobii_email_suppression_changelist"), {"state": "force"})
    assert A not in in_force.content.decode()


def test_the_admin_lifts_for_those_alone_who_may(
    endpoint: PersistentAgentCommsEndpoint, django_user_model: Any
) -> None:
    from django.contrib.auth.models import Permission

    row = enter(endpoint)
    user = django_user_model.objects.create_user("eve", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_suppression"))
    client = Client()
    client.force_login(user)
    lifted_by(client, row)
    row.refresh_from_db()
    assert row.lifted_at is None


def test_rows_are_neither_added_nor_removed_in_the_admin(
    endpoint: PersistentAgentCommsEndpoint, admin_client: Client
) -> None:
    row = enter(endpoint)
    assert admin_client.get(reverse("admin:gobii_email_suppression_add")).status_code == 403
    assert admin_client.get(reverse("admin:gobii_email_suppression_delete", args=[row.pk])).status_code == 403
