"""That rules, dashboards and documents speak of metrics as the code has them, and runbooks exist."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gobii_email import metrics
from gobii_email.domain.blame import Blame
from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.oauth_tokens import Reason
from gobii_email.domain.returned_mail import Kind

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana").glob("*.json"))
KNOWN = {one.name: one for one in metrics.ALL}
FORBIDDEN = {"account", "agent", "recipient", "address", "host", "user", "message", "email"}
VALUES = {
    "blame": set(Blame),
    "transport": {*Provider, "none"},
    "kind": set(Kind),
    "status": {"queued", "sending", "in_doubt"},
    "outcome": {*AttemptStatus, *Reason, "granted"},
}
"""What labels may be compared with; `cause`, `code` and `how` are not compared."""

GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
RECORDED = {rule["record"]: rule["expr"] for group in GROUPS for rule in group["rules"] if "record" in rule}
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
BUDGETS = {"failed_sends": 0.005, "failed_polls": 0.01}


def expressions() -> Iterator[Any]:
    for group in GROUPS:
        for rule in group["rules"]:
            yield pytest.param(rule["expr"], id=rule.get("record") or rule["alert"])
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")


def samples_of(metric: metrics.Metric) -> set[str]:
    if isinstance(metric, metrics.Histogram):
        return {f"{metric.name}_{ending}" for ending in ("bucket", "sum", "count")}
    return {metric.name}


SAMPLES = {sample: metric for metric in metrics.ALL for sample in samples_of(metric)}


def labels_of(name: str) -> set[str]:
    if name in RECORDED:
        return set()
    metric = SAMPLES[name]
    return set(metric.labels) | ({"le"} if name.endswith("_bucket") else set()) | {"instance"}


@pytest.mark.parametrize("expression", expressions())
def test_every_name_and_label_is_one_of_the_code(expression: str) -> None:
    names = set(re.findall(r"gobii_email[a-z0-9_:]*", expression))
    assert names
    assert names <= set(SAMPLES) | set(RECORDED)
    possible = set().union(*map(labels_of, names))
    for matchers in re.findall(r"\{([^}]*)\}", expression):
        for label, _, wanted in re.findall(r"(\w+)\s*(=~|!=|=)\s*\"([^\"]*)\"", matchers):
            assert label in possible
            assert set(wanted.split("|")) <= {str(value) for value in VALUES[label]}
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert {label.strip() for label in grouped.split(",")} - {""} <= possible


def test_no_metric_is_by_account_agent_recipient_or_host() -> None:
    assert len(KNOWN) == len(metrics.ALL)
    for metric in metrics.ALL:
        assert metric.name.startswith("gobii_email_")
        assert not FORBIDDEN & set(metric.labels)
        assert metric.about.endswith(".") and len(metric.about) < 120
        assert isinstance(metric, metrics.Counter) == metric.name.endswith("_total")


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    shown = RULES.read_text() + "".join(path.read_text() for path in DASHBOARDS)
    assert [name for name in KNOWN if name not in shown] == []


def test_there_are_four_dashboards_whose_panels_do_not_overlap() -> None:
    assert [path.stem for path in DASHBOARDS] == ["inbound", "providers", "service", "workers"]
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
        assert len(places) == len(panels) == len({panel["id"] for panel in panels})


def anchors() -> set[str]:
    titles = re.findall(r"^##+ (.+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_alert_has_a_runbook_that_exists() -> None:
    links = [rule["annotations"]["runbook"] for rule in ALERTS]
    for path in DASHBOARDS:
        panels = json.loads(path.read_text())["panels"]
        links += [link["url"] for panel in panels for link in panel.get("links", [])]
    assert {link.partition("#")[0] for link in links} == {"docs/runbooks.md"}
    assert {link.partition("#")[2] for link in links} <= anchors()


@pytest.mark.parametrize("what", BUDGETS)
def test_a_page_comes_when_a_budget_goes_too_fast_and_only_then(what: str) -> None:
    """Google's SRE workbook, table 5-8: 2 % of 30 days in an hour, 5 % in six hours, 10 % in three days."""
    found = {}
    for rule in ALERTS:
        pattern = rf"gobii_email:{what}:ratio_rate(\w+) > ([\d.]+) \* ([\d.]+)"
        if pairs := re.findall(pattern, rule["expr"]):
            (long, pace, budget), (short, also, same) = pairs
            assert (pace, float(budget), float(same)) == (also, BUDGETS[what], BUDGETS[what])
            assert re.search(rf"and sum\(increase\([^[]+\[{long}\]\)\) > 50", rule["expr"])
            found[long, short] = (float(pace), rule["labels"]["severity"])
    assert found == {
        ("1h", "5m"): (pytest.approx(0.02 * 720 / 1), "page"),
        ("6h", "30m"): (pytest.approx(0.05 * 720 / 6), "page"),
        ("3d", "6h"): (pytest.approx(0.10 * 720 / 72), "ticket"),
    }


def test_recorded_ratios_leave_out_what_users_and_recipients_do() -> None:
    for name, expression in RECORDED.items():
        window = name.rpartition("ratio_rate")[2]
        assert expression.count(f"[{window}]") == 2
        over, under = expression.split("\n/\n")
        assert 'blame=~"system|provider"' in over
        assert 'blame=~"none|system|provider"' in under


def test_documents_name_every_metric_as_it_is() -> None:
    stale = subprocess.run(
        [sys.executable, "docs/generate", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "docs/telemetry.md" not in stale.stderr


def test_every_alert_is_shown_to_call_and_to_keep_quiet() -> None:
    """What the unit tests of the rules cover; promtool, below, has them hold."""
    seen: dict[str, set[bool]] = {rule["alert"]: set() for rule in ALERTS}
    for test in yaml.safe_load((RULES.parent / "rules_test.yaml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            seen[case["alertname"]].add(bool(case["exp_alerts"]))
    assert {name for name, found in seen.items() if found != {True, False}} == set()


def promtool() -> str | None:
    """Installed, or as .ci/promtool unpacks it."""
    return shutil.which("promtool") or shutil.which(ROOT / "var" / "promtool")


@pytest.mark.skipif(
    promtool() is None, reason="promtool IS NOT HERE: rules are not evaluated; run .ci/promtool"
)
def test_rules_call_when_they_should() -> None:
    for arguments in (["check", "rules", "rules.yaml"], ["test", "rules", "rules_test.yaml"]):
        done = subprocess.run(
            [str(promtool()), *arguments], cwd=RULES.parent, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
