"""`email_doctor`: each row finds its own illness, and nothing that hangs holds up the others."""

import json
import re
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.db import connection
from django.utils import timezone

from gobii_email import api
from gobii_email.conf import config
from gobii_email.encryption import new_key
from gobii_email.management.commands.email_doctor import examined
from gobii_email.management.examinations import (
    EXAMINATIONS,
    installation,
    mailboxes,
    outcomes,
    processes,
    storage,
)
from gobii_email.management.examinations import redis as servers
from gobii_email.management.examinations.row import Row
from gobii_email.models import (
    AgentEmailAccount,
    AgentEmailOAuthCredential,
    Mailbox,
    MailHost,
    OutboundMessageAttempt,
)
from gobii_email.services import attend, overview
from gobii_email.testing.certificates import ThrowAwayAuthority
from gobii_email.testing.postgres import EmbeddedPostgres
from gobii_email.testing.processes import ServerUnavailable
from gobii_email.testing.stack import ROOT, Stack, eventually
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


def test_an_installation_that_works_passes_until_its_code_is_newer_than_a_worker(stack, valkey, monkeypatch):
    worker = stack.start_worker()
    try:
        code, rows = ask(stack)
        monkeypatch.setattr(attend, "VERSIONS", "something newer")
        later = processes.versions()
    finally:
        worker.stop()
    assert code == 0, rows
    assert not [row for row in rows.values() if row["status"] == "fail"]
    assert rows["workers"]["text"].startswith("worker")
    assert rows["versions"]["status"] == "ok"
    assert "noeviction" in rows["redis"]["text"]
    assert (later.status, "worker" in later.text, "Restart" in later.hint) == ("warn", True, True)


def test_a_frozen_redis_is_found_within_bounds(stack):
    stack.valkey.freeze()
    started = time.monotonic()
    try:
        code, rows = ask(stack)
    finally:
        stack.valkey.thaw()
    assert time.monotonic() - started < 60
    assert code == 1
    assert rows["redis"]["status"] == rows["workers"]["status"] == "fail"
    assert rows["database"]["status"] == "ok"


@pytest.fixture
def valkey(stack, settings):
    """The stack's Valkey to be tampered with; afterwards it is as it was."""
    settings.REDIS_URL = stack.valkey.url
    with redis.Redis.from_url(stack.valkey.url) as client:
        before = {name: client.config_get(name)[name] for name in ("maxmemory", "maxmemory-policy", "save")}
        yield client
        client.replicaof("NO", "ONE")
        for name, value in before.items():
            client.config_set(name, value)


def test_a_redis_that_forgets_is_a_warning(valkey):
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    row = servers.redis()
    assert (row.status, "noeviction" in row.hint) == ("warn", True)
    valkey.config_set("maxmemory-policy", "noeviction")
    row = servers.redis()
    assert (row.status, "append-only file off" in row.text) == ("ok", True)


def test_a_redis_that_is_nearly_full_is_a_warning_and_a_full_one_a_failure(valkey):
    valkey.config_set("maxmemory", int(valkey.info()["used_memory"] * 1.05))
    row = servers.redis()
    assert (row.status, "of maxmemory used" in row.text) == ("warn", True)
    valkey.config_set("maxmemory", 1)
    row = servers.redis()
    assert (row.status, "OOM" in row.text, "memory" in row.hint) == ("fail", True, True)


def test_a_replica_refuses_writes(valkey):
    valkey.replicaof("127.0.0.1", 1)
    row = servers.redis()
    assert (row.status, "READONLY" in row.text, "primary" in row.hint) == ("fail", True, True)


def test_a_redis_that_cannot_save_refuses_writes(stack, valkey):
    in_the_way = stack.valkey.directory / "dump.rdb" / "in the way"
    in_the_way.mkdir(parents=True)
    valkey.config_set("save", "3600 1")
    valkey.bgsave()
    eventually(lambda: valkey.info()["rdb_last_bgsave_status"] == "err")
    row = servers.redis()
    assert (row.status, "MISCONF" in row.text, "disk" in row.hint) == ("fail", True, True)
    valkey.config_set("save", "")
    row = servers.redis()
    assert (row.status, "its last save failed" in row.text) == ("warn", True)
    in_the_way.rmdir()
    in_the_way.parent.rmdir()
    valkey.bgsave()
    eventually(lambda: valkey.info()["rdb_last_bgsave_status"] == "ok")
    assert servers.redis().status == "ok"


def test_a_redis_of_a_line_without_fixes_is_a_warning():
    old, new = {"redis_version": "5.0.14"}, {"redis_version": "7.2.4", "valkey_version": "8.1.0"}
    assert [status for status, _, _ in servers.worries(old)] == ["warn"]
    assert servers.worries(new) == []


# Processes


@pytest.mark.django_db
def test_a_dispatcher_and_a_beat_are_seen_while_they_are_at_work(stack, valkey):
    for row, word in ((processes.dispatcher(), "email_dispatcher"), (processes.beat(), "beat")):
        assert (row.status, word in row.hint) == ("warn", True)
    dispatcher = stack.start_dispatcher()
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker",
        "beat",
        "-s",
        str(stack.directory / "schedule"),
    ]
    beat = stack.start_process("beat", command)
    eventually(lambda: processes.beat().status == "ok", seconds=120)
    row = eventually(lambda: (found := processes.dispatcher()).status == "ok" and found)
    assert f":{dispatcher.pid};" in row.text
    beat.freeze()
    assert processes.beat().status == "warn", "one that hangs does not tick"
    beat.thaw()
    beat.stop()
    dispatcher.stop()
    assert not valkey.zcard("gobii:dispatchers"), "one that ended in order has left"


@pytest.mark.django_db
def test_a_dispatcher_that_was_seen_long_ago_is_not_at_work(valkey):
    valkey.zadd("gobii:dispatchers", {"host:17 Python 3.11.7": time.time() - 120})
    row = processes.dispatcher()
    assert (row.status, "host:17 was at" in row.text) == ("warn", True)
    valkey.zadd("gobii:dispatchers", {"host:17 Python 3.11.7": time.time()})
    assert processes.dispatcher().status == "ok"
    valkey.delete("gobii:dispatchers")


@pytest.mark.django_db
def test_mailboxes_that_nobody_watches_are_a_warning_and_those_that_cannot_be_are_named(valkey):
    assert processes.watchers() == Row("watchers", "ok", "mailboxes that ask to be watched: 0")
    account = AgentEmailAccount(endpoint=an_endpoint(), imap_host="imap.example.org", imap_port=993)
    account.set_imap_password(PASSWORD)
    account.imap_tested_fingerprint = account.imap_fingerprint()
    account.is_inbound_enabled = account.imap_idle_enabled = True
    account.save()
    Mailbox.objects.create(account=account, watch_problem="imap.example.org does not offer IDLE.")
    row = processes.watchers()
    assert row.status == "warn" and "no watcher was seen" in row.text and "run_imap_idlers" in row.hint
    valkey.zadd("gobii:watchers", {f"host:17 {attend.VERSIONS}": time.time()})
    row = processes.watchers()
    assert row.status == "warn" and f"cannot be: 1 ({SENDER}); waiting for a watcher: 1" in row.text
    valkey.set(f"gobii:lease:idle:{account.pk}", "host:17", px=60_000)
    row = processes.watchers()
    assert row.status == "ok" and row.text.endswith("; by host:17")
    valkey.delete("gobii:watchers", f"gobii:lease:idle:{account.pk}")


@pytest.mark.django_db
def test_a_watcher_that_was_not_restarted_is_found(valkey):
    valkey.zadd("gobii:watchers", {"host:18 Python 3.11.7, migration 0001": time.time()})
    assert "watcher host:18" in processes.versions().text
    valkey.delete("gobii:watchers")


def test_a_dispatcher_that_was_not_restarted_is_found(valkey):
    valkey.zadd("gobii:dispatchers", {f"host:17 {attend.VERSIONS}": time.time()})
    assert processes.versions() == Row("versions", "ok", attend.VERSIONS)
    valkey.zadd("gobii:dispatchers", {"host:18 Python 3.11.7, migration 0001": time.time()})
    row = processes.versions()
    valkey.delete("gobii:dispatchers")
    assert (row.status, "host:18" in row.text, "migration 0001" in row.text) == ("warn", True, True)


# PostgreSQL


@pytest.fixture(scope="module")
def postgres():
    try:
        with EmbeddedPostgres(own=True) as server:
            yield server
    except ServerUnavailable as problem:
        pytest.skip(f"POSTGRESQL IS NOT EXAMINED HERE: {problem}")


def ask_postgres(stack, postgres, options=""):
    env = stack.env | {"DATABASE_URL": postgres.url + options}
    command = [sys.executable, "manage.py", "email_doctor", "--json"]
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, rows_of(json.loads(done.stdout))


def test_a_database_behind_its_migrations_fails_and_one_that_forgets_is_a_warning(stack, postgres):
    code, rows = ask_postgres(stack, postgres, "?options=-c%20synchronous_commit=off")
    assert (code, rows["migrations"]["status"]) == (1, "fail")
    assert "migrate" in rows["migrations"]["hint"]
    assert (rows["clock"]["status"], "from the database" in rows["clock"]["text"]) == ("ok", True)
    row = rows["database"]
    assert (row["status"], "synchronous_commit" in row["text"]) == ("warn", True)


def test_a_database_that_takes_no_writes_fails(stack, postgres):
    rows = ask_postgres(stack, postgres, "?options=-c%20default_transaction_read_only=on")[1]
    assert (rows["database"]["status"], "takes no writes" in rows["database"]["text"]) == ("fail", True)


def test_the_broker_of_its_own_address_is_asked_and_its_password_is_not_shown(stack, settings):
    settings.REDIS_URL = stack.valkey.url
    assert servers.broker().text == "the same as redis"
    for scheme in ("redis", "amqp"):
        settings.GOBII_BROKER_URL = f"{scheme}://user:{PASSWORD}@127.0.0.1:1/0"
        row = servers.broker()
        assert row.status == "fail"
        assert "127.0.0.1:1" in row.text
        assert PASSWORD not in str(row)


def test_every_row_is_explained_to_operators():
    explained = re.findall(r"^\| ([\w-]+) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    names = [name for name, _ in EXAMINATIONS]
    assert [name for name in explained if name in names] == names


# What hangs or breaks


def test_an_examination_that_hangs_is_a_finding_and_holds_up_nobody():
    end = threading.Event()
    started = time.monotonic()
    rows = list(
        examined([("stuck", lambda: end.wait(60)), ("well", lambda: Row("well", "ok", "fine"))], within=2)
    )
    end.set()
    assert time.monotonic() - started < 30
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
    row = storage.database()
    assert row.status == "warn"
    assert "IMMEDIATE" in row.hint


@pytest.mark.django_db(transaction=True)
def test_an_sqlite_that_forgets_what_it_confirmed_is_a_warning():
    if connection.vendor != "sqlite":
        pytest.skip("only SQLite is asked that way")
    assert storage.database().status == "ok"
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous=NORMAL")
        try:
            row = storage.database()
        finally:
            cursor.execute("PRAGMA synchronous=FULL")
    assert (row.status, "synchronous=FULL" in row.hint) == ("warn", True)


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["queued", "sending", "in_doubt"])
def test_mail_that_nobody_looked_at_points_to_the_dispatcher(settings, monkeypatch, status):
    settings.GOBII_BROKER_URL = "memory://"
    api.send_agent_email(from_endpoint=an_endpoint(), to="bob@example.com", subject="Tea", body="At five?")
    assert processes.queue().status == "ok"
    OutboundMessageAttempt.objects.update(due_at=ago(minutes=2), status=status)
    row = processes.dispatcher()
    assert (row.status, "email_dispatcher" in row.hint) == ("fail", True)
    monkeypatch.setattr(attend, "dispatchers", lambda: {"host:17": (attend.VERSIONS, timezone.now())})
    row = processes.dispatcher()
    assert (row.status, "the log of host:17" in row.hint) == ("warn", True), (
        "one is there, and does not get on"
    )


@pytest.mark.django_db
def test_mail_that_is_ready_for_long_is_a_warning_and_held_mail_is_not(settings):
    settings.GOBII_BROKER_URL = "memory://"
    api.send_agent_email(from_endpoint=an_endpoint(), to="bob@example.com", subject="Tea", body="At five?")
    OutboundMessageAttempt.objects.update(
        not_before=ago(minutes=20), due_at=timezone.now() + timedelta(minutes=1)
    )
    assert processes.queue().status == "warn"
    OutboundMessageAttempt.objects.update(held_code="paused", held_reason="Moving house")
    assert processes.queue().status == "ok"


@pytest.mark.parametrize(
    ("sent", "failed", "status", "words"),
    [
        (0, 0, "ok", "nothing has ended"),
        (999, 1, "ok", "80% left; sent: 999, failed through no fault of recipients or content: 1"),
        (99, 1, "warn", "0% left; sent: 99"),
    ],
)
def test_the_error_budget_of_a_day_is_told_and_warned_of(monkeypatch, sent, failed, status, words):
    day = overview.Overview(0, None, [overview.Hour(timezone.now(), sent=sent, failed=failed)], failed)
    monkeypatch.setattr(outcomes, "overview", lambda *_: day)
    row = outcomes.budget()
    assert (row.status, words in row.text) == (status, True), row
    assert row.text.startswith("error budget of the last 24 hours")


@pytest.mark.django_db
def test_the_error_budget_is_asked_of_the_database() -> None:
    assert outcomes.budget().status == "ok"


@pytest.fixture
def two_secrets(db, settings):
    """A mailbox with a password and a token, under the key of the tests."""
    account = AgentEmailAccount(endpoint=an_endpoint(), smtp_host="smtp.example.org", smtp_port=587)
    account.set_smtp_password(PASSWORD)
    account.save()
    credential = AgentEmailOAuthCredential(account=account, provider="google")
    credential.set_refresh_token(PASSWORD)
    credential.save()
    return account


def test_a_secret_that_cannot_be_read_is_found_and_named_by_its_mailbox(settings, two_secrets):
    assert mailboxes.secrets() == Row("secrets", "ok", "2 can be read")
    AgentEmailAccount.objects.update(smtp_host="smtp.elsewhere.example")
    row = mailboxes.secrets()
    assert (row.status, "1 cannot be read" in row.text, SENDER in row.text) == ("fail", True, True)
    assert mailboxes.keys().status == "ok", "the key is there; the secret is bound to another server"
    settings.GOBII_ENCRYPTION_KEY = new_key("other")
    assert "2 cannot be read" in mailboxes.secrets().text
    for useless in ("", "nonsense"):
        settings.GOBII_ENCRYPTION_KEY = useless
        assert mailboxes.secrets().status == "fail"


def test_secrets_are_counted_by_the_key_they_are_under(settings, two_secrets):
    before = settings.GOBII_ENCRYPTION_KEY = config().encryption_key.reveal()
    row = mailboxes.keys()
    assert (row.status, "secrets: 2 under test" in row.text) == ("ok", True)

    settings.GOBII_ENCRYPTION_KEY = f"{new_key('newer')},{before}"
    row = mailboxes.keys()
    assert (row.status, "retired: test" in row.text, "Keep test in the ring" in row.hint) == (
        "warn",
        True,
        True,
    )
    two_secrets.set_smtp_password(PASSWORD)
    two_secrets.save()
    assert "1 under newer, 1 under test" in mailboxes.keys().text

    settings.GOBII_ENCRYPTION_KEY = before
    row = mailboxes.keys()
    assert (row.status, "not in the ring: newer" in row.text) == ("fail", True)
    AgentEmailAccount.objects.update(smtp_password_encrypted=b"scribble")
    assert "1 under damaged" in mailboxes.keys().text
    assert PASSWORD not in str(row) and before.partition(":")[2] not in str(row)


def test_a_ring_that_is_missing_or_useless_fails_once_there_are_secrets(settings, two_secrets):
    settings.GOBII_ENCRYPTION_KEY = ""
    assert "2 secrets are stored" in mailboxes.keys().text and mailboxes.keys().status == "fail"
    settings.GOBII_ENCRYPTION_KEY = "nonsense"
    assert mailboxes.keys().status == "fail"


@pytest.mark.django_db
def test_no_key_ring_is_only_a_warning_while_there_is_no_secret(settings):
    settings.GOBII_ENCRYPTION_KEY = ""
    assert (mailboxes.keys().status, mailboxes.secrets().status) == ("warn", "ok")


@pytest.mark.parametrize(
    ("values", "status", "words"),
    [
        ({}, "warn", f"1 to be tested ({SENDER})"),
        ({"smtp_tested_fingerprint": "x"}, "ok", "0 send"),
        ({"smtp_tested_fingerprint": "x", "is_outbound_enabled": True}, "ok", "1 send"),
        (
            {"smtp_tested_fingerprint": "x", "is_outbound_enabled": True, "state": "auth_needed"},
            "warn",
            f"1 held until somebody acts ({SENDER})",
        ),
        (
            {
                "smtp_tested_fingerprint": "x",
                "is_outbound_enabled": True,
                "state": "quota",
                "state_until": timezone.now() + timedelta(hours=1),
            },
            "ok",
            "1 held for a while",
        ),
        (
            {
                "smtp_tested_fingerprint": "x",
                "is_outbound_enabled": True,
                "state": "quota",
                "state_until": ago(hours=1),
            },
            "ok",
            "1 send",
        ),
    ],
)
def test_mailboxes_that_wait_are_counted_and_those_for_a_person_named(two_secrets, values, status, words):
    AgentEmailAccount.objects.update(smtp_username="u", **values)
    row = mailboxes.accounts()
    assert (row.status, words in row.text) == (status, True), row
    MailHost.objects.create(name="smtp.example.org:587", backoff_until=timezone.now() + timedelta(hours=1))
    assert "1 servers left alone" in mailboxes.accounts().text


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, "ok", "passwords only"),
        ({"GOOGLE_CLIENT_ID": "an-id"}, "warn", "GOOGLE_CLIENT_SECRET is not"),
        ({"MICROSOFT_CLIENT_SECRET": PASSWORD}, "warn", "MICROSOFT_CLIENT_ID is not"),
        ({"GOOGLE_CLIENT_ID": "an-id", "GOOGLE_CLIENT_SECRET": PASSWORD}, "ok", "with google"),
        (
            {
                "GOOGLE_CLIENT_ID": "an-id",
                "GOOGLE_CLIENT_SECRET": PASSWORD,
                "PUBLIC_URL": "http://mail.example.org",
            },
            "warn",
            "PUBLIC_URL is not https",
        ),
    ],
)
@pytest.mark.django_db
def test_what_people_can_sign_in_with_is_told_without_a_secret(settings, given, status, words):
    for name, value in given.items():
        setattr(settings, name, value)
    row = installation.sign_in()
    assert (row.status, words in row.text) == (status, True), row
    assert PASSWORD not in str(row)


@pytest.mark.parametrize(
    ("state", "error", "is_connected", "status", "words"),
    [
        ("active", "", True, "ok", "opened with tokens: 1"),
        ("auth_needed", "withdrawn", True, "warn", f"1 wait for a sign-in ({SENDER})"),
        ("active", "", False, "warn", f"1 wait for a sign-in ({SENDER})"),
        ("active", "cannot be reached", True, "warn", f"1 not renewed at the last try ({SENDER})"),
    ],
    ids=["fine", "withdrawn", "disconnected", "not renewed"],
)
def test_mailboxes_that_wait_for_a_sign_in_are_named(two_secrets, state, error, is_connected, status, words):
    assert mailboxes.tokens().text == "mailboxes opened with tokens: 0"
    AgentEmailAccount.objects.update(smtp_auth="oauth2", state=state)
    AgentEmailOAuthCredential.objects.update(refresh_error=error)
    if not is_connected:
        AgentEmailOAuthCredential.objects.all().delete()
    row = mailboxes.tokens()
    assert (row.status, words in row.text, bool(row.hint)) == (status, True, status == "warn"), row


@pytest.mark.parametrize("name", ["google", "gmail"])
def test_mailboxes_whose_tokens_cannot_be_renewed_are_a_warning(two_secrets, settings, name):
    AgentEmailOAuthCredential.objects.update(provider=name)
    row = installation.sign_in()
    assert (row.status, "GOOGLE_CLIENT_ID" in row.hint) == ("warn", True)
    settings.GOOGLE_CLIENT_ID, settings.GOOGLE_CLIENT_SECRET = "an-id", "a-secret"
    assert installation.sign_in().status == "ok"


def test_a_python_with_holes_in_its_mail_modules_is_a_warning(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 14, "final", 0))
    row = installation.python()
    assert (row.status, "3.11.15" in row.hint) == ("warn", True)
    monkeypatch.setattr(sys, "version_info", (3, 11, 15, "final", 0))
    assert installation.python().status == "ok"


@pytest.mark.django_db
def test_a_clock_that_is_off_is_a_warning(valkey, monkeypatch):
    assert storage.clock().status == "ok"
    late = timezone.now() - timedelta(minutes=1)
    monkeypatch.setattr(storage.timezone, "now", lambda: late)
    row = storage.clock()
    assert (row.status, "from Redis" in row.text) == ("warn", True)


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
    row = installation.transports()
    assert (row.status, words in row.text) == (status, True), row


def test_trust_anchors_that_are_not_there_are_found(monkeypatch, tmp_path):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert installation.trust().status == "ok"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    assert installation.trust().status == "fail"
    made = ThrowAwayAuthority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.ca_file))
    assert "1 of them from SSL_CERT_FILE" in installation.trust().text
    monkeypatch.setenv("SSL_CERT_FILE", str(expired_authority(tmp_path)))
    row = installation.trust()
    assert (row.status, "every authority" in row.text) == ("warn", True)
    both = tmp_path / "both.pem"
    both.write_bytes(made.ca_file.read_bytes() + (tmp_path / "expired.pem").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", str(both))
    assert installation.trust().status == "ok", "an old one beside its successor is ordinary"
    (tmp_path / "empty.pem").write_text("nothing")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    assert installation.trust().status == "fail"


def expired_authority(directory):
    """A certificate of an authority that was good for a day, last year."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Last year's authority")])
    begin = timezone.now() - timedelta(days=365)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "expired.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return path


def test_open_networks_are_a_warning(settings):
    settings.BYO_EMAIL_ALLOWED_NETWORKS = "0.0.0.0/0"
    assert installation.networks().status == "warn"
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
    assert installation.networks().status == "ok"
