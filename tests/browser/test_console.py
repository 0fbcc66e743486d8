"""The console as a person meets it: mail goes out before their eyes, doubts end, a mailbox is added."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from django.utils import timezone

from gobii_email.api import send_agent_email
from gobii_email.models import (
    AgentEmailAccount,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services import diagnose
from gobii_email.services.deliver import deliver
from gobii_email.testing.dns_server import StubDnsServer
from gobii_email.testing.oauth_server import LocalOAuthProvider
from gobii_email.testing.smtp_server import ScriptedSmtpServer
from tests.browser.conftest import Arrive
from tests.conftest import PASSWORD, connect
from tests.console.conftest import Owner, paths

pytestmark = pytest.mark.django_db(transaction=True)
FOCUSED = """() => {
    const at = document.activeElement;
    if (at === document.body) return [-1, ""];
    return [[...document.querySelectorAll("*")].indexOf(at), getComputedStyle(at).outlineStyle];
}"""
EXAMINE = Path(__file__).with_name("examine.js").read_text()


@pytest.fixture
def mailbox(ada: Owner, smtp_server: ScriptedSmtpServer, settings: Any) -> PersistentAgentCommsEndpoint:
    """One of Ada's agent's, at a real server."""
    settings.BYO_EMAIL_ALLOWED_PORTS = str(smtp_server.port)
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=ada.agent, channel="email", address="agent@sender.example"
    )
    connect(endpoint, smtp_server.port)
    return endpoint


@pytest.fixture
def dns(settings: Any) -> Iterator[StubDnsServer]:
    with StubDnsServer() as server:
        settings.GOBII_DNS_SERVERS = "{}:{}".format(*server.address)
        yield server


def mail_from(endpoint: PersistentAgentCommsEndpoint) -> PersistentAgentMessage:
    to, body = "friend@outside.example", "<p>Good <b>day</b></p>"
    return send_agent_email(from_endpoint=endpoint, to=to, subject="A greeting", body=body)


def work(message: PersistentAgentMessage) -> None:
    """What a worker does when it is told of the message."""
    deliver(str(message.attempts.get(status="queued").pk), owner="worker-1")


def standing(page: Any, word: str) -> Any:
    """The message's status once it is `word`; nobody reloads the page."""
    found = page.locator("#stand .status", has_text=re.compile(rf"\b{word}\b"))
    found.wait_for()
    return found


# Mail before one's eyes


def test_a_message_goes_out_before_ones_eyes(arrive: Arrive, ada: Owner, mailbox: Any) -> None:
    message = mail_from(mailbox)
    visitor = arrive(ada)
    page = visitor.see(reverse("console:message", args=[message.pk]))
    standing(page, "queued")
    page.evaluate("window.sameDocument = true")
    page.get_by_role("button", name="Cancel").focus()
    work(message)
    standing(page, "sent")
    assert page.evaluate("window.sameDocument") is True
    assert "accepted" in page.locator(".timeline").inner_text().lower()
    page.locator("main#main:focus").wait_for()  # the button is gone, its place is not
    assert page.locator("#live[hx-trigger]").count() == 0, "what is over is not asked for any more"
    visitor.shoot("message-sent")


def test_live_updates_can_be_paused(arrive: Arrive, ada: Owner, mailbox: Any) -> None:
    message = mail_from(mailbox)
    page = arrive(ada).see(reverse("console:message", args=[message.pk]))
    page.get_by_role("button", name="Pause live updates").click()
    page.locator(".htmx-request").wait_for(state="detached")  # what was asked for before is answered
    work(message)
    page.wait_for_timeout(1500)
    assert "queued" in page.locator("#stand").inner_text()
    page.get_by_role("button", name="Resume live updates").click()
    standing(page, "sent")


def test_what_is_being_typed_is_not_taken_away(arrive: Arrive, ada: Owner, mailbox: Any) -> None:
    message = mail_from(mailbox)
    page = arrive(ada).see(reverse("console:message", args=[message.pk]))
    reason = page.get_by_label("Reason")
    reason.fill("Because")
    work(message)
    page.wait_for_timeout(1500)
    assert reason.input_value() == "Because"
    reason.fill("")
    page.locator("h1").click()
    standing(page, "sent")


def test_the_keyboard_keeps_its_place_when_a_part_is_replaced(
    arrive: Arrive, ada: Owner, mailbox: PersistentAgentCommsEndpoint
) -> None:
    visitor = arrive(ada)
    visitor.page.clock.install()
    page = visitor.see(reverse("console:overview"))
    page.get_by_role("link", name="waiting").focus()
    mail_from(mailbox)
    page.clock.fast_forward(16_000)
    page.get_by_role("link", name="1 waiting").and_(page.locator(":focus")).wait_for()


@pytest.mark.parametrize("has_script", [True, False], ids=["script", "no script"])
def test_a_doubt_is_resolved(
    has_script: bool, arrive: Arrive, ada: Owner, doubtful: PersistentAgentMessage
) -> None:
    visitor = arrive(ada, java_script_enabled=has_script)
    page = visitor.see(reverse("console:overview"))
    page.get_by_role("link", name="Did it arrive?").click()
    page.get_by_label("Reason").fill("She told me on the telephone")
    page.get_by_role("button", name="It was sent").press("Enter")
    page.get_by_text("Settled as sent.", exact=True).wait_for()
    standing(page, "sent")
    assert "She told me on the telephone" in page.locator(".log").inner_text()
    doubtful.refresh_from_db()
    assert doubtful.latest_status == "sent"


def test_html_is_shown_in_a_frame_that_can_do_nothing(arrive: Arrive, ada: Owner) -> None:
    body = (
        '<h1 style="color: rgb(200, 0, 0)">Good day</h1><img src="https://track.example/p.gif">'
        '<script>top.location = "/"</script><a href="https://evil.example/">a link</a>'
    )
    message = ada.message("With HTML", body=body)
    page = arrive(ada).see(reverse("console:message", args=[message.pk]) + "?show=html")
    frame = page.frame_locator("iframe")
    heading = frame.get_by_role("heading", name="Good day")
    heading.wait_for()
    assert heading.evaluate("el => getComputedStyle(el).color") == "rgb(200, 0, 0)"
    assert frame.locator("script, img[src]").count() == 0


# A mailbox, from its address to its first mail


def test_a_mailbox_is_added_and_sends(
    arrive: Arrive, ada: Owner, dns: StubDnsServer, smtp_server: ScriptedSmtpServer, settings: Any
) -> None:
    settings.BYO_EMAIL_ALLOWED_PORTS = str(smtp_server.port)
    visitor = arrive(ada)
    page = visitor.see(reverse("console:accounts"))
    page.get_by_role("link", name="Add a mailbox").click()
    page.get_by_label("E-mail address").fill("agent@sender.example")
    page.get_by_role("button", name="Look it up").click()
    page.get_by_role("heading", name="Connect agent@sender.example").wait_for()
    page.get_by_role("textbox", name="Password").fill(PASSWORD)
    sending = page.get_by_role("group", name="Sending (SMTP)")
    sending.get_by_label("Server").fill("localhost")
    sending.get_by_label("Port").fill(str(smtp_server.port))
    sending.get_by_label("Security").select_option("starttls")
    page.get_by_label("These are my provider's servers").check()
    visitor.shoot("add-mailbox")
    page.get_by_role("button", name="Connect and test").click()
    page.get_by_text("The server accepts mail from this account.").first.wait_for()
    page.locator("#history .status.good").wait_for()
    assert page.locator("#tests[hx-trigger]").count() == 0
    visitor.shoot("mailbox-tested")
    page.get_by_role("button", name="Enable sending").click()
    page.get_by_text("Sending is enabled.", exact=True).wait_for()
    assert PASSWORD not in page.content()
    account = AgentEmailAccount.objects.get(endpoint__address="agent@sender.example")
    message = mail_from(account.endpoint)
    work(message)
    standing(visitor.see(reverse("console:message", args=[message.pk])), "sent")
    assert len(smtp_server.wait_for(1)) == 1


def test_a_mailbox_is_connected_by_signing_in_with_its_provider(
    arrive: Arrive, ada: Owner, settings: Any, live_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        diagnose, "start_test", lambda *_: None
    )  # the provider's real servers are not ours to dial
    settings.PUBLIC_URL = live_server.url
    with LocalOAuthProvider(person={"email": "ada@gmail.com", "email_verified": True, "sub": "1"}) as google:
        for name, value in google.settings("google").items():
            setattr(settings, name, value)
        visitor = arrive(ada, leads_to=google.url)
        page = visitor.see(f"/console/accounts/add/found/?address=ada%40gmail.com&agent={ada.agent.pk}&name=")
        page.get_by_role("button", name="Sign in with Google").click()
        page.get_by_text("Connected with Google").wait_for()
        page.get_by_role("button", name="Disconnect").click()
        page.get_by_text("The mailbox is disconnected").first.wait_for()
        assert len(google.revoked) == 1


def test_signing_in_takes_a_keyboard_alone(arrive: Arrive, ada: Owner) -> None:
    page = arrive(None).see(reverse("console:messages"))
    page.locator("[name=username]:focus").wait_for()
    page.keyboard.type("ada")
    page.keyboard.press("Tab")
    page.keyboard.type("secret-of-ada")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Messages", exact=True).wait_for()


def test_the_first_key_leads_past_the_menu(arrive: Arrive, ada: Owner) -> None:
    page = arrive(ada).see(reverse("console:messages"))
    page.keyboard.press("Tab")
    page.get_by_role("link", name="Skip to the content").and_(page.locator(":focus")).wait_for()
    page.keyboard.press("Enter")
    page.locator("main#main:focus").wait_for()


# Every page, for every eye


@pytest.fixture
def world(ada: Owner, doubtful: PersistentAgentMessage, tested: Any) -> PersistentAgentMessage:
    """A day with enough of everything to see it."""
    now = timezone.now()
    usual = ["sent"] * 6 + ["failed", "sent", "delivered", "cancelled", "partially_sent", "queued"]
    for number in range(72):
        status = usual[number % 12] if number % 12 < 6 or number % 5 == 0 else "sent"
        message = ada.message(f"Figures of week {number}", to=f"reader{number}@outside.example")
        at = now - timedelta(minutes=1 + 4 * (number % 8) + 20 * (71 - number))
        PersistentAgentMessage.objects.filter(pk=message.pk).update(latest_status=status, timestamp=at)
        if status != "queued":
            OutboundMessageAttempt.objects.filter(message=message).update(
                status="sent" if status != "failed" else "failed",
                provider="smtp",
                due_at=None,
                scope="recipient",
            )
    OutboundMessageAttempt.objects.filter(message=doubtful).update(
        stage_ms={"connect": 12, "tls": 31, "auth": 18, "mail": 9, "rcpt": 11, "data": 40, "dot": 240},
        tls="TLSv1.3", started_at=now, finished_at=now,
    )  # fmt: skip
    limits = {"per_minute": 30, "per_hour": None, "per_day": 500, "max_connections": 2}
    AgentEmailAccount.objects.update(smtp_error="The server answered 421 4.7.0 Try again later.", **limits)
    return doubtful


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_page_can_be_read_and_used(
    width: int, scheme: str, arrive: Arrive, ada: Owner, world: PersistentAgentMessage
) -> None:
    visitor = arrive(ada, viewport={"width": width, "height": 800}, color_scheme=scheme)
    wrong = {}
    pages = paths(ada, world) | {"add": reverse("console:add")}
    pages["found"] = f"/console/accounts/add/found/?address=ada%40gmail.com&agent={ada.agent.pk}&name="
    for name, path in pages.items():
        page = visitor.see(path)
        visitor.shoot(f"{name}-{width}-{scheme}")
        for one in page.locator("details:not([open]) > summary").all():
            one.click()
        if found := page.evaluate(EXAMINE):
            wrong[name] = found
    assert wrong == {}


def test_the_keyboard_reaches_everything_in_order(
    arrive: Arrive, ada: Owner, world: PersistentAgentMessage
) -> None:
    page = arrive(ada).see(reverse("console:account", args=[ada.account.pk]))
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        place, outline = page.evaluate(FOCUSED)
        if place < 0 or place in seen:
            break
        assert outline != "none"
        seen.append(place)
    assert seen == sorted(seen) and len(seen) > 30


def test_the_admin_loads_nothing_that_its_policy_forbids(arrive: Arrive, ada: Owner, mailbox: Any) -> None:
    ada.user.is_staff = ada.user.is_superuser = True
    ada.user.save()
    message = mail_from(mailbox)
    visitor = arrive(ada)
    models = ["persistentagentmessage", "outboundmessageattempt", "agentemailaccount", "connectiontest"]
    pages = [f"{model}/" for model in [*models, "persistentagentcommsendpoint", "persistentagent"]]
    pages += [f"persistentagentmessage/{message.pk}/change/"]
    pages += [f"persistentagentcommsendpoint/{mailbox.pk}/change/"]
    visitor.see("/admin/")
    for path in pages:
        visitor.see(f"/admin/gobii_email/{path}")
