"""What scopes, claims and answers of token endpoints mean."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.oauth_tokens import (
    GOOGLE,
    MICROSOFT,
    OAuthService,
    Reason,
    denied,
    granted,
    granted_text,
    is_due,
    is_still_good,
    mailboxes_of,
    may_receive,
    may_send,
    service_named,
    tokens_from,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
PERSONAL = "9188040d-6c67-4c5b-b112-36a304b66dad"


@pytest.mark.parametrize(
    ("service", "claims", "expected"),
    [
        (GOOGLE, {"email": "A@B.example", "email_verified": True}, ("a@b.example",)),
        (GOOGLE, {"email": "a@b.example", "email_verified": "true"}, ("a@b.example",)),
        (GOOGLE, {"email": "a@b.example", "email_verified": "false"}, ()),
        (GOOGLE, {"email": "a@b.example", "email_verified": None}, ()),
        (GOOGLE, {"email": ["a@b.example"], "email_verified": True}, ()),
        (GOOGLE, {"preferred_username": "a@b.example", "email_verified": True}, ()),
        (MICROSOFT, {"preferred_username": "A@b.example"}, ("a@b.example",)),
        (MICROSOFT, {"preferred_username": "+49 30 123"}, ()),
        (MICROSOFT, {"email": "a@b.example", "email_verified": True}, ()),
        (MICROSOFT, {"email": "a@b.example", "xms_edov": "1"}, ("a@b.example",)),
        (MICROSOFT, {"email": "a@b.example", "tid": PERSONAL}, ("a@b.example",)),
        (
            MICROSOFT,
            {"preferred_username": "u@b.example", "email": "a@b.example", "xms_edov": True},
            ("u@b.example", "a@b.example"),
        ),
    ],
)
def test_an_address_counts_where_the_service_vouches_for_it(
    service: OAuthService, claims: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert mailboxes_of(service, claims) == expected


def test_a_token_answer_that_names_no_scope_grants_what_was_asked() -> None:
    assert granted(GOOGLE, "") == GOOGLE.asks
    assert granted(MICROSOFT, "https://outlook.office.com/smtp.send extra") == (MICROSOFT.sends,)
    assert granted_text(GOOGLE, "extra") == "none"
    assert not may_send(GOOGLE, "none") and not may_receive(GOOGLE, "none")


def test_where_no_scope_is_known_the_server_decides() -> None:
    assert may_send(None, "whatever") and may_send(GOOGLE, "") and may_receive(MICROSOFT, "")


@pytest.mark.parametrize(
    ("name", "key"), [("Google", "google"), (" gmail", "google"), ("outlook", "microsoft")]
)
def test_a_service_is_known_by_its_other_names(name: str, key: str) -> None:
    found = service_named(name)
    assert found is not None and found.key == key
    assert service_named("exim") is None


@pytest.mark.parametrize(
    ("left", "due", "good"), [(301, False, True), (300, True, True), (31, True, True), (30, True, False)]
)
def test_a_token_is_due_before_it_is_bad(left: int, due: bool, good: bool) -> None:
    ends = NOW + timedelta(seconds=left)
    assert (is_due(ends, NOW), is_still_good(ends, NOW)) == (due, good)
    assert not is_due(None, NOW) and is_still_good(None, NOW)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner),
    max_leaves=3,
)
FIELDS = ("access_token", "refresh_token", "id_token", "token_type", "expires_in", "scope")


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_no_answer_of_a_token_endpoint_raises(answer: dict[str, Any]) -> None:
    tokens = tokens_from({"token_type": "Bearer"} | answer)
    assert tokens is None or tokens.access_token.reveal().isascii()


@given(st.text() | json_values)
def test_no_error_of_a_token_endpoint_is_shown_beyond_its_code(error: Any) -> None:
    found = denied(GOOGLE, error)
    assert found.error == error or found.error == "unreadable_error"
    assert found.reason in Reason and found.text.isprintable()
