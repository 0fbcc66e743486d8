"""Who was not reached, why, and by which mail of ours: read from what each system sends back."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gobii_email.domain.dsn import Action, Source, Sureness
from gobii_email.domain.returned_mail import Kind, read_mail

from .bounce_samples import ATTEMPT_ID, COMPLAINT, DAMAGED, FULL, MESSAGE_ID, NOBODY, SAMPLES, SENDER

CORPUS = Path(__file__).resolve().parents[2].parent / "shared" / "corpus" / "bounces"
NAMED = {sample.name: sample for sample in SAMPLES}


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_each_system_is_understood(sample):
    returned = read_mail(sample.raw)
    assert returned.kind == sample.kind
    found = [(one.address, one.status if one.is_status_written else None) for one in returned.recipients]
    assert found == list(sample.recipients)
    assert returned.original_message_id == (MESSAGE_ID if sample.has_copy or sample.is_named else "")
    assert returned.attempt_id == (ATTEMPT_ID if sample.has_copy else "")


def test_lines_that_end_in_crlf_are_read_alike():
    for sample in SAMPLES:
        returned = read_mail(sample.raw.replace(b"\n", b"\r\n"))
        assert (returned.kind, len(returned.recipients)) == (sample.kind, len(sample.recipients)), sample.name


def test_each_recipient_has_an_action_of_its_own():
    returned = read_mail(DAMAGED)
    assert [(one.address, one.action) for one in returned.recipients] == [
        (NOBODY, Action.FAILED),
        (FULL, Action.DELAYED),
    ]
    assert (returned.kind, returned.attempt_id) == (Kind.FAILED, ATTEMPT_ID)


def test_a_bare_class_is_not_passed_off_as_a_written_code():
    recipient = read_mail(NAMED["sendmail-5"].raw).recipients[0]
    assert (recipient.status, recipient.is_status_written) == ("5.0.0", False)
    assert read_mail(NAMED["exim-warning"].raw).recipients[0].status == "4.0.0"


def test_readings_say_where_they_come_from_and_how_sure_they_are():
    fields, header, prose = (read_mail(NAMED[name].raw) for name in ("postfix", "gmail-old", "qmail"))
    assert (fields.recipients[0].evidence.source, fields.evidence["kind"].sureness) == (
        Source.REPORT,
        Sureness.SURE,
    )
    assert header.recipients[0].evidence.source is Source.HEADER
    assert (prose.recipients[0].evidence.source, prose.recipients[0].evidence.sureness) == (
        Source.PROSE,
        Sureness.LIKELY,
    )
    assert prose.evidence["original_message_id"].source is Source.COPY


def test_the_envelope_id_comes_back():
    returned = read_mail(NAMED["postfix"].raw)
    assert (returned.envelope_id, returned.evidence["envelope_id"].source) == (ATTEMPT_ID, Source.REPORT)


def test_the_id_that_exchange_replaced_is_found():
    ours = f"Message-ID: {MESSAGE_ID}"
    rewritten = f"Message-ID: <rewritten@x.example>\nX-Microsoft-Original-{ours}"
    returned = read_mail(NAMED["postfix"].raw.replace(ours.encode(), rewritten.encode()))
    assert returned.original_message_id == "<rewritten@x.example>"
    assert returned.microsoft_message_id == MESSAGE_ID


def test_a_report_without_a_copy_names_its_mail_by_its_own_references():
    references = f"References: <first@x.example> {MESSAGE_ID}\nMIME-Version"
    returned = read_mail(NAMED["domino"].raw.replace(b"MIME-Version", references.encode()))
    assert returned.original_message_id == MESSAGE_ID
    assert returned.evidence["original_message_id"].sureness is Sureness.LIKELY


def test_a_report_that_names_nobody_is_about_whom_the_copy_was_sent_to():
    listed = f"<{NOBODY}>:\n".encode()
    returned = read_mail(NAMED["yahoo-old"].raw.replace(listed, b"", 1).replace(f"({NOBODY})".encode(), b""))
    assert [(one.address, one.evidence.sureness) for one in returned.recipients] == [(NOBODY, Sureness.WEAK)]


def bounce(text):
    return read_mail(
        f"Return-Path: <>\nFrom: MAILER-DAEMON@there.example\nSubject: failed\n\n{text}".encode()
    )


@pytest.mark.parametrize(
    "text",
    [
        f"Your mail for {NOBODY} was not delivered.\nIf not delivered, contact desk@there.example.",
        f"Not delivered:\n\n<{NOBODY}>:\n550 unknown\n\nYours,\npostmaster@there.example\n",
        f"Not delivered:\n\n{NOBODY}<mailto:{NOBODY}>\n550 unknown\n\nfrom: desk@there.example\n",
    ],
    ids=["contact", "signature", "sender"],
)
def test_who_helps_is_not_taken_for_a_recipient(text):
    assert [one.address for one in bounce(text).recipients] == [NOBODY]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("was delayed for 4 hours; we will keep trying", Kind.DELAYED),
        ("was delayed for 5 days; this is a permanent failure", Kind.FAILED),
        ("was delayed for 5 days and has been returned", Kind.FAILED),
        ("could not be delivered", Kind.FAILED),
    ],
)
def test_a_delay_ends_where_the_system_gives_up(text, kind):
    assert bounce(f"<{NOBODY}>:\nYour mail {text}.").kind == kind


LANGUAGES = {
    "Unzustellbar": "Fehler bei der Zustellung an:",
    "Non remis": "La remise a échoué :",
    "No se puede entregar": "No se pudo entregar:",
    "Non recapitabile": "Impossibile recapitare:",
    "Não é possível entregar": "Falha na entrega:",
    "Onbestelbaar": "De bezorging is mislukt:",
    "Niedostarczalne": "Dostarczenie nie powiodło się:",
    "Kan inte levereras": "Det gick inte att leverera:",
    "Kan ikke leveres": "Levering mislykkedes:",
    "Toimitus epäonnistui": "Viestiä ei voitu toimittaa:",
    "Nedoručitelné": "Doručení se nezdařilo:",
    "Kézbesíthetetlen": "A kézbesítés nem sikerült:",
    "Nelivrabil": "Livrarea nu a reușit:",
    "Teslim edilemedi": "Teslim başarısız oldu:",
    "Δεν παραδόθηκε": "Η παράδοση απέτυχε:",
    "Недоставлено": "Сбой доставки:",
    "Не доставлено": "Не вдалося доставити:",
    "配信不能": "配信できませんでした:",
    "无法送达": "传递邮件失败:",
    "無法傳遞": "傳遞失敗:",
    "배달되지 않음": "배달하지 못했습니다.",
    "ไม่สามารถส่งได้": "การส่งล้มเหลว",
    "لا يمكن تسليمها": "فشل التسليم",
    "לא ניתן למסור": "המסירה נכשלה",
    "Không gửi được": "Gửi không thành công",
    "Mbaile": "No words that anybody knows:",
}


@pytest.mark.parametrize(("subject", "text"), LANGUAGES.items(), ids=LANGUAGES)
def test_a_code_behind_an_address_is_understood_in_any_language(subject, text):
    body = f"{text}\n\n{NOBODY}\n#550 5.1.1 RESOLVER.ADR.RecipNotFound; not found ##\n"
    returned = read_mail(mail(subject, body, sender="postmaster@there.example"))
    assert returned.kind == Kind.FAILED
    assert [(one.address, one.status) for one in returned.recipients] == [(NOBODY, "5.1.1")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("was delivered", Kind.DELIVERED),
        ("was delivered to a relay that could not deliver it", Kind.FAILED),
    ],
)
def test_good_news_in_prose_is_believed_only_without_bad_news(text, kind):
    subject = "Delivery Status Notification (Success)"
    raw = mail(subject, f"Your mail {text}:\n\n{NOBODY}", sender="postmaster@there.example")
    assert [read_mail(raw).kind, read_mail(raw).recipients[0].address] == [kind, NOBODY]


def test_what_the_returned_mail_says_is_not_what_the_report_says():
    raw = NAMED["empty-status-part"].raw.replace(b"Hello, the", f"<{FULL}>: 550 5.1.1 unknown".encode())
    assert [one.address for one in read_mail(raw).recipients] == [NOBODY]


@pytest.mark.parametrize("lost", [b"multipart/report", b"boundary=", b"Content-Type: multipart"])
def test_a_report_whose_parts_cannot_be_told_apart_is_read_as_text(lost):
    returned = read_mail(NAMED["postfix"].raw.replace(lost, b"lost", 1))
    assert [(one.address, one.status) for one in returned.recipients] == [(NOBODY, "5.1.1")]
    assert (returned.kind, returned.attempt_id) == (Kind.FAILED, ATTEMPT_ID)


def test_a_complaint_names_who_complained():
    returned = read_mail(COMPLAINT)
    assert (returned.kind, returned.attempt_id) == (Kind.COMPLAINT, ATTEMPT_ID)
    assert [(one.address, one.action, one.status) for one in returned.recipients] == [
        (NOBODY, Action.COMPLAINED, "")
    ]


def test_a_complaint_that_hides_the_address_is_about_whom_the_copy_was_sent_to():
    returned = read_mail(COMPLAINT.replace(b"Original-Rcpt-To", b"X-Nothing"))
    assert [one.address for one in returned.recipients] == [NOBODY]
    assert returned.recipients[0].evidence.source is Source.COPY


def mail(subject, body="-", *, sender="Eve <eve@there.example>", header=""):
    head = f"From: {sender}\nTo: {SENDER}\nSubject: {subject}\n{header}Message-ID: <m@there.example>\n"
    return f"{head}\n{body}".encode()


def attached(raw):
    head = "Content-Type: multipart/mixed; boundary=o\n"
    parts = b"--o\n\nMy mail came back.\n--o\nContent-Type: message/rfc822\n\n" + raw + b"\n--o--\n"
    return mail("What is this?", "", header=head) + parts


RECEIPT = f"""\
Return-Path: <>
From: Eve <eve@there.example>
To: {SENDER}
Subject: Not read: Undeliverable parcels
Content-Type: multipart/report; report-type=disposition-notification; boundary=o

--o

Your message to {NOBODY} was deleted; the mailbox is full.
--o
Content-Type: message/disposition-notification

Final-Recipient: rfc822; {NOBODY}
Original-Message-ID: {MESSAGE_ID}
Disposition: automatic-action/MDN-sent-automatically; deleted
--o--
"""
ORDINARY = {
    "question": mail("Our figures", f"Could you send them to {NOBODY}? He did not receive them."),
    "forwarded bounce": mail("Fwd: failure notice", f"What is this?\n\n{NAMED['qmail'].raw.decode()}"),
    "attached bounce": attached(NAMED["postfix"].raw),
    "copied report": mail("Look", "", header="Content-Type: multipart/mixed; boundary=o\n")
    + f"--o\nContent-Type: message/delivery-status\n\nFinal-Recipient: rfc822;{NOBODY}\n".encode(),
    "answer to a bounce": mail("Re: Undelivered Mail", f"> <{NOBODY}>: 550 5.1.1 unknown\n\nTry {FULL}"),
    "newsletter": mail("Deliver more", f"Unsubscribe: {SENDER}", header="List-Id: <n.there.example>\n"),
    "notification": mail("Your invoice", "Paid.", header="Auto-Submitted: auto-generated\n"),
    "parcel": mail("Delivery status: out for delivery", "Your parcel arrives today."),
    "postmaster": mail("Maintenance", f"Questions to {NOBODY}.", sender="postmaster@there.example"),
    "failed parcel": mail("Delivery failed", f"We were unable to deliver your parcel.\n\nEmail: {NOBODY}\n"),
    "quota warning": mail("Mailbox full", f"Your mailbox is full: {SENDER}", sender="postmaster@x.example"),
    "outage": mail("Outage", f"Mail could not be sent to {NOBODY}.", sender="Mail Server <ops@x.example>"),
    "held by a list": mail(
        "Your message awaits approval", f"Your mail to {NOBODY} was rejected or is held.",
        sender="list-bounces@there.example", header="List-Id: <list.there.example>\n"),
    "leave request": mail("Urlaub im Mai", "Bitte genehmigen."),
    "receipt": RECEIPT.encode(),
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("raw", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_mail_is_no_report(raw):
    returned = read_mail(raw)
    assert (returned.kind, returned.recipients, returned.attempt_id) == (Kind.ORDINARY, (), "")


ANSWERING = f"In-Reply-To: {MESSAGE_ID}\n"
ANSWERS = {
    "vacation": mail("Re: Figures", header=f"Auto-Submitted: auto-replied (vacation)\n{ANSWERING}"),
    "exchange": mail("Automatic reply: Figures", f"Ask {NOBODY}.", header=ANSWERING),
    "null return path": b"Return-Path: <>\n" + mail("Hello", "Back on Monday.", header=ANSWERING),
    "german": mail("Automatische Antwort: Zahlen", "Ich bin nicht da.", header=ANSWERING),
    "japanese": mail("=?utf-8?b?6Ieq5YuV5b+c562U?=: x", header=f"References: <a@b.example> {MESSAGE_ID}\n"),
    "left": b"Return-Path: <>\n" + mail(
        "Figures", f"My mailbox does not exist any more, use {NOBODY}: it could not be delivered.",
        header=f"Auto-Submitted: auto-replied\n{ANSWERING}"),
    "precedence": mail("Figures", "Away.", header=f"Precedence: auto_reply\n{ANSWERING}"),
    "postmaster": b"Return-Path: <>\n" + mail(
        "Automatic reply: Undeliverable", f"{NOBODY} could not be delivered.", sender="postmaster@x.example",
        header=ANSWERING),
    "absence": mail("Urlaub", "Away.", header=f"X-Auto-Response-Suppress: All\n{ANSWERING}"),
}  # fmt: skip


@pytest.mark.parametrize("raw", ANSWERS.values(), ids=ANSWERS)
def test_an_automatic_answer_is_no_report_and_names_what_it_answers(raw):
    returned = read_mail(raw)
    assert (returned.kind, returned.recipients) == (Kind.AUTOREPLY, ())
    assert returned.original_message_id == MESSAGE_ID


def test_a_reading_receipt_is_ordinary_mail_that_names_its_mail():
    assert read_mail(RECEIPT.encode()).original_message_id == MESSAGE_ID


def test_what_broke_a_limit_is_said():
    assert "50 deep" in " ".join(read_mail(b"Content-Type: message/rfc822\n\n" * 60).problems)


def test_a_report_on_thousands_of_recipients_is_cut_short():
    one = f"Final-Recipient: rfc822; {NOBODY}\n".encode()
    assert one in NAMED["postfix"].raw
    many = b"".join(b"Action: failed\nFinal-Recipient: rfc822; n%d@there.example\n" % n for n in range(5_000))
    assert len(read_mail(NAMED["postfix"].raw.replace(one, many)).recipients) == 1_000


FIXTURES = [*(sample.raw for sample in SAMPLES), COMPLAINT, DAMAGED, *ORDINARY.values(), *ANSWERS.values()]


@st.composite
def damaged(draw):
    """A fixture with pieces cut out, doubled, swapped for noise or for a piece of another fixture."""
    raw = draw(st.sampled_from(FIXTURES))
    for _ in range(draw(st.integers(1, 6))):
        start, end = sorted((draw(st.integers(0, len(raw))), draw(st.integers(0, len(raw)))))
        piece = draw(
            st.sampled_from([b"", raw[start:end] * 2, b"\n", b"<", b"--=_b1\n", b"@", b"\x00"])
            | st.binary(max_size=40)
            | st.sampled_from(FIXTURES).map(lambda other: other[:200])
        )
        raw = raw[:start] + piece + raw[end:]
    return raw


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_damaged_mail_is_read_without_an_error(raw):
    json.dumps(read_mail(raw).as_document())


REPEATED = [
    b"<", b"@", b"a@", b"a@b.example ", b"<a@b.example>:\n", b"\n", b" ", b"5.1.1 ", b"a.", b"from ", b"to: ",
    b"delivery ", b"\xe3\x82\xa8", b"could not be ", b"original message ", b"a@b.c<mailto:", b"&lt;", b"<a ",
    b"not delivered to a@b.c, ", b"<!--", b'{"a":', b"final-recipient: a@b.c\n",
]  # fmt: skip


@pytest.mark.parametrize("unit", REPEATED, ids=repr)
@pytest.mark.parametrize("content_type", [b"text/plain", b"text/html"])
def test_repetition_does_not_stall_the_reader(unit, content_type):
    head = (
        b"From: MAILER-DAEMON@there.example\nSubject: failure notice\nContent-Type: " + content_type + b"\n\n"
    )
    read_mail(head + b"could not be delivered\n" + unit * (400_000 // len(unit)))
    read_mail(b"Subject: " + unit.replace(b"\n", b" ") * (30_000 // len(unit)) + b"\n" + head)


def test_the_shared_labels_are_met():
    if not CORPUS.exists():
        pytest.skip(f"NOT CHECKED: no labelled mails at {CORPUS}")
    rows = [json.loads(line) for line in (CORPUS / "expected.jsonl").read_text().splitlines()]
    checks = [_checked(row, read_mail((CORPUS / "files" / row["file"]).read_bytes())) for row in rows]
    reports = [check for check in checks if check["is_report"]]
    assert not [check["file"] for check in checks if check["is_false_alarm"]]
    assert sum(check["is_found"] for check in reports) >= 0.95 * len(reports)
    codes = [right for check in checks for right in check["codes"]]
    assert sum(codes) >= 0.90 * len(codes)


def _checked(row, returned):
    is_report = row["kind"] not in ("ordinary", "autoreply")
    found = {one.address.lower(): one.status for one in returned.recipients}
    message_id = (row["original"] or {}).get("message_id")
    # A label that ends in ".invalid" stands for somebody the mail does not name.
    named = [one for one in row["recipients"] if not one["address"].endswith(".invalid")]
    expected = {one["address"].lower(): one["status"] for one in named}
    is_found = (
        returned.kind == row["kind"]
        and (set(found) == set(expected) or len(named) < len(row["recipients"]))
        and (not message_id or returned.original_message_id == message_id)
    )
    if is_report and not is_found:
        print(f"missed {row['file']}: {returned.kind} {found}")
    return {
        "file": row["file"],
        "is_report": is_report,
        "is_found": is_found,
        "is_false_alarm": not is_report and returned.is_report,
        "codes": [found.get(address) == status for address, status in expected.items() if status],
    }
