"""From an address to settings: in which order the sources win, and how little of DNS is believed."""

import pytest

from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.services.discover import discover
from gobii_email.testing.dns_server import StubDnsServer, servfail

PUBLIC = {"A": ["93.184.216.34"]}
PRIVATE = {"A": ["10.0.0.7"]}


@pytest.fixture
def dns(settings):
    """A name server that knows nothing yet, and an installation that has opened no private network."""
    with StubDnsServer() as server:
        host, port = server.address
        settings.GOBII_DNS_SERVERS = f"{host}:{port}"
        settings.BYO_EMAIL_ALLOWED_NETWORKS = ""
        settings.BYO_EMAIL_ALLOWED_PORTS = "465,587,993,143"
        yield server


def servers(found):
    return tuple(
        server and f"{server.host}:{server.port} {server.security}" for server in (found.smtp, found.imap)
    )


def announce(dns, domain="shop.example", **services):
    """Has `domain` announce each service at "priority weight port host", and those hosts exist."""
    for service, records in services.items():
        dns.records[f"_{service}._tcp.{domain}"] = {"SRV": [f"{record}." for record in records]}
        for record in records:
            dns.records.setdefault(record.split()[-1], PUBLIC)


# Who is believed, and in which order


def test_an_address_of_a_known_provider_asks_nobody(dns):
    found = discover("Ada@GMAIL.com")
    assert (found.source, found.provider.id, found.is_confirmed) == ("table", "google", True)
    assert servers(found) == ("smtp.gmail.com:465 ssl", "imap.gmail.com:993 ssl")
    assert (found.username, found.auth, found.oauth_provider) == (
        "Ada@gmail.com",
        ("oauth2", "app_password"),
        "google",
    )
    assert "app password" in found.advice and dns.asked == []


def test_a_domain_is_served_by_whoever_takes_its_mail(dns):
    dns.records["shop.example"] = {
        "MX": ["0 shop-example.mail.protection.outlook.com.", "9 mx.shop.example."]
    }
    announce(dns, submissions=["0 0 465 smtp.shop.example"])
    found = discover("ada@shop.example")
    assert (found.source, found.provider.id, found.is_confirmed) == ("mx", "microsoft365", True)
    assert servers(found) == ("smtp.office365.com:587 starttls", "outlook.office365.com:993 ssl")
    assert found.oauth_provider == "microsoft" and found.username == "ada@shop.example"
    assert "end of December 2026" in found.caveats[0]


def test_a_backup_exchanger_at_a_provider_says_nothing_about_the_mailbox(dns):
    dns.records["shop.example"] = {"MX": ["0 mx.shop.example.", "10 aspmx.l.google.com."]}
    assert discover("ada@shop.example").source == "none"


def test_what_the_domain_announces_is_shown_as_unconfirmed(dns):
    announce(dns, submissions=["0 0 465 smtp.shop.example"], imaps=["0 0 993 imap.shop.example"])
    found = discover("ada@shop.example")
    assert (found.source, found.provider, found.is_confirmed) == ("srv", None, False)
    assert servers(found) == ("smtp.shop.example:465 ssl", "imap.shop.example:993 ssl")
    assert (found.username, found.auth) == ("ada@shop.example", ("password",))
    assert "what the domain says of itself" in found.caveats[0] and len(found.caveats) == 1


def test_customary_names_are_tried_last_and_called_a_guess(dns):
    dns.records |= {"mail.shop.example": PUBLIC, "imap.shop.example": PUBLIC}
    found = discover("ada@shop.example")
    assert (found.source, found.is_confirmed) == ("guess", False)
    assert servers(found) == ("mail.shop.example:465 ssl", "imap.shop.example:993 ssl")
    assert "a guess" in found.caveats[0]


def test_where_nothing_is_found_it_says_what_to_do_by_hand(dns):
    found = discover("ada@gmial.com")
    assert (found.source, found.smtp, found.imap, found.auth) == ("none", None, None, ())
    assert found.username == "ada@gmial.com"
    assert "Did you mean gmail.com?" in found.advice and "by hand" in found.advice
    assert "Look for a typing error" in discover("ada@shop.example").advice


# Which of several


@pytest.mark.parametrize(
    ("services", "expected"),
    [
        ({"submission": ["0 0 587 a.example"], "submissions": ["9 0 465 b.example"]}, "b.example:465 ssl"),
        ({"submissions": ["20 99 465 a.example", "10 1 465 b.example"]}, "b.example:465 ssl"),
        ({"submissions": ["10 1 465 a.example", "10 9 465 b.example"]}, "b.example:465 ssl"),
        ({"submission": ["0 0 587 a.example"]}, "a.example:587 starttls"),
        ({"submission": ["0 0 465 a.example"]}, "a.example:465 ssl"),
        ({"submissions": ["0 0 587 a.example"]}, "a.example:587 starttls"),
        ({"submissions": ["0 0 25 a.example", "1 0 465 b.example"]}, "b.example:465 ssl"),
    ],
    ids=[
        "TLS from the start before STARTTLS",
        "priority",
        "weight",
        "STARTTLS where there is nothing else",
        "465 is TLS whatever it is called",
        "587 is STARTTLS whatever it is called",
        "a port that may be dialled",
    ],
)
def test_the_best_of_several_servers_is_taken(dns, services, expected):
    announce(dns, **services)
    assert servers(discover("ada@shop.example"))[0] == expected


def test_a_server_that_does_not_exist_is_passed_over(dns):
    announce(dns, imaps=["0 0 993 gone.example", "1 0 993 there.example"])
    del dns.records["gone.example"]
    assert servers(discover("ada@shop.example")) == (None, "there.example:993 ssl")


@pytest.mark.parametrize(
    ("services", "use", "expected"),
    [
        (("submissions", "submission"), "sending", (None, "mail.shop.example:993 ssl")),
        (("imaps",), "receiving", ("mail.shop.example:465 ssl", None)),
    ],
    ids=["sending", "receiving"],
)
def test_what_the_domain_denies_is_neither_announced_nor_guessed(dns, services, use, expected):
    dns.records |= {"mail.shop.example": PUBLIC}
    for service in services:
        dns.records[f"_{service}._tcp.shop.example"] = {"SRV": ["0 0 0 ."]}
    found = discover("ada@shop.example")
    assert servers(found) == expected
    assert f"shop.example says in DNS that it offers no {use} with mail programs." in found.caveats


def test_a_denial_of_one_way_leaves_the_other(dns):
    announce(dns, submission=["0 0 587 smtp.shop.example"])
    dns.records["_submissions._tcp.shop.example"] = {"SRV": ["0 0 0 ."]}
    found = discover("ada@shop.example")
    assert servers(found)[0] == "smtp.shop.example:587 starttls" and len(found.caveats) == 1


# What is said about it


def test_a_server_outside_the_domain_is_said_to_be_outside(dns):
    announce(dns, submissions=["0 0 465 smtp.hoster.example"], imaps=["0 0 993 notshop.example"])
    outside = [caveat for caveat in discover("ada@shop.example").caveats if "lies outside" in caveat]
    assert [caveat.split()[0] for caveat in outside] == ["smtp.hoster.example", "notshop.example"]


def test_a_known_provider_s_server_comes_with_its_advice_and_stays_unconfirmed(dns):
    announce(dns, submissions=["0 0 465 smtp.fastmail.com"], imaps=["0 0 993 imap.fastmail.com"])
    found = discover("ada@shop.example")
    assert (found.source, found.provider.id, found.is_confirmed) == ("srv", "fastmail", False)
    assert found.auth == ("app_password",) and "app password" in found.advice
    assert any("smtp.fastmail.com lies outside shop.example" in caveat for caveat in found.caveats)


def test_sign_ins_that_are_not_ours_are_not_offered(dns):
    assert discover("ada@yahoo.com").auth == ("app_password",)
    assert discover("ada@outlook.com").auth == ("oauth2",)


def test_settings_nobody_checked_say_so(dns):
    assert any("not checked" in caveat for caveat in discover("ada@gmx.de").caveats)
    assert not any("not checked" in caveat for caveat in discover("ada@icloud.com").caveats)


def test_the_document_is_plain_and_whole(dns):
    assert discover("ada@free.fr").as_document() == {
        "address": "ada@free.fr",
        "source": "table",
        "is_confirmed": True,
        "provider": {
            "id": "free",
            "name": "Free (France)",
            "source": "general knowledge, not checked against a page",
            "checked_at": None,
        },
        "smtp": {"host": "smtp.free.fr", "port": 465, "security": "ssl"},
        "imap": {"host": "imap.free.fr", "port": 993, "security": "ssl"},
        "username": "ada",
        "auth": ["password"],
        "oauth_provider": "",
        "advice": discover("ada@free.fr").advice,
        "caveats": list(discover("ada@free.fr").caveats),
    }


def test_the_document_says_where_facts_are_from_and_of_which_day(dns):
    provider = discover("ada@icloud.com").as_document()["provider"]
    assert provider["checked_at"] == "2026-11-21" and provider["source"].startswith("https://")


# Trouble, and those who make it


def test_trouble_with_dns_is_said_and_not_raised(dns):
    dns.faults |= {"shop.example": servfail, "mail.shop.example": servfail}
    found = discover("ada@shop.example")
    assert found.source == "none" and any("try again" in caveat for caveat in found.caveats)
    dns.records["smtp.shop.example"] = PUBLIC
    found = discover("ada@shop.example")
    assert found.source == "guess" and any("try again" in caveat for caveat in found.caveats)


@pytest.mark.parametrize("address", ["ada@intranet.local", "ada@localhost", "ada@mail.internal"])
def test_private_domains_are_answered_like_silent_ones_and_not_asked_about(dns, address):
    dns.records |= {f"mail.{address.partition('@')[2]}": PUBLIC}
    found, silent = discover(address), discover("ada@silent.example")
    assert not any("silent.example" not in name for name, _ in dns.asked)
    domain = address.partition("@")[2]
    assert found.advice.replace(domain, "silent.example") == silent.advice
    assert (found.source, found.caveats) == (silent.source, silent.caveats) == ("none", ())


def test_names_that_lead_to_private_hosts_are_like_names_that_do_not_exist(dns):
    silent = discover("ada@shop.example")
    announce(dns, submissions=["0 0 465 inside.shop.example"], imaps=["0 0 993 imap.corp"])
    dns.records |= {
        "inside.shop.example": PRIVATE,
        "smtp.shop.example": PRIVATE,
        "mail.shop.example": PRIVATE,
    }
    assert discover("ada@shop.example") == silent


def test_private_hosts_of_networks_that_were_opened_are_found(dns, settings):
    settings.BYO_EMAIL_ALLOWED_NETWORKS = "10.0.0.0/8"
    announce(dns, submissions=["0 0 465 inside.shop.example"])
    dns.records["inside.shop.example"] = PRIVATE
    assert servers(discover("ada@shop.example"))[0] == "inside.shop.example:465 ssl"


def test_international_domains_are_asked_about_as_a_labels(dns):
    announce(dns, "xn--bcher-kva.example", submissions=["0 0 465 mail.xn--bcher-kva.example"])
    found = discover("ada@Bücher.example")
    assert servers(found)[0] == "mail.xn--bcher-kva.example:465 ssl"
    assert found.username == "ada@xn--bcher-kva.example" and len(found.caveats) == 1


@pytest.mark.parametrize(
    "text", ["", "ada", "ada@", "ada@10.0.0.1", "ada@[10.0.0.1]", "a@b@c.example", "ada@x y"]
)
def test_what_is_no_address_is_refused(dns, text):
    with pytest.raises(InvalidMail):
        discover(text)
    assert dns.asked == []
