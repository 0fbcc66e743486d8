"""The public face of the app, for agent runtimes and host projects.

Every call is safe inside `transaction.atomic()`, opens no socket to a mail server, and works while Redis
is down. What is wrong with a mail is said at once, as `InvalidMail` with field, reason and remedy.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError
from django.utils import timezone

from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import MessageStatus
from gobii_email.models import (
    CommsChannel,
    OutboundMessageAttempt,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.services import intervene, status
from gobii_email.services.answer import AutomaticAnswerRefused
from gobii_email.services.gather import gather
from gobii_email.services.ingest import ingest_inbound_message
from gobii_email.services.render import Renderer
from gobii_email.services.status import DeliveryStatus
from gobii_email.services.submit import (
    BULK,
    Draft,
    IdempotencyConflict,
    Mail,
    Options,
    allowed_contacts,
    check_options,
    check_recipients,
    check_same,
    freeze,
    submission,
    submit,
    submitted_under,
)
from gobii_email.services.suppress import check_suppressed, suppressed
from gobii_email.services.write import NewMail, write

__all__ = [
    "AutomaticAnswerRefused",
    "Cancellation",
    "DeliveryStatus",
    "EmailAttachmentPayload",
    "IdempotencyConflict",
    "InvalidMail",
    "cancel_agent_email",
    "deliver_agent_email",
    "deliver_many",
    "delivery_status",
    "ingest_inbound_message",
    "send_agent_email",
]

logger = logging.getLogger(__name__)


def deliver_agent_email(
    message: PersistentAgentMessage,
    *,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    on_doubt: str | None = None,
    priority: str | None = None,
    is_automatic: bool = True,
) -> OutboundMessageAttempt | None:
    """Queues `message` and returns its first attempt at once; a worker sends it.

    A second call, or the same `idempotency_key` with the same content, answers the first one's attempt.
    None, with a warning in the log, for what is not outbound e-mail. `send_at` and `expires_at` are aware;
    by default a message lives 24 hours. `on_doubt` is "hold" (default) or "resend". `priority` is
    "interactive" (default) or "bulk", which waits while the same sender has interactive mail. An answer
    to a received message says that it `is_automatic`, and may be refused (AutomaticAnswerRefused), unless
    a person approved it. Raises InvalidMail, IdempotencyConflict.
    """
    options = Options(send_at, expires_at, idempotency_key, on_doubt, priority, is_automatic)
    return _deliver([message], options)[0]


def deliver_many(
    messages: Iterable[PersistentAgentMessage], *, priority: str | None = BULK
) -> list[OutboundMessageAttempt | None]:
    """Queues all `messages` or none, in bulk statements; answers their first attempts in order.

    Raises InvalidMail for the first message that cannot be sent.
    """
    return _deliver(list(messages), Options(priority=priority or BULK))


def _deliver(
    messages: Sequence[PersistentAgentMessage], options: Options
) -> list[OutboundMessageAttempt | None]:
    now = timezone.now()
    check_options(options, now)
    if any(message._state.adding for message in messages):
        raise InvalidMail("message", "it was never saved", "Save it before it is delivered")
    # One that was submitted by somebody else meanwhile is refused by the database, and found then.
    submitted = _first_attempts([message for message in messages if message.submitted_at is not None])
    fresh = {message.pk: message for message in messages if message.pk not in submitted}
    if fresh:
        submitted |= _submit_fresh(list(fresh.values()), options, now)
    return [submitted.get(message.pk) for message in messages]


def _submit_fresh(
    messages: Sequence[PersistentAgentMessage], options: Options, now: datetime
) -> dict[uuid.UUID, OutboundMessageAttempt]:
    gathered = gather(messages)
    mails = []
    for message in filter(_is_outbound_email, messages):
        _check_sender(message.from_endpoint)
        mails.append((message, gathered.mail_of(message, is_automatic=options.is_automatic)))
    allowed = allowed_contacts((message.from_endpoint, mail) for message, mail in mails)
    earlier = _earlier([message for message, _ in mails], options.idempotency_key)
    unwanted = suppressed((message.from_endpoint, mail) for message, mail in mails)
    submitted: dict[uuid.UUID, OutboundMessageAttempt] = {}
    drafts = []
    render = Renderer()
    for message, mail in mails:
        check_recipients(message.from_endpoint, mail, allowed)
        if message.from_endpoint_id in earlier:
            submitted[message.pk] = _first_of(earlier[message.from_endpoint_id], mail)
            _call_off(message, submitted[message.pk])
        else:
            check_suppressed(message.from_endpoint, mail, unwanted)
            drafts.append(Draft(message, mail, freeze(mail, now, render), options))
    return submitted | {attempt.message_id: attempt for attempt in _submit_once(drafts, now)}


def _earlier(
    messages: Sequence[PersistentAgentMessage], key: str | None
) -> dict[uuid.UUID, PersistentAgentMessage]:
    """What `key` stands for already, by sender."""
    if key is None:
        return {}
    found = submitted_under({(message.from_endpoint_id, key) for message in messages})
    return {sender: message for (sender, _), message in found.items()}


def _first_of(first: PersistentAgentMessage, mail: Mail) -> OutboundMessageAttempt:
    """The first attempt of `first`. Raises IdempotencyConflict when `mail` says other things."""
    check_same(str(first.idempotency_key), first, mail)
    return OutboundMessageAttempt.objects.get(message=first, number=1)


def _first_attempts(messages: Sequence[PersistentAgentMessage]) -> dict[uuid.UUID, OutboundMessageAttempt]:
    if not messages:
        return {}
    found = OutboundMessageAttempt.objects.filter(message__in=[message.pk for message in messages], number=1)
    attempts = {attempt.message_id: attempt for attempt in found}
    for message_id in attempts:
        logger.info("message.already_submitted", extra={"message_id": str(message_id)})
    return attempts


def _is_outbound_email(message: PersistentAgentMessage) -> bool:
    endpoint = message.from_endpoint
    if message.is_outbound and endpoint is not None and endpoint.channel == CommsChannel.EMAIL:
        return True
    logger.warning("message.not_outbound_email", extra={"message_id": str(message.pk)})
    return False


def _call_off(message: PersistentAgentMessage, earlier: OutboundMessageAttempt) -> None:
    """The same mail stored twice under one key: the second row must not look as if it waited."""
    message.latest_status = MessageStatus.CANCELLED
    message.latest_error_code = "duplicate"
    message.latest_error_message = f"Already submitted under the same key as message {earlier.message_id}."
    message.save(update_fields=["latest_status", "latest_error_code", "latest_error_message"])


def _check_sender(endpoint: PersistentAgentCommsEndpoint) -> None:
    if not endpoint.is_own_email:
        raise InvalidMail("from", f"no agent owns {endpoint.address}", "Send from an agent's own endpoint")


def _submit_once(drafts: Sequence[Draft], now: datetime) -> list[OutboundMessageAttempt]:
    """Submits the drafts; where another process was faster with a message or key, answers its attempt."""
    try:
        with submission(len(drafts)):
            return submit(drafts, now)
    except IntegrityError:
        if len(drafts) > 1:
            return [attempt for draft in drafts for attempt in _submit_once([draft], now)]
    draft = drafts[0]
    attempts = _first_attempts([draft.message])
    if attempts:
        return list(attempts.values())
    earlier = _earlier([draft.message], draft.options.idempotency_key)
    if not earlier:
        raise RuntimeError("a message was neither stored nor found stored; please report this")
    return [_first_of(first, draft.mail) for first in earlier.values()]


def send_agent_email(
    *,
    from_endpoint: PersistentAgentCommsEndpoint | str,
    to: str | Sequence[str],
    cc: str | Sequence[str] = (),
    bcc: str | Sequence[str] = (),
    subject: str,
    body: str,
    in_reply_to: PersistentAgentMessage | str | None = None,
    attachments: Sequence[EmailAttachmentPayload] = (),
    headers: Mapping[str, str] | None = None,
    send_at: datetime | None = None,
    expires_at: datetime | None = None,
    idempotency_key: str | None = None,
    on_doubt: str | None = None,
    priority: str | None = None,
    is_automatic: bool = True,
) -> PersistentAgentMessage:
    """Validates, stores and queues a new message; answers it.

    `body` is HTML, Markdown or plain text. `in_reply_to` is a stored message or an RFC Message-ID.
    The same `idempotency_key` with the same content answers the first message. `priority` is "interactive"
    (default) or "bulk". An answer to a received message says that it `is_automatic` (RFC 3834), and is
    refused (AutomaticAnswerRefused, an InvalidMail) where a program wrote what it answers or too many such
    answers were sent, unless a person approved it. Nothing is stored when InvalidMail or
    IdempotencyConflict is raised.
    """
    mail = NewMail(
        from_endpoint=from_endpoint,
        to=to,
        cc=cc,
        bcc=bcc,
        subject=subject,
        body=body,
        in_reply_to=in_reply_to,
        attachments=tuple(attachments),
        headers=headers or {},
        options=Options(send_at, expires_at, idempotency_key, on_doubt, priority, is_automatic),
    )
    return write([mail])[0]


def delivery_status(message_id: uuid.UUID | str | PersistentAgentMessage) -> DeliveryStatus:
    """Everything known of a message. Raises PersistentAgentMessage.DoesNotExist."""
    return status.delivery_status(_message(message_id))


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Whether a message was withdrawn, true in a condition, and its status now with the reason."""

    withdrawn: bool
    status: str
    text: str

    def __bool__(self) -> bool:
        return self.withdrawn


def cancel_agent_email(message_id: uuid.UUID | str | PersistentAgentMessage) -> Cancellation:
    """Withdraws what has not been handed to a server yet. Raises PersistentAgentMessage.DoesNotExist."""
    message = _message(message_id)
    withdrawn = intervene.cancel(message)
    message.refresh_from_db(fields=["latest_status"])
    return Cancellation(withdrawn, message.latest_status, _cancelled(withdrawn, message.latest_status))


def _cancelled(withdrawn: bool, status: str) -> str:
    if not withdrawn:
        return f"Not withdrawn: the message is {status}."
    if status == MessageStatus.CANCELLED:
        return "Withdrawn; no server has it."
    return f"Withdrawn for those who had not got it yet; the message is {status}."


def _message(message_id: uuid.UUID | str | PersistentAgentMessage) -> PersistentAgentMessage:
    if isinstance(message_id, PersistentAgentMessage):
        return PersistentAgentMessage.objects.get(pk=message_id.pk)
    try:
        return PersistentAgentMessage.objects.get(pk=uuid.UUID(str(message_id)))
    except ValueError:
        raise PersistentAgentMessage.DoesNotExist(f"{message_id!r} is not a message id") from None
