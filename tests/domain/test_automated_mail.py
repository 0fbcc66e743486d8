"""What tells that a program wrote a mail, and what our own automatic answers say of themselves."""

import pytest

from gobii_email.domain.automated_mail import (
    MAX_HOPS,
    Reason,
    answer_headers,
    hops,
    is_automated,
    reasons,
)
from gobii_email.domain.inbound_mail import read_inbound

from .bounce_samples import COMPLAINT, SAMPLES

OWN = {"own_addresses": {"agent@sender.example"}, "own_message_ids": {"<7d1c-41@sender.example>"}}


def headed(*lines):
    return read_inbound("\n".join((*lines, "", "text")).encode())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Auto-Submitted: auto-replied", Reason.AUTO_SUBMITTED),
        ("Auto-Submitted: auto-generated (failure)", Reason.AUTO_SUBMITTED),
        ("auto-submitted: Auto-Notified; owner=x", Reason.AUTO_SUBMITTED),
        ("X-Autoreply: yes", Reason.AUTOREPLY_FIELD),
        ("Return-Path: <>", Reason.NULL_RETURN_PATH),
        ("List-Id: <news.there.example>", Reason.LIST),
        ("List-Unsubscribe: <https://there.example>", Reason.LIST),
        ("Precedence: Bulk", Reason.PRECEDENCE),
        ("X-Auto-Response-Suppress: OOF, AutoReply", Reason.RESPONSES_SUPPRESSED),
        ("Content-Type: multipart/report; boundary=x", Reason.REPORT),
        ("From: Agent <Agent@Sender.example>", Reason.OWN_ADDRESS),
        ("Message-ID: <7d1c-41@sender.example>", Reason.OWN_MESSAGE),
    ],
)
def test_each_sign_alone_suffices(line, reason):
    assert reasons(headed(line), **OWN) == (reason,)
    assert is_automated(headed(line), **OWN)


@pytest.mark.parametrize(
    "line",
    [
        "Auto-Submitted: no",
        "Auto-Submitted: No (a person)",
        "Return-Path: <eve@there.example>",
        "Precedence: first-class",
        "X-Auto-Response-Suppress: None",
        "X-Autoreply: no",
        "From: Agent <agent@sender.example.evil.example>",
        "Subject: Holiday plans",
        "Subject: Urlaub",
    ],
)
def test_what_people_and_their_programs_write_is_no_sign(line):
    assert reasons(headed(line), **OWN) == ()


@pytest.mark.parametrize(
    "subject",
    [
        "Automatic reply: Figures",
        "Out of Office: Figures",
        "Automatische Antwort: Zahlen",
        "Réponse automatique : chiffres",
        "Respuesta automática: cifras",
        "Resposta automática: números",
        "Risposta automatica: cifre",
        "Automatisch antwoord: cijfers",
        "Автоматический ответ: цифры",
        "自動応答: 数字",
        "自动答复: 数字",
        "자동 회신: 숫자",
    ],
)
def test_a_subject_is_only_a_hint(subject):
    assert reasons(headed(f"Subject: {subject}")) == (Reason.SUBJECT,)
    assert not is_automated(headed(f"Subject: {subject}"))


def test_everything_that_returns_mail_is_automated():
    for sample in SAMPLES:
        assert is_automated(read_inbound(sample.raw)), sample.name
    assert is_automated(read_inbound(COMPLAINT))


def test_our_answer_says_that_a_program_wrote_it():
    headers = answer_headers(headed("Subject: Hello").fields)
    answer = headed(*(f"{name}: {value}" for name, value in headers.items()))
    assert headers["Auto-Submitted"] == "auto-replied"
    assert is_automated(answer)
    assert hops(answer.fields) == 1
    assert answer_headers(answer.fields)["X-Gobii-Hops"] == "2"


@pytest.mark.parametrize(
    ("said", "counted"),
    [("3", 3), ("999", MAX_HOPS), ("-1", MAX_HOPS), ("x", MAX_HOPS), ("1" * 9_000, MAX_HOPS)],
)
def test_nonsense_counts_as_too_many_hops(said, counted):
    assert hops(headed(f"X-Gobii-Hops: {said}").fields) == counted
