"""`email_account discover`: a card for people, a document for machines, an exit code that is true."""

import pytest

from gobii_email.domain.providers import provider_of_address
from gobii_email.testing.dns_server import StubDnsServer
from tests.entrypoints.commands import run


@pytest.fixture(autouse=True)
def dns(settings):
    with StubDnsServer({"smtp.shop.example": {"A": ["93.184.216.34"]}}) as server:
        host, port = server.address
        settings.GOBII_DNS_SERVERS = f"{host}:{port}"
        yield server


def discovered(*arguments):
    return run("email_account", "discover", *arguments)


def test_a_card_for_people():
    answer = discovered("ada@outlook.com")
    assert answer.code == 0
    assert answer.out.splitlines()[:7] == [
        "ada@outlook.com: Outlook.com, Hotmail, Live: the provider of this address",
        "  sending    smtp-mail.outlook.com:587 STARTTLS",
        "  receiving  outlook.office365.com:993 TLS",
        "  user name  ada@outlook.com",
        "  sign in    with Microsoft",
        "  facts from https://support.microsoft.com (sending limits in Outlook.com), looked at on 2026-11-21",
        f"→ {provider_of_address('ada@outlook.com').advice}",
    ]


def test_what_is_not_confirmed_is_called_so():
    answer = discovered("ada@shop.example")
    assert answer.code == 0
    assert "guessed from customary names, not confirmed" in answer.out
    assert "receiving  nothing found" in answer.out and "! These servers are a guess" in answer.out


def test_a_document_for_machines():
    answer = discovered("ada@gmail.com", "--json")
    assert answer.code == 0
    assert answer.document["smtp"] == {"host": "smtp.gmail.com", "port": 465, "security": "ssl"}
    assert "error" not in answer.document


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["text", "json"])
def test_nothing_found_ends_with_one_and_says_what_to_do(flags):
    answer = discovered("ada@silent.example", *flags)
    assert answer.code == 1
    assert "Enter by hand" in answer.error
    if flags:
        assert answer.document["source"] == "none"
        assert "Enter by hand" in answer.document["error"]["reason"]


def test_what_is_no_address_is_refused_with_a_sentence():
    answer = discovered("ada@10.0.0.1", "--json")
    assert answer.code == 1
    assert answer.document["error"]["field"] == "address"
