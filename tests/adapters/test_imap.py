"""A mailbox's server on real sockets: how it is read, and how each kind of bad server ends at its step."""

import base64
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from gobii_email.adapters.imap import ImapDeadlines, ImapMailboxes
from gobii_email.adapters.imap_session import Declined
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.secret import Secret
from gobii_email.ports import Auth, ImapServer, Probe, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ImapFaults, ScriptedImapServer
from gobii_email.testing.smtp_server import RawServer, Script
from tests.adapters.conftest import failed, loopback_policy, step_of

PASSWORD = 'S3cret with "quotes" and \\'
USERS = {"anna": PASSWORD, "olga": "pässwörd-S3cret", "otto": "tok-S3cret"}
SPANS = ("connect", "greeting", "tls", "command", "blocked")
OPEN = {"security": Security.NONE}


def quick(seconds: float = 0.5, **others: float) -> ImapDeadlines:
    others = {"blocked": 0.5, **others}
    spans: dict[str, Any] = {name: timedelta(seconds=others.get(name, seconds)) for name in SPANS}
    return replace(ImapDeadlines(), probe=timedelta(seconds=others.get("probe", 120)), **spans)


def server_at(port: int, user: str = "anna", **settings: Any) -> ImapServer:
    made = ImapServer("localhost", port, Security.SSL, Auth.LOGIN, user, Secret(USERS[user]))
    return replace(made, **settings)


def mailboxes(port: int, seconds: float = 60, **others: float) -> ImapMailboxes:
    return ImapMailboxes(loopback_policy(port), quick(seconds, **others))


def probe(port: int, seconds: float = 60, user: str = "anna", **settings: Any) -> Probe:
    return mailboxes(port, seconds).probe(server_at(port, user, **settings))


# What goes well


@pytest.mark.parametrize("security", [Security.SSL, Security.STARTTLS])
def test_a_mailbox_is_read_without_being_changed(authority: ThrowAwayAuthority, security: Security) -> None:
    with ScriptedImapServer(tls=authority.good(), security=str(security), users=USERS) as server:
        found = probe(server.port, security=security)
        heard = server.heard
    assert found.is_ok, found.failure
    order = ["tls", "greeting"] if security is Security.SSL else ["greeting", "starttls", "tls"]
    steps = ["policy", "dns", "tcp", *order, "capabilities", "auth", "list", "select"]
    assert [(step.id, str(step.status)) for step in found.steps] == [(name, "ok") for name in steps]
    assert step_of(found, "select").facts["uid_validity"] == 1795292296
    assert step_of(found, "list").facts["folders"] == ["INBOX", "Sent"]
    tls = step_of(found, "tls").facts
    assert (
        str(tls["version"]).startswith("TLSv1") and "localhost" in tls["names"] and tls["chain"] == "trusted"
    )
    assert b"SELECT" not in heard


@pytest.mark.parametrize(
    ("user", "settings", "offered", "mechanism"),
    [
        ("anna", {}, {}, "LOGIN"),
        ("anna", {}, {"has_login": False}, "PLAIN"),
        ("anna", {"auth": Auth.PLAIN}, {}, "PLAIN"),
        ("olga", {}, {}, "PLAIN"),
        ("otto", {"auth": Auth.OAUTH2}, {}, "XOAUTH2"),
        ("otto", {"auth": Auth.OAUTH2}, {"mechanisms": ["OAUTHBEARER"]}, "OAUTHBEARER"),
    ],
    ids=["login", "login disabled", "plain", "beyond ASCII", "xoauth2", "oauthbearer"],
)
def test_every_way_to_sign_in_reaches_the_server_as_it_was_given(
    authority: ThrowAwayAuthority,
    user: str,
    settings: dict[str, Any],
    offered: dict[str, Any],
    mechanism: str,
) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS, **offered) as server:
        found = probe(server.port, user=user, **settings)
    assert found.is_ok, found.failure
    assert server.logins == [(user, mechanism, True)]
    assert step_of(found, "auth").facts["mechanism"] == mechanism


def test_a_folder_with_letters_beyond_ascii_is_found(authority: ThrowAwayAuthority) -> None:
    folders: dict[str, list[bytes]] = {"INBOX": [], "Entw&APw-rfe &- mehr": [b"x", b"y"]}
    with ScriptedImapServer(tls=authority.good(), users=USERS, folders=folders) as server:
        found = probe(server.port, folder="Entwürfe & mehr")
    assert found.is_ok, found.failure
    assert step_of(found, "select").facts["messages"] == 2
    assert step_of(found, "list").facts["folders"] == ["INBOX", "Entwürfe & mehr"]


def test_the_mailbox_stays_open_for_who_looks_for_a_mail(authority: ThrowAwayAuthority) -> None:
    folders = {"INBOX": [b"Message-ID: <other@x>\r\n", b"Message-ID: <mine@x>\r\n"]}
    with ScriptedImapServer(tls=authority.good(), users=USERS, folders=folders) as server:
        with mailboxes(server.port).open_mailbox(server_at(server.port)) as (mailbox, folder):
            assert (folder.messages, folder.uid_next) == (2, 3)
            assert mailbox.find("<mine@x>") == [2]
        assert (
            mailboxes(server.port).await_mail(server_at(server.port), "<mine@x>", timedelta(seconds=60)) == 2
        )


def test_a_mail_that_never_comes_is_not_waited_for_beyond_its_span(
    authority: ThrowAwayAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gobii_email.adapters.imap.LONGEST_LOOK_SECONDS", 0.25)
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        span = timedelta(seconds=3)
        assert mailboxes(server.port).await_mail(server_at(server.port), "<mine@x>", span) is None
    assert server.heard.count(b"SEARCH") >= 2


# What the server or the settings have wrong


@pytest.mark.parametrize("security", ["ssl", "starttls"])
@pytest.mark.parametrize(
    ("certificate", "text", "advice", "chain"),
    [
        ("expired", "expired on", "operator must renew it", "expired"),
        ("wrong_host", "is for somebody-else.example, not for localhost", "one of the names", "not judged"),
        ("self_signed", "not trusted here", "SSL_CERT_FILE", "not trusted"),
        ("not_yet_valid", "not valid before", "clock", "not valid yet"),
    ],
)
def test_a_bad_certificate_is_told_with_its_names_and_ends_before_the_password(
    authority: ThrowAwayAuthority, certificate: str, text: str, advice: str, chain: str, security: str
) -> None:
    tls = getattr(authority, certificate)()
    with ScriptedImapServer(tls=tls, security=security, users=USERS) as server:
        found = probe(server.port, security=Security(security))
        assert server.logins == []
    step = failed(found)
    assert step.id == "tls" and text in step.text and advice in step.advice
    assert step.facts["chain"] == chain and step.facts["names"] and step.facts["not_after"]


def test_a_wrong_password_is_told_with_the_servers_words(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        found = probe(server.port, secret=Secret("wrong-S3cret"))
    step = failed(found)
    assert step.id == "auth" and "AUTHENTICATIONFAILED" in step.raw and "password" in step.advice
    assert found.failure is not None and found.failure.finding.is_lasting
    assert "S3cret" not in repr(found)


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
def test_a_refused_token_is_answered_and_its_explanation_decoded(
    authority: ThrowAwayAuthority, mechanism: str
) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS, mechanisms=[mechanism]) as server:
        found = probe(server.port, user="otto", auth=Auth.OAUTH2, secret=Secret("stale-S3cret"))
    step = failed(found)
    assert step.id == "auth" and '"status":"400"' in step.raw
    assert server.logins == [("otto", mechanism, False)]


def test_a_password_that_no_login_can_carry_is_refused_with_a_remedy(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS, mechanisms=[]) as server:
        found = probe(server.port, user="olga")
        assert server.logins == [] and "pässwörd".encode() not in server.heard
    step = failed(found)
    assert step.id == "auth" and "plain letters" in step.advice and "pässwörd" not in repr(found)


def test_a_token_that_cannot_be_said_is_not_said(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        found = probe(server.port, user="otto", auth=Auth.OAUTH2, secret=Secret("a\tb-S3cret"))
        assert server.logins == []
    assert failed(found).id == "auth" and "cannot be sent" in failed(found).text
    assert "S3cret" not in repr(found)


def test_a_missing_folder_names_those_there_are(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        found = probe(server.port, folder="Archive")
    step = failed(found)
    assert step.id == "select" and "Archive" in step.text and "INBOX, Sent" in step.text
    assert "INBOX is always there" in step.advice


def test_a_folder_name_cannot_smuggle_a_command(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        found = probe(server.port, folder="INBOX\r\nA1 DELETE Sent")
        assert b"DELETE" not in server.heard
    assert failed(found).id == "select" and "line breaks" in failed(found).advice


@pytest.mark.parametrize("security", [Security.SSL, Security.STARTTLS, Security.NONE])
def test_a_server_that_knows_us_before_we_signed_in_is_left(
    authority: ThrowAwayAuthority, security: Security
) -> None:
    faults = ImapFaults(greeting=b"* PREAUTH welcome back")
    kind = "ssl" if security is Security.SSL else "starttls"
    with ScriptedImapServer(tls=authority.good(), security=kind, users=USERS, faults=faults) as server:
        found = probe(server.port, security=security)
        assert b"LOGIN" not in server.heard and b"AUTHENTICATE" not in server.heard
    step = failed(found)
    assert step.id == "greeting" and "PREAUTH" in step.text and "993" in step.advice


def test_what_is_slipped_in_before_encryption_ends_the_test(authority: ThrowAwayAuthority) -> None:
    faults = ImapFaults(injected=b"* 7 EXISTS\r\n")
    with ScriptedImapServer(tls=authority.good(), security="starttls", users=USERS, faults=faults) as server:
        found = probe(server.port, security=Security.STARTTLS)
    step = failed(found)
    assert step.id == "starttls" and "slipped" in step.advice and server.logins == []


def test_starttls_that_is_not_offered_never_goes_on_in_clear(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(security="none", users=USERS) as server:
        found = probe(server.port, security=Security.STARTTLS)
    step = failed(found)
    assert step.id == "starttls" and "993" in step.advice and server.logins == []


def test_tls_where_the_server_begins_in_clear_names_starttls(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), security="starttls", users=USERS) as server:
        found = probe(server.port, security=Security.SSL)
    assert failed(found).id == "tls" and "set security to STARTTLS" in failed(found).advice
    assert found.failure is not None and found.failure.finding.is_lasting


def test_silence_where_tls_is_expected_names_ssl(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        found = probe(server.port, 2, security=Security.STARTTLS)
    assert failed(found).id == "greeting" and "set security to SSL/TLS" in failed(found).advice
    assert found.failure is not None and found.failure.finding.is_lasting


def test_a_closed_port_names_the_usual_ones() -> None:
    with RawServer(Script.hang) as server:
        port = server.port
    step = failed(probe(port))
    assert step.id == "tcp" and "993" in step.advice


def test_a_password_is_not_said_in_clear_to_a_public_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.dialer.is_public", lambda _: True)
    with ScriptedImapServer(security="none", users=USERS) as server:
        policy = replace(loopback_policy(server.port), allowed_networks=())
        found = ImapMailboxes(policy, quick(5)).probe(
            server_at(server.port, host="mail.sender.example", security=Security.NONE)
        )
        assert b"S3cret" not in server.heard
    assert failed(found).id == "auth" and "STARTTLS or SSL" in failed(found).advice


# Servers that try to hold a reader up


def greets_and(*answers: bytes) -> Callable[[Script], None]:
    """Greets, answers CAPABILITY, then says each of `answers` to what follows."""

    def play(it: Script) -> None:
        it.say(b"* OK ready")
        for answer in (b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nTAG OK ok\r\n", *answers):
            tag = it.hear().split(b" ")[0]
            it.write(answer.replace(b"TAG", tag))
        it.hang()

    return play


def flood(start: bytes, piece: bytes) -> Callable[[Script], None]:
    def play(it: Script) -> None:
        it.write(start)
        while True:
            it.write(piece)

    return play


SIGNED_IN = (b"TAG OK in\r\n", b"* CAPABILITY IMAP4rev1\r\nTAG OK ok\r\n")


TOO_MUCH, NO_IMAP = "more than an answer may hold", "no mail server for reading"
HOSTILE: dict[str, tuple[Callable[[Script], object], str, str]] = {
    "endless greeting": (flood(b"* OK ", b"x" * 65536), "greeting", TOO_MUCH),
    "endless answer": (flood(b"", b"* OK still here\r\n" * 500), "capabilities", TOO_MUCH),
    "drip": (lambda it: it.drip(b"* OK" + b"." * 99, every=0.05), "greeting", "does not answer in time"),
    "another protocol": (lambda it: it.say(b"220 smtp.example ESMTP"), "greeting", NO_IMAP),
    "nonsense": (lambda it: it.say(b"\xff\xfe\x00 nonsense"), "greeting", NO_IMAP),
    "bye at once": (lambda it: it.say(b"* BYE too busy"), "greeting", "Test again later"),
    "nonsense after login": (
        greets_and(SIGNED_IN[0], b"* CAPABILITY \xff\r\nTAG OK ok\r\n"),
        "auth",
        NO_IMAP,
    ),
    "endless literal": (greets_and(*SIGNED_IN, b'* LIST () "/" {99999999999}\r\n'), "list", TOO_MUCH),
    "unbalanced": (greets_and(*SIGNED_IN, b"* LIST (((((((\r\nTAG OK ok\r\n"), "list", NO_IMAP),
    "deep": (greets_and(*SIGNED_IN, b"* LIST " + b"(" * 60_000 + b"\r\nTAG OK ok\r\n"), "list", NO_IMAP),
    "bye": (greets_and(*SIGNED_IN, b"* BYE shutting down\r\n"), "list", "Test again later"),
    "endless challenges": (greets_and(b"+ Zm9v\r\n" * 50_000), "auth", TOO_MUCH),
    "silence": (greets_and(b""), "auth", "does not answer in time"),
}


@pytest.mark.parametrize(("play", "step", "advice"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_server_ends_the_test_at_its_step(
    play: Callable[[Script], object], step: str, advice: str
) -> None:
    with RawServer(play) as server:
        seconds = 2 if advice == "does not answer in time" else 60
        found = probe(server.port, seconds, security=Security.NONE)
    assert failed(found).id == step, found.steps
    assert advice in failed(found).advice
    after = [taken.status for taken in found.steps[found.steps.index(failed(found)) + 1 :]]
    assert set(after) <= {StepStatus.SKIPPED}


def test_a_test_has_one_budget_for_all_its_steps() -> None:
    def slow(it: Script) -> None:
        it.wait(0.3)
        it.say(b"* OK ready")
        while True:
            tag = it.hear().split(b" ")[0]
            it.wait(0.3)
            it.write(b"* CAPABILITY IMAP4rev1\r\n" + tag + b" OK ok\r\n")

    with RawServer(slow) as server:
        began = time.monotonic()
        found = mailboxes(server.port, probe=1.0).probe(server_at(server.port, **OPEN))
        assert time.monotonic() - began < 30
    assert found.failure is not None and found.failure.lost is not None


def test_a_slow_greeting_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.probe.SLOW_GREETING_SECONDS", 0.01)
    with RawServer(lambda it: (it.wait(1), it.say(b"* OK at last"), it.hang())) as server:
        found = mailboxes(server.port).probe(server_at(server.port, **OPEN), until="greeting")
    assert found.is_ok and step_of(found, "greeting").status is StepStatus.WARN


# What is shown


def test_a_transcript_tells_both_sides_and_no_secret(authority: ThrowAwayAuthority) -> None:
    lines: list[str] = []
    with ScriptedImapServer(tls=authority.good(), security="starttls", users=USERS) as server:
        made = mailboxes(server.port)
        for user, settings in (("anna", {}), ("olga", {}), ("otto", {"auth": Auth.OAUTH2})):
            target = server_at(server.port, user, security=Security.STARTTLS, **settings)
            assert made.probe(target, on_line=lines.append).is_ok
    text = "\n".join(lines)
    assert "-> " in text and "<- * OK" in text and "~> " in text and "<~ " in text
    assert "LOGIN ********" in text and "AUTHENTICATE ********" in text
    _assert_no_secret(text)


def test_an_echoed_secret_is_masked() -> None:
    def echo(it: Script) -> None:
        it.say(b"* OK ready")
        tag = it.hear().split(b" ")[0]
        it.write(b"* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n" + tag + b" OK ok\r\n")
        said = it.hear()
        it.say(said.split(b" ")[0] + b" NO you said " + said)
        it.hang()

    lines: list[str] = []
    with RawServer(echo) as server:
        target = server_at(server.port, security=Security.NONE, secret=Secret("canary-S3cret-long"))
        found = mailboxes(server.port).probe(target, on_line=lines.append)
    assert failed(found).id == "auth"
    _assert_no_secret("\n".join([repr(found), *lines]))


def _assert_no_secret(text: str) -> None:
    for secret in (*USERS.values(), "S3cret"):
        for form in (secret, base64.b64encode(secret.encode()).decode()):
            assert form not in text


def test_the_library_never_dials_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the library dialled")

    monkeypatch.setattr("socket.create_connection", refuse)
    with ScriptedImapServer(security="none", users=USERS) as server:
        assert probe(server.port, **OPEN).is_ok


def test_a_stage_to_stop_at_is_kept_to(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.good(), users=USERS) as server:
        taken: list[Step] = []
        found = mailboxes(server.port).probe(server_at(server.port), until="tls", on_step=taken.append)
        assert b"LOGIN" not in server.heard
    assert found.is_ok and taken == list(found.steps)
    assert [step.id for step in found.steps if step.status is StepStatus.OK][-1] == "tls"


def test_a_refusal_while_mail_is_read_keeps_the_servers_words(authority: ThrowAwayAuthority) -> None:
    faults = ImapFaults(answers={"UID": b"TAG NO [SERVERBUG] no index\r\n"})
    with ScriptedImapServer(tls=authority.good(), users=USERS, faults=faults) as server:
        with mailboxes(server.port).open_mailbox(server_at(server.port)) as (mailbox, _):
            with pytest.raises(Declined, match="no index") as refused:
                mailbox.find("<x@y>")
    assert (refused.value.refusal.code, refused.value.refusal.status) == ("SERVERBUG", "NO")
