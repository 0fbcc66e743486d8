"""Reading an opened folder: what is asked for, and how bad servers fail to stop, flood or fool a reader."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from gobii_email.adapters.imap import ImapDeadlines, ImapMailboxes
from gobii_email.adapters.imap_reading import MAX_HEADER_BYTES, ImapFolder
from gobii_email.domain.mailbox_failures import MailboxFailure
from gobii_email.ports import LeaseLost, MailboxUnreadable, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ImapFaults, ScriptedImapServer
from gobii_email.testing.smtp_server import RawServer, Script
from tests.adapters.conftest import loopback_policy
from tests.adapters.test_imap import SIGNED_IN, USERS, greets_and, server_at

EXAMINED = b"* 3 EXISTS\r\n* OK [UIDVALIDITY 7] ok\r\n* OK [UIDNEXT 12] ok\r\nTAG OK [READ-ONLY] opened\r\n"
MAIL = b"From: a@rcpt.example\r\nSubject: One\r\n\r\nBody\r\n"
MOST = 100_000


def mailboxes(port: int, seconds: float = 60) -> ImapMailboxes:
    span = timedelta(seconds=seconds)
    spans = dict.fromkeys(("connect", "greeting", "tls", "command", "body", "open"), span)
    return ImapMailboxes(loopback_policy(port), replace(ImapDeadlines(), **spans))


@contextmanager
def folder_at(server: ScriptedImapServer, name: str = "INBOX") -> Iterator[ImapFolder]:
    with mailboxes(server.port).open_folder(server_at(server.port, folder=name)) as folder:
        yield folder


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedImapServer]:
    mails = [MAIL, b"", MAIL.replace(b"One", b"Three")]
    with ScriptedImapServer(tls=authority.good(), users=USERS, folders={"INBOX": mails}) as started:
        yield started


# What is asked for


def test_the_mails_of_a_folder_are_listed_by_uid_and_day(server: ScriptedImapServer) -> None:
    server.dates[MAIL] = datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
    with folder_at(server) as folder:
        assert (folder.messages, folder.uid_validity, folder.uid_next) == (2, 1795292296, 4)
        assert folder.uids(1, None) == folder.uids(1, 3) == [1, 3]
        assert folder.uids(2, 2) == []
        assert folder.uids(4, None) == [], "the newest is no answer to what comes after it"
        assert folder.uids(1, 3, date(2026, 3, 5)) == [3]
        assert folder.uids(1, 3, date(2026, 3, 4)) == [1, 3]
    assert b"UID SEARCH UID 1:3 SINCE 4-Mar-2026\r\n" in server.heard


def test_headers_of_several_mails_come_at_once_and_bodies_one_by_one(server: ScriptedImapServer) -> None:
    server.dates[MAIL] = datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
    with folder_at(server) as folder:
        heads = folder.heads([1, 2, 3])
        assert sorted(heads) == [1, 3], "what was deleted meanwhile is left out"
        assert heads[1].header == MAIL.partition(b"Body")[0] and heads[1].size == len(MAIL)
        assert heads[1].internal_at == datetime(2026, 3, 4, 10, 0, tzinfo=UTC)
        assert folder.body(1, len(MAIL), MOST) == MAIL
        assert folder.body(2, len(MAIL), MOST) is None
        assert folder.heads([]) == {}
    heard = server.heard
    assert b"BODY.PEEK[HEADER]<0.65536>" in heard and b"BODY[" not in heard and b" SELECT" not in heard


def test_a_folder_with_blanks_and_accents_is_opened_by_its_name(authority: ThrowAwayAuthority) -> None:
    folders = {"Entw&APw-rfe &- mehr": [MAIL]}
    with (
        ScriptedImapServer(tls=authority.good(), users=USERS, folders=folders) as server,
        folder_at(server, "Entwürfe & mehr") as folder,
    ):
        assert folder.uids(1, None) == [1]


@pytest.mark.parametrize("name", ["INBOX\r\nA1 DELETE Sent", "INBOX\nx", "IN\0BOX", "INBOX\x7f"])
def test_a_folder_name_cannot_smuggle_a_command(server: ScriptedImapServer, name: str) -> None:
    with pytest.raises(MailboxUnreadable) as caught, folder_at(server, name):
        pass
    assert caught.value.failure.hold == "config_needed"
    assert b"EXAMINE" not in server.heard and b"DELETE" not in server.heard


def test_who_we_are_is_told_where_the_server_wants_to_know() -> None:
    offers = b"* CAPABILITY IMAP4rev1 ID\r\nTAG OK ok\r\n"
    said = play_and_open(SIGNED_IN[0], offers, b"* ID NIL\r\nTAG OK ok\r\n", EXAMINED)
    assert b' ID ("name" "gobii-email"' in said and said.index(b" ID ") < said.index(b"EXAMINE")
    refused = play_and_open(SIGNED_IN[0], offers, b"TAG NO not today\r\n", EXAMINED)
    assert b"EXAMINE" in refused, "a server that does not care is read all the same"


def test_capabilities_that_come_with_the_login_are_not_asked_for_again() -> None:
    said = play_and_open(b"TAG OK [CAPABILITY IMAP4rev1 IDLE] in\r\n", EXAMINED)
    assert said.count(b"CAPABILITY") == 1


def play_and_open(*answers: bytes) -> bytes:
    with RawServer(greets_and(*answers)) as server:
        with mailboxes(server.port).open_folder(server_at(server.port, security=Security.NONE)) as folder:
            assert folder.uid_validity == 7
        return server.heard


def test_the_next_visit_takes_up_the_tls_session_and_a_test_does_not(server: ScriptedImapServer) -> None:
    boxes = mailboxes(server.port)
    reused = []
    for _ in range(2):
        with boxes.open_folder(server_at(server.port)) as folder:
            reused.append(getattr(folder._dialogue.session.sock, "session_reused", None))
    assert reused == [False, True]
    assert boxes.probe(server_at(server.port)).is_ok


# Servers that try to hold a reader up, or to fool it


def failure_of(act: Callable[[ImapFolder], object], *answers: bytes, seconds: float = 60) -> MailboxFailure:
    """How `act` in a folder ends that is opened on a server which then says `answers`."""
    return unreadable(act, [*SIGNED_IN, EXAMINED, *answers], seconds).failure


def unreadable(
    act: Callable[[ImapFolder], object], answers: Sequence[bytes], seconds: float = 60
) -> MailboxUnreadable:
    with RawServer(greets_and(*answers)) as server:
        opened = mailboxes(server.port, seconds).open_folder(server_at(server.port, security=Security.NONE))
        with pytest.raises(MailboxUnreadable) as caught, opened as folder:
            act(folder)
    return caught.value


TOO_SLOW, TOO_MUCH = "did not complete SEARCH", "more than an answer may hold"
HOSTILE: dict[str, tuple[Callable[[ImapFolder], object], bytes, str]] = {
    "literal flood": (
        lambda it: it.body(1, 100, MOST),
        b"* 1 FETCH (UID 1 BODY[] {4294967295}\r\n",
        TOO_MUCH,
    ),
    "many literals": (
        lambda it: it.body(1, 100, MOST),
        b"* 1 FETCH (UID 1 BODY[] {60000}\r\n%s)\r\n" % (b"x" * 60_000) * 4,
        TOO_MUCH,
    ),
    "endless header": (
        lambda it: it.heads([1]),
        b"* 1 FETCH (UID 1 BODY[HEADER] {%d}\r\n" % (2 * MAX_HEADER_BYTES + 70_000),
        TOO_MUCH,
    ),
    "endless search": (lambda it: it.uids(1, None), b"* SEARCH " + b"1 " * 600_000, TOO_MUCH),
    "endless news": (lambda it: it.uids(1, None), b"* 5 EXISTS\r\n" * 100_000, TOO_MUCH),
    "no numbers": (lambda it: it.uids(1, None), b"* SEARCH one two\r\nTAG OK ok\r\n", "not IMAP"),
    "no parentheses": (lambda it: it.heads([1]), b"* 1 FETCH UID 1\r\nTAG OK ok\r\n", "not IMAP"),
    "depth": (
        lambda it: it.heads([1]),
        b"* 1 FETCH " + b"(" * 60_000 + b"\r\nTAG OK ok\r\n",
        "not IMAP",
    ),
    "bye": (lambda it: it.uids(1, None), b"* BYE shutting down\r\n", "BYE"),
    "tarpit": (lambda it: it.uids(1, None), b"* SEARCH", TOO_SLOW),
}


@pytest.mark.parametrize(("act", "answer", "text"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_answer_ends_the_visit_within_its_bounds(
    act: Callable[[ImapFolder], object], answer: bytes, text: str
) -> None:
    found = failure_of(act, answer, seconds=3 if text == TOO_SLOW else 60)
    assert text in found.text and found.hold is None


def test_a_refused_command_leaves_the_connection_open() -> None:
    answers = [*SIGNED_IN, EXAMINED, b"TAG NO [SERVERBUG] cannot\r\n"]
    refused = unreadable(lambda it: it.body(5, 100, MOST), answers)
    assert not refused.is_over and refused.failure.hold is None


def test_a_body_that_nobody_asked_for_is_not_taken() -> None:
    foreign = b"* 9 FETCH (UID 9 BODY[] {4}\r\nEVIL)\r\n* 5 FETCH (FLAGS (\\Seen))\r\n"
    wanted = b"* 1 FETCH (UID 5 BODY[] {4}\r\nGOOD)\r\nTAG OK ok\r\n"
    answers = [*SIGNED_IN, EXAMINED, foreign + wanted, foreign + b"TAG OK ok\r\n"]
    with RawServer(greets_and(*answers)) as server:
        opened = mailboxes(server.port).open_folder(server_at(server.port, security=Security.NONE))
        with opened as folder:
            assert folder.body(5, 4, MOST) == b"GOOD"
            assert folder.body(5, 4, MOST) is None


def test_uids_outside_the_range_that_was_asked_for_are_not_taken() -> None:
    answers = [*SIGNED_IN, EXAMINED, b"* SEARCH 3 11 5\r\n* SEARCH 12 10\r\nTAG OK ok\r\n"]
    with RawServer(greets_and(*answers)) as server:
        opened = mailboxes(server.port).open_folder(server_at(server.port, security=Security.NONE))
        with opened as folder:
            assert folder.uids(10, 11) == [10, 11]


@pytest.mark.parametrize("security", [Security.SSL, Security.STARTTLS, Security.NONE])
def test_a_server_that_knows_us_before_we_signed_in_is_not_read(
    authority: ThrowAwayAuthority, security: Security
) -> None:
    faults = ImapFaults(greeting=b"* PREAUTH welcome back")
    kind = "ssl" if security is Security.SSL else "starttls"
    with ScriptedImapServer(tls=authority.good(), security=kind, users=USERS, faults=faults) as server:
        opened = mailboxes(server.port).open_folder(server_at(server.port, security=security))
        with pytest.raises(MailboxUnreadable) as caught, opened:
            pass
        assert "PREAUTH" in caught.value.failure.text and b"EXAMINE" not in server.heard


def test_what_is_slipped_in_before_encryption_ends_the_visit(authority: ThrowAwayAuthority) -> None:
    faults = ImapFaults(injected=b"* 7 FETCH (UID 7 BODY[] {4}\r\nEVIL)\r\n")
    with ScriptedImapServer(tls=authority.good(), security="starttls", users=USERS, faults=faults) as server:
        opened = mailboxes(server.port).open_folder(server_at(server.port, security=Security.STARTTLS))
        with pytest.raises(MailboxUnreadable) as caught, opened:
            pass
    assert caught.value.failure.error == "starttls_injection" and server.logins == []


def test_a_server_that_is_not_who_it_says_never_hears_the_password(authority: ThrowAwayAuthority) -> None:
    with ScriptedImapServer(tls=authority.wrong_host(), users=USERS) as server:
        with pytest.raises(MailboxUnreadable) as caught, folder_at(server):
            pass
        assert server.logins == []
    assert caught.value.failure.error == "certificate_wrong_name"


def test_a_visit_ends_where_its_lease_does(server: ScriptedImapServer) -> None:
    waits = []

    def lose_it() -> None:
        waits.append(server.heard)
        if b"EXAMINE" in server.heard:
            raise LeaseLost

    opened = mailboxes(server.port).open_folder(server_at(server.port), lose_it)
    with pytest.raises(LeaseLost), opened as folder:
        folder.uids(1, None)
    assert len(waits) > 5


def test_a_slow_opening_is_bounded_as_a_whole() -> None:
    def play(it: Script) -> None:
        it.drip(b"* OK" + b"." * 500, every=0.05)

    deadlines = replace(ImapDeadlines(), open=timedelta(seconds=0.6))
    with RawServer(play) as server:
        boxes = ImapMailboxes(loopback_policy(server.port), deadlines)
        with (
            pytest.raises(MailboxUnreadable) as caught,
            boxes.open_folder(server_at(server.port, security=Security.NONE)),
        ):
            pass
    assert caught.value.failure.error == "timeout"
