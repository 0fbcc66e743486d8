"""What people do in the console: done once, written down, and refused when it comes too late."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from gobii_email.domain.secret import Secret
from gobii_email.models import AgentEmailAccount, OutboundMessageAttempt, PersistentAgentMessage
from gobii_email.services import hold, visit
from tests.conftest import PASSWORD, RecordingDoorbell
from tests.console.conftest import Owner
from tests.console.lint import problems

pytestmark = pytest.mark.django_db


def fields(client: Client, address: str, action: str) -> dict[str, str]:
    """What a browser would send with the form that has a button or an action for `action`."""
    from html.parser import HTMLParser

    class Forms(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.forms: list[tuple[set[str], dict[str, str]]] = []
            self.select = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = {name: value or "" for name, value in attrs}
            if tag == "form":
                self.forms.append(({given.get("action", "")}, {}))
            elif tag == "button" and "formaction" in given:
                self.forms[-1][0].add(given["formaction"])
            elif tag == "input" and "name" in given:
                self.forms[-1][1][given["name"]] = given.get("value", "")
            elif tag == "select":
                self.select = given["name"]
            elif tag == "option" and ("selected" in given or self.select not in self.forms[-1][1]):
                self.forms[-1][1][self.select] = given.get("value", "")

    parsed = Forms()
    parsed.feed(client.get(address).content.decode())
    return next(values for actions, values in parsed.forms if action in actions)


def message_form(owner: Owner, message: PersistentAgentMessage, name: str) -> tuple[str, dict[str, str]]:
    action = reverse("console:message_do", args=[message.pk, name])
    return action, fields(owner.client, reverse("console:message", args=[message.pk]), action)


def account_form(owner: Owner, name: str) -> tuple[str, dict[str, str]]:
    action = reverse(f"console:account_{name}", args=[owner.account.pk])
    return action, fields(owner.client, reverse("console:account", args=[owner.account.pk]), action)


def notes() -> list[str]:
    return [entry.get_change_message() for entry in LogEntry.objects.order_by("pk")]


# Messages


@pytest.mark.parametrize(
    ("name", "status", "note"),
    [
        ("resolve-sent", "sent", "It was sent: Settled as sent."),
        ("resolve-resend", "queued", "Send it again: Settled as not sent; it is sent again."),
        ("resolve-failed", "failed", "It failed: Settled as failed."),
    ],
)
def test_a_doubt_is_ended_by_its_owner(
    name: str, status: str, note: str, ada: Owner, doubtful: PersistentAgentMessage
) -> None:
    action, form = message_form(ada, doubtful, name)
    response = ada.client.post(action, form | {"reason": "She told me."})
    assert response.status_code == 302
    doubtful.refresh_from_db()
    assert doubtful.latest_status == status
    assert notes() == [f"{note} Reason: She told me."]
    page = ada.client.get(response.url).content.decode()
    assert "She told me." in page and "by ada" in page


def test_a_look_into_sent_is_asked_for(
    ada: Owner,
    doubtful: PersistentAgentMessage,
    doorbell: RecordingDoorbell,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    action, form = message_form(ada, doubtful, "look")
    refused = ada.client.post(action, form)
    assert refused.status_code == 409 and "Nobody can look into Sent" in refused.content.decode()
    monkeypatch.setattr(visit, "obstacle", lambda account, now: None)
    assert ada.client.post(action, form).status_code == 302
    assert [call.subject for call in doorbell.called] == [str(doubtful.attempts.get().pk)]
    assert notes() == ["Look in Sent: A worker looks for it now; the timeline tells what it sees."]


def test_a_message_is_withdrawn_and_retried(ada: Owner) -> None:
    message = ada.message()
    ada.client.post(*message_form(ada, message, "cancel"))
    message.refresh_from_db()
    assert message.latest_status == "cancelled"
    ada.client.post(*message_form(ada, message, "retry"))
    message.refresh_from_db()
    assert message.latest_status == "queued"
    assert len(notes()) == 2


def test_mail_of_a_lost_mailbox_may_take_the_installations_transport(ada: Owner) -> None:
    message = ada.message()
    AgentEmailAccount.objects.all().delete()
    action, form = message_form(ada, message, "retry")
    form.pop("default")
    ada.client.post(action, form)
    message.refresh_from_db()
    assert message.had_account, "never without being asked for"
    ada.client.post(action, form | {"default": "on"})
    message.refresh_from_db()
    assert not message.had_account


def test_what_was_settled_meanwhile_is_not_settled_again(
    ada: Owner, doubtful: PersistentAgentMessage
) -> None:
    action, form = message_form(ada, doubtful, "resolve-failed")
    ada.client.post(*message_form(ada, doubtful, "resolve-sent"))
    response = ada.client.post(action, form | {"reason": "Typed at length"})
    page = response.content.decode()
    assert response.status_code == 409
    assert "It changed since this page was shown: it is sent now." in page
    doubtful.refresh_from_db()
    assert doubtful.latest_status == "sent"
    assert len(notes()) == 1


def test_what_was_typed_survives_a_conflict(ada: Owner, doubtful: PersistentAgentMessage) -> None:
    action, form = message_form(ada, doubtful, "resolve-sent")
    response = ada.client.post(action, form | {"version": "of yesterday", "reason": "Typed at length"})
    assert response.status_code == 409
    assert 'value="Typed at length"' in response.content.decode()
    assert problems(response.content.decode()) == []


def test_an_act_that_makes_no_sense_is_refused(ada: Owner) -> None:
    message = ada.message()
    _, form = message_form(ada, message, "cancel")
    response = ada.client.post(reverse("console:message_do", args=[message.pk, "resolve-sent"]), form)
    assert response.status_code == 409 and b"not in doubt" in response.content
    assert (
        ada.client.post(reverse("console:message_do", args=[message.pk, "explode"]), form).status_code == 404
    )
    assert notes() == []


# Mailboxes


def test_a_mailbox_is_paused_with_a_reason_and_an_end(ada: Owner) -> None:
    action, form = account_form(ada, "pause")
    response = ada.client.post(action, form | {"reason": "Moving house", "length": "1d"})
    account = AgentEmailAccount.objects.get(pk=ada.account.pk)
    assert (account.state, account.state_reason) == ("paused", "Paused by ada: Moving house")
    assert timedelta(hours=23) < account.state_until - timezone.now() <= timedelta(days=1)
    assert notes()[0].startswith("Paused until ") and notes()[0].endswith("Reason: Moving house")
    assert "Moving house" in ada.client.get(response.url).content.decode()
    action, form = account_form(ada, "resume")
    ada.client.post(action, form)
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).state == "active"


def test_a_pause_needs_a_reason(ada: Owner) -> None:
    action, form = account_form(ada, "pause")
    response = ada.client.post(action, form | {"length": "1h"})
    assert response.status_code == 422
    assert problems(response.content.decode()) == []
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).state == "active"


@pytest.mark.parametrize("name", ["pause", "switch"])
def test_a_mailbox_that_was_held_meanwhile_is_looked_at_first(name: str, ada: Owner) -> None:
    action, form = account_form(ada, name)
    hold.pause(ada.account, reason="Somebody else was faster")
    response = ada.client.post(action, form | {"reason": "Typed at length"})
    assert response.status_code == 409
    page = response.content.decode()
    assert "Somebody else was faster" in page and 'value="Typed at length"' in page
    assert problems(page) == []
    account = AgentEmailAccount.objects.get(pk=ada.account.pk)
    assert account.state_reason == "Somebody else was faster" and account.is_outbound_enabled
    assert notes() == []


def test_a_resumption_that_comes_too_late_keeps_its_reason(ada: Owner) -> None:
    hold.pause(ada.account, reason="Moving house")
    action, form = account_form(ada, "resume")
    hold.resume(ada.account)
    response = ada.client.post(action, form | {"reason": "Typed at length"})
    assert response.status_code == 409 and 'value="Typed at length"' in response.content.decode()
    assert notes() == []


def test_sending_is_switched_off_and_on(ada: Owner) -> None:
    ada.client.post(*account_form(ada, "switch"))
    assert not AgentEmailAccount.objects.get(pk=ada.account.pk).is_outbound_enabled
    ada.client.post(*account_form(ada, "switch"))
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).is_outbound_enabled
    assert notes() == ["Sending is disabled; its mail waits.", "Sending is enabled."]


def test_what_was_not_tested_is_not_enabled(ada: Owner) -> None:
    AgentEmailAccount.objects.update(is_outbound_enabled=False, smtp_tested_fingerprint="")
    _, form = account_form(ada, "switch")
    address = reverse("console:account_switch", args=[ada.account.pk])
    response = ada.client.post(address, form | {"direction": "outbound", "to": "on"})
    assert response.status_code == 422 and "Run Test SMTP" in response.content.decode()
    assert not AgentEmailAccount.objects.get(pk=ada.account.pk).is_outbound_enabled


def test_settings_are_changed_and_the_change_is_named(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    response = ada.client.post(action, form | {"per_day": "500"})
    assert response.status_code == 302
    account = AgentEmailAccount.objects.get(pk=ada.account.pk)
    assert account.per_day == 500 and account.is_outbound_enabled and account.is_smtp_tested
    assert account.get_smtp_password() == Secret(PASSWORD)
    assert notes() == ["Changed per day."]


def test_another_server_needs_the_password_again(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    response = ada.client.post(action, form | {"smtp_host": "smtp.elsewhere.example"})
    page = response.content.decode()
    assert response.status_code == 422
    assert "Enter the password again together with this change." in page
    assert 'value="smtp.elsewhere.example"' in page
    assert problems(page) == []
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).smtp_host == "localhost"


def test_a_new_password_is_stored_and_never_shown(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    response = ada.client.post(action, form | {"smtp_password": "new-Canary"}, follow=True)
    account = AgentEmailAccount.objects.get(pk=ada.account.pk)
    assert account.get_smtp_password() == Secret("new-Canary")
    assert not account.is_outbound_enabled, "it is to be tested first"
    assert "new-Canary" not in response.content.decode() and "new-Canary" not in str(notes())


def test_settings_that_changed_meanwhile_are_compared(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    AgentEmailAccount.objects.update(per_day=77)
    typed = {"per_hour": "123", "per_day": "500", "smtp_password": "typed-Canary"}
    response = ada.client.post(action, form | typed)
    page = response.content.decode()
    assert response.status_code == 409
    assert 'value="123"' in page and 'value="500"' in page and "<td>77</td>" in page
    assert "typed-Canary" not in page
    assert problems(page) == []
    account = AgentEmailAccount.objects.get(pk=ada.account.pk)
    assert (account.per_day, account.per_hour) == (77, 1_000_000_000)


def test_what_was_compared_can_be_saved(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    AgentEmailAccount.objects.update(per_day=77)
    response = ada.client.post(action, form | {"per_day": "500"})

    class Again:
        def get(self, _: str) -> Any:
            return response

    again = fields(Again(), "", action)  # type: ignore[arg-type]
    assert ada.client.post(action, again).status_code == 302
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).per_day == 500


def test_health_written_by_workers_makes_no_form_stale(ada: Owner) -> None:
    action, form = account_form(ada, "save")
    AgentEmailAccount.objects.update(
        smtp_last_ok_at=timezone.now(), smtp_error="It answered 421.", updated_at=timezone.now()
    )
    assert ada.client.post(action, form | {"per_day": "500"}).status_code == 302


def test_a_mailbox_is_removed_and_its_history_stays(ada: Owner) -> None:
    message = ada.message()
    action = reverse("console:account_delete", args=[ada.account.pk])
    response = ada.client.post(action, fields(ada.client, action, "") | {"reason": "Not needed"})
    assert response.status_code == 302
    assert not AgentEmailAccount.objects.filter(pk=ada.account.pk).exists()
    assert PersistentAgentMessage.objects.filter(pk=message.pk).exists()
    assert OutboundMessageAttempt.objects.filter(message=message).exists()
    assert notes() == ["Removed with its secrets. Reason: Not needed"]


def test_a_mailbox_that_changed_meanwhile_is_not_removed(ada: Owner) -> None:
    action = reverse("console:account_delete", args=[ada.account.pk])
    form = fields(ada.client, action, "")
    hold.pause(ada.account, reason="Somebody else was faster")
    response = ada.client.post(action, form | {"reason": "Typed at length"})
    assert response.status_code == 409 and 'value="Typed at length"' in response.content.decode()
    assert AgentEmailAccount.objects.filter(pk=ada.account.pk).exists()


def test_the_log_tells_who_did_what_when_and_why(ada: Owner, staff: Client) -> None:
    action, form = account_form(ada, "pause")
    ada.client.post(action, form | {"reason": "Moving house", "length": ""})
    page = staff.get(reverse("console:account", args=[ada.account.pk])).content.decode()
    log = page.partition('id="log-title"')[2]
    assert "ada" in log and "Paused until somebody resumes it." in log and "Moving house" in log
