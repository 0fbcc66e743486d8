"""Every page: well-formed and labelled, small, strict about what it loads, and without a secret."""

import re
from datetime import timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from gobii_email import wiring
from gobii_email.console import forms
from gobii_email.console.charts import chart_of
from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    ConnectionTest,
    Mailbox,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.ports import LimiterUnavailable, Spent
from gobii_email.services import allow, browse, overview
from gobii_email.services.guard import STATE, account_version
from gobii_email.services.tell import event, tell
from tests.conftest import PASSWORD
from tests.console.conftest import Owner, paths
from tests.console.lint import problems

pytestmark = pytest.mark.django_db
NAMES = [
    *("overview", "messages", "message", "recipients", "text", "html", "headers", "raw"),
    *("accounts", "account", "delete", "simulation"),
]
MOST_BYTES = 150_000
MOST_QUERIES = 12


@pytest.fixture
def full(ada: Owner, doubtful: PersistentAgentMessage, tested: ConnectionTest) -> Owner:
    """Ada with something of everything."""
    for number in range(3):
        ada.message(f"Number {number}", to=["a@outside.example", "b@outside.example", "c@outside.example"])
    statuses = [MessageStatus.SENT, MessageStatus.FAILED]
    for status, message in zip(
        statuses, PersistentAgentMessage.objects.exclude(pk=doubtful.pk), strict=False
    ):
        PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status=status)
    OutboundMessageAttempt.objects.filter(message=doubtful).update(
        stage_ms={"connect": 12, "tls": 30, "dot": 5}, started_at=timezone.now(), tls="TLSv1.3"
    )
    AgentEmailAccount.objects.update(
        smtp_error="It answered 421.", state="limited", state_reason="Too fast.",
        state_until=timezone.now() + timedelta(hours=1),
    )  # fmt: skip
    return ada


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_used_by_everybody(name: str, full: Owner, doubtful: PersistentAgentMessage) -> None:
    response = full.client.get(paths(full, doubtful)[name])
    assert response.status_code == 200
    assert problems(response.content.decode()) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_page_can_be_used_by_everybody(name: str, ada: Owner) -> None:
    message = ada.message()
    addresses = paths(ada, message)
    if name not in {"message", "recipients", "text", "html", "headers", "raw"}:
        PersistentAgentMessage.objects.all().delete()
    assert problems(ada.client.get(addresses[name]).content.decode()) == []


@pytest.mark.parametrize("name", ["login", "add"])
def test_a_form_alone_can_be_used_by_everybody(name: str, ada: Owner) -> None:
    client = Client() if name == "login" else ada.client
    assert problems(client.get(reverse(f"console:{name}")).content.decode()) == []


def test_a_refusal_can_be_used_by_everybody(ada: Owner, bob: Owner) -> None:
    response = ada.client.get(reverse("console:account", args=[bob.account.pk]))
    assert response.status_code == 404
    assert problems(response.content.decode()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_page_loads_nothing_but_our_own_files(
    name: str, full: Owner, doubtful: PersistentAgentMessage
) -> None:
    policy = full.client.get(paths(full, doubtful)[name]).headers["Content-Security-Policy"]
    assert_strict(policy)


@pytest.mark.parametrize("path", ["/console/login/", "/admin/login/", "/console/no/such/page/"])
def test_pages_outside_a_session_are_as_strict(path: str, db: None) -> None:
    assert_strict(Client().get(path).headers["Content-Security-Policy"])


def assert_strict(policy: str) -> None:
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy and "*" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy and "form-action 'self'" in policy


@pytest.mark.parametrize("name", NAMES)
def test_a_page_with_all_it_loads_is_small(name: str, full: Owner, doubtful: PersistentAgentMessage) -> None:
    for number in range(60):
        full.message(f"A subject of usual length, number {number}")
    weigh(full.client.get(paths(full, doubtful)[name]).content)


@pytest.mark.parametrize("name", ["message", "recipients", "text", "headers", "raw"])
def test_a_huge_message_makes_no_huge_page(name: str, ada: Owner) -> None:
    addresses = [f"reader.of.a.long.list.{n}@outside.example" for n in range(500)]
    message = ada.message("A long letter", to=addresses, body="<p>" + "&lt;&amp; " * 20_000 + "</p>")
    PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_error_message="x" * 1024)
    for _ in range(300):
        tell([event(message.attempts.get(), "postponed", "Waits until 12:00: the account's limit. " * 5)])
    weigh(ada.client.get(paths(ada, message)[name]).content)


def weigh(html: bytes) -> None:
    loaded = re.findall(r'(?:src|href)="/?static/([^"]+)"', html.decode())
    assert "console/console.css" in loaded
    size = len(html) + sum(Path(str(finders.find(file))).stat().st_size for file in set(loaded))
    assert size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("who", ["owner", "staff"])
def test_a_page_asks_a_few_questions_whatever_there_is(
    name: str, who: str, full: Owner, doubtful: PersistentAgentMessage, staff: Client
) -> None:
    client = full.client if who == "owner" else staff
    address = paths(full, doubtful)[name]
    client.get(address)  # content types are looked up once a process
    before = queries(client, address)
    for number in range(20):
        full.message(f"One more {number}", to=["x@outside.example", "y@outside.example"])
        endpoint = PersistentAgentCommsEndpoint.objects.create(
            owner_agent=full.agent, channel="email", address=f"more-{number}@sender.example"
        )
        AgentEmailAccount.objects.create(endpoint=endpoint, smtp_error="It answered 421.")
    after = queries(client, address)
    assert len(after) == len(before) <= MOST_QUERIES, "\n".join(after)


def queries(client: Client, address: str) -> list[str]:
    allow.forget_shared_limits()  # they are read again every ten seconds
    with CaptureQueriesContext(connection) as captured:
        assert client.get(address).status_code == 200
    return [
        query["sql"]
        for query in captured
        if not query["sql"].startswith(("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE"))
    ]


@pytest.mark.parametrize("name", NAMES)
def test_no_page_shows_a_secret(
    name: str, full: Owner, doubtful: PersistentAgentMessage, staff: Client
) -> None:
    account = full.account
    account.set_imap_password("imap-" + PASSWORD)
    account.save()
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    credential.set_access_token("ya29.access-Canary")
    credential.set_refresh_token("1//refresh-Canary")
    credential.save()
    for client in (full.client, staff):
        page = client.get(paths(full, doubtful)[name]).content.decode()
        for secret in (PASSWORD, "Canary", bytes(account.smtp_password_encrypted or b"").hex()[:24]):
            assert secret not in page


def test_what_others_wrote_is_shown_as_text(ada: Owner) -> None:
    message = ada.message("<script>alert(1)</script>", body="<p>Hello</p>")
    OutboundMessageAttempt.objects.filter(message=message).update(
        error_message="550 <img src=x onerror=alert(1)>", status="failed", due_at=None
    )
    PersistentAgentMessage.objects.filter(pk=message.pk).update(
        latest_status="failed", latest_error_message="550 <img src=x onerror=alert(1)>"
    )
    for path in paths(ada, message).values():
        page = ada.client.get(path).content.decode()
        assert "<script>alert" not in page and "<img src=x" not in page


def test_what_a_server_said_to_a_test_is_shown_as_text(ada: Owner, tested: ConnectionTest) -> None:
    page = ada.client.get(reverse("console:account", args=[ada.account.pk])).content.decode()
    assert "535 5.7.8 &lt;b&gt;no&lt;/b&gt;" in page and "<b>no</b>" not in page
    assert "Create an app password." in page and "PLAIN, LOGIN" in page


@pytest.fixture
def html_of(ada: Owner) -> Any:
    def read(body: str, **values: Any) -> tuple[str, str]:
        message = ada.message(body=body, **values)
        response = ada.client.get(reverse("console:message_html", args=[message.pk]))
        return response.content.decode(), response.headers["Content-Security-Policy"]

    return read


def test_a_mails_html_can_do_nothing(html_of: Any) -> None:
    html, policy = html_of(
        "<p style='color:red'>Hi</p><script>x</script>"
        "<form action='https://evil.example'><input name=a></form>"
        "<iframe src='https://evil.example'></iframe><img src='https://track.example/p.gif' alt='Logo'>"
        "<a href='javascript:x'>a</a><p style=\"background:url('https://track.example/q')\">b</p>"
        "<meta http-equiv=refresh content='0;url=https://evil.example'><base href='https://evil.example'>"
    )
    assert policy.startswith("sandbox; default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy and "frame-ancestors 'self'" in policy
    body = html.partition("<body>")[2]
    assert "Hi" in body and 'alt="Logo"' in body
    for bad in ("<script", "<form", "<iframe", "<meta", "<base", 'src="http', "track.example", "style="):
        assert bad not in body


def test_the_frame_of_a_mail_may_only_stand_on_our_own_page(ada: Owner) -> None:
    message = ada.message()
    response = ada.client.get(reverse("console:message_html", args=[message.pk]))
    assert response.headers["X-Frame-Options"] == "SAMEORIGIN"
    page = ada.client.get(reverse("console:message", args=[message.pk]) + "?show=html").content.decode()
    assert f'sandbox="" src="{reverse("console:message_html", args=[message.pk])}"' in page


def test_every_recipient_can_be_read(ada: Owner) -> None:
    message = ada.message(to=[f"reader{n}@outside.example" for n in range(300)])
    address = reverse("console:message", args=[message.pk])
    assert "250 more" in ada.client.get(address).content.decode()
    pages = [ada.client.get(address, {"show": "recipients", "from": start}) for start in ("", "250", "x")]
    found = [set(re.findall(r"reader\d+@", page.content.decode().partition("<tbody>")[2])) for page in pages]
    assert [len(one) for one in found] == [250, 50, 250]
    assert len(found[0] | found[1]) == 300
    assert [b'rel="next"' in page.content for page in pages] == [True, False, True]


def test_a_refusal_comes_with_what_to_do_about_it(ada: Owner) -> None:
    message = ada.message()
    OutboundMessageAttempt.objects.filter(message=message).update(
        status="failed", due_at=None, error_code="policy/spam", error_message="554 Refused"
    )
    page = ada.client.get(reverse("console:message", args=[message.pk])).content.decode()
    assert "Look at the text, the links and the sender&#x27;s SPF" in page


# Lists


def subjects(page: str) -> list[str]:
    return re.findall(r'<th scope="row"><a [^>]*>([^<]*)</a>', page)


def test_a_list_goes_on_where_the_page_before_ended(ada: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browse.messages, "__defaults__", ("", 2))
    now = timezone.now()
    for number in range(5):
        # Two of one moment, so that the key alone tells them apart.
        message = ada.message(f"Number {number}")
        PersistentAgentMessage.objects.filter(pk=message.pk).update(
            timestamp=now + timedelta(hours=number // 2)
        )
    address, seen = reverse("console:messages") + "?status=waiting", []
    while address:
        page = ada.client.get(address).content.decode()
        seen.append(subjects(page))
        older = re.search(r'href="([^"]*)" rel="next"', page)
        address = reverse("console:messages") + unescape(older.group(1)) if older else ""
    assert [len(found) for found in seen] == [2, 2, 1]
    assert sorted(subject for found in seen for subject in found) == [
        f"Number {number}" for number in range(5)
    ]
    assert seen[0] != ["Number 4"] and seen[-1][0] in {"Number 0", "Number 1"}


@pytest.mark.parametrize("start", ["x", "AAAA", "bm8gdGltZSB4", "💥"])
def test_a_page_that_begins_nowhere_is_not_there(start: str, ada: Owner) -> None:
    assert ada.client.get(reverse("console:messages"), {"from": start}).status_code == 404


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"status": "in_doubt"}, {"Did it arrive?"}),
        ({"status": "waiting"}, {"To two"}),
        ({"status": "queued"}, {"To two"}),
        ({"status": "sent"}, set()),
        ({"recipient": "Second@Outside.example"}, {"To two"}),
        ({"recipient": "nobody@outside.example"}, set()),
        ({"transport": "smtp"}, {"Did it arrive?"}),
        ({"transport": "postmark_simulation"}, set()),
        ({"since": "2000-01-01T00:00"}, {"Did it arrive?", "To two"}),
        ({"until": "2000-01-01T00:00"}, set()),
        ({"account": "ACCOUNT", "agent": "AGENT"}, {"Did it arrive?", "To two"}),
    ],
)
def test_the_filters_in_the_address_choose(
    query: dict[str, str], expected: set[str], ada: Owner, doubtful: PersistentAgentMessage
) -> None:
    ada.message("To two", to=["first@outside.example", "second@outside.example"])
    ids = {"ACCOUNT": str(ada.account.pk), "AGENT": str(ada.agent.pk)}
    given = {name: ids.get(value, value) for name, value in query.items()}
    response = ada.client.get(reverse("console:messages"), given)
    assert response.status_code == 200
    assert set(subjects(response.content.decode())) == expected


def test_what_no_filter_knows_is_said_beside_it(ada: Owner) -> None:
    response = ada.client.get(reverse("console:messages"), {"status": "lost", "since": "yesterday"})
    assert response.status_code == 422
    assert problems(response.content.decode()) == []


def test_a_search_among_everybodys_mail_goes_back_piece_by_piece(
    ada: Owner, staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "SEARCHED", 3)
    for number in range(8):
        message = ada.message(f"Number {number}")
        if number in {0, 7}:
            PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status="failed")
    address, seen, pages = "?status=failed", [], 0
    while address:
        page = staff.get(reverse("console:messages") + address).content.decode()
        seen += subjects(page)
        pages += 1
        older = re.search(r'href="([^"]*)" rel="next">Look further back', page)
        address = unescape(older.group(1)) if older else ""
    assert (seen, pages) == (["Number 7", "Number 0"], 3)


def test_a_mailbox_beyond_those_on_offer_can_be_chosen(
    ada: Owner, staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "MOST_CHOICES", 0)
    ada.message("From Ada")
    response = staff.get(reverse("console:messages"), {"account": str(ada.account.pk)})
    assert subjects(response.content.decode()) == ["From Ada"]


def test_what_would_have_been_sent_can_be_read(ada: Owner) -> None:
    message = ada.message("Only simulated")
    OutboundMessageAttempt.objects.filter(message=message).update(provider="postmark_simulation")
    ada.message("Really sent")
    page = ada.client.get(reverse("console:simulation")).content.decode()
    assert subjects(page) == ["Only simulated"]
    assert reverse("console:message", args=[message.pk]) + "?show=html" in page


# Numbers


def test_the_overview_tells_how_mail_goes(ada: Owner, bob: Owner) -> None:
    statuses = ["sent", "sent", "delivered", "failed", "failed", "in_doubt", "cancelled", "queued"]
    for number, status in enumerate(statuses):
        message = ada.message(f"Number {number}")
        PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status=status)
        if status != "queued":
            OutboundMessageAttempt.objects.filter(message=message).update(
                status="failed", due_at=None, scope="recipient" if number == 3 else "host"
            )
    bob.message("Not Ada's")
    old = ada.message("Of last week")
    PersistentAgentMessage.objects.filter(pk=old.pk).update(
        latest_status="failed", timestamp=timezone.now() - timedelta(days=7)
    )
    OutboundMessageAttempt.objects.filter(message=old).update(status="failed", due_at=None)
    found = overview.overview(browse.Whose.of_user(ada.user), timezone.now())
    assert (found.waiting, found.sent, found.failed) == (1, 3, 2)
    assert found.failed_share == 2 / 5
    assert found.avoidable_failures == 1
    assert found.oldest_waiting_since is not None
    assert len(found.hours) == 24 and sum(hour.total for hour in found.hours) == 8
    assert "error budget is used up" in ada.client.get(reverse("console:overview")).content.decode()


def test_a_budget_is_left_where_one_in_a_thousand_fails() -> None:
    hour = overview.Hour(timezone.now(), sent=999, failed=1)
    found = overview.Overview(0, None, [hour], avoidable_failures=1)
    assert found.budget_left == pytest.approx(0.8)
    assert overview.Overview(0, None, [], 0).budget_left is None


def test_the_chart_stands_on_its_ground(ada: Owner) -> None:
    hours = [overview.Hour(timezone.now(), sent=10, failed=1), overview.Hour(timezone.now(), sent=1000)]
    chart = chart_of(hours)
    assert all(bar.y >= 0 and bar.y + bar.height <= chart.height + 3 for bar in chart.bars)
    assert {bar.kind for bar in chart.bars} == {"sent", "failed"}
    assert min(bar.height for bar in chart.bars) >= 2


def test_needs_are_those_of_the_day(ada: Owner, bob: Owner, doubtful: PersistentAgentMessage) -> None:
    AgentEmailAccount.objects.filter(pk=ada.account.pk).update(
        state="auth_needed", state_reason="Sign in again."
    )
    AgentEmailAccount.objects.filter(pk=bob.account.pk).update(smtp_error="It answered 421.")
    later = timezone.now() + timedelta(minutes=5)
    MailHost.objects.create(name="localhost:2525", backoff_until=later, reason="Too many connections.")
    MailHost.objects.create(name="elsewhere.example:25", backoff_until=later)
    found = overview.needs(browse.Whose.of_user(ada.user), timezone.now())
    assert [(need.kind, need.who) for need in found] == [
        ("in_doubt", "Did it arrive?"),
        ("held", "ada@sender.example"),
        ("backoff", "localhost:2525"),
    ]
    assert len(overview.needs(browse.Whose.everybodys(), timezone.now())) == 5


def test_the_list_of_mailboxes_tells_how_each_is_doing(ada: Owner, bob: Owner, staff: Client) -> None:
    for number in range(3):
        ada.message(f"Number {number}")
    AgentEmailAccount.objects.filter(pk=bob.account.pk).update(state="paused", state_reason="Moving house")
    rows = staff.get(reverse("console:accounts")).content.decode().partition("<tbody>")[2].split("<tr>")[1:]
    assert "ada@sender.example" in rows[0] and "sends" in rows[0] and "<td>3</td>" in rows[0]
    assert "bob@sender.example" in rows[1] and "Moving house" in rows[1] and "<td>0</td>" in rows[1]


def test_used_limits_are_those_that_are_counted(ada: Owner, limiter: Any) -> None:
    AgentEmailAccount.objects.update(per_minute=10, per_hour=None, per_day=500)
    account = AgentEmailAccount.objects.select_related("endpoint").get(pk=ada.account.pk)
    scopes = allow.scopes_of(account, timezone.now())
    limiter.restore(scopes[0], [Spent(7)], lanes=[])
    page = ada.client.get(reverse("console:account", args=[account.pk])).content.decode()
    assert "7 of 10" in page and "7 of 500" in page


def test_a_mailbox_is_shown_while_the_counters_are_away(ada: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Away:
        def usage(self, scope: object) -> None:
            asked.append(scope)
            raise LimiterUnavailable

    monkeypatch.setattr(wiring, "limiter", Away)
    page = ada.client.get(reverse("console:accounts"))
    assert page.status_code == 200 and "not counted yet" in page.content.decode()
    assert len(asked) == 1


ODD = ["\x00", "é\u202e", "'\"><b>", "%", "9" * 5000, "-1", "null", "2026-13-45T99:99", str(2**64), "a,b"]


@pytest.mark.parametrize("value", ODD, ids=[ascii(value)[:12] for value in ODD])
@pytest.mark.parametrize(
    "page", ["messages", "accounts", "simulation", "message", "overview", "add", "oauth_callback"]
)
def test_an_odd_address_is_an_answer_and_no_fault(page: str, value: str, ada: Owner) -> None:
    args = [ada.message().pk] if page == "message" else []
    names = ["status", "recipient", "transport", "account", "agent", "since", "until", "from", "show", "seen"]
    names += ["address", "name", "state", "code", "error"]
    for name in names:
        response = ada.client.get(reverse(f"console:{page}", args=args), {name: value})
        assert response.status_code < 500 and b"'\"><b>" not in response.content


@pytest.mark.parametrize("value", ODD, ids=[ascii(value)[:12] for value in ODD])
def test_odd_values_in_forms_are_answers_and_no_faults(value: str, ada: Owner) -> None:
    values = dict.fromkeys(("version", "reason", "direction", "to", "protocol", "provider", "length"), value)
    values |= dict.fromkeys(("smtp_host", "smtp_port", "smtp_security", "smtp_username", "per_day"), value)
    for act in ("save", "pause", "resume", "switch", "connect", "delete"):
        address = reverse(f"console:account_{act}", args=[ada.account.pk])
        assert 400 <= ada.client.post(address, values).status_code < 500
    address = reverse("console:message_do", args=[ada.message().pk, "cancel"])
    assert 400 <= ada.client.post(address, values).status_code < 500
    version = account_version(AgentEmailAccount.objects.get(pk=ada.account.pk), STATE)
    given = values | {"version": version, "direction": "outbound", "to": "off"}
    assert ada.client.post(reverse("console:account_switch", args=[ada.account.pk]), given).status_code == 302


def test_a_mailbox_that_cannot_be_watched_says_why_and_what_happens_instead(ada: Owner) -> None:
    account = ada.account
    account.imap_host, account.imap_port = "imap.sender.example", 993
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.is_inbound_enabled = account.imap_idle_enabled = True
    account.save()
    Mailbox.objects.create(account=account, watch_problem="imap.sender.example does not offer IDLE.")
    page = ada.client.get(reverse("console:account", args=[account.pk])).content.decode()
    said = "imap.sender.example does not offer IDLE. It is read every 120 seconds."
    assert f"Not watched for new mail: {said}" in page
    Mailbox.objects.update(watch_problem="")
    assert "Not watched" not in ada.client.get(reverse("console:account", args=[account.pk])).content.decode()
