"""Every line of the Procfile runs as it stands, and ends in order."""

import re
import time
from collections.abc import Iterator

import pytest

from gobii_email.testing.processes import free_port
from gobii_email.testing.stack import ROOT, Process, Stack, eventually

SECONDS_TO_LIVE = 2
READY = {
    "web": "Listening at",
    "worker": "worker.ready",
    "control": "worker.ready",
    "inbound": "worker.ready",
    "dispatcher": "dispatcher.started",
    "idle": "idle.started",
    "beat": "is starting",
    "flower": "login",
}


def lines() -> dict[str, str]:
    found = re.findall(r"^(\w+): (.+)$", (ROOT / "Procfile").read_text(), re.MULTILINE)
    return dict(found)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Process]]:
    """All lines at once, as a process manager starts them, after they have lived a moment."""
    env = {
        "PORT": str(free_port()),
        "FLOWER_PORT": str(free_port()),
        "WORKER_THREADS": "4",
        "WEB_WORKERS": "1",
    }
    with Stack(tmp_path_factory.mktemp("procfile"), env=env) as stack:
        started = {
            name: stack.start_process(name, ["sh", "-c", f"exec {line}"]) for name, line in lines().items()
        }
        for name, process in started.items():
            eventually(
                lambda name=name, process=process: READY[name] in process.output() or not process.is_running,
                seconds=180,
            )
        time.sleep(SECONDS_TO_LIVE)
        yield started


def test_the_procfile_has_the_promised_processes() -> None:
    assert list(lines()) == ["web", "worker", "control", "inbound", "dispatcher", "idle", "beat", "flower"]


@pytest.mark.parametrize("name", READY)
def test_a_line_starts_lives_and_ends_in_order(processes: dict[str, Process], name: str) -> None:
    process = processes[name]
    assert READY[name] in process.output(), process.output()[-2000:]
    assert process.is_running, process.output()[-2000:]
    assert "Traceback" not in process.output()
    assert process.stop() == 0, process.output()[-2000:]


def test_the_workers_of_a_machine_have_names_of_their_own(processes: dict[str, Process]) -> None:
    names = [
        re.search(r'"worker": "([^"]+)"', processes[name].output())
        for name in ("worker", "control", "inbound")
    ]
    assert len({found.group(1) for found in names if found}) == 3
