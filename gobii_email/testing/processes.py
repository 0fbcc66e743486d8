"""A server process that its starter owns: free loopback port, own directory, stopped by its own handle.

Leaves the command line and the sign of readiness to each server. A server is never found by its name,
so nobody else's can be stopped by mistake.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

_READY_SECONDS = 120.0
_STOP_SECONDS = 60.0
_PORTS_TRIED = 5


class ServerUnavailable(RuntimeError):
    """No such server can run on this machine; the sentence names what to install or set."""


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def greets(port: int, line: bytes) -> bool:
    """Whether a server at that loopback port begins with `line`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            return client.recv(len(line)) == line
    except OSError:
        return False


class OwnedServer(ABC):
    """Starts on entering (or `start`), stops on leaving (or `stop`, or at the end of the interpreter).

    `restart` keeps the port and the data directory, so clients come back to the same address.
    """

    name: str
    polite_signal = signal.SIGTERM

    def __init__(self) -> None:
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line for the present `port` and `directory`; runs in the foreground."""

    @abstractmethod
    def _is_ready(self) -> bool: ...

    def _prepare(self) -> None:  # noqa: B027
        """Whatever a fresh directory needs before the first start; nothing unless overridden."""

    def _user(self) -> int | None:
        """The uid to run as, if not the present one."""
        return None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def directory(self) -> Path:
        """Its own temporary directory: the data and `server.log`."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"gobii-{self.name}-")).resolve()
            atexit.register(self._stop_at_exit, os.getpid())
        return self._directory

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.is_running and self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it answers. Raises ServerUnavailable with its last words if it never does."""
        if self.is_running:
            return
        if self.port:
            self._launch()
            return
        try:
            self._prepare()
            self._launch_on_a_free_port()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends it in order and removes its directory. May be called again."""
        self._end(self.polite_signal)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            atexit.unregister(self._stop_at_exit)
        self._directory, self.port = None, 0

    def _stop_at_exit(self, owner: int) -> None:
        # A forked child inherits the registration, not the server.
        if os.getpid() == owner:
            self.stop()

    def kill(self) -> None:
        """Ends it without warning; the data directory stays for `restart`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Ends it in order and starts it again on the same port and data; also after `kill`."""
        self._end(self.polite_signal)
        self.start()

    def freeze(self) -> None:
        """Connections stay open and get no answer, as with a hung machine."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _launch_on_a_free_port(self) -> None:
        for tries_left in reversed(range(_PORTS_TRIED)):
            self.port = free_port()
            try:
                self._launch()
                return
            except ServerUnavailable:
                # Somebody may have taken the port in the meantime.
                if not tries_left or "ddress already in use" not in self._last_words():
                    raise

    def _launch(self) -> None:
        with (self.directory / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=self._user(),
                # Ctrl-C reaches the owner alone, which then stops things in its own order.
                start_new_session=True,
            )
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if not self.is_running or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise ServerUnavailable(f"{self.name} did not start: {self._last_words()}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        return (self.directory / "server.log").read_text(errors="replace")[-600:].strip()

    def _signal(self, number: signal.Signals) -> None:
        if self.is_running and self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def is_root() -> bool:
    return os.geteuid() == 0
