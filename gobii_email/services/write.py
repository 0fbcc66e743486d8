"""Writing new messages from plain values, and queueing them, many in as few statements as one."""

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from django.db import IntegrityError
from django.utils import timezone

from gobii_email.domain.addresses import normalise, one_line
from gobii_email.domain.composition import EmailAttachmentPayload
from gobii_email.domain.header_fields import check_headers
from gobii_email.domain.identifiers import new_id
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.storable_text import storable
from gobii_email.domain.thread_headers import clean_message_id, reply_headers
from gobii_email.models import (
    PersistentAgentCommsEndpoint,
    PersistentAgentMessage,
    PersistentAgentMessageAttachment,
)
from gobii_email.models.bulk_rows import Insertion, new_object
from gobii_email.services.answer import Parents, answer_to, received_under
from gobii_email.services.contacts import contacts_of
from gobii_email.services.gather import senders, senders_by_address
from gobii_email.services.render import Renderer
from gobii_email.services.submit import (
    Draft,
    Frozen,
    IdempotencyConflict,
    Key,
    Mail,
    Options,
    addresses,
    allowed_contacts,
    check_options,
    check_recipients,
    check_same,
    freeze,
    reply_ids,
    reused_key,
    subject_line,
    submission,
    submit,
    submitted_under,
)
from gobii_email.services.suppress import check_suppressed, suppressed


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


@dataclass(frozen=True, slots=True)
class Prepared:
    """A mail that may be written: checked, and frozen unless its key stands for a message already."""

    new: NewMail
    mail: Mail
    frozen: Frozen | None


Problem = InvalidMail | IdempotencyConflict


def write(mails: Sequence[NewMail]) -> list[PersistentAgentMessage]:
    """Stores and queues all `mails` or none; answers their messages in order.

    Raises InvalidMail or IdempotencyConflict before anything is written.
    """
    senders = _senders(mails)
    ready = []
    for found in _prepared(mails, senders):
        if not isinstance(found, Prepared):
            raise found
        ready.append(found)
    return _write_all(ready, senders)


def prepare(mails: Sequence[NewMail]) -> list[Prepared | Problem]:
    """Each of `mails` ready to be written, or what `write` would raise for it by itself; writes nothing."""
    return list(_prepared(mails, _senders(mails)))


def write_prepared(ready: Sequence[Prepared]) -> list[PersistentAgentMessage]:
    """As `write`, for mails that were prepared some time ago, perhaps by another process."""
    return _write_all(ready, _senders([item.new for item in ready]))


Senders = Mapping[str, PersistentAgentCommsEndpoint]


def _prepared(mails: Sequence[NewMail], senders: Senders) -> Iterator[Prepared | Problem]:
    now = timezone.now()
    parents = _parents(mails, senders)
    checked = [_checked(new, senders, parents, now) for new in mails]
    good = [
        (_sender(new, senders), new, mail)
        for new, mail in zip(mails, checked, strict=True)
        if isinstance(mail, Mail)
    ]
    allowed = allowed_contacts((sender, mail) for sender, _, mail in good)
    earlier = submitted_under({key for sender, new, _ in good if (key := _key(sender, new))})
    unwanted = suppressed((sender, mail) for sender, _, mail in good)
    render = Renderer()
    for new, mail in zip(mails, checked, strict=True):
        if not isinstance(mail, Mail):
            yield mail
            continue
        sender = _sender(new, senders)
        try:
            check_recipients(sender, mail, allowed)
            key = _key(sender, new)
            first = earlier.get(key) if key else None
            if key and first:
                check_same(key[1], first, mail)
            else:
                check_suppressed(sender, mail, unwanted)
            yield Prepared(new, mail, None if first else freeze(mail, now, render))
        except (InvalidMail, IdempotencyConflict) as problem:
            yield problem


def _write_all(
    ready: Sequence[Prepared], senders: Senders, asked: Collection[Key] = ()
) -> list[PersistentAgentMessage]:
    """Stores what is not stored under its key yet, each key once.

    Only keys that were found taken before, and those `asked` for, are looked up; the database refuses others.
    """
    now = timezone.now()
    keys = [_key(_sender(item.new, senders), item.new) for item in ready]
    taken = {key for item, key in zip(ready, keys, strict=True) if key and item.frozen is None}
    earlier = submitted_under(taken | set(asked))
    messages: dict[Key | int, PersistentAgentMessage] = {}
    drafts: dict[Key | int, Draft] = {}
    for position, (item, key) in enumerate(zip(ready, keys, strict=True)):
        if key and key in earlier:
            check_same(key[1], earlier[key], item.mail)
            messages[key] = earlier[key]
        elif key and key in drafts:
            _check_same_here(drafts[key], item.mail)
        else:
            place = key or position
            drafts[place] = _draft(item, _sender(item.new, senders), now)
            messages[place] = drafts[place].message
    try:
        _store(list(drafts.values()), now)
    except IntegrityError:
        # Another process was faster with one of the keys: now it is found.
        every = {key for key in keys if key}
        if every == set(asked) or not submitted_under(every - set(earlier)):
            raise
        return _write_all(ready, senders, every)
    return [messages[key or position] for position, key in enumerate(keys)]


def _draft(item: Prepared, sender: PersistentAgentCommsEndpoint, now: datetime) -> Draft:
    frozen = item.frozen or freeze(item.mail, now)  # its key may have been given up since
    return Draft(_message(item, sender, now), item.mail, frozen, item.new.options)


def _check_same_here(earlier: Draft, mail: Mail) -> None:
    if earlier.mail.content_hash() != mail.content_hash():
        raise reused_key(str(earlier.options.idempotency_key), "another message of the same call")


def _key(sender: PersistentAgentCommsEndpoint, new: NewMail) -> Key | None:
    return None if new.options.idempotency_key is None else (sender.pk, new.options.idempotency_key)


def _sender_key(sender: PersistentAgentCommsEndpoint | str) -> str:
    return sender if isinstance(sender, str) else str(sender.pk)


def _senders(mails: Sequence[NewMail]) -> dict[str, PersistentAgentCommsEndpoint]:
    """The sending endpoints that exist, by the key they were given under, ready for submission."""
    texts = {new.from_endpoint for new in mails if isinstance(new.from_endpoint, str)}
    names = {name: normalise(name) for name in texts if name.isprintable()}
    by_address = senders_by_address(set(names.values()))
    found = {name: by_address[address] for name, address in names.items() if address in by_address}
    given = {new.from_endpoint.pk for new in mails if not isinstance(new.from_endpoint, str)}
    own = {str(key): endpoint for key, endpoint in senders(given).items() if endpoint.is_own_email}
    return found | own


def _sender(new: NewMail, senders: Senders) -> PersistentAgentCommsEndpoint:
    name = _sender_key(new.from_endpoint)
    if name not in senders:
        reason = f"no agent owns the e-mail address {name[:80]!a}"
        raise InvalidMail("from", reason, "Create its account or endpoint first")
    return senders[name]


def _parents(mails: Sequence[NewMail], senders: Senders) -> Parents:
    """Received messages that are answered by their Message-ID alone; no statement when none is named."""
    named = [(new, new.in_reply_to) for new in mails if isinstance(new.in_reply_to, str) and new.in_reply_to]
    known = [(senders.get(_sender_key(new.from_endpoint)), text) for new, text in named]
    return received_under([(endpoint, text) for endpoint, text in known if endpoint is not None])


def _checked(new: NewMail, senders: Senders, parents: Parents, now: datetime) -> Mail | InvalidMail:
    try:
        check_options(new.options, now)
        return _mail(new, _sender(new, senders), parents)
    except InvalidMail as problem:
        return problem


def _mail(new: NewMail, endpoint: PersistentAgentCommsEndpoint, parents: Parents) -> Mail:
    in_reply_to, references = _thread(new.in_reply_to)
    headers = dict(new.headers)
    reply_to = next((headers.pop(name) for name in list(headers) if name.lower() == "reply-to"), "")
    return Mail(
        from_name=endpoint.display_name,
        from_address=addresses("from", endpoint.address)[0],
        to=addresses("to", new.to),
        cc=addresses("cc", new.cc),
        bcc=addresses("bcc", new.bcc),
        subject=subject_line(new.subject),
        body=storable(new.body),
        in_reply_to=in_reply_to,
        references=references,
        reply_to=one_line(reply_to) if reply_to else "",
        headers=check_headers(headers),
        attachments=new.attachments,
        answer=answer_to(_parent(new, endpoint, parents), endpoint, is_automatic=new.options.is_automatic),
    )


def _parent(
    new: NewMail, endpoint: PersistentAgentCommsEndpoint, parents: Parents
) -> PersistentAgentMessage | None:
    if isinstance(new.in_reply_to, str):
        return parents.get((endpoint.pk, clean_message_id(new.in_reply_to)))
    return new.in_reply_to


def _thread(parent: PersistentAgentMessage | str | None) -> tuple[str, tuple[str, ...]]:
    return reply_headers(parent) if isinstance(parent, str) else reply_ids(parent)


def _message(item: Prepared, endpoint: PersistentAgentCommsEndpoint, now: datetime) -> PersistentAgentMessage:
    mail = item.mail
    message = new_object(
        PersistentAgentMessage,
        id=new_id(now),
        timestamp=now,
        parent_id=None if mail.answer is None else mail.answer.parent_id,
        body=mail.body,
        raw_payload={"headers": dict(mail.headers), "reply_to": mail.reply_to},
    )
    message.from_endpoint = endpoint
    return message


def _store(drafts: Sequence[Draft], now: datetime) -> None:
    with submission(len(drafts)):
        contacts = _contacts(drafts)
        for draft in drafts:
            to = draft.mail.to
            draft.message.to_endpoint_id = contacts[normalise(to[0])] if to else None
        submit(drafts, now, [*_links(drafts, contacts), _attachments(drafts)])


def _contacts(drafts: Sequence[Draft]) -> dict[str, uuid.UUID]:
    """An outside endpoint for every recipient."""
    return contacts_of({normalise(address) for draft in drafts for address, _ in draft.mail.recipients})


def _links(drafts: Sequence[Draft], contacts: Mapping[str, uuid.UUID]) -> list[Insertion]:
    """The Cc and Bcc endpoints of all messages."""
    names = ("persistentagentmessage_id", "persistentagentcommsendpoint_id")
    found = []
    for kind in ("cc", "bcc"):
        rows = [
            (draft.message.pk, contacts[normalise(address)])
            for draft in drafts
            for address in dict.fromkeys(map(normalise, getattr(draft.mail, kind)))
        ]
        found.append(Insertion(getattr(PersistentAgentMessage, f"{kind}_endpoints").through, names, rows))
    return found


def _attachments(drafts: Sequence[Draft]) -> Insertion:
    """What is attached, as rows; the bytes themselves are in the frozen message."""
    rows = [
        (uuid.uuid4(), draft.message.pk, file.filename, file.content_type, file.content_id, file.size_bytes)
        for draft in drafts
        for file in draft.mail.attachments
    ]
    names = ("id", "message_id", "filename", "content_type", "content_id", "file_size")
    return Insertion(PersistentAgentMessageAttachment, names, rows)
