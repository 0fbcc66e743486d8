"""`email_doctor`: each row finds its own illness, and nothing that hangs holds up the others."""

import json
import threading
import time
from datetime import timedelta

import pytest
import redis
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.encryption import new_key
from gobii_email.management import examinations
from gobii_email.management.commands.email_doctor import examined
from gobii_email.management.examinations import Row
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, OutboundMessageAttempt
from gobii_email.testing.stack import Stack
from tests.entrypoints.commands import SENDER, ago, an_endpoint, run

PASSWORD = "correct-horse-battery"


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with Stack(tmp_path_factory.mktemp("doctor")) as stack:
        yield stack


def rows_of(answer):
    return {row["name"]: row for row in answer["checks"]}


def ask(stack):
    result = stack.manage("email_doctor", "--json")
    return result.returncode, rows_of(json.loads(result.stdout))


# A whole installation


def test_without_a_worker_nothing_goes_out_and_the_row_says_how_to_start_one(stack):
    code, rows = ask(stack)
    assert code == 1
    assert rows["redis"]["status"] == rows["database"]["status"] == rows["migrations"]["status"] == "ok"
    assert rows["workers"]["status"] == "fail"
    assert "celery -A worker worker -Q email.send" in rows["workers"]["hint"]
    worker = stack.start_worker(queues="email.control")
    assert ask(stack)[1]["workers"]["status"] == "fail", "one that does not send mail does not count"
    worker.stop()


def test_an_installation_that_works_passes(stack):
    worker = stack.start_worker()
    code, rows = ask(stack)
    worker.stop()
    assert code == 0, rows
    assert not [row for row in rows.values() if row["status"] == "fail"]
    assert rows["workers"]["text"].startswith("worker")
    assert "noeviction" in rows["redis"]["text"]


def test_a_frozen_redis_is_found_within_bounds(stack):
    stack.valkey.freeze()
    started = time.monotonic()
    try:
        code, rows = ask(stack)
    finally:
        stack.valkey.thaw()
    assert time.monotonic() - started < 15
    assert code == 1
    assert rows["redis"]["status"] == rows["workers"]["status"] == "fail"
    assert rows["database"]["status"] == "ok"


def test_a_redis_that_forgets_is_a_warning(stack, settings):
    settings.REDIS_URL = stack.valkey.url
    with redis.Redis.from_url(stack.valkey.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        try:
            row = examinations.redis()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    assert row.status == "warn"
    assert examinations.redis().status == "ok"


def test_the_broker_of_its_own_address_is_asked_and_its_password_is_not_shown(stack, settings):
    settings.REDIS_URL = stack.valkey.url
    assert examinations.broker().text == "the same as redis"
    for scheme in ("redis", "amqp"):
        settings.GOBII_BROKER_URL = f"{scheme}://user:{PASSWORD}@127.0.0.1:1/0"
        row = examinations.broker()
        assert row.status == "fail"
        assert "127.0.0.1:1" in row.text
        assert PASSWORD not in str(row)


# What hangs or breaks


def test_an_examination_that_hangs_is_a_finding_and_holds_up_nobody():
    end = threading.Event()
    started = time.monotonic()
    rows = list(
        examined([("stuck", lambda: end.wait(20)), ("well", lambda: Row("well", "ok", "fine"))], within=0.3)
    )
    end.set()
    assert time.monotonic() - started < 10
    assert [(row.name, row.status) for row in rows] == [("stuck", "fail"), ("well", "ok")]


def test_an_examination_that_breaks_is_a_finding_without_the_error_s_text():
    def broken():
        raise RuntimeError(f"cannot reach redis://:{PASSWORD}@host")

    (row,) = examined([("broken", broken)])
    assert (row.status, PASSWORD in str(row)) == ("fail", False)
    assert "RuntimeError" in row.text


@pytest.mark.django_db(transaction=True)
def test_settings_that_cannot_be_read_are_told_and_the_rest_is_still_looked_at(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    settings.GOBII_LEASE = "soon"
    answer = run("email_doctor", "--json")
    rows = rows_of(answer.document)
    assert answer.code == 1
    assert rows["settings"]["status"] == "fail"
    assert "GOBII_LEASE" in rows["settings"]["text"]
    assert rows["database"]["status"] == "ok"


@pytest.mark.django_db(transaction=True)
def test_people_see_a_hint_below_what_is_wrong(settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    out = run("email_doctor").out.splitlines()
    found = next(index for index, line in enumerate(out) if line.startswith("fail  redis"))
    assert "REDIS_URL" in out[found + 1]


# Rows


@pytest.mark.django_db
def test_an_sqlite_whose_writers_fail_on_each_other_is_a_warning(monkeypatch):
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite has a journal mode")
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {})
    row = examinations.database()
    assert row.status == "warn"
    assert "IMMEDIATE" in row.hint


@pytest.mark.django_db
def test_mail_that_nobody_looked_at_points_to_the_dispatcher(settings):
    settings.GOBII_BROKER_URL = "memory://"
    api.send_agent_email(from_endpoint=an_endpoint(), to="bob@example.com", subject="Tea", body="At five?")
    assert examinations.dispatcher().status == "ok"
    assert examinations.queue().status == "ok"
    OutboundMessageAttempt.objects.update(due_at=ago(minutes=2))
    row = examinations.dispatcher()
    assert (row.status, "email_dispatcher" in row.hint) == ("warn", True)


@pytest.mark.django_db
def test_mail_that_is_ready_for_long_is_a_warning_and_held_mail_is_not(settings):
    settings.GOBII_BROKER_URL = "memory://"
    api.send_agent_email(from_endpoint=an_endpoint(), to="bob@example.com", subject="Tea", body="At five?")
    OutboundMessageAttempt.objects.update(
        not_before=ago(minutes=20), due_at=timezone.now() + timedelta(minutes=1)
    )
    assert examinations.queue().status == "warn"
    OutboundMessageAttempt.objects.update(held_code="paused", held_reason="Moving house")
    assert examinations.queue().status == "ok"


@pytest.mark.django_db
def test_a_secret_that_cannot_be_read_is_found_and_named_by_its_mailbox(settings):
    account = AgentEmailAccount(endpoint=an_endpoint(), smtp_host="smtp.example.org", smtp_port=587)
    account.set_smtp_password(PASSWORD)
    account.save()
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    credential.set_refresh_token(PASSWORD)
    credential.save()
    assert examinations.secrets() == Row("secrets", "ok", "2 can be read")
    settings.GOBII_ENCRYPTION_KEY = new_key("other")
    row = examinations.secrets()
    assert row.status == "fail"
    assert "2 cannot be read" in row.text and SENDER in row.text
    settings.GOBII_ENCRYPTION_KEY = ""
    assert "GOBII_ENCRYPTION_KEY is not set" in examinations.secrets().text
    settings.GOBII_ENCRYPTION_KEY = "nonsense"
    assert examinations.secrets().status == "fail"


@pytest.mark.django_db
def test_no_key_ring_is_only_a_warning_while_there_is_no_secret(settings):
    settings.GOBII_ENCRYPTION_KEY = ""
    assert examinations.secrets().status == "warn"


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, "ok", "own mailboxes, simulation"),
        ({"BYO_EMAIL_ENABLED": "false", "SIMULATE_EMAIL_DELIVERY": "false"}, "fail", "no transport"),
        (
            {"GOBII_PROPRIETARY_MODE": "true", "BYO_EMAIL_ENABLED": "true"},
            "warn",
            "without POSTMARK_SERVER_TOKEN",
        ),
        ({"GOBII_PROPRIETARY_MODE": "true", "POSTMARK_SERVER_TOKEN": "t"}, "warn", "POSTMARK_WEBHOOK_SECRET"),
        ({"POSTMARK_SERVER_TOKEN": "t"}, "warn", "not used"),
        (
            {
                "GOBII_PROPRIETARY_MODE": "true",
                "POSTMARK_SERVER_TOKEN": "t",
                "POSTMARK_WEBHOOK_SECRET": "u:p",
            },
            "ok",
            "Postmark",
        ),
    ],
)
def test_the_transports_that_the_settings_leave(settings, given, status, words):
    for name, value in given.items():
        setattr(settings, name, value)
    row = examinations.transports()
    assert (row.status, words in row.text) == (status, True), row


def test_trust_anchors_that_are_not_there_are_found(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert examinations.trust().status == "ok"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    assert examinations.trust().status == "fail"
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    assert examinations.trust().status in {"ok", "fail"}, "the system's authorities count as well"


def test_open_networks_are_a_warning(settings):
    settings.BYO_EMAIL_ALLOWED_NETWORKS = "0.0.0.0/0"
    assert examinations.networks().status == "warn"
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
    assert examinations.networks().status == "ok"
