"""The facts about providers: complete, found by host, domain and mail exchanger, and documented."""

from pathlib import Path

import pytest

from gobii_email.domain.providers import (
    as_markdown,
    provider_of_address,
    provider_of_host,
    provider_of_mx,
    providers,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "providers.md"


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


@pytest.mark.parametrize("provider", providers(), ids=lambda provider: provider.id)
def test_the_facts_are_complete_and_possible(provider):
    assert provider.source and provider.advice.endswith(".") and provider.caveats
    for server in filter(None, (provider.smtp, provider.imap)):
        assert (server.port, server.security) in {(465, "ssl"), (587, "starttls"), (993, "ssl")}
    assert provider.auth and set(provider.auth) <= {"password", "app_password", "oauth2"}
    assert all(hasattr(provider, field) for field in provider.unconfirmed)
    assert provider_of_host(provider.smtp.host) is provider


def test_ids_and_domains_are_there_once():
    ids = [provider.id for provider in providers()]
    domains = [domain for provider in providers() for domain in provider.domains]
    assert len(ids) == len(set(ids)) >= 16
    assert len(domains) == len(set(domains))


def test_the_document_is_drawn_from_the_facts():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.endswith(as_markdown()), "stale: write as_markdown() below the last heading"
