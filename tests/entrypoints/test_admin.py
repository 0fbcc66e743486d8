"""The admin as its users meet it: mailboxes edited and tested, messages looked at and acted upon."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.api import EmailAttachmentPayload, send_agent_email
from gobii_email.domain.secret import Secret
from gobii_email.models import (
    AgentEmailAccount,
    ConnectionTest,
    OutboundMessageAttempt,
    OutboundMessageRecipient,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services.accounts import enable
from gobii_email.services.diagnose import test_smtp
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.entrypoints.admin_site import ADDRESS, PASSWORD, account, page, server, staff

__all__ = ["account", "server", "staff"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("doorbell")]
PIXEL = b"\x89PNG\r\n\x1a\n0000"


def endpoint_page(account: AgentEmailAccount) -> str:
    return page("persistentagentcommsendpoint_change", account.pk)


def submit(client: Client, account: AgentEmailAccount, **fields: str | None) -> Any:
    """Posts the endpoint's page as it was rendered, with some fields filled in; None unticks one."""
    html = client.get(endpoint_page(account)).content.decode()
    values = rendered_values(html)
    for name, value in fields.items():
        key = f"agentemailaccount-0-{name}"
        assert f'name="{key}"' in html, f"the page has no field {key}"
        values.pop(key, None)
        if value is not None:
            values[key] = value
    return client.post(endpoint_page(account), values)


def rendered_values(html: str) -> dict[str, str]:
    """What a browser would send back for the main form."""
    form = re.search(r'<form [^>]*id="persistentagentcommsendpoint_form".*?</form>', html, re.DOTALL)
    assert form is not None
    values = {}
    for tag in re.findall(r"<input [^>]*>", form.group()):
        attributes = dict(re.findall(r'([\w-]+)="([^"]*)"', tag))
        if attributes.get("type") in {"submit", "button"} or "name" not in attributes:
            continue
        if attributes.get("type") != "checkbox":
            values[attributes["name"]] = attributes.get("value", "")
        elif " checked" in tag:
            values[attributes["name"]] = "on"
    for name, options in re.findall(r'<select name="([^"]+)".*?>(.*?)</select>', form.group(), re.DOTALL):
        chosen = re.search(r'<option value="([^"]*)" selected', options)
        values[name] = chosen.group(1) if chosen else ""
    return values


# Mailboxes


def test_a_mailbox_belongs_to_an_agents_own_email_endpoint_only(staff: Client, account: Any) -> None:
    assert 'name="agentemailaccount-0-smtp_host"' in staff.get(endpoint_page(account)).content.decode()
    outside = PersistentAgentCommsEndpoint.objects.create(channel="email", address="c@rcpt.example")
    sms = PersistentAgentCommsEndpoint.objects.create(
        channel="sms", address="+1", owner_agent=account.endpoint.owner_agent
    )
    for other in (outside, sms):
        html = staff.get(page("persistentagentcommsendpoint_change", other.pk)).content.decode()
        assert "smtp_host" not in html and "Test SMTP" not in html
    assert "smtp_host" not in staff.get(page("persistentagentcommsendpoint_add")).content.decode()


def test_a_mailbox_is_set_up_tested_and_enabled_by_hand(
    staff: Client, account: AgentEmailAccount, server: ScriptedSmtpServer
) -> None:
    AgentEmailAccount.objects.all().delete()
    response = submit(
        staff, account, smtp_host="localhost", smtp_port=str(server.port), smtp_username="anna",
        smtp_password=PASSWORD,
    )  # fmt: skip
    assert response.status_code == 302, response.context["errors"]
    made = AgentEmailAccount.objects.get()
    assert made.get_smtp_password() == Secret(PASSWORD)
    test_smtp(made)
    assert AgentEmailAccount.objects.get().is_smtp_tested
    assert submit(staff, account, is_outbound_enabled="on").status_code == 302
    assert AgentEmailAccount.objects.get().is_outbound_enabled


def test_sending_is_not_enabled_before_a_test(staff: Client, account: AgentEmailAccount) -> None:
    response = submit(staff, account, is_outbound_enabled="on")
    assert response.status_code == 422 and "Run Test SMTP" in response.content.decode()
    assert not AgentEmailAccount.objects.get().is_outbound_enabled


def test_a_new_password_and_enabling_in_one_submit_is_a_form_error(staff: Client, account: Any) -> None:
    test_smtp(account)
    response = submit(staff, account, smtp_password="another-S3cret", is_outbound_enabled="on")
    assert response.status_code == 422 and "Run Test SMTP" in response.content.decode()
    assert "S3cret" not in response.content.decode()
    assert AgentEmailAccount.objects.get().get_smtp_password() == Secret(PASSWORD)


@pytest.mark.parametrize(
    "edit",
    [{"smtp_host": "127.0.0.1"}, {"smtp_port": "2525"}, {"smtp_security": "ssl"}, {"smtp_username": "berta"}],
    ids=lambda edit: next(iter(edit)),
)
def test_an_edit_of_the_server_needs_the_password_and_withdraws_the_test(
    staff: Client, account: AgentEmailAccount, edit: dict[str, str]
) -> None:
    test_smtp(account)
    enable(account, outbound=True)
    response = submit(staff, account, **edit)
    assert response.status_code == 422 and "Enter the password again" in response.content.decode()
    assert AgentEmailAccount.objects.get().is_outbound_enabled

    response = submit(staff, account, smtp_password=PASSWORD, **edit)
    assert response.status_code == 302
    edited = AgentEmailAccount.objects.get()
    assert not edited.is_outbound_enabled and not edited.smtp_tested_fingerprint


def test_a_blank_password_keeps_the_stored_one_and_the_test(staff: Client, account: Any) -> None:
    test_smtp(account)
    enable(account, outbound=True)
    response = submit(staff, account, per_hour="100")
    assert response.status_code == 302, response.context["errors"]
    kept = AgentEmailAccount.objects.get()
    assert kept.per_hour == 100 and kept.is_outbound_enabled and kept.is_smtp_tested
    assert kept.get_smtp_password() == Secret(PASSWORD)


@pytest.mark.parametrize(
    "wrong",
    [
        {"smtp_host": "", "is_outbound_enabled": "on"},
        {"smtp_port": "", "is_outbound_enabled": "on"},
        {"smtp_port": "0"},
        {"smtp_port": "99999"},
        {"smtp_auth": "oauth2", "is_outbound_enabled": "on"},
        {"is_inbound_enabled": "on"},
        {"imap_host": "x y"},
        {"poll_interval_sec": "1"},
        {"imap_folder": ""},
        {"smtp_host": "h" * 300},
    ],
    ids=str,
)
def test_everything_the_model_objects_to_is_a_form_error(
    staff: Client, account: AgentEmailAccount, wrong: dict[str, str]
) -> None:
    response = submit(staff, account, **wrong)
    assert response.status_code == 422
    assert 'class="errorlist' in response.content.decode()
    assert AgentEmailAccount.objects.get().smtp_host == "localhost"


def test_the_password_fields_are_write_only(staff: Client, account: AgentEmailAccount) -> None:
    response = submit(staff, account, smtp_password="typed-S3cret", smtp_port="99999")
    for html in (staff.get(endpoint_page(account)).content.decode(), response.content.decode()):
        assert "S3cret" not in html
        for field in re.findall(r'<input type="password"[^>]*>', html):
            assert 'autocomplete="new-password"' in field and "value=" not in field
    assert "no-store" in staff.get(endpoint_page(account)).headers["Cache-Control"]


def test_what_was_typed_is_hidden_from_error_reports(
    account: AgentEmailAccount, rf: Any, admin_user: Any
) -> None:
    from django.contrib import admin

    request = rf.post(endpoint_page(account), {})
    request.user = admin_user
    request._dont_enforce_csrf_checks = True
    admin.site._registry[PersistentAgentCommsEndpoint].changeform_view(request, str(account.pk))
    assert request.sensitive_post_parameters == "__ALL__"


# Messages


@pytest.fixture
def message(account: AgentEmailAccount) -> PersistentAgentMessage:
    test_smtp(account)
    enable(account, outbound=True)
    return send_agent_email(
        from_endpoint=ADDRESS,
        to=["b@rcpt.example", "c@rcpt.example"],
        subject="Report <b>&",
        body='<p onclick="x()">Hello <img src="cid:pixel"></p><script>alert(1)</script>',
        attachments=[EmailAttachmentPayload("p.png", PIXEL, "image/png", content_id="pixel")],
    )


def test_a_message_is_told_whole_and_cannot_be_changed(
    staff: Client, message: PersistentAgentMessage
) -> None:
    url = page("persistentagentmessage_change", message.pk)
    html = staff.get(url).content.decode()
    for shown in ("Timeline", "b@rcpt.example", "c@rcpt.example", "Message-ID:", 'sandbox=""', "Waits for"):
        assert shown in html, shown
    assert "<script>alert(1)" not in html and "Report <b>" not in html and "S3cret" not in html
    assert 'name="_save"' not in html and "deletelink" not in html
    assert staff.post(url, {"subject": "x"}).status_code == 403
    for name in ("persistentagentmessage", "outboundmessageattempt"):
        assert staff.get(page(f"{name}_add")).status_code == 403
    assert staff.post(page("persistentagentmessage_delete", message.pk), {"post": "yes"}).status_code == 403


def test_the_html_body_is_shown_without_scripts_network_or_our_origin(
    staff: Client, message: PersistentAgentMessage
) -> None:
    response = staff.get(page("persistentagentmessage_body", message.pk))
    policy = response["Content-Security-Policy"]
    assert policy.startswith("sandbox; default-src 'none'; style-src 'sha256-") and "unsafe" not in policy
    assert response["X-Frame-Options"] == "SAMEORIGIN"
    html = response.content.decode()
    assert "data:image/png;base64," in html and "cid:pixel" not in html
    assert "<script" not in html and "onclick" not in html
    assert Client().get(page("persistentagentmessage_body", message.pk)).status_code == 302


def test_simulated_mail_is_viewable_the_same_way(staff: Client, account: AgentEmailAccount) -> None:
    from gobii_email.services.deliver import deliver

    AgentEmailAccount.objects.all().delete()
    sent = send_agent_email(from_endpoint=ADDRESS, to="b@rcpt.example", subject="Hi", body="Hello **you**")
    assert deliver(str(sent.attempts.get().pk), owner="test") == "delivered"
    html = staff.get(page("persistentagentmessage_change", sent.pk)).content.decode()
    assert "postmark_simulation" in html and "Simulated" in html
    body = staff.get(page("persistentagentmessage_body", sent.pk)).content.decode()
    assert "<strong" in body and "you</strong>" in body


@pytest.mark.parametrize(
    ("query", "is_found"),
    [
        ({"q": "c@rcpt.example"}, True),
        ({"q": "Report"}, True),
        ({"q": "@sender.example"}, True),
        ({"q": "anna@sender.example"}, True),
        ({"q": "report <B>"}, True),
        ({"q": "c@rcpt"}, False),
        ({"q": "nowhere"}, False),
        ({"latest_status__exact": "queued"}, True),
        ({"latest_status__exact": "failed"}, False),
        ({"provider": "smtp"}, False),
        ({"timestamp__gte": "2020-01-01 00:00:00+00:00"}, True),
    ],
    ids=str,
)
def test_messages_are_found_by_text_status_provider_and_date(
    staff: Client, message: PersistentAgentMessage, query: dict[str, str], is_found: bool
) -> None:
    html = staff.get(page("persistentagentmessage_changelist"), query).content.decode()
    assert (str(message.pk) in html) is is_found


def test_a_message_is_found_by_its_message_id(staff: Client, message: PersistentAgentMessage) -> None:
    html = staff.get(
        page("persistentagentmessage_changelist"), {"q": message.rfc_message_id}
    ).content.decode()
    assert str(message.pk) in html


def test_cancel_asks_first_and_acts_on_post(staff: Client, message: PersistentAgentMessage) -> None:
    url = page("persistentagentmessage_cancel", message.pk)
    assert url in staff.get(page("persistentagentmessage_change", message.pk)).content.decode()
    assert "Withdraw it?" in staff.get(url).content.decode()
    message.refresh_from_db()
    assert message.latest_status == "queued"
    staff.post(url)
    message.refresh_from_db()
    assert message.latest_status == "cancelled"
    assert LogEntry.objects.filter(change_message__startswith="Cancel").exists()
    assert "cannot be withdrawn" in staff.post(url, follow=True).content.decode()


def test_retry_makes_a_waiting_message_due_now(staff: Client, message: PersistentAgentMessage) -> None:
    later = timezone.now() + timedelta(hours=3)
    OutboundMessageAttempt.objects.update(due_at=later, not_before=later)
    staff.post(page("persistentagentmessage_retry", message.pk))
    due_at = OutboundMessageAttempt.objects.get().due_at
    assert due_at is not None and due_at <= timezone.now()
    html = staff.get(page("persistentagentmessage_change", message.pk)).content.decode()
    assert "Made due now by admin." in html


@pytest.mark.parametrize(
    ("how", "status"), [("sent", "sent"), ("resend", "queued"), ("failed", "failed")], ids=str
)
def test_a_doubt_is_settled_by_hand(
    staff: Client, message: PersistentAgentMessage, how: str, status: str
) -> None:
    now = timezone.now()
    OutboundMessageAttempt.objects.update(status="in_doubt", marked_at=now, due_at=None, provider="smtp")
    PersistentAgentMessage.objects.update(latest_status="in_doubt")
    url = page(f"persistentagentmessage_resolve_{how}", message.pk)
    assert url in staff.get(page("persistentagentmessage_change", message.pk)).content.decode()
    staff.post(url)
    message.refresh_from_db()
    assert message.latest_status == status
    assert OutboundMessageRecipient.objects.filter(message=message).count() == 2
    assert "is not in doubt" in staff.post(url, follow=True).content.decode()


@pytest.mark.parametrize("name", ["retry", "cancel", "resolve_failed"])
def test_only_who_may_change_messages_acts_on_them(name: str, message: PersistentAgentMessage) -> None:
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_persistentagentmessage"))
    client = Client()
    client.force_login(user)
    html = client.get(page("persistentagentmessage_change", message.pk)).content.decode()
    assert "Timeline" in html and "/cancel/" not in html
    assert client.post(page(f"persistentagentmessage_{name}", message.pk)).status_code == 403
    message.refresh_from_db()
    assert message.latest_status == "queued"


def test_every_page_of_the_admin_opens_and_none_shows_a_secret(
    staff: Client, message: PersistentAgentMessage
) -> None:
    attempt = OutboundMessageAttempt.objects.get()
    endpoint = message.from_endpoint
    assert endpoint is not None and endpoint.owner_agent is not None
    encrypted = bytes(AgentEmailAccount.objects.get().smtp_password_encrypted).hex()
    urls = [
        *(
            page(f"{name}_changelist")
            for name in (
                *("persistentagent", "persistentagentcommsendpoint", "agentemailaccount"),
                *("persistentagentmessage", "outboundmessageattempt", "connectiontest", "mailhost"),
            )
        ),
        page("persistentagent_change", endpoint.owner_agent.pk),
        page("persistentagentcommsendpoint_change", endpoint.pk),
        page("persistentagentcommsendpoint_history", endpoint.pk),
        page("agentemailaccount_delete", endpoint.pk),
        *(
            page(f"persistentagentcommsendpoint_{name}", endpoint.pk)
            for name in ("test_smtp", "test_imap", "poll", "pause", "resume", "clear_backoff")
        ),
        *(page("connectiontest_change", test.pk) for test in ConnectionTest.objects.all()),
        page("persistentagentmessage_change", message.pk),
        page("outboundmessageattempt_change", attempt.pk),
        reverse("admin:index"),
    ]
    for url in urls:
        response = staff.get(url)
        assert response.status_code == 200, url
        html = response.content.decode()
        assert "S3cret" not in html and encrypted not in html, url
