"""The selection table, one row a case, and every column varied."""

from dataclasses import replace
from itertools import product

import pytest

from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.selection import (
    NO_TRANSPORT,
    AccountFacts,
    Circumstances,
    Hold,
    Selection,
    Use,
    account_obstacle,
    select_transport,
)

USABLE = AccountFacts(is_outbound_enabled=True, is_tested=True)
OWN = Circumstances(
    account=USABLE,
    had_account=True,
    byo_email_enabled=True,
    is_in_rollout=True,
    is_proprietary=False,
    has_postmark_token=False,
    simulates=True,
)
NONE = replace(OWN, account=None, had_account=False)
SAAS = replace(NONE, is_proprietary=True, has_postmark_token=True, simulates=False)
OBSTACLES: dict[str, Circumstances] = {
    "account_missing": replace(OWN, account=None),
    "byo_email_off": replace(OWN, byo_email_enabled=False),
    "not_in_rollout": replace(OWN, is_in_rollout=False),
    "account_disabled": replace(OWN, account=AccountFacts(False, is_tested=True)),
    "account_untested": replace(OWN, account=AccountFacts(True, is_tested=False)),
}


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        pytest.param(OWN, Use(Provider.SMTP), id="1 a usable account"),
        pytest.param(replace(OWN, had_account=False), Use(Provider.SMTP), id="1 connected since submission"),
        pytest.param(
            replace(OWN, is_proprietary=True, has_postmark_token=True),
            Use(Provider.SMTP),
            id="1 before Postmark",
        ),
        pytest.param(SAAS, Use(Provider.POSTMARK), id="3 SaaS with a token"),
        pytest.param(replace(SAAS, simulates=True), Use(Provider.POSTMARK), id="3 before simulation"),
        pytest.param(NONE, Use(Provider.SIMULATION), id="4 simulation"),
        pytest.param(
            replace(NONE, is_proprietary=True), Use(Provider.SIMULATION), id="4 SaaS without a token"
        ),
        pytest.param(replace(NONE, has_postmark_token=True), Use(Provider.SIMULATION), id="4 a token alone"),
        pytest.param(replace(NONE, simulates=False), NO_TRANSPORT, id="5 nothing"),
        pytest.param(
            replace(NONE, simulates=False, is_proprietary=True), NO_TRANSPORT, id="5 SaaS without a token"
        ),
        pytest.param(
            replace(NONE, simulates=False, has_postmark_token=True), NO_TRANSPORT, id="5 a token without SaaS"
        ),
    ],
)
def test_the_first_row_that_matches_decides(facts: Circumstances, chosen: Selection) -> None:
    assert select_transport(facts) == chosen


@pytest.mark.parametrize("code", OBSTACLES)
@pytest.mark.parametrize(("is_proprietary", "has_token", "simulates"), product([True, False], repeat=3))
def test_mail_of_an_account_that_became_unusable_is_held_whatever_else_could_take_it(
    code: str, is_proprietary: bool, has_token: bool, simulates: bool
) -> None:
    facts = replace(
        OBSTACLES[code], is_proprietary=is_proprietary, has_postmark_token=has_token, simulates=simulates
    )
    chosen = select_transport(facts)
    assert isinstance(chosen, Hold)
    assert chosen.code == code
    assert chosen.reason.endswith(".")


@pytest.mark.parametrize("code", OBSTACLES)
def test_an_account_that_was_never_usable_holds_nothing(code: str) -> None:
    assert select_transport(replace(OBSTACLES[code], had_account=False)) == Use(Provider.SIMULATION)


def test_the_failure_says_which_settings_would_change_it() -> None:
    assert "SIMULATE_EMAIL_DELIVERY" in NO_TRANSPORT.reason
    assert "POSTMARK_SERVER_TOKEN" in NO_TRANSPORT.reason


def test_every_combination_keeps_the_promises() -> None:
    accounts = [
        None,
        *(AccountFacts(enabled, tested) for enabled, tested in product([True, False], repeat=2)),
    ]
    for account, *flags in product(accounts, *[[True, False]] * 6):
        facts = Circumstances(account, *flags)
        chosen = select_transport(facts)
        is_usable = account == USABLE and facts.byo_email_enabled and facts.is_in_rollout
        assert (chosen == Use(Provider.SMTP)) is is_usable
        assert (account_obstacle(facts) is None) is is_usable
        assert isinstance(chosen, Hold) is (facts.had_account and not is_usable)
        if chosen == Use(Provider.POSTMARK):
            assert facts.is_proprietary and facts.has_postmark_token
        if chosen == Use(Provider.SIMULATION):
            assert facts.simulates
