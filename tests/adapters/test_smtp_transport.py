"""What the SMTP transport says to a real server, and what it makes of the answers."""

import base64
import json
import re
from datetime import timedelta
from pathlib import Path

import pytest

from gobii_email.adapters.smtp import Deadlines, build_xoauth2_string, queue_id, wire_form
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Refused
from gobii_email.domain.secret import Secret
from gobii_email.domain.smtp_replies import Stage, parse_reply
from gobii_email.ports import Auth, Envelope, Reuse, Security, SmtpServer
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import Faults, RawServer, Script, ScriptedSmtpServer
from tests.adapters.conftest import (
    MESSAGE,
    PASSWORD,
    USERS,
    Notes,
    account,
    envelope,
    in_the_clear,
    quick_deadlines,
    transport_to,
)


@pytest.mark.parametrize("auth", [Auth.PLAIN, Auth.LOGIN, Auth.OAUTH2])
@pytest.mark.parametrize("security", list(Security))
def test_a_message_arrives_byte_for_byte_by_every_security_and_login(
    authority: ThrowAwayAuthority, security: Security, auth: Auth
) -> None:
    tls = None if security is Security.NONE else authority.good()
    password = "töken" if auth is Auth.OAUTH2 else PASSWORD
    with ScriptedSmtpServer(tls=tls, security=security, users={"anna": password}) as server:
        target = account(server.port, security=security, auth=auth, password=password)
        outcome = transport_to(server.port).send(target, envelope(), MESSAGE, Notes())

    assert isinstance(outcome, Accepted), outcome
    (message,) = server.messages
    assert message.content == MESSAGE
    assert (message.user, message.mechanism) == ("anna", {Auth.OAUTH2: "XOAUTH2"}.get(auth, auth.upper()))
    assert message.is_encrypted is (security is not Security.NONE)
    assert outcome.provider_message_id == "00000001"
    assert outcome.facts.tls.startswith("TLSv1") is (security is not Security.NONE)
    assert outcome.facts.peer_address == "127.0.0.1"
    assert "DSN" in outcome.facts.extensions
    assert {"connect", "ehlo", "auth", "mail", "rcpt", "data", "dot"} <= set(outcome.facts.stage_ms)


def test_a_sender_writes_the_attempts_own_header_before_the_message(server: ScriptedSmtpServer) -> None:
    sender = transport_to(server.port).open(account(server.port), Reuse())
    outcomes = [sender.send(envelope(), b"X-Attempt: %d\r\n" % n, MESSAGE, Notes()) for n in (1, 2)]
    sender.close()
    assert all(isinstance(outcome, Accepted) for outcome in outcomes), outcomes
    assert [message.content for message in server.messages] == [
        b"X-Attempt: 1\r\n" + MESSAGE,
        b"X-Attempt: 2\r\n" + MESSAGE,
    ]


def test_an_account_without_a_login_sends_without_one(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good()) as server:
        outcome = transport_to(server.port).send(
            account(server.port, auth=Auth.NONE), envelope(), MESSAGE, Notes()
        )
    assert isinstance(outcome, Accepted)
    assert server.logins == []


def test_the_caller_is_told_each_stage_once_and_marks_before_the_dot(server: ScriptedSmtpServer) -> None:
    notes = Notes(on_mark=lambda: notes.told.append(f"seen {len(server.messages)}"))
    transport_to(server.port).send(
        account(server.port), envelope("b@r.example", "c@r.example"), MESSAGE, notes
    )
    assert notes.told == [
        *("connect", "ehlo", "tls", "ehlo", "auth", "mail", "rcpt", "data"),
        *("seen 0", "mark"),
    ]


def test_the_server_is_told_the_size_the_envelope_id_and_the_wish_for_bounces(
    server: ScriptedSmtpServer,
) -> None:
    odd = Envelope("a@sender.example", ("b+c=d@rcpt.example",), "id+1=2")
    transport_to(server.port).send(account(server.port), odd, MESSAGE, Notes())
    (message,) = server.messages
    assert message.mail_parameters == (f"SIZE={len(MESSAGE)}", "RET=HDRS", "ENVID=id+2B1+3D2")
    assert message.rcpt_parameters == {
        "b+c=d@rcpt.example": ("NOTIFY=FAILURE,DELAY", "ORCPT=rfc822;b+2Bc+3Dd@rcpt.example")
    }


def test_eight_bit_and_international_addresses_are_announced_only_when_needed(
    server: ScriptedSmtpServer,
) -> None:
    text = MESSAGE.replace(b"last", "lääst".encode())
    outcome = transport_to(server.port).send(
        account(server.port), envelope("jürgen@rcpt.example"), text, Notes()
    )
    assert isinstance(outcome, Accepted), outcome
    assert server.messages[0].mail_parameters[1:3] == ("BODY=8BITMIME", "SMTPUTF8")
    assert server.messages[0].recipients == ("jürgen@rcpt.example",)


def test_an_international_address_needs_a_server_that_takes_it(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS, offers_smtputf8=False) as server:
        outcome = transport_to(server.port).send(
            account(server.port), envelope("jürgen@rcpt.example"), MESSAGE, Notes()
        )
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.MAIL, Cause.SMTPUTF8_REQUIRED)


def test_a_message_beyond_the_announced_size_is_not_even_offered(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS, max_message_bytes=50) as server:
        outcome = transport_to(server.port).send(account(server.port), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.MAIL, Cause.MESSAGE_TOO_LARGE)
    assert "50 bytes" in outcome.text


def test_only_the_refused_recipient_is_refused(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(
        always={"gone@r.example": "550 5.1.1 No such user"}, recipients={"full@r.example": ["452 4.2.2 Full"]}
    )
    three = envelope("gone@r.example", "full@r.example", "here@r.example")
    outcome = transport_to(server.port).send(account(server.port), three, MESSAGE, Notes())
    assert isinstance(outcome, Accepted)
    assert {address: str(reply) for address, reply in outcome.refused.items()} == {
        "gone@r.example": "550 5.1.1 No such user",
        "full@r.example": "452 4.2.2 Full",
    }
    assert server.messages[0].recipients == ("here@r.example",)


def test_when_all_recipients_are_refused_nothing_is_sent(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(always={"x@r.example": "550 5.1.1 No", "y@r.example": "451 4.7.1 Later"})
    notes = Notes()
    outcome = transport_to(server.port).send(
        account(server.port), envelope("x@r.example", "y@r.example"), MESSAGE, notes
    )
    assert isinstance(outcome, Refused)
    assert (outcome.stage, outcome.reply.code) == (Stage.RCPT, 451)
    assert {address: reply.code for address, reply in outcome.refused.items()} == {
        "x@r.example": 550,
        "y@r.example": 451,
    }
    assert "mark" not in notes.told and "data" not in notes.told


@pytest.mark.parametrize("auth", [Auth.PLAIN, Auth.LOGIN, Auth.OAUTH2])
def test_a_wrong_password_is_the_servers_no(server: ScriptedSmtpServer, auth: Auth) -> None:
    outcome = transport_to(server.port).send(
        account(server.port, auth=auth, password="wröng"), envelope(), MESSAGE, Notes()
    )
    assert isinstance(outcome, Refused)
    assert (outcome.stage, outcome.reply.code, outcome.reply.enhanced) == (Stage.AUTH, 535, "5.7.8")
    assert server.messages == []


@pytest.mark.parametrize(
    ("certificate", "cause"),
    [
        ("expired", Cause.CERTIFICATE_EXPIRED),
        ("not_yet_valid", Cause.CERTIFICATE_NOT_YET_VALID),
        ("wrong_host", Cause.CERTIFICATE_WRONG_NAME),
        ("self_signed", Cause.CERTIFICATE_UNTRUSTED),
    ],
)
@pytest.mark.parametrize("security", [Security.SSL, Security.STARTTLS])
def test_no_password_is_said_behind_a_bad_certificate(
    authority: ThrowAwayAuthority, security: Security, certificate: str, cause: Cause
) -> None:
    with ScriptedSmtpServer(tls=getattr(authority, certificate)(), security=security, users=USERS) as server:
        outcome = transport_to(server.port).send(
            account(server.port, security=security), envelope(), MESSAGE, Notes()
        )
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.TLS, cause, False)
    assert outcome.text.endswith(".")
    assert server.logins == []


@pytest.mark.parametrize("lose_at", ["connect", "ehlo", "tls", "auth", "mail", "rcpt", "data", "mark"])
def test_a_lost_lease_leaves_the_message_unfinished(authority: ThrowAwayAuthority, lose_at: str) -> None:
    with ScriptedSmtpServer(tls=authority.good(), users=USERS) as server:
        outcome = transport_to(server.port).send(
            account(server.port), envelope(), MESSAGE, Notes(lose_at=lose_at)
        )
    assert isinstance(outcome, Lost)
    stage = "data" if lose_at == "mark" else lose_at
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (stage, Cause.LEASE_LOST, False)
    assert server.messages == []


def test_a_failing_mark_closes_the_connection_undotted(server: ScriptedSmtpServer) -> None:
    def fail() -> None:
        raise RuntimeError("the database is gone")

    with pytest.raises(RuntimeError, match="database"):
        transport_to(server.port).send(account(server.port), envelope(), MESSAGE, Notes(on_mark=fail))
    assert server.messages == []


def test_a_reply_lost_after_the_dot_is_marked_and_the_journal_knows_better(
    authority: ThrowAwayAuthority, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    faults = Faults(drops={"AFTER_DOT"})
    with ScriptedSmtpServer(tls=authority.good(), users=USERS, faults=faults, journal=journal) as server:
        outcome = transport_to(server.port).send(
            account(server.port), envelope(), b"X-Gobii-Message-ID: 42\r\n" + MESSAGE, Notes()
        )
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause, outcome.is_marked) == (Stage.DOT, Cause.CONNECTION_LOST, True)
    (line,) = journal.read_text().splitlines()
    assert (json.loads(line)["attempt_id"], json.loads(line)["recipients"]) == ("42", ["b@rcpt.example"])


def test_a_fault_strikes_as_often_as_it_is_set_to(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(
        replies={"DOT": "451 4.3.0 Try again"},
        delays={"AFTER_DOT": timedelta(seconds=0.5)},
        times={"DOT": 1},
    )
    outcomes = [
        transport_to(server.port).send(account(server.port), envelope(), MESSAGE, Notes()) for _ in range(2)
    ]
    first, second = outcomes
    assert isinstance(first, Refused) and (first.stage, first.reply.code) == (Stage.DOT, 451)
    assert isinstance(second, Accepted) and second.facts.stage_ms["dot"] >= 200
    assert len(server.messages) == 1
    assert server.connections == 2


def test_the_machines_name_stays_at_home(server: ScriptedSmtpServer) -> None:
    transport_to(server.port).send(account(server.port), envelope(), MESSAGE, Notes())
    assert set(server.ehlo_names) == {"[127.0.0.1]"}


def test_an_endpoint_nobody_listens_on_is_refused() -> None:
    with RawServer(Script.hang) as server:
        port = server.port
    outcome = transport_to(port).send(account(port), envelope(), MESSAGE, Notes())
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.CONNECT, Cause.CONNECTION_REFUSED)


@pytest.mark.parametrize(
    ("message", "recipients", "sender"),
    [
        (b"a\nb", ("b@r.example",), "a@s.example"),
        (b"a\r\rb\r\n", ("b@r.example",), "a@s.example"),
        (MESSAGE, (), "a@s.example"),
        (MESSAGE, ("b@r.example\r\nRSET",), "a@s.example"),
        (MESSAGE, ("b@r.example> SIZE=1",), "a@s.example"),
        (MESSAGE, ("",), "a@s.example"),
        (MESSAGE, ("b@r.example",), "a b@s.example"),
        (MESSAGE, ("b@r.example",), "\ud800@s.example"),
    ],
)
def test_our_own_mistakes_are_raised_before_anything_is_dialled(
    message: bytes, recipients: tuple[str, ...], sender: str
) -> None:
    with RawServer(Script.hang) as server:
        with pytest.raises(ValueError):
            transport_to(server.port).send(
                account(server.port), Envelope(sender, recipients, "1"), message, Notes()
            )
        assert server.scripts == []


@pytest.mark.parametrize("auth", [Auth.PLAIN, Auth.LOGIN, Auth.OAUTH2])
@pytest.mark.parametrize(
    "secret",
    [None, Secret(""), Secret("a\0b"), Secret("line\nbreak"), Secret("\ud800")],
    ids=["none", "empty", "nul", "newline", "surrogate"],
)
def test_a_secret_that_cannot_be_said_is_not_tried(auth: Auth, secret: Secret | None) -> None:
    def script(it: Script) -> None:
        it.say(b"220 hi")
        it.answer(b"250 AUTH PLAIN LOGIN XOAUTH2")
        it.hang()

    with RawServer(script) as server:
        target = SmtpServer("localhost", server.port, Security.NONE, auth, "anna", secret)
        outcome = transport_to(server.port).send(target, envelope(), MESSAGE, Notes())
        assert b"AUTH" not in server.heard
    assert isinstance(outcome, Lost)
    assert (outcome.stage, outcome.cause) == (Stage.AUTH, Cause.SECRET_UNREADABLE)


def _echo(it: Script) -> None:
    """Refuses the login with all that the client said, and all of it decoded, folded over lines."""
    it.say(b"220 hi")
    it.answer(b"250-hi", b"250 AUTH PLAIN LOGIN XOAUTH2")
    blobs = [it.hear().split()[-1]]
    if blobs[0] == b"LOGIN":
        it.say(b"334 ")
        blobs = [it.hear().strip()]
        it.say(b"334 ")
        blobs.append(it.hear().strip())
    texts = [*blobs, *(base64.b64decode(blob) for blob in blobs)]
    halves = [text[: len(text) // 2] for text in texts] + [text[len(text) // 2 :] for text in texts]
    folded = [part for text in texts for part in (text[:9], text[9:])]
    it.say(
        *(b"535-" + text.replace(b"\0", b" ") for text in [*texts, *folded, *halves[: len(blobs)]]),
        b"535 end",
    )
    it.hang()


@pytest.mark.parametrize("auth", [Auth.PLAIN, Auth.LOGIN, Auth.OAUTH2])
@pytest.mark.parametrize("password", ["canary-pässwörd-with-length", "ü*", "****", "c4n4ry  two blanks"])
def test_an_echoed_secret_is_masked(auth: Auth, password: str) -> None:
    with RawServer(_echo) as server:
        target = account(server.port, security=Security.NONE, auth=auth, password=password)
        outcome = transport_to(server.port).send(target, envelope(), MESSAGE, Notes())
        probe = transport_to(server.port).probe(target, "a@sender.example")
    assert isinstance(outcome, Refused), outcome
    shown = re.sub(r"[\s*]", "", repr(outcome) + repr(probe))
    for form in (password, base64.b64encode(password.encode()).decode()):
        bare = re.sub(r"[\s*]", "", form)
        assert len(bare) < 2 or bare not in shown
    said = [word.decode() for word in server.heard.split() if len(word) >= 24]
    assert not [word for word in said if word[: len(word) // 2] in shown or word[len(word) // 2 :] in shown]
    assert "end" in shown


def test_xoauth2_is_written_as_its_vendors_say() -> None:
    assert build_xoauth2_string("a@b.example", "tok") == "user=a@b.example\x01auth=Bearer tok\x01\x01"
    with pytest.raises(ValueError):
        build_xoauth2_string("a\x01auth=Bearer other", "tok")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("250 2.0.0 Ok: queued as 4XbGnL0QyHz1234", "4XbGnL0QyHz1234"),
        ("250 OK id=1rB6Zt-0004dE-2g", "1rB6Zt-0004dE-2g"),
        ("250 2.0.0 OK  1700000000 a1-20020a056402sm123.45 - gsmtp", "a1-20020a056402sm123.45"),
        ("250 Ok 0100018bd1f0a5b1-3c2f-000000", "0100018bd1f0a5b1-3c2f-000000"),
        ("250 2.6.0 <x@y.example> [InternalId=42, Hostname=H] Queued mail for delivery", "x@y.example"),
        ("250 2.0.0 3AB1Cd2e012345 Message accepted for delivery", "3AB1Cd2e012345"),
        ("250 ok 1700000000 qp 12345", "12345"),
        ("250 Message Queued (5D1A-77.1)", "5D1A-77.1"),
        ("250 2.0.0 Message queued with id 2f00dbeef.", "2f00dbeef"),
        ("250 OK", ""),
    ],
)
def test_the_queue_id_is_found_in_the_usual_texts(reply: str, expected: str) -> None:
    assert queue_id(parse_reply(reply)) == expected


def test_the_wire_form_ends_its_last_line() -> None:
    assert wire_form(b"a\r\nb") == b"a\r\nb\r\n"
    assert wire_form(b"a\r\n") == b"a\r\n"


def test_a_large_message_with_dots_everywhere_arrives_whole(server: ScriptedSmtpServer) -> None:
    large = b"Subject: x\r\n\r\n" + b"..\r\n.\r\n.a\r\n" * 100_000
    outcome = transport_to(server.port, quick_deadlines(60)).send(
        account(server.port), envelope(), large, Notes()
    )
    assert isinstance(outcome, Accepted), outcome
    assert server.messages[0].content == large


def test_the_body_deadline_grows_with_the_message() -> None:
    assert Deadlines().body_of(6_400_000) == timedelta(seconds=160)


def test_a_probe_walks_every_step_and_sends_nothing(server: ScriptedSmtpServer) -> None:
    probe = transport_to(server.port).probe(
        account(server.port), "a@sender.example", recipient="b@rcpt.example"
    )
    assert probe.is_ok
    assert [(step.id, step.status) for step in probe.steps] == [
        (name, "ok")
        for name in (
            "policy", "dns", "tcp", "banner", "ehlo", "starttls", "tls", "ehlo_again", "auth", "mail", "rcpt",
        )
    ]  # fmt: skip
    assert probe.facts.tls.startswith("TLSv1")
    assert server.messages == [] and server.connections == 1


def test_a_probe_says_where_it_failed_and_what_it_did_not_reach(server: ScriptedSmtpServer) -> None:
    probe = transport_to(server.port).probe(account(server.port, password="no"), "a@sender.example")
    assert not probe.is_ok and probe.failure is not None
    assert probe.failure.stage is Stage.AUTH
    assert probe.failure.reply is not None and probe.failure.reply.code == 535
    assert [(step.id, step.status) for step in probe.steps if step.status != "ok"] == [
        ("auth", "fail"), ("mail", "skipped"),
    ]  # fmt: skip


def test_a_probe_finds_a_sender_that_the_server_does_not_let_through(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(replies={"MAIL": "553 5.7.1 Sender address rejected: not owned by user"})
    probe = transport_to(server.port).probe(account(server.port), "boss@sender.example")
    assert probe.failure is not None
    assert (probe.failure.stage, str(probe.failure.reply)[:9]) == (Stage.MAIL, "553 5.7.1")


def test_a_probe_names_what_the_settings_leave_out() -> None:
    with ScriptedSmtpServer(security="none") as server:
        probe = transport_to(server.port).probe(in_the_clear(server.port), "a@sender.example")
    assert probe.is_ok
    assert [(step.id, step.status) for step in probe.steps[3:]] == [
        *(("tls", "warn"), ("banner", "ok"), ("ehlo", "ok"), ("auth", "skipped")),
        ("mail", "ok"),
    ]
