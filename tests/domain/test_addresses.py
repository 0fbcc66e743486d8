"""Which strings are addresses, and that nothing else passes for one."""

import pickle

import pytest

from gobii_email.domain.addresses import clean_display_name, normalise, one_line, parse_address, parse_mailbox
from gobii_email.domain.invalid_mail import InvalidMail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ana@example.com", "ana@example.com"),
        ("  ana@example.com ", "ana@example.com"),
        ("o'hara+news_1=x@Example.COM", "o'hara+news_1=x@example.com"),
        ("ana@bücher.example", "ana@xn--bcher-kva.example"),
        ("ana@XN--BCHER-KVA.example", "ana@xn--bcher-kva.example"),
        ("root@localhost", "root@localhost"),
        ("a" * 64 + "@example.com", "a" * 64 + "@example.com"),
    ],
    ids=[
        "plain",
        "blanks_around",
        "symbols",
        "idna_domain",
        "a_label_domain",
        "localhost",
        "longest_local_part",
    ],
)
def test_a_good_address_is_kept_with_its_domain_as_a_label(text: str, expected: str) -> None:
    assert str(parse_address(text)) == expected


BAD = {
    "nothing": "",
    "no_at": "0f8e6c1a-89b4-4b39-a7a7-2f1f0a1c7d11",
    "two_ats": "a@b@example.com",
    "two_addresses": "a@example.com,b@example.com",
    "empty_local_part": "@example.com",
    "local_part_of_65_octets": "a" * 65 + "@example.com",
    "local_part_of_65_octets_in_utf8": "ü" * 33 + "@example.com",
    "address_of_255_octets": "a@" + ("b" * 59 + ".") * 4 + "c" * 13,
    "quoted_local_part": '"a b"@example.com',
    "crlf_in_quotes": '"a\r\nRSET"@example.com',
    "crlf_after": "a@example.com\r\nBcc: b@example.com",
    "newline_at_the_end": "a@example.com\n",
    "nul": "a\0@example.com",
    "delete": "a\x7f@example.com",
    "blank_inside": "a b@example.com",
    "no_break_space": "a\u00a0@example.com",
    "direction_override": "a\u202eb@example.com",
    "half_character": "a\ud800@example.com",
    "esmtp_parameter": "<a@example.com> BODY=8BITMIME",
    "parenthesis": "alice@example.org)bob@example.com",
    "comment": "a(b)@example.com",
    "address_literal": "a@[127.0.0.1]",
    "ip_address": "a@127.0.0.1",
    "encoded_word_with_blank": "=?utf-8?q?a?= <a@example.com>",
    "dot_first": ".a@example.com",
    "dot_last": "a.@example.com",
    "two_dots": "a..b@example.com",
    "domain_ends_with_dot": "a@example.com.",
    "empty_label": "a@example..com",
    "underscore_in_domain": "a@ex_ample.com",
    "hyphen_first": "a@-example.com",
    "label_of_64": "a@" + "b" * 64 + ".com",
    "no_dot_in_domain": "a@example",
    "broken_a_label": "a@xn--zzzzzzzz.example",
    "emoji_domain": "a@😀.example",
    "fullwidth_at": "a＠b.example",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_what_is_not_exactly_one_plain_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidMail) as caught:
        parse_address(text, field="to")
    assert caught.value.field == "to"
    assert caught.value.reason and caught.value.remedy
    assert str(caught.value).isprintable()


def test_a_local_part_outside_ascii_is_kept_and_flagged() -> None:
    assert parse_address("jörg@example.com").needs_smtputf8
    assert str(parse_address("jörg@example.com")) == "jörg@example.com"
    assert not parse_address("ana@bücher.example").needs_smtputf8


def test_normalising_strips_and_lowers() -> None:
    assert normalise("  Ana@Example.COM\n") == "ana@example.com"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ana@example.com", ("", "ana@example.com")),
        ("<ana@example.com>", ("", "ana@example.com")),
        ("Ana Lopez <ana@example.com>", ("Ana Lopez", "ana@example.com")),
        ('"Lopez, Ana \\"Ann\\"" <ana@example.com>', ('Lopez, Ana "Ann"', "ana@example.com")),
        ("boss@bank.example <ana@example.com>", ("boss@bank.example", "ana@example.com")),
        ("A\r\nBcc: x@y.example <ana@example.com>", ("A Bcc: x@y.example", "ana@example.com")),
    ],
    ids=["bare", "brackets_only", "name", "quoted_name", "address_as_name", "line_break_in_name"],
)
def test_a_mailbox_is_split_into_name_and_address(text: str, expected: tuple[str, str]) -> None:
    assert parse_mailbox(text) == expected


@pytest.mark.parametrize(
    "text", ["", "Ana", "Ana <>", "ana@example.com>", "Ana <a@example.com> <b>", "<a@b.example"]
)
def test_a_mailbox_without_a_good_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidMail):
        parse_mailbox(text)


def test_a_display_name_has_no_controls_no_direction_marks_and_at_most_128_characters() -> None:
    assert clean_display_name("A\0n\u202ea\x1b[0m\t \u2066B\u2069") == "Ana[0m B"
    assert len(clean_display_name("x" * 500)) == 128


def test_one_line_keeps_emoji_and_letters_of_any_script() -> None:
    assert one_line("Grüße 👩\u200d💻\r\n日本\u2028x\ud800") == "Grüße 👩\u200d💻 日本 x"


def test_invalid_mail_is_a_sentence_and_survives_pickling() -> None:
    error = InvalidMail("subject", "it is empty", "Give it a few words")
    assert str(error) == "subject: it is empty. Give it a few words."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
