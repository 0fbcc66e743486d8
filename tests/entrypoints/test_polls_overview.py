"""Mailboxes that are not read, as operators and owners are told: `email_doctor` and the attention list."""

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from gobii_email.management.examinations.polls import polls
from gobii_email.models import AgentEmailAccount, Mailbox, PersistentAgentCommsEndpoint
from gobii_email.services.browse import Whose
from gobii_email.services.overview import needs
from tests.services.polling import AGENT, receiving

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("doorbell")]


@pytest.fixture
def account(endpoint: PersistentAgentCommsEndpoint) -> AgentEmailAccount:
    made = receiving(endpoint, 993)
    Mailbox.objects.create(account=made, due_at=timezone.now(), look_at=timezone.now())
    return made


def test_mailboxes_that_are_read_in_time_are_fine(account: AgentEmailAccount) -> None:
    row = polls()
    assert (row.status, row.text) == ("ok", "mailboxes that are read: 1")


def test_an_overdue_mailbox_asks_for_more_workers(account: AgentEmailAccount) -> None:
    Mailbox.objects.update(due_at=timezone.now() - timedelta(minutes=3))
    row = polls()
    assert row.status == "warn" and "1 overdue" in row.text and "email.inbound" in row.hint


def test_a_held_mailbox_is_named(account: AgentEmailAccount) -> None:
    Mailbox.objects.update(hold_code="auth_needed", due_at=timezone.now() - timedelta(hours=3))
    row = polls()
    assert row.status == "warn" and AGENT in row.text and "overdue" not in row.text


def test_nothing_is_expected_while_own_mailboxes_are_off(account: AgentEmailAccount, settings: Any) -> None:
    settings.BYO_EMAIL_ENABLED = False
    Mailbox.objects.update(due_at=timezone.now() - timedelta(hours=3))
    assert polls().status == "ok" and "switched off" in polls().text


def test_a_held_mailbox_is_among_what_needs_a_person(account: AgentEmailAccount) -> None:
    AgentEmailAccount.objects.update(imap_error="The server answered NO.")
    Mailbox.objects.update(hold_code="auth_needed", hold_reason="The server answered NO.")
    (need,) = needs(Whose(None), timezone.now())
    assert (need.kind, need.who, need.account_id) == ("unread", AGENT, account.pk)
    assert need.what == "Its mail is not read: The server answered NO."
