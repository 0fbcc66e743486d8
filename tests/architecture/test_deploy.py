"""What lies in deploy/ fits the code: every command, queue, variable, port and metric it names exists.

No engine is here to run it, so its syntax is read, and what it starts is compared with the Procfile.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.core.management import get_commands
from django.urls import resolve

import celeryconfig
from gobii_email import deploy_checks, metrics
from gobii_email.conf import Config, listener
from gobii_email.testing.stack import ROOT

DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
OTHERS = {
    # Of Docker's images, of systemd and Python themselves.
    *("POSTGRES_USER", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "MP_SMTP_AUTH_ACCEPT_ANY"),
    *("MP_SMTP_AUTH_ALLOW_INSECURE", "DJANGO_SETTINGS_MODULE", "PATH", "PYTHONUNBUFFERED"),
    *("PYTHONDONTWRITEBYTECODE", "PIP_NO_CACHE_DIR", "WORKER_THREADS"),
}
QUEUES = {queue.name for queue in celeryconfig.task_queues}
PROCESSES = {"web", "control", "inbound", "dispatcher", "idle", "beat", "flower"}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    return [one for one in documents() if one["kind"] in kinds]


def pods() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Name, specification and only container of everything that runs in the cluster."""
    for one in of_kind("Deployment", "Job"):
        spec = one["spec"]["template"]["spec"]
        yield one["metadata"]["name"], spec, spec["containers"][0]


def our_services() -> dict[str, dict[str, Any]]:
    return {name: one for name, one in compose()["services"].items() if one["image"] == "gobii-email"}


def commands() -> Iterator[tuple[str, list[str]]]:
    for name, one in our_services().items():
        yield f"compose {name}", list(map(str, one["command"]))
    for name, _, container in pods():
        yield f"kubernetes {name}", list(map(str, container["command"]))
    for path in UNITS:
        line = re.search(r"^ExecStart=(.+)$", path.read_text(), re.MULTILINE)
        assert line, path
        words = line.group(1).replace("%i", "send").split()
        yield f"systemd {path.stem}", [Path(words[0]).name, *words[1:]]
    image = re.search(r"^CMD (\[.+\])$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert image
    yield "image", yaml.safe_load(image.group(1))


@pytest.mark.parametrize(("where", "words"), [pytest.param(*one, id=one[0]) for one in commands()])
def test_a_command_is_one_that_there_is(where: str, words: list[str]) -> None:
    program, *rest = words
    match program:
        case "python":
            assert rest[0] == "manage.py" and rest[1] in get_commands()
            options = {word for word in rest[2:] if word.startswith("--")}
            from django.core.management import load_command_class

            parser = load_command_class(get_commands()[rest[1]], rest[1]).create_parser("manage.py", rest[1])
            assert options <= {name for act in parser._actions for name in act.option_strings}
        case "celery":
            assert rest[:2] == ["-A", "worker"] and rest[2] in {"worker", "beat", "flower"}
            if rest[2] == "worker":
                assert rest[rest.index("-Q") + 1] in QUEUES and rest[rest.index("--pool") + 1] == "threads"
        case _:
            assert program == "gunicorn" and rest[0] == "gobii_email.wsgi"


def test_each_way_starts_what_the_procfile_starts() -> None:
    procfile = set(re.findall(r"^(\w+):", (ROOT / "Procfile").read_text(), re.MULTILINE))
    assert procfile == PROCESSES | {"worker"}
    assert set(our_services()) == PROCESSES | {"send", "migrate"}
    assert {name for name, _, _ in pods()} == PROCESSES | {"send", "migrate"}
    target = (DEPLOY / "systemd/gobii-email.target").read_text()
    wanted = set(re.findall(r"gobii-email-([a-z@]+)\.service", target))
    workers = {"send", "control", "inbound"}
    assert wanted == {f"worker@{name}" for name in workers} | (PROCESSES - workers)
    files = {path.stem.removeprefix("gobii-email-") for path in UNITS}
    assert {re.sub("@.*", "@", name) for name in wanted} == files


def known_variables() -> set[str]:
    names = {row.metadata["name"] for row in fields(Config)}
    for path in [ROOT / "flowerconfig.py", *(ROOT / "gobii_email").glob("*.py")]:
        names |= set(re.findall(r"read_text\(\s*\"([A-Z_]+)\"", path.read_text()))
    return names | OTHERS


def used_variables() -> Iterator[tuple[str, str]]:
    for name, one in compose()["services"].items():
        yield from ((f"compose {name}", variable) for variable in one.get("environment", {}))
    for line in (DEPLOY / "example.env").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            yield "example.env", line.partition("=")[0]
    for name, _, container in pods():
        yield from ((f"kubernetes {name}", one["name"]) for one in container.get("env", []))
    for one in of_kind("ConfigMap"):
        yield from (("ConfigMap", variable) for variable in one["data"])
    for path in UNITS:
        for line in re.findall(r"^Environment=(.+)$", path.read_text(), re.MULTILINE):
            yield from ((path.stem, word.partition("=")[0]) for word in line.split())
    for line in re.findall(r"^(?:ENV |    )([A-Z_]+)=", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE):
        yield "Dockerfile", line


def test_every_variable_is_read_by_somebody() -> None:
    known = known_variables()
    assert "DATABASE_URL" in known
    assert [(where, name) for where, name in used_variables() if name not in known] == []


def test_pods_are_nobody_special_and_write_nowhere_else() -> None:
    for name, spec, container in pods():
        assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"], name
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name


def test_a_worker_has_time_to_end_its_mail() -> None:
    from gobii_email.conf import config

    longest = config().deadline_dot.total_seconds()
    for name, spec, _ in pods():
        if name in {"send", "control", "inbound"}:
            assert spec["terminationGracePeriodSeconds"] > longest
    for path in UNITS:
        found = re.search(r"^TimeoutStopSec=(\d+)$", path.read_text(), re.MULTILINE)
        assert found and int(found.group(1)) > longest


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container.get("env", [])}


def heartbeat_of(command: list[str], told: dict[str, str]) -> str | None:
    """The file that a process of `command` touches, with the variables `told`; None where it touches none."""
    if "--heartbeat-file" in command:
        return command[command.index("--heartbeat-file") + 1]
    return told.get("GOBII_HEARTBEAT_FILE") if {"worker", "beat"} & set(command[3:4]) else None


def looked_for(command: str) -> str | None:
    """The file whose age the shell's `command` asks for."""
    found = re.search(r"find (\S+) -mmin", command)
    return found and found.group(1)


def test_probes_ask_what_answers() -> None:
    for name, _, container in pods():
        for kind in ("livenessProbe", "readinessProbe"):
            probe = container.get(kind)
            if probe and "httpGet" in probe:
                assert (
                    resolve(probe["httpGet"]["path"])
                    and probe["httpGet"]["port"] == container["ports"][0]["name"]
                )
            elif probe:
                file = looked_for(probe["exec"]["command"][-1])
                assert file and file == heartbeat_of(container["command"], variables(container)), name


def test_whoever_hangs_is_found() -> None:
    """All but Flower, for which nothing waits."""
    for name, _, container in pods():
        assert ("livenessProbe" in container) == (name not in {"flower", "migrate"}), name
    for name, one in our_services().items():
        test = one.get("healthcheck", {}).get("test")
        assert (test is None) == (name in {"flower", "migrate"}), name
        if test and name != "web":
            file = looked_for(test[-1])
            assert file and file == heartbeat_of(one["command"], one.get("environment", {})), name


def counts(command: list[str]) -> bool:
    """Whether a process of `command` that is no web server counts, and shows it at GOBII_METRICS_PORT."""
    return "worker" in command[3:4] or bool({"email_dispatcher", "run_imap_idlers"} & set(command))


def test_pods_show_what_they_count_to_prometheus() -> None:
    """No two of them share a directory of counts."""
    (monitor,) = of_kind("PodMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"]
    asked = {one["port"]: one for one in monitor["spec"]["podMetricsEndpoints"]}
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind("NetworkPolicy")}
    (entry,) = policies["metrics"]["ingress"]
    assert labels.items() >= policies["metrics"]["podSelector"]["matchLabels"].items()
    for one in of_kind("Deployment"):
        assert one["spec"]["template"]["metadata"]["labels"].items() >= labels.items()
    for name, _, container in pods():
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        told = variables(container).get("GOBII_METRICS_PORT", "")
        assert bool(told) == counts(container["command"]) == ("metrics" in ports), name
        if told:
            assert listener(told) == ("0.0.0.0", ports["metrics"]), name
            assert {"port": ports["metrics"], "protocol": "TCP"} in entry["ports"], name
        shown = set(ports) & set(asked)
        assert bool(shown) == (counts(container["command"]) or name == "web"), name
    for one in asked.values():
        assert resolve(one["path"]) and one["authorization"]["credentials"]["key"] == "METRICS_TOKEN"


def test_processes_of_one_machine_share_their_counts_and_web_shows_them() -> None:
    for name, one in our_services().items():
        assert one["volumes"] == ["var:/var/lib/gobii-email"], name
        assert "GOBII_VAR" not in one.get("environment", {}), name
    assert "GOBII_VAR=/var/lib/gobii-email" in (DEPLOY / "Dockerfile").read_text()
    for path in UNITS:
        lines = path.read_text().splitlines()
        assert "Environment=GOBII_VAR=/var/lib/gobii-email" in lines, path.stem
        assert "StateDirectory=gobii-email" in lines, path.stem
    named = {name for _, name in used_variables()}
    assert "GOBII_METRICS_DIR" not in named and "METRICS_TOKEN" in named


def test_what_is_scaled_selected_and_protected_exists() -> None:
    deployments = {one["metadata"]["name"]: one for one in of_kind("Deployment")}
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in deployments.values()]
    for one in of_kind("ScaledObject"):
        assert one["spec"]["scaleTargetRef"]["name"] in deployments
    for one in of_kind("PodDisruptionBudget"):
        wanted = one["spec"]["selector"]["matchLabels"]
        (name,) = [name for name, found in deployments.items() if found["metadata"]["labels"] == wanted]
        assert deployments[name]["spec"]["replicas"] > one["spec"]["minAvailable"]
    for one in of_kind("Service"):
        assert one["spec"]["selector"] in labels
    listed = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["resources"]
    assert {path.name for path in MANIFESTS} == {*listed, "kustomization.yaml"}


def test_scaling_asks_for_metrics_that_there_are() -> None:
    declared = Path(metrics.__file__).read_text()
    for one in of_kind("ScaledObject"):
        for trigger in one["spec"]["triggers"]:
            for name in re.findall(r"gobii_email_\w+", trigger["metadata"]["query"]):
                assert f'"{name}"' in declared


def test_the_way_out_is_to_mail_servers_and_no_private_host() -> None:
    (policy,) = [one for one in of_kind("NetworkPolicy") if "Egress" in one["spec"]["policyTypes"]]
    (outside,) = [rule for rule in policy["spec"]["egress"] if any("ipBlock" in to for to in rule["to"])]
    row = next(row for row in fields(Config) if row.name == "allowed_ports")
    allowed = row.metadata["parse"](row.metadata["default"])
    assert {port["port"] for port in outside["ports"]} == allowed | {443}
    assert allowed <= deploy_checks.MAIL_PORTS
    assert "169.254.0.0/16" in outside["to"][0]["ipBlock"]["except"]


def test_the_image_is_made_of_locked_wheels_and_run_by_nobody() -> None:
    lines = (DEPLOY / "Dockerfile").read_text()
    assert "--require-hashes --only-binary :all:" in lines and "requirements/run.txt" in lines
    assert lines.rindex("USER 10001:10001") > lines.rindex("COPY ")
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", lines, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*" and "gobii_email/testing" in ignored
    assert "gobii_email.testing" not in settings.INSTALLED_APPS


def test_the_broker_of_compose_evicts_nothing() -> None:
    assert "--maxmemory-policy noeviction" in compose()["services"]["valkey"]["command"][-1]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze IS NOT HERE")
def test_systemd_reads_its_units(tmp_path: Path) -> None:
    for path in UNITS:
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE)
        name = path.name.replace("@", "@send")
        (tmp_path / name).write_text(text.replace("User=gobii-email", "User=root"))
    units = sorted(map(str, tmp_path.iterdir()))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *units],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    told = [line for line in found.stderr.splitlines() if "gobii-email" in line and "target" not in line]
    assert told == [], found.stderr
