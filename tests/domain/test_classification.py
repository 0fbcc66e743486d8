"""How replies and losses are read: a table of providers' wordings, the general rule, and hostile text."""

import time
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gobii_email.domain.advice import ADVICE
from gobii_email.domain.classification import (
    AccountState,
    Reaction,
    Scope,
    Verdict,
    read_loss,
    read_reply,
)
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.reply_rules import RULES
from gobii_email.domain.smtp_replies import MAX_TEXT_CHARACTERS, Reply, Stage, parse_reply
from tests.domain.reply_samples import SAMPLES


def read(stage, text):
    return read_reply(Stage(stage), parse_reply(text))


@pytest.mark.parametrize(("stage", "text", "reaction"), SAMPLES, ids=[f"{s}-{t[:48]}" for s, t, _ in SAMPLES])
def test_a_providers_wording_is_understood(stage, text, reaction):
    reading = read(stage, text)
    assert (reading.verdict, reading.reaction) == (
        "temporary" if text[0] == "4" else "permanent",
        reaction,
    ), reading


def test_the_samples_are_many_and_each_is_there_once():
    assert len({(stage, text) for stage, text, _ in SAMPLES}) == len(SAMPLES) >= 120


def test_a_refused_login_holds_the_account_until_its_owner_acts():
    reading = read("auth", "535 5.7.8 Username and Password not accepted")
    assert (reading.scope, reading.hold, reading.hold_for) == (Scope.ACCOUNT, AccountState.AUTH_NEEDED, None)


@pytest.mark.parametrize(("stage", "text", "reaction"), [row for row in SAMPLES if row[2] == "hold_account"])
def test_whoever_is_held_is_told_in_which_state(stage, text, reaction):
    reading = read(stage, text)
    assert reading.hold and reading.hold_for is None and reading.scope is Scope.ACCOUNT


@pytest.mark.parametrize(
    ("stage", "text"),
    [row[:2] for row in SAMPLES if row[2] == "slow_down" and row[1][0] == "5"],
)
def test_a_limit_behind_a_5xx_burns_no_mail_and_ends_by_itself(stage, text):
    reading = read(stage, text)
    assert reading.hold in (AccountState.QUOTA, AccountState.LIMITED)
    assert timedelta(0) < reading.hold_for <= timedelta(hours=24)


def test_a_login_may_not_fail_mail_whatever_the_server_says():
    for code in range(500, 560):
        assert read("auth", f"{code} no").hold


def test_a_server_that_wants_tls_costs_no_mail():
    assert read("mail", "530 5.7.0 Must issue a STARTTLS command first").hold is AccountState.CONFIG_NEEDED


def test_a_temporary_trouble_of_the_servers_sign_in_does_not_hold_the_account():
    reading = read("auth", "454 4.7.0 Cannot authenticate due to temporary system problem")
    assert (reading.reaction, reading.hold, reading.scope) == (Reaction.RETRY, None, Scope.ACCOUNT)


@pytest.mark.parametrize(
    "name", ["daily-quota.exceeded", "too-many-messages", "greylist", "sender-throttled"]
)
def test_the_words_in_an_echoed_address_are_not_read(name):
    reading = read("rcpt", f"550 5.1.1 <{name}@byo.example>: no such user")
    assert (reading.category, reading.reaction, reading.hold) == ("unknown-user", Reaction.GIVE_UP, None)
    assert read("rcpt", f"450 4.1.1 <x@{name}.example>: mailbox unavailable").hold is None


def test_a_from_address_of_somebody_else_is_a_matter_of_configuration():
    reading = read("data", "554 5.2.252 SendAsDenied; a@b.example not allowed to send as c@b.example")
    assert (reading.category, reading.hold) == ("sender-rejected", AccountState.CONFIG_NEEDED)


def test_one_recipients_limit_does_not_slow_the_account():
    reading = read("rcpt", "450 4.2.1 The user you are trying to contact is receiving mail too quickly.")
    assert (reading.scope, reading.hold) == (Scope.RECIPIENT, None)
    assert reading.retry_after == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("stage", "text", "scope"),
    [
        ("connect", "421 4.3.2 shutting down", Scope.HOST),
        ("ehlo", "451 wait", Scope.HOST),
        ("auth", "454 4.7.0 wait", Scope.ACCOUNT),
        ("mail", "451 wait", Scope.MESSAGE),
        ("rcpt", "451 wait", Scope.RECIPIENT),
        ("rcpt", "550 no", Scope.RECIPIENT),
        ("data", "451 wait", Scope.MESSAGE),
        ("dot", "554 no", Scope.MESSAGE),
        ("dot", "421 4.4.2 closing", Scope.HOST),
    ],
)
def test_without_a_rule_the_stage_says_how_far_it_reaches(stage, text, scope):
    assert read(stage, text).scope is scope


@pytest.mark.parametrize("code", [200, 220, 235, 250, 251, 354])
def test_a_positive_reply_is_accepted_and_asks_for_nothing(code):
    reading = read("dot", f"{code} ok")
    assert (reading.verdict, reading.reaction, reading.hold) == (Verdict.ACCEPTED, None, None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("450 4.2.0 Greylisted, try again in 5 minutes", 300),
        ("451 wait for 90 seconds please", 90),
        ("421 back in 1 hour", 3600),
        ("451 retry after 99999 hours", 24 * 3600),
        ("451 retry after 0 s", 1),
        ("451 wait", None),
    ],
)
def test_the_servers_own_hint_is_taken_within_reason(text, seconds):
    hint = read("rcpt", text).retry_after
    assert hint == (seconds and timedelta(seconds=seconds))


def test_a_hint_shortens_or_lengthens_a_pause_that_ends_by_a_timer_only():
    assert read("mail", "450 Sending rate limit exceeded, try again in 10 minutes").hold_for == timedelta(
        minutes=10
    )
    assert read("auth", "535 5.7.8 no, try again in 10 minutes").hold_for is None


def test_an_enhanced_code_hidden_in_the_text_is_found():
    assert read("dot", "552 sorry (#5.2.2)").category == "mailbox-full"
    assert read("dot", "550 4.4.7 QUEUE.Expired").category == "expired"


def test_every_rule_names_its_source_and_has_advice():
    assert all(rule.source and (rule.advice or rule.category) in ADVICE for rule in RULES)


@pytest.mark.parametrize("cause", Cause)
@pytest.mark.parametrize("stage", Stage)
def test_a_loss_is_in_doubt_once_marked_and_never_before(cause, stage):
    assert read_loss(Lost(stage, cause, "x", is_marked=True)).verdict is Verdict.IN_DOUBT
    before = read_loss(Lost(stage, cause, "x"))
    assert before.verdict in (Verdict.TEMPORARY, Verdict.PERMANENT) and before.advice


@pytest.mark.parametrize(
    ("cause", "scope", "hold", "heals"),
    [
        (Cause.STARTTLS_NOT_OFFERED, Scope.ACCOUNT, True, False),
        (Cause.AUTH_NOT_OFFERED, Scope.ACCOUNT, True, False),
        (Cause.AUTH_WITHOUT_TLS, Scope.ACCOUNT, True, False),
        (Cause.PORT_NOT_ALLOWED, Scope.ACCOUNT, True, False),
        (Cause.ADDRESS_NOT_ALLOWED, Scope.ACCOUNT, True, False),
        (Cause.SECRET_UNREADABLE, Scope.ACCOUNT, True, False),
        (Cause.CERTIFICATE_EXPIRED, Scope.ACCOUNT, True, True),
        (Cause.CERTIFICATE_UNTRUSTED, Scope.ACCOUNT, True, True),
        (Cause.CERTIFICATE_WRONG_NAME, Scope.ACCOUNT, True, True),
        (Cause.CERTIFICATE_NOT_YET_VALID, Scope.ACCOUNT, True, True),
        (Cause.HOST_UNKNOWN, Scope.ACCOUNT, True, True),
        (Cause.TIMEOUT, Scope.HOST, False, False),
        (Cause.CONNECTION_REFUSED, Scope.HOST, False, False),
        (Cause.CONNECTION_LOST, Scope.HOST, False, False),
        (Cause.DNS_FAILED, Scope.HOST, False, False),
        (Cause.TLS_FAILED, Scope.HOST, False, False),
        (Cause.PROTOCOL_ERROR, Scope.HOST, False, False),
        (Cause.REPLY_TOO_LARGE, Scope.HOST, False, False),
        (Cause.LEASE_LOST, Scope.MESSAGE, False, False),
    ],
)
def test_what_went_wrong_decides_who_waits(cause, scope, hold, heals):
    reading = read_loss(Lost(Stage.CONNECT, cause, "x"))
    assert (reading.verdict, reading.scope) == (Verdict.TEMPORARY, scope)
    assert (reading.hold is AccountState.CONFIG_NEEDED, reading.hold_for is not None) == (hold, heals)


@pytest.mark.parametrize("cause", [Cause.SMTPUTF8_REQUIRED, Cause.MESSAGE_TOO_LARGE])
def test_what_the_server_cannot_carry_fails_the_message(cause):
    reading = read_loss(Lost(Stage.MAIL, cause, "x"))
    assert (reading.verdict, reading.scope, reading.reaction) == ("permanent", "message", "give_up")


_WORDS = st.sampled_from(
    [
        "quota",
        "exceeded",
        "daily",
        "limit",
        "too",
        "many",
        "recipients",
        "connections",
        "sender",
        "address",
        "rejected",
        "spam",
        "blocked",
        "account",
        "disabled",
        "5.7.1",
        "try",
        "again",
        "in",
        "7",
        "minutes",
        "99999",
        "h",
        "[192.0.2.1]",
        "(#4.2.2)",
        "grey",
        "starttls",
        "auth",
    ]
)


@given(
    stage=st.sampled_from(Stage),
    code=st.one_of(st.integers(200, 599), st.integers(-1, 1000)),
    enhanced=st.one_of(
        st.just(""), st.from_regex(r"[245]\.\d{1,3}\.\d{1,3}", fullmatch=True), st.text(max_size=9)
    ),
    text=st.one_of(st.text(max_size=3000), st.lists(_WORDS, max_size=60).map(" ".join)),
)
def test_any_reply_of_any_server_is_read_within_bounds(stage, code, enhanced, text):
    reading = read_reply(stage, Reply(code, enhanced, text))
    expected = {2: "accepted", 3: "accepted", 5: "permanent"}.get(code // 100, "temporary")
    assert reading.verdict == expected
    assert isinstance(reading.scope, Scope) and reading.advice and reading.category and reading.source
    assert (reading.reaction is None) == (expected == "accepted")
    for span in (reading.hold_for, reading.retry_after):
        assert span is None or timedelta(0) < span <= timedelta(hours=24)
    if reading.hold_for:
        assert reading.hold
    if reading.reaction is Reaction.HOLD_ACCOUNT or (
        reading.reaction is Reaction.SLOW_DOWN and expected == "permanent"
    ):
        assert reading.hold


@pytest.mark.parametrize(
    "piece",
    [
        "account ",
        "exceeded ",
        "sender ",
        "from not ",
        "limit ",
        "a",
        " ",
        "1",
        "storedrv.submi ",
        "not allowed to send ",
    ],
)
def test_text_made_to_be_slow_is_not(piece):
    text = (piece * MAX_TEXT_CHARACTERS)[:MAX_TEXT_CHARACTERS]
    started = time.process_time()
    for stage in Stage:
        read_reply(stage, Reply(550, "", text))
    assert time.process_time() - started < 2
