"""Copies of sent mail on real sockets: found by header alone, filed once, never absent by mistake."""

import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gobii_email.adapters.imap_sent import MOST_COMPARED, ImapSentFolders
from gobii_email.domain.evidence import Looked
from gobii_email.domain.secret import Secret
from gobii_email.ports import Auth, Filed, ImapServer, LookedFor, LookFailed, Security
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.imap_server import ScriptedImapServer
from gobii_email.testing.smtp_server import Script
from tests.adapters.conftest import loopback_policy
from tests.adapters.test_imap import quick

NOW = datetime.now(UTC)
OURS = LookedFor("<abc@sender.example>", "attempt-1", NOW)


def mail(message_id: str = OURS.message_id, attempt: str = OURS.attempt_id, **fields: str) -> bytes:
    head = {"X-Gobii-Message-ID": attempt, "Message-ID": message_id, "Subject": "S", **fields}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in head.items() if value]
    return "\r\n".join([*lines, "", "body", ""]).encode()


OTHER = mail("<other@sender.example>", "attempt-9")


@pytest.fixture
def server(authority: ThrowAwayAuthority) -> Iterator[ScriptedImapServer]:
    with ScriptedImapServer(tls=authority.good(), users={"anna": "pw"}) as running:
        yield running


def folders(server: ScriptedImapServer) -> ImapSentFolders:
    return ImapSentFolders(loopback_policy(server.port), quick(60))


def at(server: ScriptedImapServer) -> ImapServer:
    return ImapServer("localhost", server.port, Security.SSL, Auth.LOGIN, "anna", Secret("pw"))


def look(server: ScriptedImapServer, wanted: LookedFor = OURS) -> Looked:
    with folders(server).open(at(server)) as sent:
        return sent.look(wanted)


def failure(server: ScriptedImapServer) -> LookFailed:
    with pytest.raises(LookFailed) as raised:
        look(server)
    return raised.value


# What is found


def test_a_copy_is_found_with_its_place_and_date(server: ScriptedImapServer) -> None:
    server.folders["Sent"] += [OTHER, mail()]
    server.dates[mail()] = NOW.replace(microsecond=0)
    (copy,) = look(server).copies
    assert (copy.folder, copy.uid_validity, copy.uid) == ("Sent", server.uid_validity, 2)
    assert copy.filed_at == NOW.replace(microsecond=0) and copy.attempt_id == "attempt-1"
    assert b"SELECT" not in server.heard and b"STORE" not in server.heard


@pytest.mark.parametrize("field", ["X_Microsoft_Original_Message_ID", "X_Google_Original_Message_ID"])
def test_a_copy_with_another_message_id_is_known_by_the_one_it_keeps(
    server: ScriptedImapServer, field: str
) -> None:
    server.folders["Sent"].append(mail("<new@provider.example>", **{field: OURS.message_id}))
    assert len(look(server).copies) == 1


@pytest.mark.parametrize(
    "message_id",
    ["<xabc@sender.example>", "<abc@sender.example.evil>", "<ABC@sender.example>", "", "abc@sender.example"],
)
def test_what_only_resembles_the_message_id_is_no_copy(server: ScriptedImapServer, message_id: str) -> None:
    server.folders["Sent"].append(mail(message_id, Subject=f"about {OURS.message_id}"))
    found = look(server)
    assert found.copies == [] and found.places == {"Sent": server.uid_validity}


def test_an_old_copy_among_much_mail_is_found_by_search(server: ScriptedImapServer) -> None:
    server.folders["Sent"] += [mail(), *(mail(f"<{number}@x>") for number in range(MOST_COMPARED + 50))]
    assert [copy.uid for copy in look(server).copies] == [1]


def test_a_search_that_misses_is_made_up_for_by_comparing(server: ScriptedImapServer) -> None:
    server.folders["Sent"] += [mail(), *(mail(f"<{number}@x>") for number in range(450))]
    server.faults.answers["UID SEARCH"] = b"* SEARCH\r\nTAG OK nothing\r\n"
    assert [copy.uid for copy in look(server).copies] == [1]


def test_comparing_ends_where_mail_is_older_than_the_attempt(server: ScriptedImapServer) -> None:
    old = [mail(f"<{number}@x>") for number in range(600)]
    server.folders["Sent"] += old
    server.dates.update(dict.fromkeys(old, NOW - timedelta(days=3)))
    assert look(server).copies == []
    assert server.heard.count(b" FETCH ") == 1


@pytest.mark.parametrize(
    ("names", "flags", "seen"),
    [
        (["INBOX", "Sent", "Archive"], {"Archive": "\\Sent"}, ["Archive"]),
        (["INBOX", "INBOX.Sent Items"], {}, ["INBOX.Sent Items"]),
        (["INBOX", "Gesendet", "Sent"], {}, ["Sent", "Gesendet"]),
        (["INBOX", "Envoy&AOk-s"], {}, ["Envoyés"]),
        (
            ["INBOX", "[Gmail]/Sent Mail", "[Gmail]/All Mail"],
            {"[Gmail]/Sent Mail": "\\Sent", "[Gmail]/All Mail": "\\All"},
            ["[Gmail]/Sent Mail", "[Gmail]/All Mail"],
        ),
    ],
    ids=["marked", "below INBOX", "two names", "beyond ASCII", "Gmail"],
)
def test_the_folders_of_sent_mail_are_found(
    server: ScriptedImapServer, names: list[str], flags: dict[str, str], seen: list[str]
) -> None:
    server.folders = {name: [] for name in names}
    server.flags = flags
    assert list(look(server).places) == seen


# What proves nothing


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("LIST", b"TAG NO not now\r\n"),
        ("EXAMINE", b"TAG NO [NONEXISTENT] gone\r\n"),
        ("EXAMINE", b"* 0 EXISTS\r\nTAG OK [READ-ONLY] opened\r\n"),
        ("EXAMINE", b"* OK [UIDVALIDITY 7] valid\r\nTAG OK [READ-ONLY] opened\r\n"),
        ("FETCH", b"TAG NO [SERVERBUG] sorry\r\n"),
        ("FETCH", b"TAG OK fetched nothing\r\n"),
        ("FETCH", b'* 1 FETCH (UID 1 INTERNALDATE "21-Nov-2026 10:00:00 +0000")\r\nTAG OK done\r\n'),
        ("FETCH", b"* 1 FETCH (UID 1 BODY[HEADER.FIELDS (MESSAGE-ID)] {2}\r\n\r\n)\r\nTAG OK done\r\n"),
        ("FETCH", b"* 1 FETCH (UID\r\nTAG OK done\r\n"),
        ("UID SEARCH", b"TAG NO search is away\r\n"),
        ("UID SEARCH", b"TAG BAD what\r\n"),
        ("UID SEARCH", b"* BYE too much\r\n"),
        ("LOGIN", b"TAG NO [AUTHENTICATIONFAILED] no\r\n"),
    ],
)
def test_a_look_that_fails_is_never_taken_for_absence(
    server: ScriptedImapServer, command: str, answer: bytes
) -> None:
    server.folders["Sent"].append(OTHER)
    server.faults.answers[command] = answer
    found = failure(server)
    assert found.text and found.blames_login == (command == "LOGIN")


@pytest.mark.parametrize("command", ["LOGIN", "LIST", "EXAMINE", "FETCH", "UID SEARCH"])
def test_a_line_that_drops_is_never_taken_for_absence(server: ScriptedImapServer, command: str) -> None:
    server.folders["Sent"].append(OTHER)
    server.faults.drops.add(command)
    assert "closed the connection" in failure(server).text


def test_a_mailbox_without_a_folder_for_it_proves_nothing(server: ScriptedImapServer) -> None:
    server.folders = {"INBOX": [], "Unsent": []}
    assert failure(server).code == "no-sent-folder"


def test_more_new_mail_than_is_compared_proves_nothing(server: ScriptedImapServer) -> None:
    server.folders["Sent"] += [mail(f"<{number}@x>") for number in range(MOST_COMPARED + 50)]
    assert failure(server).code == "too-much-mail"


def test_every_folder_has_to_be_seen(server: ScriptedImapServer) -> None:
    server.folders = {"Gesendet": []}
    server.flags = {"Gesendet": "\\Sent", "Everything": "\\All"}
    server.folders["Everything"] = [OTHER]
    server.faults.answers["FETCH"] = b"TAG NO not in this one\r\n"
    failure(server)


def test_a_host_that_may_not_be_dialled_is_not_told(server: ScriptedImapServer) -> None:
    made = ImapSentFolders(loopback_policy(1), quick(60))
    with pytest.raises(LookFailed) as raised, made.open(at(server)):
        pass
    assert "127.0.0.1" not in raised.value.text


# Filing


def file(server: ScriptedImapServer, message: bytes = b"", **values: Any) -> Filed:
    with folders(server).open(at(server)) as sent:
        return sent.file(b"X-Gobii-Message-ID: attempt-1\r\n", message or OTHER, NOW)


def test_a_copy_is_filed_as_read_with_its_date(server: ScriptedImapServer) -> None:
    with folders(server).open(at(server)) as sent:
        assert sent.look(OURS).copies == []
        filed = sent.file(b"X-Gobii-Message-ID: attempt-1\r\n", mail(attempt=""), NOW)
        assert [copy.uid for copy in sent.look(OURS).copies] == [1], "what was filed is seen at once"
    assert filed == Filed("Sent", server.uid_validity, 1)
    assert server.folders["Sent"] == [b"X-Gobii-Message-ID: attempt-1\r\n" + mail(attempt="")]
    assert b'APPEND "Sent" (\\Seen) "' in server.heard
    assert server.dates[server.folders["Sent"][0]] == NOW.replace(microsecond=0)


@pytest.mark.parametrize(
    "answer", [b"TAG NO [OVERQUOTA] full\r\n", b"TAG BAD no\r\n", b"+ go on\r\n* BYE now\r\n"]
)
def test_a_refused_copy_is_a_failure(server: ScriptedImapServer, answer: bytes) -> None:
    server.faults.answers["APPEND"] = answer
    with pytest.raises(LookFailed):
        file(server)
    assert server.folders["Sent"] == []


@pytest.mark.parametrize("keeps", [True, False])
def test_a_line_that_drops_after_the_literal_leaves_it_open(server: ScriptedImapServer, keeps: bool) -> None:
    server.faults.drops.add("APPEND")
    server.faults.keeps_dropped = keeps
    with pytest.raises(LookFailed):
        file(server, mail())
    assert len(look(server).copies) == keeps, "the next look tells"


def test_a_large_copy_is_filed_in_bounded_memory(
    server: ScriptedImapServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def discard(script: Script, size: int) -> bytes:
        while size > 0:
            size -= len(script.connection.recv(65_536))
        script._unread[:] = b"\r\n"
        return b""

    monkeypatch.setattr(Script, "hear_exactly", discard)
    message = mail() + b"x" * 20_000_000
    with folders(server).open(at(server)) as sent:
        sent.look(OURS)
        tracemalloc.start()
        sent.file(b"X-Gobii-Message-ID: attempt-1\r\n", message, NOW)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 4_000_000
