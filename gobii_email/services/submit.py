"""Taking a message in: validate, render, freeze, queue attempt 1, ring on commit.

Opens no socket but the ring's, which is bounded and cannot fail the caller. After this the bytes of a
message never change; who sends them, and how, is decided later by a worker.
"""

import hashlib
import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import attrgetter

from django.db import transaction
from django.db.models.functions import Lower
from django.utils import timezone

from gobii_email import telemetry, wiring
from gobii_email.conf import config
from gobii_email.domain.addresses import normalise, parse_mailbox
from gobii_email.domain.composition import (
    EmailAttachmentPayload,
    MailParts,
    clean_subject,
    compose,
    match_inline_images,
    new_message_id,
)
from gobii_email.domain.content import decode_escapes
from gobii_email.domain.identifiers import new_id
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.lifecycle import MessageStatus, OnDoubt, Priority
from gobii_email.domain.thread_headers import reply_headers
from gobii_email.models import (
    CommsAllowlistEntry,
    CommsChannel,
    FrozenMessage,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
    PersistentAgent,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
)
from gobii_email.models.bulk_rows import Change, Insertion, insertion_of, new_object, write_rows
from gobii_email.ports import Hint
from gobii_email.services.answer import Answer, Sending, check_frequency
from gobii_email.services.follow import people
from gobii_email.services.render import Render, render_mail_body
from gobii_email.services.select import has_usable_account

PRIORITIES = {priority.name.lower(): int(priority) for priority in Priority}
INTERACTIVE, BULK = PRIORITIES

MOST_HINTS = 200
"""Senders that one submission rings for; more would outlast the bell's patience. The others are found."""


class IdempotencyConflict(Exception):
    """The same idempotency key came with other content; use a new key for new content."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a caller may say about a submission beside its content. All moments are aware.

    Without a `priority` mail is interactive: somebody waits for it. An answer to a received message
    `is_automatic` unless a person approved it.
    """

    send_at: datetime | None = None
    expires_at: datetime | None = None
    idempotency_key: str | None = None
    on_doubt: str | None = None
    priority: str | None = None
    is_automatic: bool = True


@dataclass(frozen=True, slots=True)
class Mail:
    """What a message says and to whom, before it is rendered. Addresses are valid, each once."""

    from_name: str
    from_address: str
    to: tuple[str, ...]
    cc: tuple[str, ...]
    bcc: tuple[str, ...]
    subject: str
    body: str
    in_reply_to: str = ""
    references: tuple[str, ...] = ()
    reply_to: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    attachments: tuple[EmailAttachmentPayload, ...] = ()
    answer: Answer | None = None
    recipients: tuple[tuple[str, str], ...] = field(init=False)
    """(address, kind), each address once: the first of To, Cc, Bcc that has it."""

    def __post_init__(self) -> None:
        found: dict[str, tuple[str, str]] = {}
        for kind, addresses in (("to", self.to), ("cc", self.cc), ("bcc", self.bcc)):
            for address in addresses:
                found.setdefault(normalise(address), (address, kind))
        object.__setattr__(self, "recipients", tuple(found.values()))

    @property
    def own_headers(self) -> dict[str, str]:
        """What it says of itself because it is an automatic answer; {} when it is none."""
        return {} if self.answer is None else dict(self.answer.headers)

    def content_hash(self) -> str:
        """Equal for two submissions of the same content, whatever time they come at."""
        files = [(file.filename, hashlib.sha256(file.content).hexdigest()) for file in self.attachments]
        facts = [
            self.from_address,
            sorted((normalise(address), kind) for address, kind in self.recipients),
            self.subject,
            self.body,
            self.in_reply_to,
            self.reply_to,
            sorted({**self.headers, **self.own_headers}.items()),
            files,
        ]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Frozen:
    """The bytes and texts of a message, decided."""

    message_id: str
    mime: bytes
    html: str
    text: str


@dataclass(frozen=True, slots=True)
class Draft:
    """A message, perhaps not stored yet, with its mail and the bytes that were made of it."""

    message: PersistentAgentMessage
    mail: Mail
    frozen: Frozen
    options: Options


@contextmanager
def submission(count: int) -> Iterator[None]:
    """What `submit` and all that belongs to it is written in: all of it or nothing, one span of a trace."""
    with telemetry.enqueue(count), transaction.atomic():
        yield


def submit(
    drafts: Sequence[Draft], now: datetime, beside: Sequence[Insertion] = ()
) -> list[OutboundMessageAttempt]:
    """Queues all drafts, in a number of statements that does not grow with them; rings on commit.

    To be called in a `submission`. Messages that are new are inserted, and what belongs to them `beside`.
    Answers the first attempt of each draft, in order. Raises IntegrityError when somebody else was faster
    with one of the messages or keys.
    """
    if not drafts:
        return []
    attempts = _write(drafts, now, beside)
    hints = _hints(attempts, now)
    if hints:
        transaction.on_commit(lambda: wiring.doorbell().ring(hints, once=True), robust=True)
    return attempts


def _hints(attempts: Sequence[OutboundMessageAttempt], now: datetime) -> list[Hint]:
    """One for each sender's lane that has something due: its first attempt."""
    lanes: dict[str, Hint] = {}
    for attempt in attempts:
        if attempt.not_before <= now:
            lane = str(attempt.from_endpoint_id or "")
            lanes.setdefault(lane, Hint(str(attempt.pk), lane))
    return list(lanes.values())[:MOST_HINTS]


Key = tuple[uuid.UUID, str]
"""A sending endpoint and an idempotency key of its."""


def submitted_under(keys: Collection[Key]) -> dict[Key, PersistentAgentMessage]:
    """The messages that `keys` stand for already, in one statement; none when there are no keys."""
    if not keys:
        return {}
    senders, texts = zip(*keys, strict=True)
    rows = PersistentAgentMessage.objects.filter(
        from_endpoint__in=set(senders), idempotency_key__in=set(texts)
    )
    found = {(row.from_endpoint_id, row.idempotency_key): row for row in rows}
    return {key: found[key] for key in keys if key in found}


def check_same(key: str, first: PersistentAgentMessage, mail: Mail) -> None:
    """Raises IdempotencyConflict when `mail` says other things than the message that `key` stands for."""
    if first.content_hash != mail.content_hash():
        raise reused_key(key, f"another message ({first.pk})")


def reused_key(key: str, by: str) -> IdempotencyConflict:
    return IdempotencyConflict(f"idempotency_key {key!r} was used for {by}; use a new key for new content.")


def check_options(options: Options, now: datetime) -> None:
    """Raises InvalidMail for moments that are naive or in the wrong order, and for unknown policies."""
    for name in ("send_at", "expires_at"):
        moment = getattr(options, name)
        if moment is not None and timezone.is_naive(moment):
            raise InvalidMail(name, "it has no time zone", "Use an aware datetime, such as timezone.now()")
        if moment is not None and not 1 < moment.year < 9000:
            # Room for a time zone and a message's life, on either side.
            raise InvalidMail(name, f"the year {moment.year} is out of range", "Choose one in our times")
    if options.expires_at is not None and options.expires_at <= max(options.send_at or now, now):
        raise InvalidMail("expires_at", "it is over before the message may be sent", "Choose a later moment")
    if options.on_doubt is not None and options.on_doubt not in set(OnDoubt):
        raise InvalidMail("on_doubt", f"{options.on_doubt!r} is unknown", "Use hold or resend")
    if options.priority is not None and options.priority not in PRIORITIES:
        raise InvalidMail("priority", f"{options.priority!r} is unknown", f"Use {' or '.join(PRIORITIES)}")
    key = options.idempotency_key
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        raise InvalidMail("idempotency_key", "it is not 1 to 255 printable characters", "Use another one")


Contact = tuple[uuid.UUID, str]
"""An agent and the address of somebody it may write to."""


def allowed_contacts(mails: Iterable[tuple[PersistentAgentCommsEndpoint, Mail]]) -> set[Contact]:
    """Those recipients of `mails` that their agents' lists allow, in one statement; none without lists."""
    by_list = PersistentAgent.WhitelistPolicy.MANUAL
    wanted = {
        (endpoint.owner_agent_id, normalise(address))
        for endpoint, mail in mails
        if endpoint.owner_agent is not None and endpoint.owner_agent.whitelist_policy == by_list
        for address, _ in mail.recipients
    }
    if not wanted:
        return set()
    agents, addresses_ = zip(*wanted, strict=True)
    entries = CommsAllowlistEntry.objects.alias(lower=Lower("address")).filter(
        agent__in=set(agents),
        lower__in=set(addresses_),
        channel=CommsChannel.EMAIL,
        is_active=True,
        allow_outbound=True,
    )
    return set(entries.values_list("agent_id", "address"))


def check_recipients(
    endpoint: PersistentAgentCommsEndpoint, mail: Mail, allowed: Collection[Contact] = ()
) -> None:
    """Raises InvalidMail when there is nobody to write to, or somebody the agent may not write to.

    Who is `allowed` is not asked about again.
    """
    recipients = mail.recipients
    if not recipients:
        raise InvalidMail("to", "there is no recipient", "Name at least one address")
    if len(recipients) > config().max_recipients:
        raise InvalidMail(
            "to", f"there are more than {config().max_recipients} recipients", "Send several messages"
        )
    agent = endpoint.owner_agent
    if agent is None or agent.whitelist_policy == PersistentAgent.WhitelistPolicy.UNRESTRICTED:
        return
    for address, kind in recipients:
        if (agent.pk, normalise(address)) in allowed:
            continue
        if not agent.is_recipient_whitelisted(CommsChannel.EMAIL, address):
            raise InvalidMail(
                kind, f"{address} is not allowed for this agent", "Add it to the agent's allowed contacts"
            )


def addresses(field_name: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """The bare addresses in `given`, each checked. Raises InvalidMail naming `field_name`."""
    items = [given] if isinstance(given, str) else list(given)
    return tuple(parse_mailbox(item, field=field_name)[1] for item in items)


def subject_line(text: str) -> str:
    """`text` on one line, the escape sequences that a model left in it decoded. Raises InvalidMail."""
    return clean_subject(decode_escapes(text))


def reply_ids(parent: PersistentAgentMessage | None) -> tuple[str, tuple[str, ...]]:
    """In-Reply-To and References of an answer to `parent`."""
    if parent is None:
        return "", ()
    payload = parent.raw_payload or {}
    parent_id = parent.rfc_message_id or str(payload.get("message_id") or "")
    return reply_headers(parent_id, payload.get("references") or "")


def freeze(mail: Mail, now: datetime, render: Render = render_mail_body) -> Frozen:
    """Decides the bytes of `mail`, and writes nothing. Raises InvalidMail for content nobody should send."""
    rendered = render(mail.body, subject=mail.subject)
    html, attachments = match_inline_images(rendered.html, mail.attachments)
    message_id = new_message_id(mail.from_address)
    mime = compose(
        MailParts(
            from_name=mail.from_name,
            from_address=mail.from_address,
            to=mail.to,
            cc=mail.cc,
            subject=mail.subject,
            text=rendered.text,
            html=html,
            message_id=message_id,
            date=now,
            in_reply_to=mail.in_reply_to,
            references=mail.references,
            reply_to=mail.reply_to,
            headers=mail.headers,
            own_headers=mail.own_headers,
            attachments=attachments,
        ),
        max_bytes=config().max_message_bytes,
        max_recipients=config().max_recipients,
    )
    return Frozen(message_id, mime, html, rendered.text)


def _write(
    drafts: Sequence[Draft], now: datetime, beside: Sequence[Insertion]
) -> list[OutboundMessageAttempt]:
    check_frequency([sending for draft in drafts if (sending := _sending(draft))], now)
    trace = _traceparent()
    usable = {draft.message.from_endpoint_id: draft.message.from_endpoint for draft in drafts}
    accounts = {key: has_usable_account(endpoint) for key, endpoint in usable.items() if endpoint is not None}
    for draft in drafts:
        _fill(draft, trace, now)
        draft.message.had_account = accounts.get(draft.message.from_endpoint_id, False)
    attempts = [_first_attempt(draft, now) for draft in drafts]
    pairs = list(zip(drafts, attempts, strict=True))
    recipients = [
        (draft.message.pk, attempt.pk, address, kind)
        for draft, attempt in pairs
        for address, kind in draft.mail.recipients
    ]
    events = [
        (draft.message.pk, attempt.pk, now, "queued", _queued_text(draft, attempt))
        for draft, attempt in pairs
    ]
    steps = [
        *_messages([draft.message for draft in drafts]),
        Insertion(FrozenMessage, _FROZEN, list(map(_frozen_row, drafts))),
        insertion_of(OutboundMessageAttempt, _ATTEMPT, attempts),
        Insertion(OutboundMessageRecipient, ("message_id", "attempt_id", "address", "kind"), recipients),
        Insertion(OutboundMessageEvent, ("message_id", "attempt_id", "at", "event", "text"), events),
    ]
    write_rows([*steps, *beside])
    return attempts


def _sending(draft: Draft) -> Sending | None:
    """The automatic answer that `draft` is, if it is one."""
    answer, sender_id = draft.mail.answer, draft.message.from_endpoint_id
    if answer is None or not answer.is_automatic or sender_id is None:
        return None
    people = frozenset(normalise(address) for address, _ in draft.mail.recipients)
    return Sending(sender_id, answer.thread_root, people)


_FILLED = (
    "from_address", "subject", "raw_payload", "rfc_message_id", "owner_agent_id", "latest_status",
    "submitted_at", "expires_at", "on_doubt", "had_account", "idempotency_key", "content_hash", "traceparent",
    "thread_root", "is_automatic",
)  # fmt: skip
_NEW = ("id", "timestamp", "from_endpoint_id", "to_endpoint_id", "parent_id", "body", *_FILLED)
_ATTEMPT = (
    "id", "message_id", "number", "from_endpoint_id", "addresses", "queued_at", "not_before", "due_at",
    "expires_at", "priority",
)  # fmt: skip
_FROZEN = ("message_id", "mime", "html", "text", "to_count", "cc_count", "size", "sha256")


def _messages(messages: Sequence[PersistentAgentMessage]) -> list[Change | Insertion]:
    """Those that are new, complete; of the others what submission has filled in."""
    facts = attrgetter("pk", *_FILLED)
    stored = [facts(message) for message in messages if not message._state.adding]
    new = [message for message in messages if message._state.adding]
    return [
        Change(PersistentAgentMessage, _FILLED, stored),
        insertion_of(PersistentAgentMessage, _NEW, new),
    ]


def _frozen_row(draft: Draft) -> tuple[object, ...]:
    content = draft.frozen
    to, cc = len(draft.mail.to), len(draft.mail.cc)
    digest = hashlib.sha256(content.mime).hexdigest()
    return draft.message.pk, content.mime, content.html, content.text, to, cc, len(content.mime), digest


def _queued_text(draft: Draft, attempt: OutboundMessageAttempt) -> str:
    return f"Queued for {people(attempt.addresses)} as {draft.message.rfc_message_id}."


def _fill(draft: Draft, trace: str, now: datetime) -> None:
    message, mail, options = draft.message, draft.mail, draft.options
    endpoint = message.from_endpoint
    assert endpoint is not None
    message.from_address = mail.from_address
    message.subject = mail.subject
    message.rfc_message_id = draft.frozen.message_id
    message.raw_payload = (message.raw_payload or {}) | {
        "subject": mail.subject,
        "message_id": draft.frozen.message_id,
        "in_reply_to": mail.in_reply_to,
        "references": " ".join(mail.references),
    }
    message.owner_agent_id = endpoint.owner_agent_id
    message.latest_status = MessageStatus.QUEUED
    message.submitted_at = now
    message.expires_at = options.expires_at or (options.send_at or now) + config().expires_after
    message.on_doubt = options.on_doubt or OnDoubt.HOLD
    message.idempotency_key = options.idempotency_key
    message.content_hash = mail.content_hash()
    message.traceparent = trace
    if mail.answer is not None:
        message.thread_root, message.is_automatic = mail.answer.thread_root, mail.answer.is_automatic


def _first_attempt(draft: Draft, now: datetime) -> OutboundMessageAttempt:
    start = max(draft.options.send_at or now, now)
    attempt = new_object(
        OutboundMessageAttempt,
        id=new_id(now),
        message_id=draft.message.pk,
        number=1,
        from_endpoint_id=draft.message.from_endpoint_id,
        addresses=[address for address, _ in draft.mail.recipients],
        queued_at=now,
        not_before=start,
        # The ring on commit is the first hand-out: the dispatcher leaves fresh attempts alone for a while.
        due_at=start,
        expires_at=draft.message.expires_at,
        priority=PRIORITIES[draft.options.priority or INTERACTIVE],
    )
    attempt.message = draft.message
    return attempt


def _traceparent() -> str:
    """The caller's trace, in W3C form, so that the send joins it; "" when there is none."""
    return telemetry.trace_headers().get("traceparent", "")
