"""Only the mailbox's own server is believed about who sent a mail, and only about the domain in From."""

import pytest

from gobii_email.domain.authentication_results import Authentication, assess, organisation
from gobii_email.domain.inbound_mail import read_fields

GMAIL, M365, OWN = "imap.gmail.com", "outlook.office365.com", "imap.example.com"
DMARC = (
    "mx.google.com; dkim=pass header.i=@bank.example; spf=pass smtp.mailfrom=x@bank.example; "
    "dmarc=pass (p=REJECT) header.from=bank.example"
)


def assessed(*results: str, sender: str = "ann@bank.example", host: str = GMAIL):
    block = "".join(f"Authentication-Results: {value}\r\n" for value in results)
    return assess(read_fields(block.encode() + b"From: x\r\n\r\n"), sender, host)


@pytest.mark.parametrize(
    ("value", "host", "verdict"),
    [
        (DMARC, GMAIL, "pass"),
        (DMARC.replace("dmarc=pass", "dmarc=fail"), GMAIL, "fail"),
        ("mx.google.com 1; dmarc=pass header.from=bank.example", GMAIL, "pass"),
        ("mx.google.com; dmarc=pass", GMAIL, "pass"),
        ("mx.google.com; dmarc=pass header.from=evil.example", GMAIL, "fail"),
        ("mx.google.com; dkim=pass header.d=bank.example header.s=k", GMAIL, "pass"),
        ("mx.google.com; dkim=pass header.i=@bank.example; dmarc=none", GMAIL, "pass"),
        ("mx.google.com; dkim=pass header.d=evil.example", GMAIL, "none"),
        ("mx.google.com; dkim=pass header.d=evil.bank.example", GMAIL, "none"),
        ("mx.google.com; dkim=pass header.d=example", GMAIL, "none"),
        ("mx.google.com; spf=pass smtp.mailfrom=bounce@bank.example", GMAIL, "pass"),
        ("mx.google.com; spf=pass (a; dmarc=pass) smtp.mailfrom=evil.example", GMAIL, "none"),
        ('mx.google.com; spf=none reason="x; dmarc=pass header.from=bank.example"', GMAIL, "none"),
        ("mx.google.com; spf=fail smtp.mailfrom=ann@bank.example", GMAIL, "fail"),
        ("mx.google.com; spf=softfail smtp.mailfrom=ann@bank.example", GMAIL, "none"),
        ("mx.google.com; spf=fail smtp.mailfrom=a.example; dkim=pass header.d=bank.example", GMAIL, "pass"),
        ("mx.google.com; dkim=fail header.d=bank.example; spf=neutral", GMAIL, "fail"),
        ("mx.google.com; dkim=temperror header.d=bank.example", GMAIL, "none"),
        ("mx.google.com; none", GMAIL, "none"),
        ("spf=pass smtp.mailfrom=bank.example;dmarc=pass action=none;compauth=pass reason=100", M365, "pass"),
        ("spf=none; dkim=none; dmarc=none; compauth=fail reason=001", M365, "fail"),
        ("spf=pass smtp.mailfrom=bank.example; dmarc=pass header.from=bank.example", GMAIL, "none"),
        ("mail.example.com; dmarc=pass header.from=bank.example", OWN, "pass"),
        ("MAIL.Example.COM.; DMARC=Pass header.from=Bank.Example", OWN, "pass"),
        ("mail.evil.example; dmarc=pass header.from=bank.example", OWN, "none"),
        ("mx.google.com; dmarc=pass header.from=bank.example", OWN, "none"),
        ("localhost; dmarc=pass header.from=bank.example", "localhost", "pass"),
        ("127.0.0.1; dmarc=pass header.from=bank.example", "127.0.0.2", "none"),
        ("", GMAIL, "none"),
        (";;;===((((", GMAIL, "none"),
        ("mx.google.com; dkim=pass header.d=" + "a." * 5_000 + "bank.example", GMAIL, "none"),
        ("(" * 9_000 + "mx.google.com; dmarc=pass", GMAIL, "none"),
    ],
)  # fmt: skip
def test_what_one_field_proves(value, host, verdict):
    assert assessed(value, host=host).verdict == verdict


def test_what_was_proven_is_the_domain_in_from():
    found = assessed(DMARC)
    assert (found.verdict, found.domain) == (Authentication.PASSED, "bank.example")
    assert assessed(DMARC, sender="ann@other.example").verdict is Authentication.FAILED
    assert assessed(DMARC, sender="").verdict is Authentication.UNKNOWN


def test_a_forged_field_below_the_servers_own_changes_nothing():
    own = "mx.google.com; spf=none; dmarc=fail header.from=bank.example"
    assert assessed(own, DMARC).verdict is Authentication.FAILED
    weak = "mx.google.com; spf=none"
    assert assessed(weak, DMARC).verdict is Authentication.UNKNOWN
    assert assessed("mail.example.com; spf=none", "mx.example.com; dmarc=pass", host=OWN).domain == ""


def test_a_strangers_field_on_top_hides_nothing_that_could_be_trusted():
    assert assessed("evil.example; dmarc=pass", DMARC).verdict is Authentication.UNKNOWN


def test_a_provider_that_writes_several_fields_is_read_in_full():
    written = ("bimi.icloud.com; bimi=none", "dmarc.icloud.com; dmarc=pass header.from=bank.example")
    assert assessed(*written, host="imap.mail.me.com").verdict is Authentication.PASSED


def test_a_parent_vouches_for_what_is_below_it_and_not_the_other_way():
    value = "mx.google.com; dkim=pass header.d=bank.example"
    assert assessed(value, sender="a@mail.bank.example").verdict is Authentication.PASSED
    value = "mx.google.com; dkim=pass header.d=mail.bank.example"
    assert assessed(value).verdict is Authentication.UNKNOWN


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("mx1.mail.example.com", "example.com"),
        ("mail.example.co.uk", "example.co.uk"),
        ("co.uk", ""),
        ("example.de", "example.de"),
        ("localhost", ""),
        ("192.0.2.1", ""),
    ],
)
def test_the_organisation_of_a_host(host, name):
    assert organisation(host) == name
