"""The process that reads mail for a worker: one request after another over its standard streams.

Started by adapters/mail_reader without Django, settings or secrets. It bounds its own memory and processor
time, and dies rather than exceed them; whoever asked sees that as an answer that never came.
"""

import json
import resource
import struct
import sys
import time
from typing import Any, BinaryIO

from gobii_email.domain.mail_reading import as_document, read_whole
from gobii_email.domain.received_content import FileLimits

LENGTHS = struct.Struct(">II")
"""Before each message: how long its JSON is, and how many bytes follow that."""


def receive_from(stream: BinaryIO, most: int) -> tuple[Any, bytes]:
    """One message. Raises EOFError where the other side has ended, ValueError for more than `most` bytes."""
    document, rest = LENGTHS.unpack(_exactly(stream, LENGTHS.size))
    if document + rest > most:
        raise ValueError("more than was asked for")
    return json.loads(_exactly(stream, document)), _exactly(stream, rest)


def send_to(stream: BinaryIO, document: Any, *blobs: bytes) -> None:
    written = json.dumps(document).encode()
    stream.write(LENGTHS.pack(len(written), sum(map(len, blobs))) + written)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def _exactly(stream: BinaryIO, count: int) -> bytes:
    found = stream.read(count)
    if len(found) < count:
        raise EOFError
    return found


def main() -> None:
    """Answers until nobody asks any more."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    # What libraries print must not be taken for an answer.
    sys.stdout = sys.stderr
    send_to(answers, {"ready": True})
    while True:
        try:
            asked, raw = receive_from(requests, 1 << 30)
        except EOFError:
            return
        _bound(asked["memory_bytes"], asked["seconds"])
        try:
            limits = FileLimits(asked["max_bytes"], asked["max_files"], tuple(asked["refused_endings"]))
            document, files = as_document(read_whole(raw, limits, asked["own_addresses"]))
            send_to(answers, document | {"sizes": [len(file) for file in files]}, *files)
        except (MemoryError, RecursionError) as problem:
            # Its memory may be in pieces now: the next mail gets a new process.
            send_to(answers, {"gave_up": type(problem).__name__})
            return


def _bound(memory_bytes: int, seconds: int) -> None:
    """The limits of the next reading; processor time counts from the start of the process."""
    used = int(time.process_time()) + 1
    _limit(resource.RLIMIT_CPU, used + seconds)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, soft: int) -> None:
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
