"""A mail says what was meant, on the wire as well, whoever wrote its parts."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, message_from_string
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.policy import compat32, default
from email.utils import getaddresses

import pytest

from gobii_email.domain import composition
from gobii_email.domain.attachments import clean_content_type, clean_filename
from gobii_email.domain.composition import (
    EmailAttachmentPayload,
    MailParts,
    check_headers,
    compose,
    match_inline_images,
    new_message_id,
    with_attempt_header,
)
from gobii_email.domain.invalid_mail import InvalidMail

PARTS = MailParts(
    from_name="Ana",
    from_address="ana@example.com",
    to=("bob@example.net",),
    cc=("cy@example.org", "di@example.org"),
    subject="Hello",
    text="Hi Bob\n",
    html="<p>Hi Bob</p>",
    message_id="<abc.1@example.com>",
    date=datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
)
PHOTO = EmailAttachmentPayload("photo.png", b"\x89PNG\r\n\0", "image/png")


def read(wire: bytes) -> EmailMessage:
    mail = message_from_bytes(wire, policy=default)
    assert isinstance(mail, EmailMessage)
    assert [defect for part in mail.walk() for defect in part.defects] == []
    return mail


def sender_of(wire: bytes) -> list[tuple[str, str]]:
    """Who it is from; policy.default of 3.11.7 would read blanks into a name of several encoded words."""
    found = getaddresses([message_from_string(wire.decode(), policy=compat32)["From"]])
    return [(str(make_header(decode_header(name))), address) for name, address in found]


def body_of(mail: EmailMessage, subtype: str) -> str:
    part = mail.get_body((subtype,))
    assert part is not None
    return str(part.get_content())


def test_the_mail_has_the_intended_fields_and_no_others() -> None:
    mail = read(
        compose(
            replace(PARTS, reply_to="box@example.com", in_reply_to="<p@x>", references=("<o@x>", "<p@x>"))
        )
    )
    assert dict(mail.items()) == {
        "From": "Ana <ana@example.com>",
        "To": "bob@example.net",
        "Cc": "cy@example.org, di@example.org",
        "Reply-To": "box@example.com",
        "Subject": "Hello",
        "Date": "Sun, 01 Mar 2026 12:30:00 +0000",
        "Message-ID": "<abc.1@example.com>",
        "In-Reply-To": "<p@x>",
        "References": "<o@x> <p@x>",
        "MIME-Version": "1.0",
        "Content-Type": mail["Content-Type"],
    }


def test_the_same_parts_give_the_same_bytes() -> None:
    parts = replace(PARTS, attachments=(PHOTO,))
    assert compose(parts) == compose(parts)
    assert compose(parts) != compose(replace(parts, message_id="<abc.2@example.com>"))


def test_text_and_html_are_alternatives() -> None:
    mail = read(compose(replace(PARTS, text="Grüße\n.\nFrom here\n" + "x" * 3000, html="<p>日本</p>" * 50)))
    assert mail.get_content_type() == "multipart/alternative"
    assert body_of(mail, "plain").replace("\r\n", "\n").rstrip("\n") == "Grüße\n.\nFrom here\n" + "x" * 3000
    assert body_of(mail, "html") == "<p>日本</p>" * 50


def test_without_html_the_mail_is_plain_text() -> None:
    assert read(compose(replace(PARTS, html=""))).get_content_type() == "text/plain"


def test_inline_images_are_in_one_related_part_and_files_are_attached() -> None:
    html, attachments = match_inline_images(
        '<img src="cid:photo.png"><img src="cid:logo.gif">',
        (
            PHOTO,
            EmailAttachmentPayload("logo.gif", b"GIF89a", "image/gif"),
            EmailAttachmentPayload("a.txt", b"x\n", "text/plain"),
        ),
    )
    mail = read(compose(replace(PARTS, html=html, attachments=attachments)))
    assert mail.get_content_type() == "multipart/mixed"
    related = [part for part in mail.walk() if part.get_content_type() == "multipart/related"]
    assert len(related) == 1
    assert [
        (part["Content-ID"], part.get_filename(), part.get_content_disposition())
        for part in related[0].iter_attachments()
    ] == [
        ("<inline-1-photo.png>", "photo.png", "inline"),
        ("<inline-2-logo.gif>", "logo.gif", "inline"),
    ]
    assert body_of(mail, "html") == '<img src="cid:inline-1-photo.png"><img src="cid:inline-2-logo.gif">'
    attached = [part for part in mail.walk() if part.get_content_disposition() == "attachment"]
    assert [
        (part.get_filename(), part.get_content_type(), part.get_payload(decode=True)) for part in attached
    ] == [("a.txt", "text/plain", b"x\n")]


def test_there_is_never_a_bcc_field() -> None:
    assert b"bcc" not in compose(PARTS).lower()
    with pytest.raises(InvalidMail):
        compose(replace(PARTS, headers={"Bcc": "eve@example.com"}))


def test_a_line_break_in_the_subject_becomes_a_blank_and_controls_vanish() -> None:
    assert (
        read(compose(replace(PARTS, subject="Hi\r\nBcc: eve@example.com\0\x07 \n")))["Subject"]
        == "Hi Bcc: eve@example.com"
    )


@pytest.mark.parametrize(
    "subject",
    [
        "=?utf-8?q?=0D=0ABcc:_eve@example.com?=",
        "a =?utf-8?b?DQpCY2M6IGV2ZUBleGFtcGxlLmNvbQ==?= b",
        "=?utf-7?q?+AA0ACg-Bcc:?= eve@example.com",
        "=?",
        "Grüße, 日本 😀 " * 12,
        "x" * 998,
        "Bcc: eve@example.com",
        "",
    ],
    ids=[
        "q_word",
        "b_word",
        "utf7_word",
        "start_of_word",
        "many_scripts",
        "one_long_word",
        "like_a_field",
        "empty",
    ],
)
def test_a_subject_is_read_as_it_was_written(subject: str) -> None:
    mail = read(compose(replace(PARTS, subject=subject)))
    assert mail["Subject"] == subject.strip()
    assert "Bcc" not in mail


@pytest.mark.parametrize(
    "name",
    [
        'Lopez, Ana "Ann" \\',
        "eve@bank.example",
        "Ána <eve@x.example>",
        "=?utf-8?q?=0ABcc:?=",
        "A" * 128,
        "日本" * 64,
        "()<>[]:;@,.",
        '"',
    ],
)
def test_a_display_name_never_changes_who_it_is_from(name: str) -> None:
    assert sender_of(compose(replace(PARTS, from_name=name))) == [(name, "ana@example.com")]


def test_line_breaks_and_direction_marks_in_the_name_vanish() -> None:
    wire = compose(replace(PARTS, from_name="Ana\r\nBcc: e@x.example \u202e<x>"))
    assert sender_of(wire) == [("Ana Bcc: e@x.example <x>", "ana@example.com")]


def test_domains_go_out_as_a_labels() -> None:
    assert read(compose(replace(PARTS, to=("bob@bücher.example",))))["To"] == "bob@xn--bcher-kva.example"


def test_only_an_address_outside_ascii_brings_utf8_into_the_head() -> None:
    assert compose(replace(PARTS, from_name="Jörg", subject="ü", text="ü", html="ü")).isascii()
    assert "To: jörg@example.com\r\n".encode() in compose(replace(PARTS, to=("jörg@example.com",)))


def test_five_hundred_recipients_are_written_and_one_more_is_refused() -> None:
    many = tuple(f"recipient-number-{number}@example.net" for number in range(498))
    wire = compose(replace(PARTS, to=many))
    assert tuple(address.addr_spec for address in read(wire)["To"].addresses) == many
    with pytest.raises(InvalidMail, match="more than 500 recipients"):
        compose(replace(PARTS, to=(*many, "one@example.net")))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"to": ("bob@example.net\r\nRCPT TO:<eve@example.com>",)}, "to"),
        ({"cc": ("cy@example.org> SIZE=1",)}, "cc"),
        ({"from_address": "ana"}, "from"),
        ({"reply_to": "a@example.com, b@example.com"}, "reply_to"),
        ({"message_id": ""}, "message_id"),
        ({"message_id": "<a@x>\r\nX: y"}, "message_id"),
        ({"in_reply_to": "<a@x>\n"[:-1] + " <b@x>"}, "in_reply_to"),
        ({"references": ("<a@x>", "<b\r\n@x>")}, "references"),
        ({"subject": "x" * 999}, "subject"),
        ({"date": PARTS.date.replace(tzinfo=None)}, "date"),
        ({"attachments": (replace(PHOTO, content_id="a\r\nb", disposition="inline"),)}, "attachments"),
    ],
)
def test_what_cannot_be_written_is_refused_by_name(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidMail) as caught:
        compose(replace(PARTS, **change))  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_mail_over_the_bound_is_refused_before_and_after_encoding() -> None:
    parts = replace(PARTS, attachments=(replace(PHOTO, content=b"x" * 9000),))
    assert len(compose(parts, max_bytes=14_000)) < 14_000
    for bound in (8_000, 10_000):
        with pytest.raises(InvalidMail, match="would be larger") as caught:
            compose(parts, max_bytes=bound)
        assert caught.value.field == "attachments"


def test_other_time_zones_keep_their_offset() -> None:
    zone = timezone(timedelta(hours=-3, minutes=-30))
    assert (
        read(compose(replace(PARTS, date=PARTS.date.astimezone(zone))))["Date"]
        == "Sun, 01 Mar 2026 09:00:00 -0330"
    )


def test_an_attempt_prepends_its_header_and_changes_nothing_else() -> None:
    frozen = compose(PARTS)
    wire = with_attempt_header(frozen, "0198c1f2-aaaa-7bbb-8ccc-1234567890ab")
    assert wire == b"X-Gobii-Message-ID: 0198c1f2-aaaa-7bbb-8ccc-1234567890ab\r\n" + frozen


@pytest.mark.parametrize("attempt_id", ["", "a b", "a\r\nBcc: x", "a\n", "ä", "x" * 65])
def test_a_strange_attempt_id_is_refused(attempt_id: str) -> None:
    with pytest.raises(InvalidMail):
        with_attempt_header(compose(PARTS), attempt_id)


def test_message_ids_are_plain_unique_and_of_the_senders_domain() -> None:
    ids = {new_message_id("ana@bücher.example") for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"<[A-Za-z0-9.-]{20,}@xn--bcher-kva\.example>", found) for found in ids)


def test_allowed_headers_are_sent() -> None:
    headers = {
        "List-Unsubscribe": "<https://x.example/u?a=b_c>",
        "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        "Auto-Submitted": "auto-replied",
        "Precedence": "bulk",
        "Importance": "high",
        "X-Campaign": "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
    }
    mail = read(compose(replace(PARTS, headers=headers)))
    assert {name: mail[name] for name in headers} == {**headers, "X-Campaign": "Grüße"}


@pytest.mark.parametrize(
    "name",
    [
        "Bcc",
        "To",
        "Sender",
        "Return-Path",
        "Subject",
        "Content-Type",
        "DKIM-Signature",
        "Reply-To",
        "X-Gobii-Message-ID",
        "x-gobii-Trace",
        "X-SMTPAPI",
        "X-MC-BccAddress",
        "X-Mailgun-Recipient-Variables",
        "X-",
        "X-a b",
        "X-a:",
        "X-a\r\nBcc",
        "X-ä",
        "X-" + "a" * 61,
        "List-",
        "Xſ-a",
        "",
    ],
)
def test_any_other_header_is_refused(name: str) -> None:
    with pytest.raises(InvalidMail, match=r"^headers:"):
        check_headers({name: "x"})


@pytest.mark.parametrize(
    "value",
    [
        "a\r\nBcc: x",
        "a\nb",
        "a\rb",
        "a\0b",
        "a\x1bb",
        "a\x85b",
        "a\u2028b",
        "a\ud800",
        "",
        "  ",
        "x" * 999,
        "=?utf-8?q?a=0D=0ABcc:_x?=",
        "=?utf-8?b?AA==?=",
        "=?utf-7?q?+AAo-?=",
        "=?utf-8?q?=3D=3Futf-8=3Fq=3F=0A=3F=3D?=",
        "=?nonsense?q?a?=",
        "=?utf-8?b?%%%?=",
        "=?utf-8?q?=FF?=",
    ],
)
def test_a_header_value_that_could_break_out_is_refused(value: str) -> None:
    with pytest.raises(InvalidMail, match=r"^headers:"):
        check_headers({"X-Note": value})


def test_a_header_given_twice_in_two_cases_is_refused() -> None:
    with pytest.raises(InvalidMail, match="given twice"):
        check_headers({"X-Note": "a", "x-note": "b"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        ("C:\\tmp\\a b.txt", "a b.txt"),
        ("a\r\nBcc: x@y.txt", "a Bcc_ x@y.txt"),
        ('<=?utf-8?q?"=0A"?=>', "_=_utf-8_q__=0A__=_"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("..", "attachment"),
        ("\0", "attachment"),
        ("x" * 300 + ".pdf", "x" * 196 + ".pdf"),
    ],
    ids=[
        "plain",
        "path",
        "windows_path",
        "crlf",
        "encoded_word",
        "direction_override",
        "dots",
        "nul",
        "long",
    ],
)
def test_a_filename_is_reduced_to_a_harmless_last_component(given: str, expected: str) -> None:
    assert clean_filename(given) == expected


@pytest.mark.parametrize(
    "filename",
    [
        "ä ö.pdf",
        "日本" * 60 + ".txt",
        "a;b='c'.txt",
        "x" * 150 + ".txt",
        "%41.txt",
    ],
)
def test_any_filename_arrives_as_it_is(filename: str) -> None:
    mail = read(compose(replace(PARTS, attachments=(replace(PHOTO, filename=filename),))))
    (attached,) = mail.iter_attachments()
    assert attached.get_filename() == filename
    assert attached.get_content() == PHOTO.content


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("Image/PNG", "image/png"),
        ("text/csv; charset=UTF-8; header=present", 'text/csv; charset="utf-8"'),
        ("application/pdf; name=x", "application/pdf"),
        ("image/png\r\nX-A: b", "application/octet-stream"),
        ("image/png; a=b\r\nX-A: b", "application/octet-stream"),
        ("image", "application/octet-stream"),
        ("", "application/octet-stream"),
        ("multipart/mixed; boundary=x", "application/octet-stream"),
        ("message/rfc822", "application/octet-stream"),
    ],
)
def test_a_content_type_is_kept_only_when_it_is_one(given: str, expected: str) -> None:
    assert clean_content_type(given) == expected


def names(attachments: tuple[EmailAttachmentPayload, ...]) -> list[tuple[str, str]]:
    return [(attachment.content_id, attachment.disposition) for attachment in attachments]


def test_the_same_reference_twice_shares_one_part() -> None:
    html, attachments = match_inline_images("<img src='cid:photo.png'><img src='cid:photo.png'>", (PHOTO,))
    assert html == "<img src='cid:inline-1-photo.png'><img src='cid:inline-1-photo.png'>"
    assert names(attachments) == [("inline-1-photo.png", "inline")]


@pytest.mark.parametrize(
    "html",
    [
        '<img src="cid:my photo (1).png">',
        '<img src="cid:my%20photo%20%281%29.png">',
        '<img src="cid:files/my photo (1).png">',
    ],
    ids=["as_it_is", "percent_encoded", "with_a_path"],
)
def test_a_name_with_blanks_gets_an_id_without(html: str) -> None:
    rewritten, attachments = match_inline_images(html, (replace(PHOTO, filename="my photo (1).png"),))
    assert rewritten == '<img src="cid:inline-1-my-photo-1-.png">'
    assert names(attachments) == [("inline-1-my-photo-1-.png", "inline")]


@pytest.mark.parametrize(
    "filenames", [("a/photo.png", "b/photo.png"), ("photo.png", "photo.png")], ids=["paths", "equal"]
)
def test_two_files_of_one_name_get_distinct_ids(filenames: tuple[str, str]) -> None:
    files = tuple(replace(PHOTO, filename=name, content=name.encode()) for name in filenames)
    html, attachments = match_inline_images('<img src="cid:a/photo.png"><img src="cid:b/photo.png">', files)
    assert html == '<img src="cid:inline-1-photo.png"><img src="cid:inline-2-photo.png">'
    assert names(attachments) == [("inline-1-photo.png", "inline"), ("inline-2-photo.png", "inline")]


def test_a_content_id_is_matched_before_a_name() -> None:
    files = (replace(PHOTO, filename="logo"), replace(PHOTO, filename="x.png", content_id="<logo>"))
    assert names(match_inline_images("<img src=cid:logo>", files)[1]) == [
        ("", "attachment"),
        ("inline-1-x.png", "inline"),
    ]


def test_a_picture_in_a_style_is_inline() -> None:
    html, _ = match_inline_images('<td style="background:url(cid:photo.png)">', (PHOTO,))
    assert html == '<td style="background:url(cid:inline-1-photo.png)">'


def test_what_is_not_referenced_stays_regular_and_prose_is_left_alone() -> None:
    for html in ("<p>no picture</p>", "<p>write cid:photo.png there</p>", '<img src="cid:other.png">'):
        assert match_inline_images(html, (PHOTO,)) == (html, (PHOTO,))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wire: wire.replace(b"Hi Bob", b"Hi\nBob", 1),
        lambda wire: wire.replace(b"Hi Bob", b"Hi\rBob", 1),
        lambda wire: wire.replace(b"Hi Bob", b"Hi\0Bob", 1),
        lambda wire: wire.replace(b"Hi Bob", b"H" * 999, 1),
        lambda wire: wire.replace(b"Subject:", b"Bcc: e@x.example\r\nSubject:", 1),
        lambda wire: wire.replace(b"bob@", b"eve@example.com, bob@", 1),
        lambda wire: wire.replace(b"Subject: Hello", b"Subject: Other", 1),
    ],
    ids=["bare_lf", "bare_cr", "nul", "long_line", "extra_field", "extra_recipient", "other_subject"],
)
def test_the_last_check_finds_bytes_that_say_something_else(
    spoil: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    serialised = composition._serialised
    monkeypatch.setattr(composition, "_serialised", lambda mail: spoil(serialised(mail)))  # type: ignore[operator]
    with pytest.raises(InvalidMail, match="was not made"):
        compose(PARTS)
