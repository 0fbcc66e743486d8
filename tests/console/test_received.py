"""Messages that were received, in the console: listed beside those sent, shown safely, nothing to be done."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from gobii_email.models import PersistentAgentMessage
from gobii_email.services import overview
from gobii_email.services.browse import Whose
from tests.console.conftest import Owner
from tests.console.lint import problems
from tests.services.inbound import ANN, mail, received

pytestmark = pytest.mark.django_db

HTML = '<p onclick="x()">Good <b>morning</b></p><script>evil()</script><img src="https://track.example/1">'
VIEWS = ("story", "text", "html", "headers", "raw")


@pytest.fixture
def inbound(ada: Owner) -> PersistentAgentMessage:
    ours = ada.message("Ask", to=[ANN])
    ours.refresh_from_db()
    raw = mail(
        HTML,
        Content_Type="text/html",
        In_Reply_To=ours.rfc_message_id,
        Subject="Re: Ask",
        Cc="c@else.example",
    )
    return received(ada.account.endpoint, raw).message


def page(message: PersistentAgentMessage, view: str = "story") -> str:
    return reverse("console:message", args=[message.pk]) + f"?show={view}"


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_can_be_used_by_everybody_and_runs_nothing(
    ada: Owner, inbound: PersistentAgentMessage, view: str
) -> None:
    answer = ada.client.get(page(inbound, view))
    html = answer.content.decode()
    assert answer.status_code == 200 and problems(html) == []
    assert "<script>evil" not in html and 'track.example/1"' not in html
    with CaptureQueriesContext(connection) as captured:
        ada.client.get(page(inbound, view))
    assert len(captured.captured_queries) <= 12


def test_the_page_says_who_wrote_it_and_what_it_answers(ada: Owner, inbound: PersistentAgentMessage) -> None:
    html = ada.client.get(page(inbound)).content.decode()
    assert ANN in html and "Ann Person" in html and "c@else.example" in html
    assert "Nobody proved who wrote it" in html and "Taken in:" in html
    assert page(inbound.parent).partition("?")[0] in html
    assert '<form method="post"' not in html.partition("<h1>")[2]
    assert "Good morning" in ada.client.get(page(inbound, "text")).content.decode()
    assert (
        "Message-ID: &lt;one@person.example&gt;" in ada.client.get(page(inbound, "headers")).content.decode()
    )


def test_its_html_stands_in_a_frame_that_can_do_nothing(ada: Owner, inbound: PersistentAgentMessage) -> None:
    answer = ada.client.get(reverse("console:message_html", args=[inbound.pk]))
    html = answer.content.decode()
    assert "<b>morning</b>" in html
    assert not any(word in html for word in ("script", "onclick", "track.example"))
    assert answer["Content-Security-Policy"].startswith("sandbox; default-src 'none'")


def test_lists_show_and_filter_the_direction(ada: Owner, inbound: PersistentAgentMessage) -> None:
    def listed(**query: str) -> str:
        return ada.client.get(reverse("console:messages"), query).content.decode()

    links = {name: page(row).partition("?")[0] for name, row in (("in", inbound), ("out", inbound.parent))}
    everything = listed()
    assert links["in"] in everything and links["out"] in everything
    assert f"received for {ada.account.endpoint.address}" in everything
    assert links["in"] in listed(direction="received") and links["out"] not in listed(direction="received")
    assert links["out"] in listed(direction="sent") and links["in"] not in listed(direction="sent")
    assert links["in"] not in listed(status="delivered") and links["in"] not in listed(transport="smtp")
    assert links["in"] in listed(account=str(ada.account.pk))


def test_others_see_nothing_of_it(bob: Owner, inbound: PersistentAgentMessage) -> None:
    assert bob.client.get(page(inbound)).status_code == 404
    assert bob.client.get(reverse("console:message_html", args=[inbound.pk])).status_code == 404
    assert page(inbound).partition("?")[0] not in bob.client.get(reverse("console:messages")).content.decode()


def test_nothing_can_be_done_about_it(ada: Owner, inbound: PersistentAgentMessage) -> None:
    for name in ("retry", "cancel", "resolve-sent"):
        assert ada.client.post(reverse("console:message_do", args=[inbound.pk, name])).status_code in (
            403,
            404,
        )


def test_it_counts_as_nothing_that_was_sent(ada: Owner, inbound: PersistentAgentMessage) -> None:
    told = overview.overview(Whose.everybodys(), timezone.now())
    assert (told.sent, told.failed, sum(hour.total for hour in told.hours)) == (0, 0, 1)
