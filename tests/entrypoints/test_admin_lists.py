"""The admin's lists: few statements however many rows, bounded pages, and what leads on from them."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from gobii_email.admin import newest
from gobii_email.models import (
    AgentEmailAccount,
    ConnectionTest,
    MailHost,
    OutboundMessageAttempt,
    OutboundMessageRecipient,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    ReceivedMail,
    Suppression,
)

pytestmark = pytest.mark.django_db
MOST_STATEMENTS = 12
LISTS = [
    "persistentagentmessage", "outboundmessageattempt", "agentemailaccount", "persistentagentcommsendpoint",
    "persistentagent", "connectiontest", "mailhost", "sendinglimit", "receivedmail", "suppression",
]  # fmt: skip


def page(name: str, *args: object) -> str:
    return reverse(f"admin:gobii_email_{name}", args=args)


def fill(count: int, start: int = 0) -> None:
    """So many of everything that is listed, the later ones made later."""
    now = timezone.now()
    for n in range(start, count):
        agent = PersistentAgent.objects.create(name=f"Agent {n}")
        endpoint = PersistentAgentCommsEndpoint.objects.create(
            owner_agent=agent, channel="email", address=f"anna{n}@sender.example"
        )
        PersistentAgentCommsEndpoint.objects.create(channel="email", address=f"to{n}@rcpt.example")
        account = AgentEmailAccount(endpoint=endpoint, smtp_host=f"smtp{n}.example", smtp_port=587)
        account.save()
        MailHost.objects.create(name=f"smtp{n}.example:587")
        ConnectionTest.objects.create(account=account, protocol="smtp", started_at=now, text=f"Test {n}")
        Suppression.objects.create(
            endpoint=endpoint, address=f"to{n}@rcpt.example", cause="by_hand", created_at=now
        )
        ReceivedMail.objects.create(
            endpoint=endpoint, folder="INBOX", uid_validity=1, uid=n, size=1, from_address=endpoint.address,
            raw=b"", stored_at=now - timedelta(minutes=count - n),
        )  # fmt: skip
        message = PersistentAgentMessage.objects.create(
            from_endpoint=endpoint, from_address=endpoint.address, subject=f"Report no {n}.", body="Hi",
            rfc_message_id=f"<{n}@bench.example>",
        )  # fmt: skip
        PersistentAgentMessage.objects.filter(pk=message.pk).update(
            timestamp=now - timedelta(minutes=count - n)
        )
        attempt = OutboundMessageAttempt.objects.create(
            message=message, number=1, from_endpoint=endpoint, queued_at=now, not_before=now, due_at=now,
            provider="smtp", provider_message_id=f"queue-{n}",
        )  # fmt: skip
        for name in ("to", "other"):
            OutboundMessageRecipient.objects.create(
                message=message, attempt=attempt, address=f"{name}{n}@rcpt.example", kind="to"
            )


def statements(client: Any, name: str, **query: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(page(f"{name}_changelist"), query).status_code == 200
    return [found["sql"] for found in captured.captured_queries]


@pytest.mark.parametrize("name", LISTS)
def test_a_list_takes_the_same_few_statements_however_long_it_is(admin_client: Any, name: str) -> None:
    fill(2)
    few = len(statements(admin_client, name))
    few_found = len(statements(admin_client, name, q="a"))
    fill(10, start=2)
    assert len(statements(admin_client, name)) == few <= MOST_STATEMENTS
    assert len(statements(admin_client, name, q="a")) == few_found <= MOST_STATEMENTS


@pytest.mark.parametrize("name", LISTS)
def test_no_list_counts_all_its_rows(admin_client: Any, name: str) -> None:
    fill(3)
    for query in ({}, {"_facets": "True"}):
        for sql in statements(admin_client, name, **query):
            assert "COUNT(" not in sql.upper() or "LIMIT" in sql.upper() or "GROUP BY" in sql.upper(), sql


@pytest.mark.parametrize("name", ["persistentagentmessage", "outboundmessageattempt", "connectiontest"])
def test_bodies_and_steps_are_not_read_for_a_list(admin_client: Any, name: str) -> None:
    fill(2)
    for sql in statements(admin_client, name):
        for column in ('"body"', '"raw_payload"', '"steps"', '"mime"'):
            assert column not in sql, sql


# Pages, and what leads on


def subjects(answer: Any) -> list[str]:
    return [row.subject for row in answer.context["cl"].result_list]


def every_page(client: Any, url: str) -> list[str]:
    """Subjects in the order one meets them, going from page to page and then on to older ones."""
    found: list[str] = []
    address: str | None = url
    while address:
        answer = client.get(address)
        listed = answer.context["cl"]
        pages = [answer] + [
            client.get(address + ("&" if "?" in address else "?") + f"p={number}")
            for number in range(2, listed.paginator.num_pages + 1)
        ]
        found += [subject for one in pages for subject in subjects(one)]
        address = listed.further_url and url.partition("?")[0] + listed.further_url
        assert len(found) < 100
    return found


def test_every_message_is_met_once_newest_first_however_the_pages_are_cut(
    admin_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(9)
    PersistentAgentMessage.objects.filter(
        subject__in=["Report no 3.", "Report no 4.", "Report no 5."]
    ).update(timestamp=timezone.now())
    monkeypatch.setattr(newest, "MOST_ROWS", 4)
    monkeypatch.setattr("gobii_email.admin.messages.MessageAdmin.list_per_page", 3)
    found = every_page(admin_client, page("persistentagentmessage_changelist"))
    expected = PersistentAgentMessage.objects.order_by("-timestamp", "-pk").values_list("subject", flat=True)
    assert found == list(expected)


def test_a_filter_looks_at_the_newest_and_leads_further_back(
    admin_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(9)
    PersistentAgentMessage.objects.filter(subject__in=["Report no 1.", "Report no 8."]).update(
        latest_status="failed"
    )
    monkeypatch.setattr("gobii_email.admin.messages.SEARCHED", 4)
    url = page("persistentagentmessage_changelist") + "?latest_status__exact=failed"
    first = admin_client.get(url)
    assert subjects(first) == ["Report no 8."]
    assert "what is older has not been looked at" in first.content.decode()
    assert every_page(admin_client, url) == ["Report no 8.", "Report no 1."]


@pytest.mark.parametrize("name", ["connectiontest", "receivedmail", "suppression"])
def test_a_search_for_parts_looks_at_the_newest_and_leads_further_back(
    admin_client: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    fill(9)
    monkeypatch.setattr(newest, "SEARCHED", 4)
    found, address = [], f"{page(f'{name}_changelist')}?q=sender.example"
    while address:
        listed = admin_client.get(address).context["cl"]
        found.append(len(listed.result_list))
        address = listed.further_url and page(f"{name}_changelist") + listed.further_url
        assert len(found) <= 3
    assert found == [5, 4, 0]


@pytest.mark.parametrize(
    ("term", "found"),
    [
        ("to1@rcpt.example", ["Report no 1."]),
        ("TO1@rcpt.example", ["Report no 1."]),
        ("<1@bench.example>", ["Report no 1."]),
        ("1@bench.example", ["Report no 1."]),
        ("queue-1", ["Report no 1."]),
        ("anna1@sender.example", ["Report no 1."]),
        ("no 8.", ["Report no 8."]),
        ("no 1.", []),
    ],
)
def test_whole_names_are_found_anywhere_and_parts_among_the_newest(
    admin_client: Any, monkeypatch: pytest.MonkeyPatch, term: str, found: list[str]
) -> None:
    fill(9)
    monkeypatch.setattr("gobii_email.admin.messages.SEARCHED", 4)
    assert subjects(admin_client.get(page("persistentagentmessage_changelist"), {"q": term})) == found
    attempts = admin_client.get(page("outboundmessageattempt_changelist"), {"q": term})
    assert [row.message.subject for row in attempts.context["cl"].result_list] == found


def test_a_message_and_its_attempt_are_found_by_either_id(admin_client: Any) -> None:
    fill(2)
    attempt = OutboundMessageAttempt.objects.get(message__subject="Report no 1.")
    for key in (attempt.pk, attempt.message_id):
        for name in ("persistentagentmessage", "outboundmessageattempt"):
            listed = admin_client.get(page(f"{name}_changelist"), {"q": str(key)}).context["cl"]
            assert listed.result_count == 1


@pytest.mark.parametrize("before", ["nonsense", "2026-01-01", "2026-01-01T00:00:00+00:00~no-uuid", "~~~"])
def test_an_address_that_nobody_gave_is_no_error(admin_client: Any, before: str) -> None:
    answer = admin_client.get(page("persistentagentmessage_changelist"), {"before": before})
    assert answer.status_code == 302 and answer["Location"].endswith("?e=1")


def test_messages_are_filtered_by_who_carried_them(admin_client: Any) -> None:
    fill(2)
    OutboundMessageAttempt.objects.filter(message__subject="Report no 1.").update(provider="postmark")
    url = page("persistentagentmessage_changelist")
    assert subjects(admin_client.get(url, {"provider": "postmark"})) == ["Report no 1."]
    attempts = page("outboundmessageattempt_changelist")
    OutboundMessageAttempt.objects.filter(provider="smtp").update(stage="rcpt")
    assert admin_client.get(attempts, {"stage": "rcpt"}).context["cl"].result_count == 1


def test_a_message_tells_its_first_recipient_and_how_many_others(admin_client: Any) -> None:
    fill(1)
    html = admin_client.get(page("persistentagentmessage_changelist")).content.decode()
    assert "to0@rcpt.example and 1 more" in html


# Endpoints


def test_endpoints_are_the_agents_or_the_contacts(admin_client: Any) -> None:
    fill(2)
    url = page("persistentagentcommsendpoint_changelist")

    def addresses(**query: str) -> list[str]:
        return [row.address for row in admin_client.get(url, query).context["cl"].result_list]

    assert addresses() == addresses(whose="own") == ["anna0@sender.example", "anna1@sender.example"]
    assert addresses(whose="outside") == ["to0@rcpt.example", "to1@rcpt.example"]
    assert addresses(q="NNA1") == addresses(q="agent 1") == ["anna1@sender.example"]
    assert addresses(whose="outside", q="To1@rcpt.example") == ["to1@rcpt.example"]
    assert addresses(whose="outside", q="to1") == [], "contacts are found by their whole address"


def test_a_long_list_says_that_it_is_not_all(admin_client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(3)
    monkeypatch.setattr(newest, "MOST_ROWS", 2)
    html = admin_client.get(page("persistentagentcommsendpoint_changelist")).content.decode()
    assert "The first 2 endpoints" in html
