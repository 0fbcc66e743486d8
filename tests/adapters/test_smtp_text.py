"""The text of a message on its way out: byte for byte, with dots doubled, without copies of large ones."""

import tracemalloc

import pytest

from gobii_email.adapters import smtp_text
from gobii_email.adapters.smtp_text import JOINED_BYTES, Text
from gobii_email.domain.outcomes import Accepted
from gobii_email.ports import Reuse
from gobii_email.testing.smtp_server import RawServer, Script
from tests.adapters.conftest import Notes, envelope, in_the_clear, quick_deadlines, transport_to

HEADER = b"X-Attempt: 1\r\n"


def written(header: bytes, message: bytes) -> bytes:
    return b"".join(Text(header, message).parts())


@pytest.mark.parametrize(
    ("header", "message", "expected"),
    [
        (b"", b"", b"\r\n"),
        (b"", b"a", b"a\r\n"),
        (b"", b"a\r\n", b"a\r\n"),
        (b"", b".", b"..\r\n"),
        (b"", b".\r\n.\r\n..\r\na.b\r\n", b"..\r\n..\r\n...\r\na.b\r\n"),
        (HEADER, b".a\r\n\r\n.", HEADER + b"..a\r\n\r\n..\r\n"),
        (b".X: 1\r\n", b"a\r\n", b"..X: 1\r\na\r\n"),
    ],
)
def test_dots_at_the_beginning_of_lines_are_doubled(header: bytes, message: bytes, expected: bytes) -> None:
    assert written(header, message) == expected


@pytest.mark.parametrize("at", range(-3, 4))
def test_no_dot_is_missed_where_parts_meet(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setattr(smtp_text, "PART_BYTES", 100)
    monkeypatch.setattr(smtp_text, "JOINED_BYTES", 10)
    message = b"x" * (97 + at) + b"\r\n." + b".\r\n.y\r\n" * 200
    assert written(HEADER, message) == (HEADER + message).replace(b"\r\n.", b"\r\n..")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", b"a\nb\r\n"),
        (b"", b"a\rb\r\n"),
        (b"", b"a\r\r\nb"),
        (b"", b"\n\r"),
        (b"", b"a\r"),
        (b"X: 1", b"a\r\n"),
        (b"X: 1\n", b"a\r\n"),
        (b"X: 1\r", b"\na\r\n"),
    ],
)
def test_bare_line_ends_are_refused(header: bytes, message: bytes) -> None:
    with pytest.raises(ValueError, match=r"bare CR or LF|own header"):
        Text(header, message)


def test_the_size_is_that_of_header_and_message_before_dots_are_doubled() -> None:
    assert Text(HEADER, b".\r\n").size == len(HEADER) + 3
    assert Text(HEADER, b"x" * JOINED_BYTES).size == len(HEADER) + JOINED_BYTES + 2


@pytest.mark.parametrize(("header", "message"), [(HEADER, "ä".encode()), ("X: ä\r\n".encode(), b"a")])
def test_eight_bits_are_seen_in_either_part(header: bytes, message: bytes) -> None:
    assert not Text(header, message).is_ascii
    assert not Text(header, message + b"x" * JOINED_BYTES).is_ascii
    assert Text(HEADER, b"a").is_ascii


LINES = 270_000


@pytest.mark.parametrize(
    ("line", "end", "copies"),
    [
        (b"x" * 74 + b"\r\n", b"", 0.2),
        (b"..x" * 24 + b"\r\n", b"", 0.2),
        (b"x" * 74 + b"\r\n", b"without its line end", 1.2),
    ],
    ids=["plain", "with dots", "without its last line end"],
)
def test_a_message_of_20_megabytes_is_not_copied_whole(line: bytes, end: bytes, copies: float) -> None:
    message = line * LINES + end
    received: list[int] = []

    def take(it: Script) -> None:
        it.say(b"220 hi")
        it.answer(b"250-hi\r\n250 PIPELINING")
        for answer in (b"250 ok", b"250 ok", b"354 go on"):
            it.answer(answer)
        count, tail = len(it._unread), b""
        while not tail.endswith(b"\r\n.\r\n"):
            data = _some(it)
            tail = (tail + data)[-5:]
            count += len(data)
        received.append(count)
        it.say(b"250 queued as 1")
        it.hang()

    with RawServer(take) as server:
        sender = transport_to(server.port, quick_deadlines(60)).open(in_the_clear(server.port), Reuse())
        tracemalloc.start()
        outcome = sender.send(envelope(), HEADER, message, Notes())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert isinstance(outcome, Accepted), outcome
    assert received == [len(written(HEADER, message)) + 3]
    assert peak < copies * len(message)


def _some(it: Script) -> bytes:
    data = it.connection.recv(65_536)
    if not data:
        raise ConnectionError("the client hung up")
    return data


def test_header_and_message_share_a_write_when_they_are_small() -> None:
    assert len(list(Text(HEADER, b"x" * 1000).parts())) == 1
    large = b"x" * JOINED_BYTES + b"\r\n"
    parts = list(Text(HEADER, large).parts())
    assert parts[0] is HEADER and parts[1] is large
