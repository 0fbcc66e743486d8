"""Who may see and do what: owners their own, staff everything, others nothing."""

import re
import uuid

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from gobii_email.console.urls import urlpatterns
from gobii_email.models import AgentEmailAccount, PersistentAgentMessage
from tests.console.conftest import Owner, paths

pytestmark = pytest.mark.django_db
OPEN_TO_ALL = {"login", "logout"}


def address_of(name: str, message_id: object, account_id: object) -> str:
    """The address of a page or act about that message or account."""
    if name == "message_do":
        return reverse("console:message_do", args=[message_id, "cancel"])
    if name.startswith("message_") or name == "message":
        return reverse(f"console:{name}", args=[message_id])
    if name.startswith("account_") or name == "account":
        return reverse(f"console:{name}", args=[account_id])
    return reverse(f"console:{name}")


ALL = sorted(pattern.name for pattern in urlpatterns if pattern.name not in OPEN_TO_ALL)
ABOUT_ONE = [
    name for name in ALL if name.startswith(("message", "account")) and name not in {"messages", "accounts"}
]


@pytest.mark.parametrize("name", ALL)
def test_nobody_sees_anything_without_signing_in(name: str, ada: Owner) -> None:
    address = address_of(name, ada.message().pk, ada.account.pk)
    for method in ("get", "post"):
        response = getattr(Client(), method)(address)
        assert response.status_code in {302, 405}
        if response.status_code == 302:
            assert response.url.startswith(reverse("console:login"))


@pytest.mark.parametrize("name", ABOUT_ONE)
def test_what_belongs_to_another_owner_does_not_exist(name: str, ada: Owner, bob: Owner) -> None:
    message = bob.message()
    address = address_of(name, message.pk, bob.account.pk)
    answers = {getattr(ada.client, method)(address).status_code for method in ("get", "post")}
    assert answers <= {404, 405} and 404 in answers
    message.refresh_from_db()
    assert message.latest_status == "queued"
    assert AgentEmailAccount.objects.get(pk=bob.account.pk).state == "active"


@pytest.mark.parametrize("name", ABOUT_ONE)
def test_a_foreign_id_and_one_that_is_nobodys_look_the_same(name: str, ada: Owner, bob: Owner) -> None:
    message = bob.message()
    foreign = ada.client.post(address_of(name, message.pk, bob.account.pk))
    nobodys = ada.client.post(address_of(name, uuid.uuid4(), uuid.uuid4()))
    assert foreign.status_code == nobodys.status_code
    assert without_token(foreign.content) == without_token(nobodys.content)


def without_token(page: bytes) -> bytes:
    return re.sub(rb'name="csrfmiddlewaretoken" value="[^"]*"', b"", page)


def test_lists_have_only_what_is_ones_own(ada: Owner, bob: Owner) -> None:
    ada.message("from Ada")
    bob.message("from Bob")
    for name in ("overview", "messages", "accounts", "simulation"):
        page = ada.client.get(reverse(f"console:{name}")).content.decode()
        assert "bob" not in page.lower()
    assert "from Ada" in ada.client.get(reverse("console:messages")).content.decode()


def test_the_filters_offer_only_what_is_ones_own(ada: Owner, bob: Owner) -> None:
    bob.message("from Bob")
    page = ada.client.get(reverse("console:messages"), {"account": str(bob.account.pk)})
    assert page.status_code == 422
    assert "bob@" not in page.content.decode() and "Agent of bob" not in page.content.decode()


def test_staff_see_everybodys(staff: Client, ada: Owner, bob: Owner) -> None:
    ada.message("from Ada")
    message = bob.message("from Bob")
    page = staff.get(reverse("console:messages")).content.decode()
    assert "from Ada" in page and "from Bob" in page
    for path in paths(bob, message).values():
        assert staff.get(path).status_code == 200


def test_staff_without_the_right_look_but_do_not_act(ada: Owner) -> None:
    looker = User.objects.create_user("looker", is_staff=True)
    client = Client()
    client.force_login(looker)
    message = ada.message()
    assert client.get(reverse("console:message", args=[message.pk])).status_code == 200
    response = client.post(reverse("console:message_do", args=[message.pk, "cancel"]))
    assert response.status_code == 403
    assert client.post(reverse("console:account_pause", args=[ada.account.pk])).status_code == 403
    message.refresh_from_db()
    assert message.latest_status == "queued"


def test_an_agent_that_changes_hands_takes_its_mail_along(ada: Owner, bob: Owner) -> None:
    message = ada.message()
    address = reverse("console:message", args=[message.pk])
    ada.agent.user = bob.user
    ada.agent.save()
    assert ada.client.get(address).status_code == 404
    assert bob.client.get(address).status_code == 200


@pytest.mark.parametrize(
    "name", [name for name in ALL if name.startswith(("account_", "message_do", "add_"))]
)
def test_acts_need_post_and_a_token(name: str, ada: Owner) -> None:
    message = ada.message()
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada.user)
    address = address_of(name, message.pk, ada.account.pk)
    assert client.post(address).status_code == 403
    if name not in {"account_delete", "add_found"}:
        assert client.get(address).status_code == 405
    assert PersistentAgentMessage.objects.get(pk=message.pk).latest_status == "queued"
    assert AgentEmailAccount.objects.get(pk=ada.account.pk).state == "active"


def test_signing_in_leads_to_where_somebody_wanted_to_go(ada: Owner) -> None:
    client = Client()
    wanted = reverse("console:messages") + "?status=sent"
    login = client.get(wanted).url
    response = client.post(login, {"username": "ada", "password": "secret-of-ada", "next": wanted})
    assert (response.status_code, response.url) == (302, wanted)
    assert client.get(wanted).status_code == 200


def test_signing_in_leads_to_no_other_site(ada: Owner) -> None:
    given = {"username": "ada", "password": "secret-of-ada", "next": "https://evil.example/"}
    response = Client().post(reverse("console:login"), given)
    assert response.url == reverse("console:overview")


def test_a_wrong_password_is_not_shown_again(ada: Owner) -> None:
    response = Client().post(reverse("console:login"), {"username": "ada", "password": "wr0ng-Canary"})
    assert response.status_code == 200
    assert b"wr0ng-Canary" not in response.content


def test_a_live_part_leads_back_to_the_page_when_the_session_is_over(ada: Owner) -> None:
    response = Client().get(reverse("console:overview"), headers={"HX-Request": "true"})
    assert (response.status_code, response.headers["HX-Refresh"]) == (204, "true")


def test_pages_are_kept_by_no_cache(ada: Owner) -> None:
    for path in paths(ada, ada.message()).values():
        assert "no-store" in ada.client.get(path).headers["Cache-Control"]
