"""Mail is read by a process that may die of it: nothing that a mail contains harms whoever asked."""

import base64
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from gobii_email.adapters import mail_reader
from gobii_email.adapters.mail_reader import BoundedMailReader
from gobii_email.domain.mail_reading import MailReading, as_document, from_document, read_whole
from gobii_email.domain.received_content import FileLimits
from gobii_email.ports import GaveUp

LIMITS = FileLimits(max_bytes=1_000_000, max_files=20)
PLAIN = b"From: Ann <ann@person.example>\r\nSubject: Hello\r\n\r\nGood morning"


def reader_with(seconds: int = 5, megabytes: int = 512) -> BoundedMailReader:
    return BoundedMailReader(
        LIMITS, processor_time=timedelta(seconds=seconds), memory_bytes=megabytes * 1024 * 1024
    )


@pytest.fixture(scope="module")
def reader() -> Iterator[BoundedMailReader]:
    made = reader_with()
    yield made
    made.close()


def parted(*parts: bytes, kind: bytes = b"mixed") -> bytes:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts)
    return b"Content-Type: multipart/" + kind + b"; boundary=b\r\n\r\n" + body + b"--b--\r\n"


SAMPLES = {
    "plain": PLAIN,
    "empty": b"",
    "html": b"Content-Type: text/html\r\n\r\n<p>Hi <img src='cid:p'><b onclick=x>there</b>",
    "files": parted(
        b"Content-Type: text/plain\r\n\r\nSee",
        b"Content-Type: image/png; name=p.png\r\nContent-ID: <p>\r\n\r\n\x00\xff\x89PNG",
        b"Content-Type: message/rfc822\r\n\r\nSubject: Inner\r\n\r\ninner",
        b"Content-Type: application/zip; name=large.zip\r\n\r\n" + b"x" * 1_000_001,
    ),
    "report": parted(
        b"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n"
        b"Final-Recipient: rfc822; bob@rcpt.example\r\nAction: failed\r\nStatus: 5.1.1\r\n"
        b"Diagnostic-Code: smtp; 550 5.1.1 unknown\r\n",
        b"Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <x@sender.example>\r\n",
        kind=b"report; report-type=delivery-status",
    ),
    "answer": b"Auto-Submitted: auto-replied\r\nIn-Reply-To: <x@sender.example>\r\n\r\nAway",
}


@pytest.mark.parametrize("raw", SAMPLES.values(), ids=SAMPLES.keys())
def test_what_the_process_answers_is_what_was_read(reader: BoundedMailReader, raw: bytes) -> None:
    assert reader.read(raw, ["me@sender.example"]) == read_whole(raw, LIMITS, ["me@sender.example"])


@pytest.mark.parametrize("raw", SAMPLES.values(), ids=SAMPLES.keys())
def test_a_reading_survives_being_written_down(raw: bytes) -> None:
    reading = read_whole(raw, LIMITS)
    assert from_document(*as_document(reading)) == reading


def nested(depth: int, kind: bytes = b"multipart/mixed; boundary=%d\n\n--%d\n") -> bytes:
    return b"".join(b"Content-Type: " + kind.replace(b"%d", str(n).encode()) for n in range(depth))


BOMBS = {
    "deep multiparts": nested(5_000),
    "deep messages": b"Content-Type: message/rfc822\n\n" * 20_000 + b"x",
    "ten thousand parts": parted(*[b"\r\nx"] * 10_000),
    "ten thousand files": parted(*[b"Content-Disposition: attachment\r\n\r\nx"] * 10_000),
    "long boundary": parted().replace(b"boundary=b", b"boundary=" + b"b" * 100_000) + b"--b\r\n" * 9_000,
    "endless boundary": parted(b"\r\nx").removesuffix(b"--b--\r\n") + b"--b\r\n--bb\r\n" * 300_000,
    "header flood": b"X-A: b\r\n" * 100_000 + b"\r\n",
    "one long header": b"Subject: " + b"x" * 5_000_000 + b"\r\n\r\n",
    "folded header": b"Subject: x\r\n" + b" y\r\n" * 200_000 + b"\r\n",
    "parentheses": b"From: " + b"(" * 200_000 + b"\r\n\r\n",
    "quotes": b'From: ' + b'"' * 200_000 + b"\r\n\r\n",
    "encoded words": b"Subject: " + b"=?utf-8?q?a?= " * 20_000 + b"\r\n\r\n",
    "parameters": b"Content-Type: multipart/mixed;" + b' a*1*="x";' * 20_000 + b"\r\n\r\n",
    "base64 of nothing": b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=" * 5_000_000,
    "quoted-printable": b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=\r\n" * 1_000_000,
    "ids without end": b"References: " + b"<a@b> " * 40_000 + b"\r\nMessage-ID: <>\r\nTo: a <\r\n\r\n",
    "strange charset": b"Content-Type: text/plain; charset=idna\r\n\r\n" + b"a." * 20_000,
    "half characters": b"Content-Type: text/plain; charset=utf-7\r\n\r\n+2AA- \x00",
    "html comments": b"Content-Type: text/html\r\n\r\n" + b"<!--" * 200_000,
    "html references": b"Content-Type: text/html\r\n\r\n" + b"&#" * 200_000,
    "style sheets": b"Content-Type: text/html\r\n\r\n" + b'<p style="color:red;">' * 5_000,
}  # fmt: skip


@pytest.mark.parametrize("raw", BOMBS.values(), ids=BOMBS.keys())
def test_mails_that_crash_or_stall_others_are_read(reader: BoundedMailReader, raw: bytes) -> None:
    found = reader.read(raw)
    assert isinstance(found, MailReading), found
    assert len(found.content.files) <= LIMITS.max_files
    found.content.text.encode()
    assert "\0" not in found.content.text + found.fields.get("subject")


def test_what_takes_too_long_is_given_up_and_harms_nobody_else() -> None:
    reader = reader_with(seconds=1)
    try:
        found = reader.read(b"Content-Type: text/html\r\n\r\n" + b"<div>" * 1_000_000)
        assert isinstance(found, GaveUp)
        assert found.reason.startswith(("its process ended with signal", "it took too long"))
        assert isinstance(reader.read(PLAIN), MailReading)
    finally:
        reader.close()


def test_what_takes_too_much_memory_is_given_up() -> None:
    reader = reader_with(megabytes=130)
    try:
        assert isinstance(reader.read(PLAIN), MailReading)
        found = reader.read(b"X: y\r\n\r\n" + b"x" * 60_000_000)
        assert isinstance(found, GaveUp)
        assert isinstance(reader.read(PLAIN), MailReading)
    finally:
        reader.close()


def pid_of(reader: BoundedMailReader) -> int:
    (child,) = reader._idle
    return child._process.pid


def test_one_that_died_while_it_waited_is_not_the_next_mails_fault(reader: BoundedMailReader) -> None:
    reader.read(b"Subject: first\r\n\r\nHello")
    (child,) = reader._idle
    child._process.kill()
    child._process.wait()
    assert isinstance(reader.read(b"Subject: second\r\n\r\nHello"), MailReading)


def test_a_process_that_was_killed_is_replaced() -> None:
    reader = reader_with()
    try:
        reader.read(PLAIN)
        first = pid_of(reader)
        os.kill(first, 9)
        assert reader.read(PLAIN) == GaveUp("its process ended with signal 9")
        assert isinstance(reader.read(PLAIN), MailReading)
        assert pid_of(reader) != first
    finally:
        reader.close()


def test_one_process_reads_many_mails_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail_reader, "MAILS_OF_A_PROCESS", 3)
    reader = reader_with()
    try:
        pids = []
        for _ in range(4):
            assert isinstance(reader.read(PLAIN), MailReading)
            pids += [pid_of(reader)] if reader._idle else [0]
        assert pids[0] == pids[1] and pids[2] == 0 and pids[3] not in (0, pids[0])
    finally:
        reader.close()


def test_threads_share_a_few_processes() -> None:
    reader = reader_with()
    found: list[object] = []
    threads = [
        threading.Thread(target=lambda: found.extend(reader.read(PLAIN) for _ in range(10))) for _ in range(6)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(found) == 60 and all(isinstance(one, MailReading) for one in found)
        assert 1 <= len(reader._idle) <= mail_reader.MOST_PROCESSES
    finally:
        reader.close()


def test_the_process_knows_neither_our_environment_nor_django(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOBII_ENCRYPTION_KEY", "k1:canary-S3cret")
    reader = reader_with()
    try:
        reader.read(PLAIN)
        process = Path(f"/proc/{pid_of(reader)}")
        if not process.exists():
            pytest.skip("this system has no /proc")
        assert b"canary" not in (process / "environ").read_bytes()
        assert "django" not in (process / "maps").read_text()
    finally:
        reader.close()


def test_whoever_ends_leaves_no_process_behind() -> None:
    reader = reader_with()
    reader.read(PLAIN)
    process = reader._idle[0]._process
    reader.close()
    assert process.returncode is not None


def test_a_large_file_comes_back_whole(reader: BoundedMailReader) -> None:
    content = os.urandom(900_000)
    raw = b"Content-Type: application/x-a; name=a.bin\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    found = reader.read(raw + base64.encodebytes(content))
    assert isinstance(found, MailReading) and found.content.files[0].content == content
