"""What probes are told: that the process lives, whether it can work, and nothing to strangers."""

import os
import time
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client

from gobii_email import wiring
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import AttendanceUnknown
from gobii_email.services import ready
from worker.heartbeat import takes_tasks, touch

pytestmark = pytest.mark.django_db
TOKEN = "t0ken-of-the-scraper"


class NobodySeen:
    """An attendance that can be read and is empty."""

    def seen(self):
        return {}


class NobodyThere(NobodySeen):
    def seen(self):
        raise AttendanceUnknown("ConnectionError")


@pytest.fixture(autouse=True)
def redis_answers(monkeypatch):
    monkeypatch.setattr(wiring, "ticks", NobodySeen)
    ready.forget()
    yield
    ready.forget()


@pytest.fixture
def details(settings):
    settings.METRICS_TOKEN = TOKEN
    return {"Authorization": f"Bearer {TOKEN}"}


def test_a_process_that_answers_is_alive_whatever_is_broken(
    client: Client, monkeypatch, django_assert_num_queries
):
    monkeypatch.setattr(wiring, "ticks", NobodyThere)
    with django_assert_num_queries(0):
        answer = client.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")


def test_whoever_can_work_is_ready_and_tells_the_components_to_whom_it_knows(client: Client, details):
    assert client.get("/readyz").json() == {"status": "ready"}
    answer = client.get("/readyz", headers=details)
    assert answer.status_code == 200
    assert set(answer.json()["components"]) == {"database", "redis", "migrations", "keys"}
    assert set(answer.json()["components"].values()) == {"ok"}


def test_probes_may_come_to_any_host(client: Client, settings):
    settings.ALLOWED_HOSTS = ["mail.example.org"]
    assert client.get("/healthz", headers={"Host": "10.1.2.3:8000"}).status_code == 200
    assert client.get("/readyz", headers={"Host": "10.1.2.3:8000"}).status_code == 200
    assert client.get("/console/", headers={"Host": "10.1.2.3:8000"}).status_code == 400


def test_without_redis_nobody_is_ready_and_only_who_may_know_learns_why(client: Client, details, monkeypatch):
    monkeypatch.setattr(wiring, "ticks", NobodyThere)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"status": "not ready"})
    told = client.get("/readyz", headers=details).json()["components"]
    assert (told["redis"], told["database"]) == ("AttendanceUnknown", "ok")


def test_a_key_ring_that_cannot_be_used_makes_unready_without_telling_it(client: Client, details, settings):
    settings.GOBII_ENCRYPTION_KEY = "k:not-a-key"
    answer = client.get("/readyz", headers=details)
    assert answer.status_code == 503
    assert answer.json()["components"]["keys"] == "KeyRingError"
    assert "not-a-key" not in answer.content.decode()


def test_missing_migrations_make_unready(client: Client, details, monkeypatch):
    migrations = ready._Migrations()
    monkeypatch.setitem(ready._COMPONENTS, "migrations", migrations)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'gobii_email' AND name >= '0002'")
    assert client.get("/readyz", headers=details).json()["components"]["migrations"] == "not applied"
    assert migrations.are_applied is False


def test_answers_are_kept_for_two_seconds(client: Client, monkeypatch):
    assert client.get("/readyz").status_code == 200
    monkeypatch.setattr(wiring, "ticks", NobodyThere)
    assert client.get("/readyz").status_code == 200
    ready.forget()
    assert client.get("/readyz").status_code == 503


def test_somebody_elses_broken_server_makes_nobody_unready(client: Client, account: AgentEmailAccount):
    AgentEmailAccount.objects.update(state="blocked", smtp_port=1, smtp_error="Connection refused")
    assert client.get("/readyz").status_code == 200


def test_a_wrong_token_learns_as_much_as_none(client: Client, details):
    assert "components" not in client.get("/readyz", headers={"Authorization": "Bearer wrong"}).json()


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_probes_only_read(client: Client, method: str):
    for address in ("/healthz", "/readyz", "/metrics"):
        assert getattr(client, method)(address).status_code == 405


def test_metrics_are_for_staff_and_for_whoever_has_the_token(client: Client, details):
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/metrics", headers=details).status_code == 200
    owner = User.objects.create_user("olga", password="x")
    client.force_login(owner)
    assert client.get("/metrics").status_code == 401
    owner.is_staff = True
    owner.save()
    assert b"gobii_email_gauges_read 1.0" in client.get("/metrics").content


def test_an_empty_token_opens_nothing(client: Client, settings):
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 401


@pytest.mark.parametrize(
    ("began", "takes"),
    [
        ([], True),
        ([0.0], True),
        ([0.0, 995.0], True),
        ([0.0, None], True),
        ([0.0, 1.0], False),
    ],
    ids=["idle", "one hangs, one is free", "one hangs, one works", "one just begins", "all hang"],
)
def test_a_worker_beats_while_it_takes_tasks(began: list[float | None], takes: bool):
    assert takes_tasks(began, concurrency=2, now=1000.0, longest=900.0) is takes


def test_the_heartbeat_is_a_file_that_gets_younger(tmp_path: Path):
    path = tmp_path / "run" / "worker"
    touch(path)
    os.utime(path, (1, 1))
    touch(path)
    assert path.stat().st_mtime > time.time() - 60
