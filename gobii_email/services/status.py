"""What is known of a message, told from its rows: the status document, and why it has not gone out yet."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from django.utils import timezone

from gobii_email.domain.lifecycle import OPEN, AttemptStatus, MessageStatus
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    PersistentAgentMessage,
    ReceivedMail,
)
from gobii_email.services.follow import resend_after
from gobii_email.services.tell import clock_time
from gobii_email.services.wait import wait_sentence


@dataclass(frozen=True, slots=True)
class RecipientReport:
    address: str
    kind: str
    status: str
    smtp_code: int | None
    enhanced_status: str
    reply: str


@dataclass(frozen=True, slots=True)
class AttemptReport:
    attempt_id: str
    number: int
    provider: str
    status: str
    stage: str
    verdict: str
    scope: str
    smtp_code: int | None
    enhanced_status: str
    error_code: str
    error_message: str
    provider_message_id: str
    queued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    at: datetime
    event: str
    text: str


@dataclass(frozen=True, slots=True)
class DeliveryStatus:
    """The status document of CONTRACT.md, typed. `waiting_for` is a sentence, or None when it is over.

    `direction` is "outbound", or "inbound" of a message that was received: that has no attempts.
    """

    message_id: str
    direction: str
    rfc_message_id: str
    status: str
    subject: str
    from_address: str
    created_at: datetime
    waiting_for: str | None
    recipients: list[RecipientReport]
    attempts: list[AttemptReport]
    timeline: list[TimelineEntry]

    def as_document(self) -> dict[str, Any]:
        """The document with plain values, moments in ISO 8601, ready for JSON."""
        document: dict[str, Any] = _plain(asdict(self))
        document["from"] = document.pop("from_address")
        return document


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(item) for name, item in value.items()}
        case list():
            return [_plain(item) for item in value]
        case datetime():
            return value.isoformat()
    return value


def delivery_status(message: PersistentAgentMessage) -> DeliveryStatus:
    """Everything known of `message`, in five statements."""
    if not message.is_outbound:
        return _received(message)
    attempts = list(message.attempts.order_by("number"))
    events = list(message.events.all())
    now = timezone.now()
    return DeliveryStatus(
        message_id=str(message.pk),
        direction="outbound",
        rfc_message_id=message.rfc_message_id,
        status=message.latest_status,
        subject=message.subject,
        from_address=message.from_address,
        created_at=message.timestamp,
        waiting_for=_waiting_for(message, attempts, events, now),
        recipients=[
            RecipientReport(row.address, row.kind, row.status, row.smtp_code, row.enhanced_status, row.reply)
            for row in message.recipients.all()
        ],
        attempts=[_report(attempt, attempts) for attempt in attempts],
        timeline=[TimelineEntry(row.at, row.event, row.text) for row in events],
    )


def _received(message: PersistentAgentMessage) -> DeliveryStatus:
    address = message.to_endpoint.address if message.to_endpoint else ""
    return DeliveryStatus(
        message_id=str(message.pk),
        direction="inbound",
        rfc_message_id=message.rfc_message_id,
        status=message.latest_status,
        subject=message.subject,
        from_address=message.from_address,
        created_at=message.timestamp,
        waiting_for=None,
        recipients=[RecipientReport(address, "to", message.latest_status, None, "", "")] if address else [],
        attempts=[],
        timeline=[entry for mail in message.received_mails.defer("raw") for entry in _story(mail)],
    )


def _story(mail: ReceivedMail) -> Iterator[TimelineEntry]:
    if mail.internal_at:
        yield TimelineEntry(mail.internal_at, "arrived", f"Arrived in {mail.folder} (UID {mail.uid}).")
    yield TimelineEntry(mail.stored_at, "stored", f"Fetched, {mail.size:,} bytes.")
    if mail.read_at:
        written = "by a program" if mail.is_automated else "by a person, as far as its header tells"
        proven = f"the check of its sender: {mail.get_authentication_display().lower()}"
        text = f"Taken in: written {written}; {proven}. {mail.reason}".strip()
        yield TimelineEntry(mail.read_at, "received", text)
    if mail.announced_at:
        yield TimelineEntry(mail.announced_at, "announced", "The agent was told.")


def _report(attempt: OutboundMessageAttempt, attempts: list[OutboundMessageAttempt]) -> AttemptReport:
    following = next((other for other in attempts if other.number == attempt.number + 1), None)
    return AttemptReport(
        attempt_id=str(attempt.pk),
        number=attempt.number,
        provider=attempt.provider,
        status=attempt.status,
        stage=attempt.stage,
        verdict=attempt.verdict,
        scope=attempt.scope,
        smtp_code=attempt.smtp_code,
        enhanced_status=attempt.enhanced_status,
        error_code=attempt.error_code,
        error_message=attempt.error_message,
        provider_message_id=attempt.provider_message_id,
        queued_at=attempt.queued_at,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
        next_attempt_at=following.not_before if following else None,
    )


def _waiting_for(
    message: PersistentAgentMessage,
    attempts: list[OutboundMessageAttempt],
    events: list[OutboundMessageEvent],
    now: datetime,
) -> str | None:
    attempt = next((found for found in attempts if found.status in OPEN), None)
    if attempt is None:
        return None
    match AttemptStatus(attempt.status):
        case AttemptStatus.SENDING:
            return "A worker is sending it right now."
        case AttemptStatus.IN_DOUBT:
            doubts = [row.at for row in events if row.event == AttemptStatus.IN_DOUBT]
            again = None
            if doubts and attempt is attempts[-1]:
                again = resend_after(message, doubts[-1], len(doubts) - 1)
            ends = _doubt_ends(attempt, again, now)
            return f"In doubt whether the server has it: {attempt.error_message} {ends}"
    if attempt.not_before > now:
        return _not_yet(attempt, attempts, now)
    if attempt.held_reason and attempt.due_at is not None and attempt.due_at > now:
        is_for_life = message.expires_at is not None and attempt.due_at >= message.expires_at
        until = None if is_for_life else attempt.due_at
        return wait_sentence(attempt.held_code, attempt.held_reason, until, now)
    lane = Lane.objects.filter(pk=attempt.from_endpoint_id, look_at__gt=now).exclude(code="").first()
    if lane is not None:
        return wait_sentence(lane.code, lane.reason, _lane_until(lane, message), now)
    return "Waits for a free worker."


def _lane_until(lane: Lane, message: PersistentAgentMessage) -> datetime | None:
    """The end of the account's hold, None where a person has to end it; else the lane's next look."""
    account: AgentEmailAccount | None = getattr(message.from_endpoint, "agentemailaccount", None)
    if account is not None and account.state == lane.code:
        return account.state_until
    return lane.look_at


def _not_yet(attempt: OutboundMessageAttempt, attempts: list[OutboundMessageAttempt], now: datetime) -> str:
    when = clock_time(attempt.not_before, now)
    last = next((other for other in attempts if other.number == attempt.number - 1), None)
    if last is None:
        return f"Waits for its time to be sent, {when}."
    why = last.error_message or "some recipients were refused for now"
    return f"Attempt {attempt.number} follows at {when}, because: {why}"


def _doubt_ends(attempt: OutboundMessageAttempt, again: datetime | None, now: datetime) -> str:
    if again is not None and attempt.due_at is not None:
        return f"It is sent again at {clock_time(max(again, attempt.due_at), now)} unless evidence comes."
    if attempt.due_at is not None:
        when = clock_time(attempt.due_at, now)
        return f"It is looked for in Sent at {when}; a person may decide before."
    return "Evidence or a person decides."


def is_over(status: str) -> bool:
    """Whether a message's status changes no more by itself."""
    return status not in {MessageStatus.QUEUED, MessageStatus.SENDING, MessageStatus.PENDING_APPROVAL}
