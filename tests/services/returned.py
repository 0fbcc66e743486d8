"""Mail that was sent, reports about it as servers write them, and what became of both."""

import uuid
from typing import Any

from django.utils import timezone

from gobii_email import api
from gobii_email.domain.inbound_mail import read_inbound
from gobii_email.domain.lifecycle import Move, Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost
from gobii_email.domain.returned_mail import read_mail
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    ReceivedMail,
)
from gobii_email.services.bounce import note_returned
from gobii_email.services.resolve import resolve
from gobii_email.services.settle import settle
from tests.conftest import row_of, taken

SENDER, A, B = "agent@sender.example", "a@rcpt.example", "b@rcpt.example"
TAKEN = Accepted(Reply(250, "2.0.0", "OK"))
UNKNOWN = "smtp; 550 5.1.1 <a@rcpt.example>: Recipient address rejected: User unknown"


def submitted(*to: str, **options: Any) -> PersistentAgentMessage:
    return api.send_agent_email(from_endpoint=SENDER, to=to or (A,), subject="Hello", body="Hi", **options)


def sent(*to: str, **options: Any) -> OutboundMessageAttempt:
    attempt = row_of(taken(submitted(*to, **options)))
    assert settle(attempt, TAKEN, provider=Provider.SMTP, now=timezone.now())
    return attempt


def doubtful(*to: str, **options: Any) -> OutboundMessageAttempt:
    attempt = row_of(taken(submitted(*to, **options)))
    mark(attempt)
    lost = Lost(Stage.DOT, Cause.CONNECTION_LOST, "The line went dead.", is_marked=True)
    assert settle(attempt, lost, provider=Provider.SMTP, now=timezone.now())
    return attempt


def mark(attempt: OutboundMessageAttempt) -> None:
    OutboundMessageAttempt.objects.filter(pk=attempt.pk).update(marked_at=timezone.now())


def repeated(attempt: OutboundMessageAttempt) -> OutboundMessageAttempt:
    """Attempt n+1, queued because nobody knew what became of `attempt`."""
    row = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
    assert resolve(row, Move.ABSENT, evidence="Nobody knows.", now=timezone.now(), is_proven=False)
    return OutboundMessageAttempt.objects.get(message_id=attempt.message_id, number=attempt.number + 1)


def report(
    attempt: OutboundMessageAttempt,
    recipient: str = A,
    *,
    action: str = "failed",
    status: str = "5.1.1",
    diagnostic: str = UNKNOWN,
    by: str = "attempt",
    original: str = "",
    message_id: str = "",
) -> bytes:
    """A report as Postfix writes it, which names `attempt` by its header, ENVID, Message-ID or not."""
    message_id = message_id or PersistentAgentMessage.objects.get(pk=attempt.message_id).rfc_message_id
    copy = {
        "attempt": f"X-Gobii-Message-ID: {attempt.pk}\nMessage-ID: <another@x.example>\n",
        "message": f"Message-ID: {message_id}\n",
        "exchange": f"Message-ID: <new@x.example>\nX-Microsoft-Original-Message-ID: {message_id}\n",
    }.get(by, "")
    envelope = f"Original-Envelope-Id: {attempt.pk}\n" if by == "envelope" else ""
    original = f"Original-Recipient: rfc822;{original}\n" if original else ""
    return (
        "Return-Path: <>\nFrom: MAILER-DAEMON@mx.example (Mail Delivery System)\n"
        f"To: {SENDER}\nSubject: Undelivered Mail Returned to Sender\nAuto-Submitted: auto-replied\n"
        'MIME-Version: 1.0\nContent-Type: multipart/report; report-type=delivery-status; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nI'm sorry.\n\n"
        f"--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.example\n{envelope}\n"
        f"{original}Final-Recipient: rfc822; {recipient}\nAction: {action}\nStatus: {status}\n"
        f"Diagnostic-Code: {diagnostic}\n\n"
        f"--b\nContent-Type: text/rfc822-headers\n\nFrom: {SENDER}\n{copy}Subject: Hello\n\n--b--\n"
    ).encode()


def complaint(attempt: OutboundMessageAttempt, recipient: str = A) -> bytes:
    message_id = PersistentAgentMessage.objects.get(pk=attempt.message_id).rfc_message_id
    return (
        f"From: feedback@isp.example\nTo: {SENDER}\nSubject: FW: Hello\nMIME-Version: 1.0\n"
        'Content-Type: multipart/report; report-type=feedback-report; boundary="b"\n\n'
        "--b\nContent-Type: text/plain\n\nA report.\n\n"
        "--b\nContent-Type: message/feedback-report\n\nFeedback-Type: abuse\nUser-Agent: X/1\nVersion: 1\n"
        f"Original-Rcpt-To: {recipient}\n\n"
        f"--b\nContent-Type: message/rfc822\n\nFrom: {SENDER}\nTo: {recipient}\n"
        f"Message-ID: {message_id}\nSubject: Hello\n\nHi\n\n--b--\n"
    ).encode()


def autoreply(attempt: OutboundMessageAttempt, sender: str = A) -> bytes:
    message_id = PersistentAgentMessage.objects.get(pk=attempt.message_id).rfc_message_id
    return (
        f"From: {sender}\nTo: {SENDER}\nSubject: Automatic reply: Hello\nAuto-Submitted: auto-replied\n"
        f"In-Reply-To: {message_id}\nMessage-ID: <{uuid.uuid4()}@rcpt.example>\n\nI am away.\n"
    ).encode()


def stored(raw: bytes, endpoint: PersistentAgentCommsEndpoint | None = None) -> ReceivedMail:
    fields = read_inbound(raw).fields
    return ReceivedMail.objects.create(
        endpoint=endpoint or PersistentAgentCommsEndpoint.objects.get(address=SENDER),
        folder="INBOX",
        uid_validity=1,
        uid=ReceivedMail.objects.count() + 1,
        raw=raw,
        from_address=fields.get("from"),
        stored_at=timezone.now(),
    )


def note(mail: ReceivedMail) -> bool:
    raw = bytes(mail.raw or b"")
    return note_returned(mail, read_mail(raw), read_inbound(raw).fields)


def told(raw: bytes) -> bool:
    return note(stored(raw))


def state(attempt: OutboundMessageAttempt) -> tuple[str, str, dict[str, str]]:
    attempt = OutboundMessageAttempt.objects.select_related("message").get(pk=attempt.pk)
    recipients = {row.address: row.status for row in attempt.message.recipients.all()}
    return attempt.status, attempt.message.latest_status, recipients


def events(attempt: OutboundMessageAttempt) -> list[str]:
    return list(
        OutboundMessageEvent.objects.filter(message_id=attempt.message_id).values_list("event", flat=True)
    )
