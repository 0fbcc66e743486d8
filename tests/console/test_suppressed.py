"""Whom a mailbox does not write to, on its page: shown, and allowed again by its owner."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.models import Suppression
from gobii_email.services.suppress import Cause, suppress
from tests.console.conftest import Owner
from tests.console.lint import problems
from tests.console.test_acts import fields, notes

pytestmark = pytest.mark.django_db

A = "a@rcpt.example"


def enter(owner: Owner, address: str = A, reason: str = "It bounced: <b>550</b>") -> None:
    assert suppress(owner.account.pk, address, cause=Cause.BOUNCED, reason=reason, now=timezone.now())


def page(client: Client, owner: Owner) -> str:
    return client.get(reverse("console:account", args=[owner.account.pk])).content.decode()


def test_the_page_tells_who_and_why(ada: Owner) -> None:
    assert "Not written to" not in page(ada.client, ada)
    enter(ada)
    shown = page(ada.client, ada)
    assert A in shown and "It bounced: &lt;b&gt;550" in shown
    assert problems(shown) == []


def test_its_owner_allows_mail_again(ada: Owner) -> None:
    enter(ada)
    action = reverse("console:account_lift", args=[ada.account.pk])
    form = fields(ada.client, reverse("console:account", args=[ada.account.pk]), action)
    assert ada.client.post(action, form).status_code == 302
    assert Suppression.objects.get().lifted_by == "ada"
    assert notes() == [f"Mail to {A} is allowed again."]
    assert ada.client.post(action, form).status_code == 409


def test_nobody_else_does(ada: Owner, bob: Owner) -> None:
    enter(ada)
    action = reverse("console:account_lift", args=[ada.account.pk])
    assert bob.client.post(action, {"address": A}).status_code == 404
    assert ada.client.get(action).status_code == 405
    assert Suppression.objects.get().lifted_at is None


def test_a_long_list_is_cut_and_says_so(ada: Owner) -> None:
    for number in range(51):
        enter(ada, f"x{number}@rcpt.example")
    shown = page(ada.client, ada)
    assert shown.count("Allow again") == 50 and "email_suppression ada@sender.example" in shown
