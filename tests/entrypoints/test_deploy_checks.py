"""`check --deploy`: silent on a good configuration, and pointing at each deliberate mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gobii_email.encryption import new_key
from gobii_email.testing.stack import ROOT

KEY = new_key("k1")
SIGNS = "correct-horse-battery-staple-0123456789-abcdefghijklmnop-QRSTUV"
GOOD = {
    "SECRET_KEY": SIGNS,
    "GOBII_ENCRYPTION_KEY": KEY,
    "PUBLIC_URL": "https://mail.example.org",
    "ALLOWED_HOSTS": "mail.example.org",
    "DATABASE_URL": "postgres://gobii:secret@db.example.org/gobii",
    "REDIS_URL": "rediss://:secret@redis.example.org:6379/0",
    "GOBII_KEEP_BODIES": "90d",
}
MISTAKES = {
    "debug": ({"DEBUG": "true"}, "security.W018"),
    "any host": ({"ALLOWED_HOSTS": "*"}, "gobii_email.W007"),
    "weak secret key": ({"SECRET_KEY": "short"}, "security.W009"),
    "a secret key of its own": ({"SECRET_KEY": ""}, "gobii_email.W004"),
    "no key ring": ({"GOBII_ENCRYPTION_KEY": ""}, "gobii_email.E005"),
    "short key": ({"GOBII_ENCRYPTION_KEY": "k1:c2hvcnQ="}, "gobii_email.E001"),
    "one key for all": ({"SECRET_KEY": f"{KEY.partition(':')[2]}-and-more"}, "gobii_email.E006"),
    "private networks": ({"BYO_EMAIL_ALLOWED_NETWORKS": "10.0.0.0/8"}, "gobii_email.W002"),
    "public networks": ({"BYO_EMAIL_ALLOWED_NETWORKS": "93.184.0.0/16"}, "gobii_email.W008"),
    "ports of others": ({"BYO_EMAIL_ALLOWED_PORTS": "587,5432"}, "gobii_email.W009"),
    "no webhook secret": ({"POSTMARK_SERVER_TOKEN": "token"}, "gobii_email.W003"),
    "half a client": ({"GOOGLE_CLIENT_ID": "id"}, "gobii_email.W006"),
    "no password for Redis": ({"REDIS_URL": "rediss://redis.example.org/0"}, "gobii_email.W010"),
    "Redis in clear": ({"REDIS_URL": "redis://:secret@redis.example.org/0"}, "gobii_email.W010"),
    "a broker in clear": ({"CELERY_BROKER_URL": "amqp://u:p@mq.example.org/"}, "gobii_email.W010"),
    "SQLite": ({"DATABASE_URL": "sqlite:////tmp/mail.sqlite3"}, "gobii_email.W011"),
    "nothing is let go": ({"GOBII_KEEP_BODIES": ""}, "gobii_email.W012"),
    "Flower for all": ({"FLOWER_UNAUTHENTICATED_API": "1"}, "gobii_email.W013"),
    "http": ({"PUBLIC_URL": "http://mail.example.org"}, "gobii_email.W014"),
    "cookies in clear": ({"PUBLIC_URL": "http://mail.example.org"}, "security.W012"),
    "time limits": ({"GOBII_DEADLINE_DOT": "2h"}, "gobii_email.E004"),
}
CHECK = """
import json, os, sys
from django.core.checks import run_checks
base = dict(os.environ)
found = {}
for name, mistake in json.loads(sys.stdin.read()).items():
    child, out = None, None
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.environ.update(mistake)
        os.environ["DJANGO_SETTINGS_MODULE"] = "gobii_email.settings"
        import django
        django.setup()
        messages = run_checks(include_deployment_checks=True)
        facts = [[one.id, one.msg, one.hint or ""] for one in messages if not one.is_silenced()]
        os.write(write, json.dumps(facts).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    found[name] = json.loads(os.read(read, 60000))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """What each configuration is told, each read in a process of its own."""
    import json

    var = tmp_path_factory.mktemp("var")
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    ran = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=ROOT,
        env=inherited | GOOD | {"GOBII_VAR": str(var)},
        input=json.dumps({"good": {}} | {name: mistake for name, (mistake, _) in MISTAKES.items()}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    answer: dict[str, list[list[str]]] = json.loads(ran.stdout)
    return answer


def test_a_good_configuration_is_clean(found: dict[str, list[list[str]]]) -> None:
    # The interpreter's own age is no matter of configuration.
    assert [one for one in found["good"] if one[0] != "gobii_email.W001"] == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_deliberate_mistake_is_pointed_at(found: dict[str, list[list[str]]], name: str) -> None:
    expected = MISTAKES[name][1]
    messages = {one[0]: one for one in found[name]}
    assert expected in messages, messages
    assert not expected.startswith("gobii_email.") or messages[expected][2], "a hint is missing"


@pytest.mark.parametrize("name", MISTAKES)
def test_no_message_shows_a_secret(found: dict[str, list[list[str]]], name: str) -> None:
    told = str(found[name])
    assert KEY.partition(":")[2] not in told and SIGNS not in told and "secret@" not in told


def test_every_id_is_used_once_and_documented() -> None:
    import re

    ids = []
    for name in ("checks.py", "deploy_checks.py"):
        ids += re.findall(r'id="(gobii_email\.[EW]\d+)"', (ROOT / "gobii_email" / name).read_text())
    documented = Path(ROOT / "docs/operations.md").read_text()
    assert len(ids) == len(set(ids))
    assert [one for one in ids if one.rpartition(".")[2] not in documented] == []
