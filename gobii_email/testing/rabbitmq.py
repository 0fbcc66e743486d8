"""A real RabbitMQ on free loopback ports, started and stopped by its own handle, where Debian's is installed.

Everything it writes is in its own directory, and the name server of Erlang (epmd) that it brings along is its
own as well: on a port of its own, ended with it.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from gobii_email.testing.processes import OwnedServer, ServerUnavailable, free_port

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_METHOD_FRAME = b"\x01"


class RabbitMq(OwnedServer):
    """`with RabbitMq() as broker: broker.url`."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        if not _SERVER.exists() or shutil.which("epmd") is None:
            raise ServerUnavailable("RabbitMQ was not found: install Debian's rabbitmq-server.")
        self._names_port = free_port()
        self._nodes_port = free_port()

    @property
    def url(self) -> str:
        """`amqp://…` of the default user, who is let in from loopback alone."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def _prepare(self) -> None:
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\n")

    def _command(self) -> list[str]:
        values = {
            "HOME": self.directory,
            "ERL_EPMD_PORT": self._names_port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "gobii@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._nodes_port,
            "RABBITMQ_MNESIA_BASE": self.directory / "mnesia",
            "RABBITMQ_LOG_BASE": self.directory / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": self.directory / "pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.directory / "enabled_plugins",
            "RABBITMQ_CONFIG_FILE": self.directory / "rabbitmq.conf",
        }
        return ["env", *(f"{name}={value}" for name, value in values.items()), str(_SERVER)]

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as client:
                client.sendall(_PROTOCOL_HEADER)
                return client.recv(1) == _METHOD_FRAME
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        group = self.pid
        super()._end(number)
        if group is not None:
            # The server is a child of the script that was started.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            env = os.environ | {"ERL_EPMD_PORT": str(self._names_port)}
            subprocess.run(["epmd", "-kill"], env=env, capture_output=True, timeout=10, check=False)
