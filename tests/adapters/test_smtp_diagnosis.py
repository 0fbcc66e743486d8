"""A submission server that is wrong in one way: the step that says so, its facts, and what to do."""

import base64
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest

from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.smtp import SmtpTransport
from gobii_email.domain.diagnosis import Step, StepStatus
from gobii_email.domain.findings import UNREACHABLE_NAME
from gobii_email.ports import Auth, Probe, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.smtp_server import Faults, RawServer, Script, ScriptedSmtpServer
from tests.adapters.conftest import (
    PASSWORD,
    USERS,
    account,
    failed,
    in_the_clear,
    loopback_policy,
    quick_deadlines,
    step_of,
    transport_to,
)

SENDER = "anna@sender.example"


def probe(port: int, seconds: float = 60, **settings: Any) -> Probe:
    options = {name: settings.pop(name) for name in ("until", "on_line", "on_step") if name in settings}
    transport = transport_to(port, quick_deadlines(seconds))
    return transport.probe(account(port, **settings), SENDER, recipient=SENDER, **options)


def is_lasting(found: Probe) -> bool:
    return found.failure is not None and found.failure.finding.is_lasting


# What a good server shows


def test_each_step_tells_what_it_found(server: ScriptedSmtpServer) -> None:
    found = probe(server.port)
    assert found.is_ok
    tls = step_of(found, "tls").facts
    assert {"version", "cipher", "subject", "names", "issuer", "not_after", "chain", "name"} <= tls.keys()
    assert (tls["chain"], tls["name"]) == ("trusted", "matches") and "localhost" in tls["names"]
    assert "STARTTLS" in step_of(found, "ehlo").facts["extensions"]
    assert step_of(found, "auth").facts["mechanism"] == "PLAIN"
    assert "PLAIN" in step_of(found, "auth").facts["offered"]
    assert step_of(found, "dns").facts == {"name": "localhost", "count": 1}
    assert step_of(found, "rcpt").raw.startswith("250")


def test_implicit_tls_comes_before_the_banner(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.good(), security="ssl", users=USERS) as server:
        found = probe(server.port, security=Security.SSL)
    assert found.is_ok
    assert [step.id for step in found.steps][3:6] == ["tls", "banner", "ehlo"]


def test_a_stage_to_stop_at_is_kept_to(server: ScriptedSmtpServer) -> None:
    taken: list[Step] = []
    found = probe(server.port, until="auth", on_step=taken.append)
    assert found.is_ok and taken == list(found.steps)
    assert [(step.id, str(step.status)) for step in found.steps][-3:] == [
        *(("auth", "ok"), ("mail", "skipped"), ("rcpt", "skipped")),
    ]


def test_a_certificate_that_ends_soon_is_warned_of(authority: ThrowAwayAuthority) -> None:
    with ScriptedSmtpServer(tls=authority.ends_soon(), users=USERS) as server:
        found = probe(server.port)
    step = step_of(found, "tls")
    assert found.is_ok and step.status is StepStatus.WARN and "renew" in step.advice


def test_offers_that_change_with_encryption_are_warned_of(authority: ThrowAwayAuthority) -> None:
    def play(it: Script) -> None:
        it.say(b"220 ready")
        it.answer(b"250-mail.test\r\n250-SIZE 1000\r\n250-CHUNKING\r\n250 STARTTLS")
        it.answer(b"220 go ahead")
        it.encrypt(authority.good())
        it.answer(b"250-mail.test\r\n250-SIZE 1000\r\n250 AUTH PLAIN")
        it.answer(b"235 in")
        for _ in range(3):
            it.answer(b"250 ok")

    with RawServer(play) as server:
        found = probe(server.port)
    step = step_of(found, "ehlo_again")
    assert found.is_ok and step.status is StepStatus.WARN
    assert (step.facts["only_before"], step.facts["only_after"]) == (["CHUNKING"], [])


def test_a_slow_greeting_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gobii_email.adapters.probe.SLOW_GREETING_SECONDS", 0.1)
    with RawServer(lambda it: (it.wait(0.2), it.say(b"220 at last"), it.hang())) as server:
        found = probe(server.port, security=Security.NONE, auth=Auth.NONE, until="banner")
    assert step_of(found, "banner").status is StepStatus.WARN and found.is_ok


@pytest.mark.parametrize("security", [Security.NONE, Security.SSL])
def test_a_server_that_greets_late_is_waited_for(
    authority: ThrowAwayAuthority, monkeypatch: pytest.MonkeyPatch, security: Security
) -> None:
    def play(it: Script) -> None:
        if security is Security.SSL:
            it.encrypt(authority.good())
        it.wait(0.6)
        it.say(b"220 at last")
        it.hang()

    monkeypatch.setattr("gobii_email.adapters.second_look.BRIEF", timedelta(seconds=0.2))
    with RawServer(play) as server:
        found = probe(server.port, security=security, auth=Auth.NONE, until="banner")
    assert found.is_ok and step_of(found, "banner").raw.startswith("220")


# What may be wrong with a server or its settings


@pytest.mark.parametrize("security", ["ssl", "starttls"])
@pytest.mark.parametrize(
    ("certificate", "text", "advice", "chain"),
    [
        ("expired", "expired on", "operator must renew it", "expired"),
        ("wrong_host", "is for somebody-else.example, not for localhost", "one of the names", "not judged"),
        ("self_signed", "which is not trusted here", "SSL_CERT_FILE", "not trusted"),
        ("not_yet_valid", "not valid before", "clock", "not valid yet"),
    ],
)
def test_a_bad_certificate_is_told_with_its_names_and_ends_before_the_password(
    authority: ThrowAwayAuthority, certificate: str, text: str, advice: str, chain: str, security: str
) -> None:
    tls = getattr(authority, certificate)()
    with ScriptedSmtpServer(tls=tls, security=security, users=USERS) as server:
        found = probe(server.port, security=Security(security))
        assert server.logins == []
    step = failed(found)
    assert step.id == "tls" and text in step.text and advice in step.advice and is_lasting(found)
    assert step.facts["chain"] == chain and step.facts["names"] and step.facts["issuer"]
    assert step.facts["name"] == ("does not match" if certificate == "wrong_host" else "matches")


def test_what_a_hostile_server_offers_is_kept_short_and_paints_nothing() -> None:
    offers = b"\r\n".join(b"250-X%d \x1b[31m\x07 " % number + b"y" * 400 for number in range(100))

    def play(it: Script) -> None:
        it.say(b"220 \x1b[2Jready " + "\u202e".encode())
        it.answer(offers + b"\r\n250 AUTH PLAIN")
        it.answer(b"535 \x1b[31mno")
        it.hang()

    with RawServer(play) as server:
        found = probe(server.port, security=Security.NONE)
    assert failed(found).id == "auth"
    assert not re.search("[\x00-\x1f\u202e]", "".join(map(str, found.steps)).replace("\\x1b", "\x1b"))
    assert len(repr(found)) < 40_000


def test_a_server_of_the_past_is_told_to_offer_newer_tls(authority: ThrowAwayAuthority) -> None:
    with RawServer(lambda it: it.encrypt(authority.old_tls_only())) as server:
        found = probe(server.port, security=Security.SSL)
    assert failed(found).id == "tls" and "TLS 1.2 or newer" in failed(found).advice


def test_a_server_that_breaks_off_the_handshake_is_told_what_may_be_wrong() -> None:
    with RawServer(lambda it: it.connection.recv(1)) as server:
        found = probe(server.port, security=Security.SSL)
    assert failed(found).id == "tls" and "Check port and security" in failed(found).advice


def test_tls_where_the_server_begins_in_clear_names_starttls(server: ScriptedSmtpServer) -> None:
    found = probe(server.port, security=Security.SSL)
    assert failed(found).id == "tls" and "set security to STARTTLS" in failed(found).advice
    assert is_lasting(found)


@pytest.mark.parametrize("certificate", ["good", "expired"])
def test_silence_where_tls_is_expected_names_ssl(authority: ThrowAwayAuthority, certificate: str) -> None:
    tls = getattr(authority, certificate)()
    with ScriptedSmtpServer(tls=tls, security="ssl", users=USERS) as server:
        found = probe(server.port, 0.6)
    assert failed(found).id == "banner" and "set security to SSL/TLS" in failed(found).advice
    assert is_lasting(found)


def test_a_server_that_only_keeps_silent_is_not_taken_for_tls() -> None:
    with RawServer(Script.hang) as server:
        found = probe(server.port, 0.4)
    assert failed(found).id == "banner" and "does not answer in time" in failed(found).advice
    assert not is_lasting(found)


@pytest.mark.parametrize("certificate", ["expired", ""])
def test_a_server_that_takes_one_connection_only_is_diagnosed_all_the_same(
    authority: ThrowAwayAuthority, certificate: str
) -> None:
    """The second look comes to nothing, and takes nothing away."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection = listener.accept()[0]
            listener.close()
            with suppress(OSError):
                if certificate:
                    getattr(authority, certificate)().wrap_socket(connection, server_side=True)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        found = probe(listener.getsockname()[1], security=Security.SSL if certificate else Security.NONE)
        thread.join()
    step = failed(found)
    assert step.id == ("tls" if certificate else "banner")
    assert ("must renew it" if certificate else "broke the connection off") in step.advice


def test_a_closed_port_names_the_usual_ones() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = probe(port)
    assert failed(found).id == "tcp" and "465 with SSL/TLS" in failed(found).advice


def test_a_port_that_is_not_for_mail_is_refused_by_name() -> None:
    found = transport_to(587).probe(account(22), SENDER)
    assert failed(found).id == "policy" and "Port 22" in failed(found).text
    assert "465 or 587" in failed(found).advice


def test_starttls_that_is_not_offered_never_goes_on_in_clear() -> None:
    with ScriptedSmtpServer(security="none", users=USERS) as server:
        found = probe(server.port)
        assert server.logins == []
    assert failed(found).id == "starttls" and "SSL on port 465" in failed(found).advice


def test_what_is_slipped_in_before_encryption_ends_the_test() -> None:
    def play(it: Script) -> None:
        it.say(b"220 ready")
        it.answer(b"250-mail.test\r\n250 STARTTLS")
        it.answer(b"220 go ahead\r\n250 injected")
        it.hang()

    with RawServer(play) as server:
        found = probe(server.port)
    assert failed(found).id == "starttls" and "slipped" in failed(found).advice


HOSTILE: dict[str, tuple[Callable[[Script], object], str]] = {
    "endless banner": (
        lambda it: endless(it, b"220-" + b"x" * 1000 + b"\r\n"),
        "more than an answer may hold",
    ),
    "endless line": (lambda it: endless(it, b"x" * 65536), "more than an answer may hold"),
    "tarpit": (lambda it: it.drip(b"220 " + b"." * 99, every=0.05), "does not answer in time"),
    "another protocol": (lambda it: it.say(b"* OK IMAP4rev1 ready"), "no mail server for sending"),
    "hangs up": (lambda it: None, "broke the connection off"),
}


def endless(it: Script, piece: bytes) -> None:
    while True:
        it.write(piece)


@pytest.mark.parametrize(("play", "advice"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_greeting_ends_the_test(play: Callable[[Script], object], advice: str) -> None:
    with RawServer(play) as server:
        found = probe(server.port, 0.5)
    assert failed(found).id == "banner" and advice in failed(found).advice
    assert {step.status for step in found.steps[4:]} == {StepStatus.SKIPPED}


def test_a_wrong_password_is_told_with_what_the_server_offers(server: ScriptedSmtpServer) -> None:
    found = probe(server.port, password="wröng-S3cret")
    step = failed(found)
    assert step.id == "auth" and step.raw.startswith("535") and "password" in step.advice
    assert step.facts["mechanism"] == "PLAIN" and "S3cret" not in repr(found) and is_lasting(found)


def test_a_password_beyond_ascii_reaches_the_server_as_it_is(server: ScriptedSmtpServer) -> None:
    for auth in (Auth.PLAIN, Auth.LOGIN):
        assert probe(server.port, auth=auth).is_ok
    assert [right for _, _, right in server.logins] == [True, True] and not PASSWORD.isascii()


def test_a_refused_token_is_answered_and_its_explanation_decoded(server: ScriptedSmtpServer) -> None:
    found = probe(server.port, auth=Auth.OAUTH2, password="stale-S3cret")
    step = failed(found)
    assert step.id == "auth" and '"status":"400"' in step.raw and step.facts["mechanism"] == "XOAUTH2"
    assert "S3cret" not in repr(found)


def test_oauthbearer_is_spoken_where_it_alone_is_offered() -> None:
    said: list[bytes] = []

    def play(it: Script) -> None:
        it.say(b"220 ready")
        it.answer(b"250-mail.test\r\n250 AUTH PLAIN OAUTHBEARER")
        said.append(it.hear())
        it.say(b"334 " + base64.b64encode(b'{"status":"invalid_token"}'))
        said.append(it.hear())
        it.say(b"535 5.7.8 refused")
        it.hang()

    with RawServer(play) as server:
        found = probe(server.port, security=Security.NONE, auth=Auth.OAUTH2, password="tok-S3cret")
    initial = base64.b64decode(said[0].split()[2]).decode()
    expected = f"n,a=anna,\x01host=localhost\x01port={server.port}\x01auth=Bearer tok-S3cret\x01\x01"
    assert initial == expected and said[1] == b"AQ==\r\n"
    assert "invalid_token" in failed(found).raw and "S3cret" not in repr(found)


def test_a_sender_that_is_not_the_logins_own_is_told(server: ScriptedSmtpServer) -> None:
    server.faults = Faults(replies={"MAIL": "550 5.7.60 SMTP; Client does not have permissions to send as"})
    step = failed(probe(server.port))
    assert step.id == "mail" and "own address" in step.advice


# Hosts that may not be reached, and those that change


def at(resolver: Callable[[str, int], Sequence[str]], port: int = 587, opened: str = "") -> SmtpTransport:
    networks = (ip_network(opened),) if opened else ()
    policy = DialPolicy(networks, frozenset({port}), resolver)
    return SmtpTransport(policy, quick_deadlines(60, blocked=0.3))


def unknown(host: str, port: int) -> Sequence[str]:
    raise socket.gaierror(socket.EAI_NONAME, "unknown")


FORBIDDEN = {
    "private": lambda *_: ["10.0.0.7"],
    "loopback": lambda *_: ["127.0.0.1"],
    "mapped": lambda *_: ["::ffff:10.0.0.7"],
    "NAT64": lambda *_: ["64:ff9b::a00:7"],
    "6to4": lambda *_: ["2002:a00:7::1"],
    "metadata": lambda *_: ["169.254.169.254"],
    "good and bad": lambda *_: ["93.184.215.14", "192.168.1.1"],
    "unknown": unknown,
}


@pytest.mark.parametrize("resolver", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_forbidden_host_and_an_unknown_one_look_alike_and_take_the_same_time(resolver: Any) -> None:
    began = time.monotonic()
    found = at(resolver).probe(account(587, host="mail.sender.example"), SENDER)
    took = time.monotonic() - began
    step = failed(found)
    assert (step.id, step.text, step.raw, step.milliseconds) == ("dns", UNREACHABLE_NAME, "", 0)
    assert not step.facts and step.advice == "" and is_lasting(found)
    assert took >= 0.3


@pytest.mark.parametrize("host", ["10.0.0.7", "localhost", "[::1]", "0x7f.1", "127.1", "no host at all"])
def test_an_address_in_place_of_a_name_looks_like_an_unknown_name(host: str) -> None:
    step = failed(at(unknown).probe(account(587, host=host), SENDER))
    assert (step.id, step.text) == ("dns", UNREACHABLE_NAME)


@pytest.fixture
def two_faced(server: ScriptedSmtpServer) -> Iterator[tuple[SmtpTransport, ScriptedSmtpServer, list[str]]]:
    """A name that leads to the opened network when first asked, and elsewhere ever after."""
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.7"]

    yield at(resolver, server.port, "127.0.0.0/8"), server, asked


def test_a_host_that_changes_between_check_and_use_is_dialled_where_it_was_checked(two_faced: Any) -> None:
    transport, server, asked = two_faced
    found = transport.probe(account(server.port), SENDER)
    assert found.is_ok and len(asked) == 1 and server.connections == 1


def test_a_second_look_goes_where_the_first_one_went(authority: ThrowAwayAuthority) -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.7"]

    with ScriptedSmtpServer(tls=authority.expired(), users=USERS) as server:
        found = at(resolver, server.port, "127.0.0.0/8").probe(account(server.port), SENDER)
    assert failed(found).facts["names"] and len(asked) == 1


def test_the_addresses_of_an_opened_network_are_not_told(server: ScriptedSmtpServer) -> None:
    assert "127.0.0.1" not in repr(step_of(probe(server.port), "dns"))


def test_names_are_looked_up_anew_by_every_test(server: ScriptedSmtpServer) -> None:
    asked: list[str] = []

    def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"]

    transport = at(resolver, server.port, "127.0.0.0/8")
    for _ in range(2):
        assert transport.probe(account(server.port), SENDER).is_ok
    assert len(asked) == 2


# What is shown


@pytest.mark.parametrize("auth", [Auth.PLAIN, Auth.LOGIN, Auth.OAUTH2])
def test_a_transcript_tells_both_sides_and_no_secret(server: ScriptedSmtpServer, auth: Auth) -> None:
    lines: list[str] = []
    assert probe(server.port, auth=auth, on_line=lines.append).is_ok
    text = "\n".join(lines)
    assert "-> EHLO" in text and "<- 220" in text and "~> MAIL FROM" in text and "<~ 250" in text
    assert any(line.startswith("~> AUTH ") for line in lines)
    for form in (PASSWORD, base64.b64encode(PASSWORD.encode()).decode(), "AGFubmE", "S3cret"):
        assert form not in text


def test_a_test_writes_nothing_down_when_nobody_listens(server: ScriptedSmtpServer) -> None:
    assert probe(server.port).is_ok
    sending = transport_to(server.port)._connection(in_the_clear(server.port))
    assert type(sending.session).__name__ == "SmtpSession"


def test_the_policy_is_one_for_all_hosts() -> None:
    policy = replace(loopback_policy(587), allowed_networks=())
    found = SmtpTransport(policy, quick_deadlines(1)).probe(account(587, host="mail.sender.example"), SENDER)
    assert failed(found).id == "dns"
