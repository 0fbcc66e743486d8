"""Writing new messages from plain values, and queueing them, many in as few statements as one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from django.db import IntegrityError, transaction
from django.utils import timezone

from gobii_email.domain.addresses import normalise, one_line
from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.header_fields import check_headers
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.thread_headers import reply_headers
from gobii_email.models import (
    CommsChannel,
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.services.submit import (
    Draft,
    IdempotencyConflict,
    Mail,
    Options,
    addresses,
    check_options,
    check_recipients,
    freeze,
    reply_ids,
    reused_key,
    subject_line,
    submit,
    submitted_under,
)


@dataclass(frozen=True, slots=True)
class NewMail:
    """What `send_agent_email` was given, and one line of a batch."""

    from_endpoint: PersistentAgentCommsEndpoint | str
    to: str | Sequence[str]
    subject: str
    body: str
    cc: str | Sequence[str] = ()
    bcc: str | Sequence[str] = ()
    in_reply_to: PersistentAgentMessage | str | None = None
    attachments: tuple[EmailAttachmentPayload, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    options: Options = Options()


def write(mails: Sequence[NewMail]) -> list[PersistentAgentMessage]:
    """Stores and queues all `mails` or none; answers their messages in order.

    Raises InvalidMail or IdempotencyConflict before anything is written.
    """
    senders = _senders(mails)
    written: dict[int, PersistentAgentMessage] = {}
    drafts: dict[int, Draft] = {}
    keyed: dict[tuple[object, str], Draft] = {}
    for position, new in enumerate(mails):
        endpoint = _sender(new, senders)
        mail = _checked(new, endpoint)
        key = new.options.idempotency_key
        earlier = submitted_under(endpoint, key, mail)
        if earlier is not None:
            written[position] = earlier.message
        elif key is not None and (endpoint.pk, key) in keyed:
            written[position] = _same(keyed[endpoint.pk, key], key, mail)
        else:
            drafts[position] = Draft(_message(new, mail, endpoint), mail, new.options)
            if key is not None:
                keyed[endpoint.pk, key] = drafts[position]
    try:
        _store(list(drafts.values()))
    except IntegrityError:
        # Another process was faster with one of the keys: now it is found.
        if not any(_is_taken(draft) for draft in drafts.values()):
            raise
        return write(mails)
    written |= {position: draft.message for position, draft in drafts.items()}
    return [written[position] for position in range(len(mails))]


def check(mails: Sequence[NewMail]) -> list[InvalidMail | IdempotencyConflict | None]:
    """What `write` would raise for each of `mails` by itself, in order; writes nothing."""
    senders = _senders(mails)
    return [_problem(new, senders) for new in mails]


def _problem(
    new: NewMail, senders: Mapping[str, PersistentAgentCommsEndpoint]
) -> InvalidMail | IdempotencyConflict | None:
    try:
        endpoint = _sender(new, senders)
        mail = _checked(new, endpoint)
        submitted_under(endpoint, new.options.idempotency_key, mail)
        freeze(Draft(_message(new, mail, endpoint), mail, new.options), timezone.now())
    except (InvalidMail, IdempotencyConflict) as problem:
        return problem
    return None


def _is_taken(draft: Draft) -> bool:
    key, sender = draft.options.idempotency_key, draft.message.from_endpoint_id
    rows = PersistentAgentMessage.objects.filter(from_endpoint_id=sender, idempotency_key=key)
    return key is not None and rows.exists()


def _same(earlier: Draft, key: str, mail: Mail) -> PersistentAgentMessage:
    """The message with the same key in this call. Raises IdempotencyConflict when it says other things."""
    if earlier.mail.content_hash() != mail.content_hash():
        raise reused_key(key, "another message of the same call")
    return earlier.message


def _sender_key(sender: PersistentAgentCommsEndpoint | str) -> str:
    return sender if isinstance(sender, str) else str(sender.pk)


def _senders(mails: Sequence[NewMail]) -> dict[str, PersistentAgentCommsEndpoint]:
    """The sending endpoints that exist, by the key they were given under, ready for submission."""
    texts = {new.from_endpoint for new in mails if isinstance(new.from_endpoint, str)}
    named = set(filter(str.isprintable, texts))
    given = {new.from_endpoint.pk for new in mails if not isinstance(new.from_endpoint, str)}
    endpoints = PersistentAgentCommsEndpoint.objects.select_related(
        "owner_agent__user", "email_meta", "agentemailaccount"
    ).filter(owner_agent__isnull=False, channel=CommsChannel.EMAIL)
    by_address = {found.address: found for found in endpoints.filter(address__in=map(normalise, named))}
    found = {name: by_address[normalise(name)] for name in named if normalise(name) in by_address}
    if given:
        found |= {str(endpoint.pk): endpoint for endpoint in endpoints.filter(pk__in=given)}
    return found


def _sender(
    new: NewMail, senders: Mapping[str, PersistentAgentCommsEndpoint]
) -> PersistentAgentCommsEndpoint:
    name = _sender_key(new.from_endpoint)
    if name not in senders:
        reason = f"no agent owns the e-mail address {name[:80]!a}"
        raise InvalidMail("from", reason, "Create its account or endpoint first")
    return senders[name]


def _checked(new: NewMail, endpoint: PersistentAgentCommsEndpoint) -> Mail:
    check_options(new.options, timezone.now())
    in_reply_to, references = _thread(new.in_reply_to)
    headers = dict(new.headers)
    reply_to = next((headers.pop(name) for name in list(headers) if name.lower() == "reply-to"), "")
    mail = Mail(
        from_name=endpoint.display_name,
        from_address=addresses("from", endpoint.address)[0],
        to=addresses("to", new.to),
        cc=addresses("cc", new.cc),
        bcc=addresses("bcc", new.bcc),
        subject=subject_line(new.subject),
        body=storable(new.body),
        in_reply_to=in_reply_to,
        references=references,
        reply_to=one_line(reply_to),
        headers=check_headers(headers),
        attachments=new.attachments,
    )
    check_recipients(endpoint, mail)
    return mail


def storable(text: str) -> str:
    """`text` with what no database keeps, NUL and half characters, replaced by U+FFFD."""
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


def _thread(parent: PersistentAgentMessage | str | None) -> tuple[str, tuple[str, ...]]:
    return reply_headers(parent) if isinstance(parent, str) else reply_ids(parent)


def _message(new: NewMail, mail: Mail, endpoint: PersistentAgentCommsEndpoint) -> PersistentAgentMessage:
    return PersistentAgentMessage(
        from_endpoint=endpoint,
        parent=new.in_reply_to if isinstance(new.in_reply_to, PersistentAgentMessage) else None,
        subject=mail.subject,
        body=mail.body,
        raw_payload={"headers": dict(mail.headers), "reply_to": mail.reply_to},
    )


def _store(drafts: Sequence[Draft]) -> None:
    with transaction.atomic():
        endpoints = _recipient_endpoints(drafts)
        for draft in drafts:
            draft.message.to_endpoint = endpoints[normalise(draft.mail.to[0])] if draft.mail.to else None
        PersistentAgentMessage.objects.bulk_create([draft.message for draft in drafts])
        _link(drafts, endpoints)
        _keep_attachments(drafts)
        submit(drafts)


def _recipient_endpoints(drafts: Sequence[Draft]) -> dict[str, PersistentAgentCommsEndpoint]:
    """An outside endpoint for every recipient, those that are missing made in one statement."""
    wanted = {normalise(address) for draft in drafts for address, _ in draft.mail.recipients}
    outside = PersistentAgentCommsEndpoint.objects.filter(
        channel=CommsChannel.EMAIL, owner_agent__isnull=True, address__in=wanted
    )
    found = {endpoint.address: endpoint for endpoint in outside}
    missing = wanted - set(found)
    if missing:
        PersistentAgentCommsEndpoint.objects.bulk_create(
            [
                PersistentAgentCommsEndpoint(channel=CommsChannel.EMAIL, address=address)
                for address in sorted(missing)
            ],
            ignore_conflicts=True,
        )
        found = {endpoint.address: endpoint for endpoint in outside.all()}
    return found


def _link(drafts: Sequence[Draft], endpoints: Mapping[str, PersistentAgentCommsEndpoint]) -> None:
    """The Cc and Bcc endpoints of all messages, in at most two statements."""
    for name in ("cc", "bcc"):
        through = getattr(PersistentAgentMessage, f"{name}_endpoints").through
        links = [
            through(
                persistentagentmessage_id=draft.message.pk,
                persistentagentcommsendpoint_id=endpoints[normalise(address)].pk,
            )
            for draft in drafts
            for address in dict.fromkeys(map(normalise, getattr(draft.mail, name)))
        ]
        through.objects.bulk_create(links, ignore_conflicts=True)


def _keep_attachments(drafts: Sequence[Draft]) -> None:
    """What is attached, as rows; the bytes themselves are in the frozen message."""
    PersistentAgentMessageAttachment.objects.bulk_create(
        PersistentAgentMessageAttachment(
            message=draft.message,
            filename=file.filename,
            content_type=file.content_type,
            content_id=file.content_id,
            file_size=file.size_bytes,
        )
        for draft in drafts
        for file in draft.mail.attachments
    )
