"""Guessing passwords: only so often for one user name and from one address, in console and admin alike."""

import logging
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory
from django.urls import reverse

from gobii_email import wiring
from gobii_email.adapters.redis_tallies import RedisTallies
from gobii_email.console.sign_in import client_address
from tests.console.lint import problems

pytestmark = pytest.mark.django_db
CONSOLE, ADMIN = "/console/login/", "/admin/login/"
RIGHT = "secret-of-olga"


@pytest.fixture(autouse=True)
def limited(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.GOBII_FAILED_SIGN_INS = 3
    alone = RedisTallies("redis://127.0.0.1:1/0")
    monkeypatch.setattr(wiring, "tallies", lambda: alone)


@pytest.fixture
def olga() -> User:
    return User.objects.create_superuser("olga", "olga@people.example", RIGHT)


def sign_in(password: str, username: str = "olga", at: str = CONSOLE, address: str = "192.0.2.1") -> Any:
    return Client(REMOTE_ADDR=address).post(at, {"username": username, "password": password})


@pytest.mark.parametrize("at", [CONSOLE, ADMIN])
def test_the_right_password_is_refused_after_too_many_wrong_ones(olga: User, at: str) -> None:
    for _ in range(3):
        assert b"Too many" not in sign_in("wrong", at=at).content
    refused = sign_in(RIGHT, at=at)
    page = refused.content.decode()
    assert "Too many sign-ins have failed. The next may be tried at" in page and " UTC." in page
    assert refused.status_code == (429 if at == CONSOLE else 200) and RIGHT not in page
    if at == CONSOLE:
        assert problems(page) == []


def test_the_name_counts_wherever_and_however_it_is_typed(olga: User) -> None:
    for number, name in enumerate(("olga", "OLGA", "ｏｌｇａ")):
        sign_in("wrong", name, at=(CONSOLE, ADMIN)[number % 2], address=f"192.0.2.{number}")
    assert sign_in(RIGHT, address="198.51.100.9").status_code == 429
    assert sign_in("wrong", "paul").status_code == 200


def test_one_address_tries_many_names_only_so_often(olga: User) -> None:
    for number in range(9):
        assert sign_in("wrong", f"person-{number}").status_code == 200
    assert sign_in(RIGHT).status_code == 429
    assert sign_in(RIGHT, address="192.0.2.2").status_code == 302


def test_an_ipv6_network_counts_as_one_address(olga: User) -> None:
    for number in range(9):
        sign_in("wrong", f"person-{number}", address=f"2001:db8::{number:x}")
    assert sign_in(RIGHT, address="2001:db8::ffff").status_code == 429
    assert sign_in(RIGHT, address="2001:db8:0:1::1").status_code == 302


def test_a_success_clears_the_name_and_not_the_address(olga: User) -> None:
    for _ in range(2):
        sign_in("wrong")
    assert sign_in(RIGHT).status_code == 302
    for _ in range(3):
        assert sign_in("wrong").status_code == 200
    for number in range(4):
        sign_in("wrong", f"person-{number}")
    assert sign_in(RIGHT, "olga").status_code == 429, "nine failures came from here"


def test_signing_in_often_is_no_guessing(olga: User) -> None:
    assert {sign_in(RIGHT).status_code for _ in range(11)} == {302}


def test_what_nobody_typed_counts_for_nobody(olga: User) -> None:
    for _ in range(5):
        sign_in("")
        sign_in("wrong", "")
    assert sign_in(RIGHT).status_code == 302


def test_without_a_limit_nothing_is_counted(olga: User, settings: Any) -> None:
    settings.GOBII_FAILED_SIGN_INS = 0
    for _ in range(5):
        sign_in("wrong")
    assert sign_in(RIGHT).status_code == 302


def test_the_log_says_so_once_and_names_nobody(olga: User, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "gobii_email"):
        for _ in range(6):
            sign_in("wrong")
    (record,) = [record for record in caplog.records if record.message == "sign_in.throttled"]
    assert record.client == "192.0.2.1" and "olga" not in str(record.__dict__)


@pytest.mark.parametrize(
    ("proxies", "peer", "forwarded", "believed"),
    [
        (0, "192.0.2.1", None, "192.0.2.1"),
        (0, "192.0.2.1", "203.0.113.5", "192.0.2.1"),
        (0, "127.0.0.1", "203.0.113.5", ""),
        (0, "127.0.0.1", None, "127.0.0.1"),
        (1, "127.0.0.1", "203.0.113.5", "203.0.113.5"),
        (1, "127.0.0.1", "6.6.6.6, 203.0.113.5", "203.0.113.5"),
        (2, "127.0.0.1", "6.6.6.6, 203.0.113.5, 10.0.0.1", "203.0.113.5"),
        (2, "127.0.0.1", "10.0.0.1", "127.0.0.1"),
    ],
)
def test_an_address_is_believed_as_far_as_the_proxies_reach(
    proxies: int, peer: str, forwarded: str | None, believed: str, settings: Any
) -> None:
    settings.GOBII_PROXIES = proxies
    given = {} if forwarded is None else {"HTTP_X_FORWARDED_FOR": forwarded}
    # RFC 5737's examples count as private to Python, so a public peer stands in for them.
    peer = {"192.0.2.1": "93.184.216.34"}.get(peer, peer)
    request = RequestFactory().post(reverse("console:login"), REMOTE_ADDR=peer, **given)
    assert client_address(request) == {"192.0.2.1": "93.184.216.34"}.get(believed, believed)
