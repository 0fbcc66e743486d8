"""What a service under test tells anybody but the mail servers, and whether a secret is in it.

Reads everything a broker and a database hold, hears every command that a broker is given, and looks for
secrets in the spellings that logs, JSON, URLs, messages and logins give them.
"""

import base64
import json
import socket
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import psycopg
import redis
from psycopg import sql

_TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"


def spellings(secret: str) -> set[bytes]:
    """`secret` as somebody may have written it down; in base64 also as a part of something longer."""
    raw = secret.encode()
    within = (base64.b64encode(b" " * shift + raw)[4:-4] for shift in range(3))
    return {raw, raw.hex().encode(), quote(secret).encode(), json.dumps(secret)[1:-1].encode(), *within}


def betrayed(secrets: Mapping[str, str], places: Mapping[str, bytes]) -> list[str]:
    """Which of `secrets` stand in which of `places`, by their names."""
    return [
        f"{name} in {place}"
        for name, secret in secrets.items()
        for place, content in places.items()
        if any(spelling in content for spelling in spellings(secret))
    ]


def content_of_redis(client: "redis.Redis") -> bytes:
    """Each key with its value, whatever its type."""
    readers: dict[bytes, Any] = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"hash": client.hgetall,
        b"stream": client.xrange,
    }
    # What lapsed since it was listed has no type any more.
    kinds: Iterable[tuple[bytes, bytes]] = [(key, client.type(key)) for key in client.scan_iter()]
    return b"\n".join(key + b" " + str(readers[kind](key)).encode() for key, kind in kinds if kind in readers)


def content_of_postgresql(url: str) -> bytes:
    """Each row of each table as text; what is stored as bytes, encrypted or not, in hexadecimal digits."""
    with psycopg.connect(url) as database:
        tables = [name for (name,) in database.execute(_TABLES)]
        every = sql.SQL("SELECT row_::text FROM {} AS row_")
        rows = [row for name in tables for row in database.execute(every.format(sql.Identifier(name)))]
    return "\n".join(text for (text,) in rows).encode()


class Eavesdropper:
    """Every command that the broker at a loopback port is given while entered; comes back when it does."""

    def __init__(self, port: int) -> None:
        self.heard = bytearray()
        self._port = port
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> "Eavesdropper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join(60)

    def _listen(self) -> None:
        while not self._is_over.wait(0.05):
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=5) as line:
                line.settimeout(0.5)
                line.sendall(b"MONITOR\r\n")
                self._write_down(line)

    def _write_down(self, line: socket.socket) -> None:
        """Until the broker hangs up, or it is over."""
        while not self._is_over.is_set():
            try:
                said = line.recv(65536)
            except TimeoutError:
                continue
            if not said:
                return
            self.heard += said
