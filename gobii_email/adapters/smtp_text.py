"""The text of a message as DATA carries it: whole lines, dots doubled, never in one more piece than needed.

Knows the rules of RFC 5321 sections 2.3.8 and 4.5.2, and that messages can be large: what is not
changed is not copied, what is changed is copied a part at a time.
"""

import re
from collections.abc import Iterator

# Up to here one write is cheaper than two; beyond it a copy is dearer.
JOINED_BYTES = 64 * 1024
PART_BYTES = 256 * 1024

_BARE_LINE_END = re.compile(rb"(?<!\r)\n|\r(?!\n)")


class Text:
    """`header` and `message`, one after the other; `size` is what SIZE announces (RFC 1870).

    Raises ValueError for a bare CR or LF in either, and for a header that does not end its line.
    """

    __slots__ = ("_pieces", "is_ascii", "size")

    def __init__(self, header: bytes, message: bytes) -> None:
        if wire_form(header) != header and header:
            raise ValueError("the attempt's own header does not end with CRLF")
        pieces = (header, wire_form(message))
        self.size = sum(map(len, pieces))
        self._pieces = (b"".join(pieces),) if self.size <= JOINED_BYTES else pieces
        self.is_ascii = all(map(bytes.isascii, self._pieces))

    def parts(self) -> Iterator[bytes]:
        """What is written, in order, with the dots that begin a line doubled."""
        for piece in self._pieces:
            yield from _stuffed(piece)


def wire_form(message: bytes) -> bytes:
    """`message` ending in CRLF. Raises ValueError for a bare CR or LF (RFC 5321 section 2.3.8)."""
    if not message.count(b"\r") == message.count(b"\n") == message.count(b"\r\n"):
        found = _BARE_LINE_END.search(message)
        raise ValueError(f"the message has a bare CR or LF at byte {found.start() if found else 0}")
    return message if message.endswith(b"\r\n") else message + b"\r\n"


def _stuffed(piece: bytes) -> Iterator[bytes]:
    if b"\n." not in piece and not piece.startswith(b"."):
        yield piece
        return
    begin = 0
    while begin < len(piece):
        end = piece.find(b"\n", begin + PART_BYTES) + 1 or len(piece)
        part = piece[begin:end].replace(b"\n.", b"\n..")
        yield b"." + part if part.startswith(b".") else part
        begin = end
