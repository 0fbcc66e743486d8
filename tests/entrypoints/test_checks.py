"""System checks: each fires on its fault, says what to do, and is silent on the defaults."""

import sys
from collections import namedtuple

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from gobii_email import checks, deploy_checks
from gobii_email.encryption import new_key
from gobii_email.models import (
    AgentEmailAccount,
    CommsChannel,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
)

Version = namedtuple("Version", "major minor micro releaselevel serial")


def ids(found):
    return [message.id for message in found]


def test_the_settings_of_the_tests_pass_every_check():
    assert ids(run_checks(tags=["gobii_email"])) == []


def test_every_setting_that_cannot_be_read_is_reported_at_once(settings):
    settings.GOBII_LEASE = "soon"
    settings.BYO_EMAIL_ALLOWED_PORTS = "smtp"
    found = run_checks(tags=["gobii_email"])
    assert ids(found) == ["gobii_email.E000"] * 2
    assert {message.msg.partition(":")[0] for message in found} == {"GOBII_LEASE", "BYO_EMAIL_ALLOWED_PORTS"}
    assert all(message.hint for message in found)


def test_an_unusable_key_ring_is_an_error_that_shows_no_key(settings):
    settings.GOBII_ENCRYPTION_KEY = "k1:notbase64!"
    (found,) = run_checks(tags=["gobii_email"])
    assert found.id == "gobii_email.E001"
    assert "notbase64" not in found.msg + found.hint


def an_account():
    agent = PersistentAgent.objects.create(name="Ada")
    endpoint = PersistentAgentCommsEndpoint.objects.create(
        owner_agent=agent, channel=CommsChannel.EMAIL, address="ada@example.org"
    )
    return AgentEmailAccount(endpoint=endpoint, smtp_host="smtp.example.org", smtp_port=587)


@pytest.mark.django_db
def test_stored_secrets_without_a_key_ring_are_an_error(settings):
    account = an_account()
    account.set_smtp_password("secret")
    account.save()
    settings.GOBII_ENCRYPTION_KEY = ""
    assert ids(checks.check_key_ring_is_there(databases=["default"])) == ["gobii_email.E002"]
    settings.GOBII_ENCRYPTION_KEY = new_key("test")
    assert checks.check_key_ring_is_there(databases=["default"]) == []


@pytest.mark.django_db
def test_the_database_is_asked_only_where_it_is_named(settings, django_assert_num_queries):
    settings.GOBII_ENCRYPTION_KEY = ""
    with django_assert_num_queries(0):
        assert ids(run_checks()) == []
        assert checks.check_key_ring_is_there() == []
    an_account().save()
    assert checks.check_key_ring_is_there(databases=["default"]) == [], (
        "an account without a secret needs no key"
    )


class PreforkPool:
    __module__ = "celery.concurrency.prefork"


@pytest.mark.parametrize("pool", ["prefork", "celery.concurrency.prefork:TaskPool", PreforkPool])
def test_a_prefork_worker_does_not_start_with_a_database_pool(monkeypatch, pool):
    checks.refuse_pool_with(pool)
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"pool": {"max_size": 4}})
    with pytest.raises(ImproperlyConfigured, match="--pool threads"):
        checks.refuse_pool_with(pool)
    checks.refuse_pool_with("threads")


def test_a_project_that_chooses_prefork_and_a_database_pool_is_told(monkeypatch, settings):
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", {"pool": True})
    assert checks.check_database_pool() == []
    settings.CELERY_WORKER_POOL = "prefork"
    assert ids(checks.check_database_pool()) == ["gobii_email.E003"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GOBII_LEASE", "0"),
        ("GOBII_DEADLINE_DOT", "0s"),
        ("GOBII_RETRY_SCHEDULE", ""),
        ("GOBII_RETRY_SCHEDULE", "1m,0s"),
        ("GOBII_DEADLINE_DOT", "20m"),
        ("GOBII_DOUBT_RESEND_AFTER", "5m"),
        ("IMAP_IDLE_LEASE_TTL_SEC", "0"),
        ("IMAP_IDLE_REISSUE_SEC", "30m"),
    ],
)
def test_time_limits_that_contradict_each_other_are_an_error(settings, name, value):
    assert checks.check_time_limits() == []
    setattr(settings, name, value)
    assert ids(checks.check_time_limits()) == ["gobii_email.E004"]


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((3, 11, 14), ["gobii_email.W001"]),
        ((3, 11, 15), []),
        ((3, 12, 12), ["gobii_email.W001"]),
        ((3, 13, 12), []),
        ((3, 15, 0), []),
    ],
)
def test_a_python_below_the_security_floor_is_a_warning(monkeypatch, version, expected):
    monkeypatch.setattr(sys, "version_info", Version(*version, "final", 0))
    found = deploy_checks.check_python()
    assert ids(found) == expected
    assert all(f"{version[0]}.{version[1]}." in message.hint for message in found)


def deploy_ids():
    return ids(run_checks(tags=["gobii_email"], include_deployment_checks=True))


def test_open_networks_are_a_warning_of_a_deployment(settings):
    settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
    assert "gobii_email.W002" not in deploy_ids()
    settings.BYO_EMAIL_ALLOWED_NETWORKS = "10.0.0.0/8"
    assert "gobii_email.W002" in deploy_ids()


def test_postmark_without_a_webhook_secret_is_a_warning_of_a_deployment(settings):
    settings.POSTMARK_SERVER_TOKEN = "token"
    assert "gobii_email.W003" in deploy_ids()
    settings.POSTMARK_WEBHOOK_SECRET = "user:password"
    assert "gobii_email.W003" not in deploy_ids()


def test_a_client_without_its_secret_or_a_way_back_is_warned_about(settings):
    assert deploy_checks.check_sign_in() == []
    settings.GOOGLE_CLIENT_ID, settings.PUBLIC_URL = "client", "https://mail.example"
    (half,) = deploy_checks.check_sign_in()
    assert half.id == "gobii_email.W006" and "GOOGLE_CLIENT_SECRET is not" in half.msg
    settings.GOOGLE_CLIENT_SECRET = "s3cret"
    assert deploy_checks.check_sign_in() == []
    settings.PUBLIC_URL = "http://mail.example"
    (lost,) = deploy_checks.check_sign_in()
    assert "PUBLIC_URL" in lost.msg and "gobii_email.W006" in deploy_ids()


def test_a_secret_key_that_the_service_made_for_itself_is_a_warning_of_a_deployment(settings, tmp_path):
    settings.VAR = tmp_path
    assert "gobii_email.W004" not in deploy_ids()
    (tmp_path / "secret_key").write_text(settings.SECRET_KEY + "\n")
    assert "gobii_email.W004" in deploy_ids()
