"""The admin's pages of received mail, and how messages that were received are shown beside those sent."""

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from gobii_email.models import AgentEmailAccount, PersistentAgentMessage, ReceivedMail
from tests.conftest import RecordingDoorbell
from tests.services.inbound import ANN, mail, received, stored

pytestmark = pytest.mark.django_db

State = ReceivedMail.State
FAILED = "mx.google.com; dmarc=fail header.from=person.example"
HTML = "<p>Good <b>morning</b></p><script>evil()</script>"


@pytest.fixture(autouse=True)
def at_gmail(doorbell: RecordingDoorbell, account: AgentEmailAccount) -> None:
    account.imap_host = "imap.gmail.com"
    account.save()


def page(name: str, *args: object) -> str:
    return reverse(f"admin:gobii_email_{name}", args=args)


def with_rights(django_user_model: Any, *names: str) -> Client:
    user = django_user_model.objects.create_user("bob", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=names))
    client = Client()
    client.force_login(user)
    return client


def test_received_mail_is_listed_with_its_state_and_filtered(
    admin_client: Client, account: AgentEmailAccount
) -> None:
    received(account.endpoint, mail())
    received(account.endpoint, mail(Authentication_Results=FAILED, From="eve@person.example"), uid=2)
    html = admin_client.get(page("receivedmail_changelist")).content.decode()
    assert ANN in html and "eve@person.example" in html and "DMARC fails" in html
    held = admin_client.get(
        page("receivedmail_changelist"), {"state__exact": State.QUARANTINED}
    ).content.decode()
    assert "eve@person.example" in held and ANN not in held
    found = admin_client.get(page("receivedmail_changelist"), {"q": "eve"}).content.decode()
    assert "eve@person.example" in found and ANN not in found


def test_the_list_reads_no_bodies_and_leads_on(
    admin_client: Client, account: AgentEmailAccount, monkeypatch: Any, django_assert_max_num_queries: Any
) -> None:
    monkeypatch.setattr("gobii_email.admin.newest.MOST_ROWS", 2)
    rows = [
        stored(account.endpoint, mail(), uid=uid, from_address=f"a{uid}@person.example") for uid in range(3)
    ]
    with django_assert_max_num_queries(12) as captured:
        html = admin_client.get(page("receivedmail_changelist")).content.decode()
    assert '"raw"' not in "".join(query["sql"] for query in captured.captured_queries)
    assert rows[2].from_address in html and rows[0].from_address not in html
    (further,) = {part.split('"')[0] for part in html.split('href="?before=')[1:]}
    older = admin_client.get(page("receivedmail_changelist") + "?before=" + further).content.decode()
    assert rows[0].from_address in older


def test_the_bytes_are_saved_and_never_shown(admin_client: Client, account: AgentEmailAccount) -> None:
    row = received(account.endpoint, mail(HTML, Content_Type="text/html"))
    answer = admin_client.get(page("receivedmail_raw", row.pk))
    assert answer.content == mail(HTML, Content_Type="text/html")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["Content-Disposition"].startswith("attachment;")
    assert answer["X-Content-Type-Options"] == "nosniff"


def test_a_mail_in_quarantine_is_released_by_post_alone(
    admin_client: Client, account: AgentEmailAccount
) -> None:
    row = received(account.endpoint, mail(Authentication_Results=FAILED))
    assert (
        page("receivedmail_release", row.pk)
        in admin_client.get(page("receivedmail_change", row.pk)).content.decode()
    )
    assert "Let this mail through" in admin_client.get(page("receivedmail_release", row.pk)).content.decode()
    row.refresh_from_db()
    assert row.state == State.QUARANTINED
    admin_client.post(page("receivedmail_release", row.pk))
    row.refresh_from_db()
    assert row.state == State.RECEIVED and row.reason.startswith("Released by admin.")
    answer = admin_client.post(page("receivedmail_release", row.pk), follow=True)
    assert "not in quarantine any more" in answer.content.decode()


def test_only_who_may_change_received_mail_releases_it(
    account: AgentEmailAccount, django_user_model: Any
) -> None:
    row = received(account.endpoint, mail(Authentication_Results=FAILED))
    client = with_rights(django_user_model, "view_receivedmail")
    assert (
        page("receivedmail_release", row.pk)
        not in client.get(page("receivedmail_change", row.pk)).content.decode()
    )
    assert client.post(page("receivedmail_release", row.pk)).status_code == 403
    row.refresh_from_db()
    assert row.state == State.QUARANTINED


def test_without_the_right_to_see_received_mail_nothing_is_seen(
    account: AgentEmailAccount, django_user_model: Any
) -> None:
    row = received(account.endpoint, mail())
    client = with_rights(django_user_model, "view_persistentagentmessage")
    for name in ("receivedmail_change", "receivedmail_raw", "receivedmail_release"):
        assert client.get(page(name, row.pk)).status_code in (302, 403, 404)


def test_a_received_message_is_shown_as_one(admin_client: Client, account: AgentEmailAccount) -> None:
    message = received(account.endpoint, mail(HTML, Content_Type="text/html")).message
    listed = admin_client.get(page("persistentagentmessage_changelist")).content.decode()
    assert "received" in listed and account.endpoint.address in listed
    html = admin_client.get(page("persistentagentmessage_change", message.pk)).content.decode()
    assert "Good morning" in html and "Taken in:" in html and "<h2>Attempts</h2>" not in html
    assert "evil()" not in html and "Retry" not in html
    framed = admin_client.get(page("persistentagentmessage_body", message.pk))
    assert "<b>morning</b>" in framed.content.decode() and "script" not in framed.content.decode()
    assert "sandbox" in framed["Content-Security-Policy"]


def test_nothing_can_be_done_about_a_received_message(
    admin_client: Client, account: AgentEmailAccount
) -> None:
    message = received(account.endpoint, mail()).message
    for name in ("retry", "cancel", "resolve_sent"):
        admin_client.post(page(f"persistentagentmessage_{name}", message.pk))
    found = PersistentAgentMessage.objects.get(pk=message.pk)
    assert (found.latest_status, found.expires_at) == ("delivered", None)
