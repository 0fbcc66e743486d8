"""Whatever an agent puts in: either InvalidMail, or bytes that say exactly that and nothing else."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTP, default

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gobii_email.domain.addresses import clean_display_name, parse_address
from gobii_email.domain.attachments import clean_content_type, clean_filename
from gobii_email.domain.composition import (
    EmailAttachmentPayload,
    MailParts,
    clean_subject,
    compose,
    match_inline_images,
    with_attempt_header,
)
from gobii_email.domain.content import convert_body_to_html_and_plaintext
from gobii_email.domain.invalid_mail import InvalidMail
from tests.domain.test_composition import sender_of

ATTACKS = st.sampled_from(
    [
        "\r\nBcc: eve@evil.example",
        "\nX: y",
        "\r",
        "\0",
        "\r\n\r\nbody",
        "\r\n.\r\n",
        "=?utf-8?q?=0D=0ABcc:_eve@evil.example?=",
        "=?utf-8?b?DQpCY2M6IGU=?=",
        "=?utf-7?q?+AA0ACg-?=",
        "=?",
        "?=",
        '"',
        "\\",
        "<eve@evil.example>",
        "@",
        ",",
        ";",
        "(",
        "\u202e",
        "\u2028",
        "\x85",
        "\ud83d",
        "😀",
        "é",
        "--",
        "=_mixed_",
        "\nFrom ",
        "%0d%0a",
        "x" * 1200,
        " " * 90,
        "<!--",
        "<p>",
        "**",
    ]
)
TEXT = st.lists(st.one_of(st.text(max_size=12), ATTACKS), max_size=5).map("".join)
ADDRESS = st.one_of(
    st.from_regex(r"[a-z0-9.+'-]{1,12}@[a-z0-9-]{1,10}\.(example|com)", fullmatch=True),
    st.sampled_from(["jörg@example.com", "ana@bücher.example", "o'x@example.com"]),
    st.builds(lambda text: f"ana{text}@example.com", TEXT),
    st.builds(lambda text: f"ana@example.com{text}", TEXT),
)
ADDRESSES = st.lists(ADDRESS, max_size=3).map(tuple)
HEADERS = st.dictionaries(
    st.one_of(st.sampled_from(["X-A", "X-Long-Name", "List-Id", "Precedence", "Bcc", "X-Gobii-X"]), TEXT),
    TEXT,
    max_size=2,
)
FILES = st.lists(
    st.builds(
        EmailAttachmentPayload,
        filename=TEXT,
        content=st.one_of(st.binary(max_size=200), TEXT.map(lambda text: text.encode("utf-8", "replace"))),
        content_type=st.one_of(
            st.sampled_from(["image/png", "text/plain; charset=utf-8", "message/rfc822"]), TEXT
        ),
    ),
    max_size=2,
).map(tuple)
MAIL = st.builds(
    MailParts,
    from_name=TEXT,
    from_address=st.one_of(st.just("agent@example.com"), ADDRESS),
    to=ADDRESSES,
    cc=ADDRESSES,
    subject=TEXT,
    text=TEXT,
    html=TEXT,
    message_id=st.one_of(st.just("<id.1@example.com>"), TEXT),
    date=st.integers(0, 2**32).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    in_reply_to=st.one_of(st.just(""), st.just("<p@x>"), TEXT),
    references=st.lists(st.one_of(st.just("<p@x>"), TEXT), max_size=2).map(tuple),
    reply_to=st.one_of(st.just(""), ADDRESS),
    headers=st.one_of(st.just({}), HEADERS),
    attachments=FILES,
)
SAFE_MAIL = st.builds(
    MailParts,
    from_name=TEXT,
    from_address=st.just("agent@example.com"),
    to=st.just(("bob@example.net", "ana@bücher.example")),
    cc=st.just(("cy@example.org",)),
    subject=TEXT.map(lambda text: text[:998]),
    text=TEXT,
    html=TEXT,
    message_id=st.just("<id.1@example.com>"),
    date=st.just(datetime(2026, 1, 1, tzinfo=UTC)),
    attachments=FILES,
)
QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def assert_says(wire: bytes, parts: MailParts) -> None:
    """Read by the standard library, the bytes have the fields, recipients and files of `parts`."""
    assert wire.count(b"\r\n") == wire.count(b"\r") == wire.count(b"\n")
    assert b"\0" not in wire
    assert max(map(len, wire.split(b"\r\n"))) <= 998
    mail = message_from_bytes(wire, policy=default)
    assert isinstance(mail, EmailMessage)
    optional = {
        "To": parts.to,
        "Cc": parts.cc,
        "Reply-To": parts.reply_to,
        "In-Reply-To": parts.in_reply_to,
        "References": parts.references,
    }
    expected = {"From", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", *parts.headers}
    expected |= {name for name, value in optional.items() if value}
    assert {*mail.keys()} - {"Content-Transfer-Encoding"} == expected
    assert len({*mail.keys()}) == len(mail.keys())
    sender = (clean_display_name(parts.from_name), str(parse_address(parts.from_address)))
    assert sender_of(wire) == [sender]
    for name, addresses in (("To", parts.to), ("Cc", parts.cc)):
        if addresses and all(map(str.isascii, addresses)):
            assert [found.addr_spec for found in mail[name].addresses] == [
                str(parse_address(text)) for text in addresses
            ]
    assert mail["Subject"] == clean_subject(parts.subject)
    files = [part for part in mail.walk() if part.get_content_disposition()]
    assert [part.get_payload(decode=True) for part in files] == [file.content for file in parts.attachments]
    assert [part.get_filename() for part in files] == [
        clean_filename(file.filename) for file in parts.attachments
    ]


@QUICK
@given(MAIL)
def test_any_mail_is_refused_or_says_what_was_meant(parts: MailParts) -> None:
    try:
        wire = compose(parts)
    except InvalidMail as refused:
        assert refused.field and refused.reason
        return
    assert_says(wire, parts)


def by_the_library(parts: MailParts) -> EmailMessage:
    """The content of the same mail as the standard library puts it together, all of it in base64."""
    mail = EmailMessage(policy=SMTP)
    inline = [file for file in parts.attachments if file.is_inline and parts.html]
    mail.set_content(shown(parts.text), cte="base64")
    if parts.html:
        mail.add_alternative(shown(parts.html), subtype="html", cte="base64")
    for file in inline:
        mail.get_payload()[1].add_related(  # type: ignore[index, union-attr]
            file.content,
            *clean_content_type(file.content_type).partition(";")[0].split("/"),
            cid=file.content_id,
        )
    for file in parts.attachments:
        if file not in inline:
            kind = clean_content_type(file.content_type).partition(";")[0].split("/")
            mail.add_attachment(file.content, *kind, filename=clean_filename(file.filename))
    return message_from_bytes(mail.as_bytes(), policy=default)  # type: ignore[return-value]


def shown(body: str) -> str:
    """`body` as a reader can be shown it: no controls, no half characters, one kind of line end."""
    text = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "", body).encode("utf-8", "replace").decode()
    return re.sub("\r\n|\r", "\n", text)


def tree(mail: EmailMessage) -> list[tuple[str, bytes]]:
    """Every part's type and decoded bytes, texts without their last line end and in one kind of them."""
    found = []
    for part in mail.walk():
        content = b"" if part.is_multipart() else part.get_payload(decode=True)
        assert isinstance(content, bytes)
        is_body = part.get_content_maintype() == "text" and part.get_content_disposition() is None
        text = content.replace(b"\r\n", b"\n").removesuffix(b"\n")
        found.append((part.get_content_type(), text if is_body else content))
    return found


@QUICK
@given(SAFE_MAIL, st.booleans())
def test_a_mail_reads_as_one_that_the_standard_library_wrote(parts: MailParts, is_shown: bool) -> None:
    html = parts.html + "".join(f'<img src="cid:{file.filename}">' for file in parts.attachments if is_shown)
    html, files = match_inline_images(html, parts.attachments)
    parts = replace(parts, html=html, text=parts.text.rstrip("\r\n"), attachments=files)
    ours, theirs = message_from_bytes(compose(parts), policy=default), by_the_library(parts)
    assert isinstance(ours, EmailMessage)
    assert [defect for part in ours.walk() for defect in part.defects] == []
    assert tree(ours) == tree(theirs)


@QUICK
@given(SAFE_MAIL)
def test_no_name_subject_body_or_filename_keeps_a_mail_from_being_sent(parts: MailParts) -> None:
    wire = compose(parts)
    assert wire.isascii()
    assert_says(wire, parts)
    assert wire.endswith(with_attempt_header(wire, "a-1").partition(b"\r\n")[2])


@QUICK
@given(TEXT)
def test_any_body_can_be_converted_and_sent(body: str) -> None:
    html, text = convert_body_to_html_and_plaintext(body)
    assert "<script" not in html.lower()
    parts = MailParts(
        "", "a@example.com", ("b@example.com",), (), "s", text, html, "<i@x>", datetime.now(UTC)
    )
    compose(parts)


@QUICK
@given(TEXT, FILES)
def test_inline_matching_never_loses_a_file(html: str, files: tuple[EmailAttachmentPayload, ...]) -> None:
    referring = html + "".join(f'<img src="cid:{file.filename}">' for file in files)
    _, matched = match_inline_images(referring, files)
    assert [file.content for file in matched] == [file.content for file in files]
    ids = [file.content_id for file in matched if file.is_inline]
    assert len(ids) == len(set(ids))
    parts = MailParts(
        "", "a@example.com", (), (), "s", "t", "<p>h</p>", "<i@x>", datetime.now(UTC), attachments=matched
    )
    compose(parts)
