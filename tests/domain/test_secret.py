"""Nothing that prints, copies or serialises shows what a Secret holds."""

import copy
import dataclasses
import json
import pickle
import pprint
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.core.serializers.json import DjangoJSONEncoder
from django.test import override_settings
from django.views.debug import ExceptionReporter
from kombu.utils import json as kombu_json

from gobii_email.domain.secret import Secret

CANARY = "cänary-S3cret"
SPELLINGS = [CANARY, "S3cret", repr(CANARY), ascii(CANARY), json.dumps(CANARY)]


@dataclasses.dataclass(frozen=True, slots=True)
class Account:
    user: str
    password: Secret


def is_shown(text: object) -> bool:
    return any(spelling in str(text) for spelling in SPELLINGS)


SHOWING: list[Callable[[Any], object]] = [
    repr,
    str,
    ascii,
    format,
    lambda secret: f"{secret!s:>40}{secret:.3}",
    lambda secret: "%s %r" % (secret, secret),  # noqa: UP031
    lambda secret: [secret],
    lambda secret: {"password": secret},
    lambda secret: Account("ada", secret),
    pprint.pformat,
    lambda secret: ValueError(secret),
    dir,
    lambda secret: [getattr(secret, name) for name in secret.__slots__],
    lambda secret: json.dumps({"password": secret}, default=str),
    lambda secret: secret.__doc__,
]


@pytest.mark.parametrize("show", SHOWING)
def test_printing_shows_nothing(show: Callable[[Any], object]) -> None:
    assert not is_shown(show(Secret(CANARY)))


REFUSED: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "oldest pickle": lambda secret: pickle.dumps(secret, protocol=0),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "asdict": lambda secret: dataclasses.asdict(Account("ada", secret)),
    "json": json.dumps,
    "Django's json": lambda secret: json.dumps(secret, cls=DjangoJSONEncoder),
    "Celery's json": kombu_json.dumps,
    "vars": vars,
    "bytes": bytes,
    "list": list,
    "hash": hash,
    "concatenation": lambda secret: "password=" + secret,
    "join": lambda secret: "".join([secret]),
}


@pytest.mark.parametrize("take", REFUSED.values(), ids=REFUSED.keys())
def test_copying_and_serialising_are_refused_without_showing_it(take: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError) as refused:
        take(Secret(CANARY))
    assert not is_shown(refused.value)


@pytest.mark.parametrize("debug", [True, False])
def test_the_debug_page_does_not_show_it(debug: bool) -> None:
    def connect(password: Secret, account: Account, plain: str) -> None:
        raise RuntimeError("no route to host")

    secret = Secret(CANARY)
    with override_settings(DEBUG=debug):
        try:
            connect(secret, Account("ada", secret), "visible-neighbour")
        except RuntimeError:
            # The frame of this test holds the test's own constants only as globals, which no page shows.
            reporter = ExceptionReporter(None, *sys.exc_info())
        pages = reporter.get_traceback_text(), reporter.get_traceback_html()
        frame_variables = dict(reporter.get_traceback_frames()[-1]["vars"])
    assert not any(map(is_shown, pages))
    assert not is_shown(frame_variables)
    assert "********" in str(frame_variables["password"])
    # The page did show the variables of this frame.
    assert "visible-neighbour" in pages[1]


def test_it_reveals_when_asked() -> None:
    assert Secret(CANARY).reveal() == CANARY


def test_it_is_false_only_when_empty() -> None:
    assert Secret(" ")
    assert not Secret("")


def test_secrets_are_equal_by_value_and_never_equal_to_text() -> None:
    assert Secret(CANARY) == Secret(CANARY)
    assert Secret(CANARY) != Secret("other")
    assert Secret(CANARY) != CANARY


def test_comparing_text_that_has_no_encoding_does_not_show_it() -> None:
    assert Secret(f"{CANARY}\ud800") == Secret(f"{CANARY}\ud800")
    assert Secret(f"{CANARY}\ud800") != Secret(f"{CANARY}\ud801")


def test_it_takes_no_attributes_that_could_hold_the_text() -> None:
    with pytest.raises(AttributeError):
        Secret(CANARY).value = CANARY  # type: ignore[attr-defined]
