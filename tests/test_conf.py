"""Every setting is parsed, every error is reported at once, and the nearer source wins."""

from dataclasses import MISSING, fields
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from gobii_email import conf
from gobii_email.conf import Config, config, load, read_text
from gobii_email.domain.rollout import Rollout
from gobii_email.domain.secret import Secret

ROWS = {row.metadata["name"]: row for row in fields(Config)}


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    for name in ROWS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)
        if hasattr(settings, name):
            delattr(settings, name)
    config.cache_clear()


GIVEN: list[tuple[str, str, str, object]] = [
    ("REDIS_URL", "redis_url", "redis://r:1/2", "redis://r:1/2"),
    ("GOBII_BROKER_URL", "own_broker_url", "amqp://b", "amqp://b"),
    ("CELERY_BROKER_URL", "celery_broker_url", "amqp://b", "amqp://b"),
    ("GOBII_ENCRYPTION_KEY", "encryption_key", "k:AAAA", Secret("k:AAAA")),
    ("GOBII_METRICS_DIR", "metrics_dir", "/run/counts", "/run/counts"),
    ("METRICS_TOKEN", "metrics_token", "t0ken", Secret("t0ken")),
    ("GOBII_METRICS_PORT", "metrics_port", "[::1]:9464", ("::1", 9464)),
    ("GOBII_ANSWERS_PER_HOUR", "answers_per_hour", "7", 7),
    ("GOBII_FAILED_SIGN_INS", "failed_sign_ins", "0", 0),
    ("GOBII_PROXIES", "proxies", "2", 2),
    ("GOBII_KEEP_BODIES", "keep_bodies", "30d", timedelta(days=30)),
    ("GOBII_KEEP_EVENTS", "keep_events", "90d", timedelta(days=90)),
    ("GOBII_KEEP_MESSAGES", "keep_messages", "365d", timedelta(days=365)),
    ("GOBII_KEEP_RECEIVED", "keep_received", "7d", timedelta(days=7)),
    ("GOBII_KEEP_TESTS", "keep_tests", "7d", timedelta(days=7)),
    ("GOBII_TRACES_SHARE", "traces_share", "0.25", 0.25),
    ("GOBII_HEARTBEAT_FILE", "heartbeat_file", "/run/beat", "/run/beat"),
    ("BYO_EMAIL_ENABLED", "byo_email_enabled_setting", "off", False),
    ("BYO_EMAIL_ROLLOUT", "byo_email_rollout", "25%", Rollout(percent=25)),
    ("GOBII_PROPRIETARY_MODE", "proprietary_mode", "True", True),
    ("SIMULATE_EMAIL_DELIVERY", "simulate_setting", "no", False),
    ("POSTMARK_SERVER_TOKEN", "postmark_server_token", "t", Secret("t")),
    ("POSTMARK_WEBHOOK_SECRET", "postmark_webhook_secret", "u:p", Secret("u:p")),
    ("POSTMARK_API_URL", "postmark_api_url", "http://p/", "http://p/"),
    ("GOBII_TASK_EVENTS", "task_events", "0", False),
    ("GOBII_MESSAGES_PER_CONNECTION", "messages_per_connection", "20", 20),
    (
        "BYO_EMAIL_ALLOWED_NETWORKS",
        "allowed_networks",
        "127.0.0.0/8, ::1/128",
        (ip_network("127.0.0.0/8"), ip_network("::1/128")),
    ),
    ("BYO_EMAIL_ALLOWED_PORTS", "allowed_ports", "25, 587", frozenset({25, 587})),
    ("GOBII_RETRY_SCHEDULE", "retry_schedule", "1s,2m", (timedelta(seconds=1), timedelta(minutes=2))),
    ("GOBII_RETRY_JITTER", "retry_jitter", "0", 0.0),
    ("GOBII_EXPIRES_AFTER", "expires_after", "2d", timedelta(days=2)),
    ("GOBII_LEASE", "lease", "90", timedelta(seconds=90)),
    ("GOBII_DOUBT_RESEND_AFTER", "doubt_resend_after", "1.5h", timedelta(minutes=90)),
    ("GOBII_MAX_RECEIVED_BYTES", "max_received_bytes", "1000", 1_000),
    ("GOBII_MAX_RECEIVED_FILE_BYTES", "max_received_file_bytes", "100", 100),
    ("GOBII_MAX_RECEIVED_FILES", "max_received_files", "3", 3),
    ("GOBII_REFUSED_FILE_TYPES", "refused_file_types", "EXE, js", ("exe", "js")),
    ("INBOUND_AUTHENTICATION", "inbound_authentication", "require", "require"),
    ("GOBII_READING_DEADLINE", "reading_deadline", "5s", timedelta(seconds=5)),
    ("GOBII_READING_MEMORY_BYTES", "reading_memory_bytes", "300000000", 300_000_000),
    ("EMAIL_RECEIVED_TASK", "email_received_task", "runtime.wake", "runtime.wake"),
    ("EMAIL_RECEIVED_QUEUE", "email_received_queue", "agents", "agents"),
    ("GOBII_EVIDENCE_LEAST", "evidence_least", "10m", timedelta(minutes=10)),
    ("GOBII_DEADLINE_CONNECT", "deadline_connect", "250ms", timedelta(milliseconds=250)),
    ("GOBII_DEADLINE_STEP", "deadline_step", "1s", timedelta(seconds=1)),
    ("GOBII_DEADLINE_ENVELOPE", "deadline_envelope", "1s", timedelta(seconds=1)),
    ("GOBII_DEADLINE_BODY", "deadline_body", "1s", timedelta(seconds=1)),
    ("GOBII_DEADLINE_DOT", "deadline_dot", "1s", timedelta(seconds=1)),
    ("GOBII_DEADLINE_TEST", "deadline_test", "9s", timedelta(seconds=9)),
    ("GOBII_TEST_BLOCKED_AFTER", "test_blocked_after", "1s", timedelta(seconds=1)),
    ("GOBII_TESTS_PER_MINUTE", "tests_per_minute", "2", 2),
    ("GOBII_TESTS_PER_HOUR", "tests_per_hour", "20", 20),
    ("GOBII_DISPATCH_EVERY", "dispatch_every", "0.1s", timedelta(seconds=0.1)),
    ("GOBII_HINT_LIFETIME", "hint_lifetime", "1s", timedelta(seconds=1)),
    ("GOBII_RING_GRACE", "ring_grace", "1s", timedelta(seconds=1)),
    ("GOBII_BREAKER_PAUSE", "breaker_pause", "1s", timedelta(seconds=1)),
    ("GOBII_DNS_DEADLINE", "dns_deadline", "1s", timedelta(seconds=1)),
    (
        "GOBII_DNS_SERVERS",
        "dns_servers",
        "192.0.2.53, 192.0.2.54:5300,2001:db8::53, [2001:db8::54]:5300",
        (("192.0.2.53", 53), ("192.0.2.54", 5300), ("2001:db8::53", 53), ("2001:db8::54", 5300)),
    ),
    ("IMAP_IDLE_ENABLED", "idle_enabled", "0", False),
    ("IMAP_IDLE_MAX_CONNECTIONS", "idle_max_connections", "200", 200),
    ("IMAP_IDLE_SCAN_INTERVAL_SEC", "idle_scan_interval", "30", timedelta(seconds=30)),
    ("IMAP_IDLE_REISSUE_SEC", "idle_reissue", "1500", timedelta(minutes=25)),
    ("IMAP_IDLE_DEBOUNCE_SEC", "idle_debounce", "10", timedelta(seconds=10)),
    ("IMAP_IDLE_LEASE_TTL_SEC", "idle_lease", "60", timedelta(seconds=60)),
    ("GOBII_MAX_MESSAGE_BYTES", "max_message_bytes", "1000", 1000),
    ("GOBII_MAX_RECIPIENTS", "max_recipients", "3", 3),
    ("PUBLIC_URL", "public_url", "https://m", "https://m"),
    ("GOOGLE_CLIENT_ID", "google_client_id", "client-1", "client-1"),
    ("GOOGLE_CLIENT_SECRET", "google_client_secret", "s3cret", Secret("s3cret")),
    ("GOOGLE_AUTHORIZE_URL", "google_authorize_url", "https://id.example/x", "https://id.example/x"),
    ("GOOGLE_TOKEN_URL", "google_token_url", "https://id.example/x", "https://id.example/x"),
    ("GOOGLE_JWKS_URL", "google_jwks_url", "https://id.example/x", "https://id.example/x"),
    ("GOOGLE_REVOKE_URL", "google_revoke_url", "https://id.example/x", "https://id.example/x"),
    ("GOOGLE_ISSUER", "google_issuer", "https://id.example", "https://id.example"),
    ("MICROSOFT_CLIENT_ID", "microsoft_client_id", "client-1", "client-1"),
    ("MICROSOFT_CLIENT_SECRET", "microsoft_client_secret", "s3cret", Secret("s3cret")),
    ("MICROSOFT_AUTHORIZE_URL", "microsoft_authorize_url", "https://id.example/x", "https://id.example/x"),
    ("MICROSOFT_TOKEN_URL", "microsoft_token_url", "https://id.example/x", "https://id.example/x"),
    ("MICROSOFT_JWKS_URL", "microsoft_jwks_url", "https://id.example/x", "https://id.example/x"),
    ("MICROSOFT_ISSUER", "microsoft_issuer", "https://id.example", "https://id.example"),
]


@pytest.mark.parametrize(("name", "attribute", "text", "meant"), GIVEN, ids=[case[0] for case in GIVEN])
@pytest.mark.parametrize("source", ["environment", "file", "django"])
def test_a_setting_is_read_from_each_source(
    name: str, attribute: str, text: str, meant: object, source: str,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any,
) -> None:  # fmt: skip
    if source == "django":
        if name == "CELERY_BROKER_URL":
            pytest.skip("a Django setting of this name is the host project's own broker")
        setattr(settings, name, text)
    elif source == "environment":
        monkeypatch.setenv(name, f" {text}\n")
    else:
        (tmp_path / "value").write_text(f"{text}\n", encoding="utf-8")
        monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "value"))
    found = getattr(load(), attribute)
    if isinstance(meant, Secret):
        assert found.reveal() == meant.reveal()
    else:
        assert found == meant
        assert type(found) is type(meant)


@pytest.mark.parametrize("name", ROWS)
def test_every_default_is_usable_and_explained(name: str) -> None:
    row = ROWS[name]
    assert getattr(load(), row.name) is not MISSING
    assert len(row.metadata["meaning"]) > 10


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BYO_EMAIL_ENABLED", "perhaps"),
        ("GOBII_PROPRIETARY_MODE", "2"),
        ("BYO_EMAIL_ROLLOUT", "101%"),
        ("BYO_EMAIL_ALLOWED_NETWORKS", "10.0.0.1/8"),
        ("BYO_EMAIL_ALLOWED_PORTS", "0"),
        ("GOBII_DNS_SERVERS", "ns.example.org"),
        ("GOBII_DNS_SERVERS", "192.0.2.53:0"),
        ("GOBII_DNS_SERVERS", "[192.0.2.53]:"),
        ("GOOGLE_TOKEN_URL", "http://id.example/token"),
        ("GOOGLE_REVOKE_URL", "https://user@id.example/revoke"),
        ("MICROSOFT_JWKS_URL", "file:///keys"),
        ("BYO_EMAIL_ALLOWED_PORTS", "65536"),
        ("BYO_EMAIL_ALLOWED_PORTS", "smtp"),
        ("GOBII_RETRY_SCHEDULE", "1m,soon"),
        ("GOBII_RETRY_JITTER", "1"),
        ("GOBII_LEASE", "-1s"),
        ("GOBII_LEASE", "1w"),
        ("GOBII_LEASE", "99999999999d"),
        ("GOBII_MAX_RECIPIENTS", "1.5"),
        ("INBOUND_AUTHENTICATION", "yes"),
        ("GOBII_READING_MEMORY_BYTES", "1000"),
    ],
)
def test_a_wrong_value_is_reported_under_its_name(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ImproperlyConfigured, match=f"{name}: "):
        load()


def test_all_errors_are_reported_at_once_and_no_secret_among_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GOBII_LEASE", "soon")
    monkeypatch.setenv("BYO_EMAIL_ALLOWED_PORTS", "99999")
    monkeypatch.setenv("POSTMARK_SERVER_TOKEN_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("GOBII_ENCRYPTION_KEY", "k:c2VjcmV0")
    with pytest.raises(ImproperlyConfigured) as caught:
        load()
    head, *lines = str(caught.value).splitlines()
    assert head == "Settings that cannot be used:"
    assert sorted(line.partition(":")[0] for line in lines) == [
        "BYO_EMAIL_ALLOWED_PORTS",
        "GOBII_LEASE",
        "POSTMARK_SERVER_TOKEN",
    ]
    assert "c2VjcmV0" not in str(caught.value)


def test_the_django_setting_beats_the_environment_and_that_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: Any
) -> None:
    (tmp_path / "value").write_text("3s")
    monkeypatch.setenv("GOBII_LEASE_FILE", str(tmp_path / "value"))
    assert load().lease == timedelta(seconds=3)
    monkeypatch.setenv("GOBII_LEASE", "2s")
    assert load().lease == timedelta(seconds=2)
    settings.GOBII_LEASE = "1s"
    assert load().lease == timedelta(seconds=1)


def test_a_django_setting_may_have_its_own_type(settings: Any) -> None:
    settings.GOBII_LEASE = timedelta(seconds=7)
    settings.GOBII_DEADLINE_DOT = 9
    settings.BYO_EMAIL_ENABLED = False
    settings.GOBII_MAX_RECIPIENTS = 4
    settings.BYO_EMAIL_ALLOWED_PORTS = [25, 587]
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ["127.0.0.0/8"]
    settings.BYO_EMAIL_ROLLOUT = ["a@sender.example"]
    found = load()
    assert (found.lease, found.deadline_dot) == (timedelta(seconds=7), timedelta(seconds=9))
    assert (found.byo_email_enabled, found.max_recipients) == (False, 4)
    assert found.allowed_ports == {25, 587}
    assert found.allowed_networks == (ip_network("127.0.0.0/8"),)
    assert found.byo_email_rollout.includes("x", "a@sender.example")


def test_a_secret_of_a_django_setting_is_not_shown(settings: Any) -> None:
    settings.POSTMARK_SERVER_TOKEN = "canary-token"
    assert "canary-token" not in repr(load())


@pytest.mark.parametrize(
    ("proprietary", "byo", "simulate", "expected"),
    [
        ("false", "", "", (True, True)),
        ("true", "", "", (False, False)),
        ("true", "true", "true", (True, True)),
        ("false", "false", "false", (False, False)),
    ],
)
def test_what_is_not_said_follows_from_the_mode(
    proprietary: str, byo: str, simulate: str, expected: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOBII_PROPRIETARY_MODE", proprietary)
    monkeypatch.setenv("BYO_EMAIL_ENABLED", byo)
    monkeypatch.setenv("SIMULATE_EMAIL_DELIVERY", simulate)
    found = load()
    assert (found.byo_email_enabled, found.simulates) == expected


def test_the_broker_is_redis_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://r/1")
    assert load().broker_url == "redis://r/1"
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://b")
    assert load().broker_url == "amqp://b"


def test_settings_are_read_once_and_again_when_overridden(settings: Any) -> None:
    assert config() is config()
    settings.GOBII_LEASE = "5s"
    assert config().lease == timedelta(seconds=5)


def test_an_empty_variable_counts_as_said(tmp_path: Path) -> None:
    (tmp_path / "value").write_text("from the file")
    environment = {"NAME": "", "NAME_FILE": str(tmp_path / "value")}
    assert read_text("NAME", "default", environment) == ""
    assert read_text("NAME", "default", {"NAME_FILE": environment["NAME_FILE"]}) == "from the file"
    assert read_text("NAME", "default", {}) == "default"


def test_every_setting_is_in_the_table_above() -> None:
    assert {case[0] for case in GIVEN} == set(ROWS)
    assert conf.__doc__
