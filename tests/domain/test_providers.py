"""The facts about providers: complete, found by host, domain and mail exchanger, and documented."""

import re
from collections import Counter
from dataclasses import fields
from datetime import date
from pathlib import Path

import pytest

from gobii_email.domain.addresses import is_host_name
from gobii_email.domain.providers import (
    Provider,
    as_markdown,
    provider_of_address,
    provider_of_host,
    provider_of_mx,
    providers,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "providers.md"
BY_ID = {provider.id: provider for provider in providers()}
PORTS_FOR_SENDING = {(465, "ssl"), (587, "starttls")}
PORTS_FOR_READING = {(993, "ssl"), (143, "starttls")}
LIMITS = [field.name for field in fields(Provider) if field.type == int | None]
each_provider = pytest.mark.parametrize("provider", providers(), ids=lambda provider: provider.id)


@pytest.mark.parametrize(
    ("host", "provider"),
    [
        ("smtp.gmail.com", "google"),
        ("SMTP.Gmail.com.", "google"),
        ("smtp.office365.com", "microsoft365"),
        ("outlook.office365.com", "microsoft365"),
        ("smtp-mail.outlook.com", "outlook"),
        ("smtppro.zoho.eu", "zoho-eu"),
        ("email-smtp.eu-central-1.amazonaws.com", "ses"),
        ("imap.mail.me.com", "icloud"),
        ("smtp.gmail.com.evil.example", None),
        ("evilsmtp.gmail.com", None),
        ("", None),
    ],
)
def test_a_server_belongs_to_its_provider(host, provider):
    found = provider_of_host(host)
    assert (found and found.id) == provider


def test_a_mailbox_is_found_by_its_domain_and_its_mail_exchanger():
    assert provider_of_address("someone@GMX.de").id == "gmx"
    assert provider_of_address("someone@byo.example") is None
    assert provider_of_mx("aspmx.l.google.com").id == "google"
    assert provider_of_mx("byo-example.mail.protection.outlook.com").id == "microsoft365"
    assert provider_of_mx("outlook-com.olc.protection.outlook.com").id == "outlook"
    assert provider_of_mx("notgoogle.com") is None


def test_a_relay_on_a_rented_machine_is_not_its_cloud_s_mail_service():
    assert provider_of_mx("ec2-192-0-2-1.compute-1.amazonaws.com") is None


@each_provider
def test_a_provider_says_what_to_do_and_where_that_is_from(provider):
    assert provider.advice.endswith(".") and len(provider.advice) > 20
    assert provider.caveats and all(caveat.endswith(".") or ":" in caveat for caveat in provider.caveats)
    assert provider.source.startswith("https://") or provider.source.startswith("general knowledge")
    assert re.fullmatch(r"[a-z0-9.-]+", provider.id) and provider.name


@each_provider
def test_what_no_page_was_looked_at_for_is_marked_so(provider):
    assert set(provider.unconfirmed) <= {field.name for field in fields(Provider)}
    if provider.checked_at is None:
        assert {"smtp", "auth"} <= set(provider.unconfirmed) and "https" not in provider.source
    else:
        assert date(2026, 1, 1) <= provider.checked_at and provider.source.startswith("https://")


@each_provider
def test_servers_have_host_names_and_are_spoken_to_under_tls_at_known_ports(provider):
    assert (provider.smtp.port, provider.smtp.security) in PORTS_FOR_SENDING
    assert provider.imap is None or (provider.imap.port, provider.imap.security) in PORTS_FOR_READING
    hosts = [provider.smtp.host, *provider.other_hosts, *([provider.imap.host] if provider.imap else [])]
    for name in (*hosts, *provider.domains, *provider.mx_suffixes):
        assert is_host_name(name) and "." in name, name
    assert provider_of_host(provider.smtp.host) is provider


@each_provider
def test_ways_to_sign_in_are_ours(provider):
    assert provider.auth and set(provider.auth) <= {"password", "app_password", "oauth2"}
    assert len(set(provider.auth)) == len(provider.auth)
    assert provider.oauth in {"", "google", "microsoft"}
    assert not provider.oauth or "oauth2" in provider.auth


@each_provider
def test_limits_are_positive(provider):
    assert len(LIMITS) == 6
    assert all(getattr(provider, name) is None or getattr(provider, name) > 0 for name in LIMITS)


def test_nothing_is_there_twice():
    assert len(providers()) >= 30
    for values in (
        [provider.id for provider in providers()],
        [provider.name for provider in providers()],
        [domain for provider in providers() for domain in provider.domains],
        [suffix for provider in providers() for suffix in provider.mx_suffixes],
    ):
        assert [value for value, times in Counter(values).items() if times > 1] == []


@pytest.mark.parametrize("id", ["zoho", "ionos"])
def test_regions_of_a_provider_have_servers_of_their_own(id):
    regions = [provider for provider in providers() if provider.id.split("-")[0] == id]
    assert len({provider.smtp.host for provider in regions}) == len(regions) > 3


def test_passwords_at_microsoft_come_with_the_dates_of_their_end():
    dated = BY_ID["microsoft365"].caveats[0]
    assert "27 January 2026" in dated and "end of December 2026" in dated and "2027" in dated
    assert BY_ID["outlook"].auth == ("oauth2",) and "16 September 2024" in BY_ID["outlook"].advice


@pytest.mark.parametrize(
    ("id", "username"), [("google", "ada@own.example"), ("free", "ada"), ("ses", "")], ids=str
)
def test_what_a_mailbox_signs_in_with(id, username):
    assert BY_ID[id].username_of("ada@own.example") == username


def test_the_document_is_drawn_from_the_facts():
    assert as_markdown() in DOCUMENT.read_text(encoding="utf-8"), "stale: run docs/generate"
