"""Received mail is read within bounds: what crashes or stalls other readers, and each limit."""

import base64

import pytest

from gobii_email.domain import inbound_mail
from gobii_email.domain.inbound_mail import decoded, parameters, read_inbound


def nested(depth):
    return b"".join(b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(depth))


def wide(parts):
    return b"Content-Type: multipart/mixed; boundary=w\n\n" + b"--w\n\nx\n" * parts + b"--w--\n"


def embedded(depth):
    return b"Content-Type: message/rfc822\n\n" * depth + b"Subject: innermost\n\nx"


@pytest.mark.parametrize(
    "raw",
    [
        b"From: " + b'"(' * 60_000 + b"\n\nx",
        b'From: "((((' + b"\n\nx",
        b"Message-ID: <>\nTo: a <\n\nx",
        b"From: " + b'"' * 20_000 + b"\n\nx",
        b"Subject: " + b"=?utf-8?q?a?= " * 20_000 + b"\n\nx",
        b"Subject: =?utf-8?q?=0D=0ABcc:_eve@there.example?=\n\nx",
        nested(2_000),
        embedded(2_000),
        wide(20_000),
        b"Content-Type: multipart/mixed; boundary=a\n\n" + b"--ab\n" * 500_000,
        b'Content-Type: multipart/mixed; boundary=""\n\n--\n--\n',
        b"Content-Type: multipart/mixed;" + b' a="' * 50_000 + b"\n\n",
        b"Content-Transfer-Encoding: base64\n\n=" * 1_000,
        b"Content-Type: text/plain; charset=idna\n\n" + b"a." * 100_000,
        b"Content-Type: text/plain; charset=no-such\n\n\xff\xfe",
        b"A:b\n" * 100_000,
        b"\r" * 300_000,
        b"\x00" * 100_000,
        b"",
    ],
    ids=lambda raw: repr(raw[:30]),
)
def test_mails_that_crash_or_stall_other_readers_are_read(raw):
    mail = read_inbound(raw)
    for part in mail.root.walk():
        part.text(max_octets=10_000)
        assert part.filename == part.filename.strip()
    assert "\n" not in mail.fields.get("subject") + mail.fields.get("from")


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (nested(inbound_mail.MAX_DEPTH + 2), "nested more than 50 deep"),
        (embedded(inbound_mail.MAX_DEPTH + 2), "nested more than 50 deep"),
        (wide(inbound_mail.MAX_PARTS + 1), "more than 500 parts"),
        (b"X: " + b"y" * inbound_mail.MAX_FIELD_OCTETS + b"\n\nx", "") ,
        (b"X: " + b"y" * (inbound_mail.MAX_FIELD_OCTETS + 1) + b"\n\nx", "field is longer than 32 KiB"),
        (b"X: " + b"y" * inbound_mail.MAX_HEADER_OCTETS + b"\n\nx", "header is longer than 256 KiB"),
        (b"X: y\n" * (inbound_mail.MAX_FIELDS + 1) + b"\nx", "more than 1000 fields"),
        (b"Content-Type: multipart/mixed; boundary=w\n\n" + b"--wx\n" * 6_000, "too many lines"),
        (b"A: b\n\n" + b"x" * inbound_mail.MAX_OCTETS, "larger than 25 MiB"),
    ],
    ids=["depth", "messages", "parts", "field fits", "field", "header", "fields", "delimiters", "size"],
)  # fmt: skip
def test_what_exceeds_a_limit_is_said_and_not_read(raw, problem):
    problems = read_inbound(raw).problems
    assert problem in " ".join(problems) if problem else not problems
    assert len(list(read_inbound(raw).root.walk())) <= inbound_mail.MAX_PARTS + 1


def test_a_mail_within_the_limits_has_no_problems():
    assert read_inbound(wide(inbound_mail.MAX_PARTS - 1)).problems == ()
    assert read_inbound(nested(inbound_mail.MAX_DEPTH)).problems == ()


def test_parts_keep_their_order_types_and_bytes():
    mail = read_inbound(
        b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n =?utf-8?b?IGF1cw==?= Wien\r\n"
        b'Content-Type: multipart/mixed;\r\n boundary="x y"\r\n\r\npreamble\r\n'
        b"--x y\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n"
        b"Gr=FC=DFe=\r\n!\r\n"
        b'--x y  \r\nContent-Type: a/pdf; name*0="a "; name*1="b.pdf"\r\n'
        b"Content-Disposition: attachment; filename*=utf-8''%E2%82%AC.pdf\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.b64encode(b"\x00\x01\x02")
        + b"\r\n--x y\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nbody\r\n--x y--\r\nend"
    )
    text, pdf, message = mail.root.parts
    assert mail.fields.get("subject") == "Grüße aus Wien"
    assert (text.content_type, text.text()) == ("text/plain", "Grüße!")
    assert (pdf.octets(), pdf.filename, pdf.is_attachment) == (b"\x00\x01\x02", "€.pdf", True)
    assert pdf.parameters["name"] == "a b.pdf"
    assert message.embedded_fields().get("subject") == "inner"
    assert message.parts[0].body == b"body"
    assert [part.content_type for part in mail.root.walk(into_messages=False)] == [
        "multipart/mixed", "text/plain", "a/pdf", "message/rfc822",
    ]  # fmt: skip


def test_a_missing_last_delimiter_loses_nothing():
    mail = read_inbound(b"Content-Type: multipart/mixed; boundary=b\n\n--b\n\none\n--b\n\ntwo")
    assert [part.body for part in mail.root.parts] == [b"one", b"two"]


def test_a_header_ends_at_what_is_no_field():
    mail = read_inbound(b"From mbox Mon\nSubject: a\nno field here\nBcc: eve@there.example\n\nrest")
    assert mail.fields.items == (("subject", "a"),)
    assert mail.root.body == b"no field here\nBcc: eve@there.example\n\nrest"


def test_bytes_that_are_no_text_are_replaced():
    assert read_inbound(b"Content-Type: text/plain; charset=utf-8\n\na\xffb").root.text() == "a\ufffdb"
    assert read_inbound(b"\n\xe4").root.text() == "ä"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("=?utf-8?q?a?= =?utf-8?q?b?= c", "ab c"),
        ("=?utf-8?b?4oKs?=", "€"),
        ("=?no-such?q?a?=", "a"),
        ("=?utf-8?q?broken", "=?utf-8?q?broken"),
        ("=?utf-8?q?line=0D=0Abreak?=", "line break"),
    ],
)
def test_encoded_words_become_one_line_of_text(text, expected):
    assert decoded(text) == expected


def test_parameters_are_read_as_they_are_written():
    assert parameters('text/plain; CHARSET=utf-8 ; name="a\\"b;c"; x=') == {
        "charset": "utf-8", "name": 'a"b;c', "x": "",
    }  # fmt: skip
