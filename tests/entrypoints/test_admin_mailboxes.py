"""What an operator does about mailboxes in the admin: asks first, acts on POST, and leaves a trace."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from gobii_email.api import send_agent_email
from gobii_email.models import (
    AgentEmailAccount,
    ConnectionTest,
    MailHost,
    OutboundMessageAttempt,
    PersistentAgent,
)
from gobii_email.services import diagnose
from gobii_email.services.accounts import apply_account, enable
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.entrypoints.admin_site import ADDRESS, PASSWORD, account, page, server, staff

__all__ = ["account", "server", "staff"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("doorbell")]
ACTS = ["test_smtp", "test_imap", "poll", "pause", "resume", "clear_backoff"]


def another(number: int, **values: Any) -> AgentEmailAccount:
    """A mailbox of an agent of its own, at a server that is never reached."""
    smtp = {"host": f"smtp{number}.example", "port": 2525, "username": "u", "password": PASSWORD}
    made = apply_account({"agent": f"Agent {number}", "address": f"a{number}@sender.example", "smtp": smtp})
    AgentEmailAccount.objects.filter(pk=made.pk).update(**values)
    made.refresh_from_db()
    return made


def act_page(name: str, account: AgentEmailAccount) -> str:
    return page(f"persistentagentcommsendpoint_{name}", account.pk)


def html_of(answer: Any) -> str:
    text: str = answer.content.decode()
    return text


def finished(client: Client, url: str, seconds: float = 120) -> str:
    """The report once it no longer reloads itself, as a browser would come to see it."""
    deadline = time.monotonic() + seconds
    while 'http-equiv="refresh"' in (html := html_of(client.get(url))):
        assert time.monotonic() < deadline, html[-3000:]
        time.sleep(0.05)
    return html


# Tests


@pytest.mark.django_db(transaction=True)
def test_a_test_asks_runs_beside_the_page_and_is_told_step_by_step(
    staff: Client, account: AgentEmailAccount, server: ScriptedSmtpServer
) -> None:
    url = act_page("test_smtp", account)
    assert "No message is sent" in html_of(staff.get(url))
    assert server.connections == 0
    answer = staff.post(url)
    test = ConnectionTest.objects.get()
    assert answer["Location"] == page("connectiontest_change", test.pk)
    html = finished(staff, answer["Location"])
    assert "The server accepts mail from this account." in html and "✓" in html and " ms" in html
    for step in ("dns", "tcp", "starttls", "ehlo again", "auth", "rcpt"):
        assert f'<th scope="row">{step}</th>' in html, step
    assert "<details>" in html and "S3cret" not in html
    assert (test.asked_by, AgentEmailAccount.objects.get().is_smtp_tested) == ("admin", True)
    assert LogEntry.objects.get().change_message == "Test SMTP: The test has begun."
    mailbox = html_of(staff.get(page("persistentagentcommsendpoint_change", account.pk)))
    assert page("connectiontest_change", test.pk) in mailbox and "✓ Passed" in mailbox


@pytest.mark.django_db(transaction=True)
def test_a_failed_test_shows_its_step_and_its_advice(
    staff: Client, account: AgentEmailAccount, server: ScriptedSmtpServer
) -> None:
    server.users["anna"] = "another"
    html = finished(staff, staff.post(act_page("test_smtp", account))["Location"])
    assert "✗" in html and "535" in html and "Failed" in html and "Skipped" in html and "S3cret" not in html
    assert ConnectionTest.objects.get().advice[:20] in html


@pytest.mark.django_db(transaction=True)
def test_testing_too_often_is_answered_with_a_sentence(
    staff: Client, account: AgentEmailAccount, server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.GOBII_TESTS_PER_MINUTE = "1"
    finished(staff, staff.post(act_page("test_smtp", account))["Location"])
    before = server.connections
    answer = staff.post(act_page("test_smtp", account), follow=True)
    assert "the next may begin" in html_of(answer)
    assert (server.connections, ConnectionTest.objects.count()) == (before, 1)


@pytest.mark.django_db(transaction=True)
def test_an_imap_test_is_told_the_same_way(staff: Client, account: AgentEmailAccount) -> None:
    html = finished(staff, staff.post(act_page("test_imap", account))["Location"])
    assert "IMAP test of anna@sender.example" in html and "✗" in html
    assert ConnectionTest.objects.get().protocol == "imap"


@pytest.mark.django_db(transaction=True)
def test_several_are_tested_at_once_and_each_has_its_report(
    staff: Client, account: AgentEmailAccount, settings: Any
) -> None:
    settings.GOBII_TESTS_PER_MINUTE = "1"
    chosen = [account, another(1)]
    url = page("agentemailaccount_changelist")
    selected = {"action": "test_smtp_selected", "_selected_action": [str(one.pk) for one in chosen]}
    asked = html_of(staff.post(url, selected))
    assert all(str(one.pk) in asked for one in chosen) and ConnectionTest.objects.count() == 0
    answer = staff.post(url, selected | {"confirmed": "yes"})
    assert answer["Location"] == page("connectiontest_changelist")
    tests = ConnectionTest.objects.all()
    assert {test.account_id for test in tests} == {one.pk for one in chosen}
    assert LogEntry.objects.count() == 2
    for test in tests:
        finished(staff, page("connectiontest_change", test.pk))


def test_no_more_are_tested_at_once_than_run_beside_a_page(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [another(number) for number in range(diagnose.AT_ONCE + 1)]
    selected = {"action": "test_smtp_selected", "_selected_action": [str(one.pk) for one in chosen]}
    answer = staff.post(page("agentemailaccount_changelist"), selected, follow=True)
    assert "select fewer" in html_of(answer) and ConnectionTest.objects.count() == 0


def test_a_test_that_was_cut_off_does_not_reload_for_ever(staff: Client, account: AgentEmailAccount) -> None:
    began = timezone.now() - diagnose.LONGEST - timedelta(seconds=1)
    test = ConnectionTest.objects.create(account=account, protocol="smtp", started_at=began)
    html = html_of(staff.get(page("connectiontest_change", test.pk)))
    assert "did not finish" in html and 'http-equiv="refresh"' not in html
    listed = html_of(staff.get(page("connectiontest_changelist")))
    assert "Did not finish" in listed and "interrupted before it ended" in listed
    assert "Test again." in html
    test.started_at = timezone.now()
    test.save()
    assert 'http-equiv="refresh"' in html_of(staff.get(page("connectiontest_change", test.pk)))


def test_what_a_server_said_is_shown_as_text(staff: Client, account: AgentEmailAccount) -> None:
    bad = "<script>alert(1)</script>"
    step = {"id": "banner", "status": "fail", "milliseconds": 3, "text": bad, "facts": {"said": [bad, bad]}}
    test = ConnectionTest.objects.create(
        account=account, protocol="smtp", started_at=timezone.now(), finished_at=timezone.now(),
        text=bad, advice=bad, steps=[step | {"advice": bad, "raw": bad}],
    )  # fmt: skip
    urls = [
        page("connectiontest_change", test.pk),
        page("connectiontest_changelist"),
        page("persistentagentcommsendpoint_change", account.pk),
    ]
    for url in urls:
        html = html_of(staff.get(url))
        assert bad not in html and "&lt;script&gt;" in html


def test_reports_are_read_only(staff: Client, account: AgentEmailAccount) -> None:
    test = ConnectionTest.objects.create(account=account, protocol="smtp", started_at=timezone.now())
    assert staff.get(page("connectiontest_add")).status_code == 403
    assert staff.post(page("connectiontest_change", test.pk), {"text": "x"}).status_code == 403
    assert staff.post(page("connectiontest_delete", test.pk), {"post": "yes"}).status_code == 403
    assert ConnectionTest.objects.filter(pk=test.pk, text="").exists()


# Who may


@pytest.mark.parametrize("name", ACTS)
def test_nothing_happens_before_a_post_with_a_token(
    name: str, staff: Client, account: AgentEmailAccount, admin_user: User, server: ScriptedSmtpServer
) -> None:
    url = act_page(name, account)
    assert staff.get(url).status_code == 200
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    assert strict.post(url, {"reason": "x"}).status_code == 403
    assert Client().post(url).status_code == 302  # to the login
    assert staff.put(url).status_code == 405
    assert server.connections == ConnectionTest.objects.count() == LogEntry.objects.count() == 0
    assert AgentEmailAccount.objects.get().state == "active"


@pytest.mark.parametrize("name", ACTS)
def test_staff_without_the_permission_may_not(name: str, account: AgentEmailAccount) -> None:
    client = Client()
    client.force_login(staff_with("change_persistentagentcommsendpoint", "view_agentemailaccount"))
    assert client.post(act_page(name, account), {"reason": "x"}).status_code == 403
    html = html_of(client.get(page("persistentagentcommsendpoint_change", account.pk)))
    assert act_page("test_smtp", account) not in html
    selected = {"action": f"{name}_selected", "_selected_action": [str(account.pk)], "confirmed": "yes"}
    client.post(page("agentemailaccount_changelist"), selected)
    assert LogEntry.objects.count() == ConnectionTest.objects.count() == 0


def test_who_may_change_mailboxes_sees_the_report_but_cannot_see_other_things(
    account: AgentEmailAccount,
) -> None:
    test = ConnectionTest.objects.create(account=account, protocol="smtp", started_at=timezone.now())
    report = page("connectiontest_change", test.pk)
    may, may_not = Client(), Client()
    may.force_login(staff_with("change_agentemailaccount", "view_persistentagentcommsendpoint"))
    may_not.force_login(staff_with("view_persistentagentcommsendpoint", name="other"))
    assert (may.get(report).status_code, may_not.get(report).status_code) == (200, 403)


def staff_with(*permissions: str, name: str = "viewer") -> User:
    user = User.objects.create_user(name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


# Pause, resume, backoff


def local(moment: Any) -> str:
    """As a `datetime-local` input sends it; the service's times are UTC."""
    return f"{moment:%Y-%m-%dT%H:%M}"


def test_a_pause_has_a_reason_and_may_have_an_end(staff: Client, account: AgentEmailAccount) -> None:
    url = act_page("pause", account)
    assert 'type="datetime-local"' in html_of(staff.get(url))
    wrong = staff.post(url, {"reason": ""})
    assert wrong.status_code == 422 and "This field is required" in html_of(wrong)
    past = staff.post(url, {"reason": "Moving", "until": local(timezone.now() - timedelta(hours=1))})
    assert past.status_code == 422 and "That is past" in html_of(past) and "Moving" in html_of(past)
    assert AgentEmailAccount.objects.get().state == "active"

    until = (timezone.now() + timedelta(hours=2)).replace(second=0, microsecond=0)
    assert staff.post(url, {"reason": "Moving", "until": local(until)}).status_code == 302
    paused = AgentEmailAccount.objects.get()
    assert (paused.state, paused.state_until) == ("paused", until)
    assert paused.state_reason == "Moving (paused by admin)"
    mailbox = html_of(staff.get(page("persistentagentcommsendpoint_change", account.pk)))
    assert act_page("resume", account) in mailbox and act_page("pause", account) not in mailbox

    staff.post(act_page("resume", account))
    assert AgentEmailAccount.objects.get().state == "active"
    assert [entry.change_message[:6] for entry in LogEntry.objects.order_by("pk")] == ["Pause:", "Resume"]


def test_several_are_paused_and_resumed_with_one_reason(staff: Client, account: AgentEmailAccount) -> None:
    chosen = [account, another(1)]
    url = page("agentemailaccount_changelist")
    selected = {"action": "pause_selected", "_selected_action": [str(one.pk) for one in chosen]}
    assert "Stop sending?" in html_of(staff.post(url, selected))
    refused = staff.post(url, selected | {"confirmed": "yes"})
    assert refused.status_code == 422 and not AgentEmailAccount.objects.filter(state="paused").exists()
    staff.post(url, selected | {"confirmed": "yes", "reason": "Audit"})
    assert (
        AgentEmailAccount.objects.filter(state="paused", state_reason="Audit (paused by admin)").count() == 2
    )
    staff.post(url, selected | {"confirmed": "yes", "action": "resume_selected"})
    assert AgentEmailAccount.objects.filter(state="active").count() == 2
    assert LogEntry.objects.count() == 4


def a_waiting_mail(account: AgentEmailAccount, state: str, until: Any) -> OutboundMessageAttempt:
    diagnose.test_smtp(account)
    enable(account, outbound=True)
    send_agent_email(from_endpoint=ADDRESS, to="b@rcpt.example", subject="Hi", body="Hi")
    AgentEmailAccount.objects.update(state=state, state_until=until, backoff_until=until)
    MailHost.objects.create(name=account.smtp_server_name, backoff_until=until, reason="421")
    OutboundMessageAttempt.objects.update(held_code=state, due_at=until or timezone.now() + timedelta(days=1))
    return OutboundMessageAttempt.objects.get()


@pytest.mark.parametrize("state", ["limited", "quota"])
def test_clearing_a_backoff_ends_the_account_s_and_its_server_s(
    staff: Client, account: AgentEmailAccount, state: str
) -> None:
    attempt = a_waiting_mail(account, state, timezone.now() + timedelta(hours=1))
    answer = staff.post(act_page("clear_backoff", account), follow=True)
    assert "messages that were waiting: 1." in html_of(answer)
    cleared = AgentEmailAccount.objects.get()
    assert (cleared.state, cleared.backoff_until, MailHost.objects.count()) == ("active", None, 0)
    attempt.refresh_from_db()
    assert attempt.held_code == "" and attempt.due_at <= timezone.now()
    assert LogEntry.objects.get().change_message.startswith("Clear backoff")


@pytest.mark.parametrize("state", ["paused", "auth_needed"])
def test_clearing_a_backoff_leaves_what_a_person_has_to_end(
    staff: Client, account: AgentEmailAccount, state: str
) -> None:
    attempt = a_waiting_mail(account, state, None)
    staff.post(act_page("clear_backoff", account))
    assert (AgentEmailAccount.objects.get().state, MailHost.objects.count()) == (state, 0)
    attempt.refresh_from_db()
    assert attempt.held_code == state


def test_a_server_is_taken_up_again_for_all_its_mailboxes(staff: Client, account: AgentEmailAccount) -> None:
    a_waiting_mail(account, "active", timezone.now() + timedelta(hours=1))
    selected = {"action": "clear_backoff", "_selected_action": [account.smtp_server_name]}
    answer = staff.post(page("mailhost_changelist"), selected, follow=True)
    assert "messages that were waiting: 1." in html_of(answer)
    assert not MailHost.objects.exists() and not OutboundMessageAttempt.objects.exclude(held_code="").exists()
    assert LogEntry.objects.count() == 1


# The list


@pytest.fixture
def several(server: ScriptedSmtpServer) -> dict[str, AgentEmailAccount]:
    """Mailboxes by how they are."""
    soon, past = timezone.now() + timedelta(hours=1), timezone.now() - timedelta(hours=1)
    found = {
        "well": another(1, smtp_tested_fingerprint="x", smtp_last_ok_at=past),
        "failing": another(2, smtp_error="535 no"),
        "limited": another(3, state="limited", state_until=soon),
        "over": another(4, state="quota", state_until=past),
        "blocked": another(5, state="blocked"),
        "slow server": another(6),
        "fast server": another(7),
        "polled slowly": another(8, backoff_until=soon, imap_host="imap.example"),
    }
    MailHost.objects.create(name="smtp6.example:2525", backoff_until=soon)
    MailHost.objects.create(name="smtp7.example:2525", backoff_until=past)
    return found


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"state": "held"}, {"limited", "blocked"}),
        ({"state": "person"}, {"blocked"}),
        ({"state": "limited"}, {"limited"}),
        ({"state": "quota"}, set()),
        ({"health": "ok"}, {"well"}),
        ({"health": "failing"}, {"failing"}),
        ({"tested": "yes"}, {"well"}),
        ({"tested": "no-imap"}, {"polled slowly"}),
        ({"backoff": "host"}, {"slow server"}),
        ({"backoff": "account"}, {"limited", "polled slowly"}),
        ({"backoff": "any"}, {"limited", "polled slowly", "slow server"}),
        ({"q": "a3@"}, {"limited"}),
        ({"q": "Agent 5"}, {"blocked"}),
        ({"q": "smtp2.example"}, {"failing"}),
    ],
    ids=lambda value: str(value if isinstance(value, dict) else sorted(value)),
)
def test_mailboxes_are_filtered_by_how_they_are(
    staff: Client, several: dict[str, AgentEmailAccount], query: dict[str, str], expected: set[str]
) -> None:
    listed = staff.get(page("agentemailaccount_changelist"), query).context["cl"].result_list
    names = {account.pk: name for name, account in several.items()}
    assert {names[row.pk] for row in listed} == expected


def test_active_and_untested_are_the_others(staff: Client, several: dict[str, AgentEmailAccount]) -> None:
    url = page("agentemailaccount_changelist")
    assert staff.get(url, {"state": "active"}).context["cl"].result_count == len(several) - 2
    assert staff.get(url, {"tested": "no"}).context["cl"].result_count == len(several) - 1
    assert PersistentAgent.objects.count() == len(several)


def test_a_server_in_backoff_shows_until_when(staff: Client, several: dict[str, AgentEmailAccount]) -> None:
    rows = staff.get(page("agentemailaccount_changelist")).context["cl"].result_list
    until = {row.smtp_host: row.host_backoff_until for row in rows}
    assert until["smtp6.example"] is not None and until["smtp7.example"] is None
