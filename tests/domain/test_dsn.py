"""The fields of delivery reports, as carelessly as they are written."""

import pytest

from gobii_email.domain.dsn import (
    Action,
    addresses_in,
    class_in,
    clean_address,
    message_id_in,
    read_delivery_status,
    status_in,
)

RECIPIENT = "Final-Recipient: rfc822; a@there.example\n"


@pytest.mark.parametrize(
    ("fields", "action", "status", "is_written"),
    [
        ("Action: failed\nStatus: 5.1.1", Action.FAILED, "5.1.1", True),
        ("Action: FAILED (bad)\nStatus: 5.1.1 (bad mailbox)", Action.FAILED, "5.1.1", True),
        ("Action: failure\nStatus: 4.4.7", Action.FAILED, "4.4.7", True),
        ("Action: expired\nStatus: 4.4.7", Action.FAILED, "4.4.7", True),
        ("Action: delayed\nStatus: 4.0.0", Action.DELAYED, "4.0.0", True),
        ("Action: delivered\nStatus: 2.0.0", Action.DELIVERED, "2.0.0", True),
        ("Action: relayed\nStatus: 2.0.0", Action.RELAYED, "2.0.0", True),
        ("Action: expanded\nStatus: 2.0.0", Action.EXPANDED, "2.0.0", True),
        ("Status: 4.2.1", Action.DELAYED, "4.2.1", True),
        ("Action: failed\nDiagnostic-Code: smtp; 550 5.7.1 no", Action.FAILED, "5.7.1", True),
        ("Action: failed\nDiagnostic-Code: smtp; 452 try later", Action.FAILED, "4.0.0", False),
        ("Action: failed", Action.FAILED, "5.0.0", False),
        ("Action: delivered", Action.DELIVERED, "2.0.0", False),
    ],
)
def test_action_and_status(fields, action, status, is_written):
    (recipient,) = read_delivery_status(RECIPIENT + fields).recipients
    assert (recipient.action, recipient.status, recipient.is_status_written) == (action, status, is_written)


def test_the_original_recipient_is_kept_beside_the_final_one():
    (recipient,) = read_delivery_status(
        "Original-Recipient: rfc822;b@sender.example\n" + RECIPIENT
    ).recipients
    assert (recipient.address, recipient.original) == ("a@there.example", "b@sender.example")


def test_an_original_recipient_after_a_blank_line_belongs_to_the_next():
    first, second = read_delivery_status(
        RECIPIENT + "Action: failed\n\nOriginal-Recipient: rfc822;b@sender.example\n"
        "Final-Recipient: rfc822;c@there.example\nAction: delayed"
    ).recipients
    assert (first.address, first.original, first.action) == ("a@there.example", "", Action.FAILED)
    assert (second.address, second.original) == ("c@there.example", "b@sender.example")


def test_a_blank_line_after_the_action_separates_nothing():
    (recipient,) = read_delivery_status("Action: delayed\n\n" + RECIPIENT + "Status: 5.4.7").recipients
    assert (recipient.action, recipient.status) == (Action.DELAYED, "5.4.7")


def test_the_diagnostic_is_one_safe_line():
    text = RECIPIENT + "Diagnostic-Code: smtp; 550 no\n  such\x1b[2J user\u202e"
    assert read_delivery_status(text).recipients[0].diagnostic == "550 no such [2J user"


def test_a_report_on_nobody_is_empty():
    assert read_delivery_status("Reporting-MTA: dns; x\n\nAction: failed\n").recipients == ()


def test_message_fields_are_told_from_those_of_recipients():
    report = read_delivery_status(
        "Original-Envelope-Id: QQ314159\n\n" + RECIPIENT + "Original-Envelope-Id: other\n"
    )
    assert report.envelope_id == "QQ314159"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("rfc822; a@there.example", "a@there.example"),
        ("RFC822;<a@there.example>", "a@there.example"),
        ("<a@there.example>", "a@there.example"),
        ("'a@there.example'", "a@there.example"),
        ("utf-8; j\\x{F6}rg@there.example", "jörg@there.example"),
        ("utf-8; \\x{110000}@there.example", "\ufffd@there.example"),
        ("rfc822; a+b=c@there.example (comment)", "a+b=c@there.example"),
        ("x400; /cn=a/", "/cn=a/"),
        ("local; nobody", "nobody"),
        ("unknown; two words", ""),
        ("rfc822;", ""),
    ],
)
def test_addresses_lose_what_stands_around_them(value, address):
    assert clean_address(value) == address


def test_addresses_are_found_in_any_script_around_them():
    assert addresses_in("a@x.example、b@y.example.收件人c@z.example: <d@x.example>,a@x.example") == [
        "a@x.example", "b@y.example", "c@z.example", "d@x.example",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("550 5.1.1 unknown", "5.1.1"),
        ("(#5.1.1)", "5.1.1"),
        ("5.0.0 and 5.1.0 and 5.2.2 and 5.7.1", "5.2.2"),
        ("5.0.0 and 5.1.0", "5.1.0"),
        ("4.0.0", "4.0.0"),
        ("host 192.5.1.1 and 5.1.1.9 and v15.1.1", ""),
        ("3.1.1 6.1.1 5.1 5.1.1234", ""),
    ],
)
def test_the_most_telling_code_is_found(text, status):
    assert status_in(text) == status


@pytest.mark.parametrize(
    ("text", "found"),
    [("said: 550 no", "5"), ("452-4 x", "4"), ("port 5500", ""), ("10.550.1.1", ""), ("580 x", "")],
)
def test_the_class_of_a_reply_is_found(text, found):
    assert class_in(text) == found


@pytest.mark.parametrize(
    ("value", "found"),
    [("<a@b>", "<a@b>"), (" <a@b> (x)", "<a@b>"), ("<a\t@b>", "<a@b>"), ("a@b", "a@b"), ("<>", ""), ("", "")],
)
def test_message_ids_stay_as_they_were_written(value, found):
    assert message_id_in(value) == found
