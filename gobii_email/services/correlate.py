"""Which mail of one mailbox a received one speaks of, by the ids that it names.

Ids are believed only as names of mail that this very endpoint sent: nobody can guess them. Without an id a
recipient and a time are left, which is a guess and marked as one. Nothing is written here.
"""

import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import QuerySet

from gobii_email.domain.addresses import normalise, parse_address
from gobii_email.domain.dsn import ReturnedRecipient
from gobii_email.domain.invalid_mail import InvalidMail
from gobii_email.domain.returned_mail import Returned
from gobii_email.models import OutboundMessageAttempt, OutboundMessageRecipient, PersistentAgentMessage

GUESS_WITHIN = timedelta(days=5)
"""As long as servers keep trying (RFC 5321 section 4.5.4.1)."""

SHORTEST_SECRET = 24
"""Characters of an id that nobody guesses."""

_XTEXT = re.compile(r"\+([0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Match:
    """A message that was sent; `attempt_id` where that very attempt is named. `by` says what led to it."""

    message_id: uuid.UUID
    attempt_id: uuid.UUID | None
    by: str
    is_sure: bool = True


def find(endpoint_id: uuid.UUID, returned: Returned, now: datetime) -> Match | None:
    """The mail that `returned` speaks of, by the first of its ids that `endpoint_id` has sent under."""
    lookups: Sequence[Callable[[], Match | None]] = (
        lambda: _attempt(endpoint_id, returned.envelope_id, "its envelope id"),
        lambda: _attempt(endpoint_id, returned.attempt_id, "the header of the returned mail"),
        lambda: _message(endpoint_id, returned.microsoft_message_id, "the Message-ID that Exchange kept"),
        lambda: _message(endpoint_id, returned.original_message_id, "its Message-ID"),
        lambda: _taken_as(endpoint_id, returned.original_message_id),
        lambda: _guess(endpoint_id, returned, now),
    )
    return next((found for look in lookups if (found := look())), None)


def by_message_id(endpoint_id: uuid.UUID, message_id: str) -> Match | None:
    return _message(endpoint_id, message_id, "its Message-ID")


def _attempt(endpoint_id: uuid.UUID, text: str, by: str) -> Match | None:
    try:
        key = uuid.UUID(text.strip())
    except ValueError:
        return None
    return _of(OutboundMessageAttempt.objects.filter(pk=key, from_endpoint_id=endpoint_id), by)


def _of(attempts: "QuerySet[OutboundMessageAttempt]", by: str) -> Match | None:
    found = attempts.order_by("-queued_at").values_list("message_id", "pk").first()
    return None if found is None else Match(*found, by)


def _message(endpoint_id: uuid.UUID, message_id: str, by: str) -> Match | None:
    bare = message_id.strip().strip("<>")
    if not bare or len(bare) > 318:
        return None
    sent = PersistentAgentMessage.objects.filter(
        rfc_message_id__in=[bare, f"<{bare}>"], from_endpoint_id=endpoint_id, is_outbound=True
    )
    key = sent.order_by().values_list("pk", flat=True).first()
    return None if key is None else Match(key, None, by)


def _taken_as(endpoint_id: uuid.UUID, message_id: str) -> Match | None:
    """Where the server put an id of its own in place of ours, it said so when it took the mail (SES, M365).

    Queue ids of other servers are short, and count up.
    """
    bare = message_id.strip().strip("<>")
    names = {name for name in (bare, bare.partition("@")[0]) if SHORTEST_SECRET <= len(name) <= 255}
    if not names:
        return None
    rows = OutboundMessageAttempt.objects.filter(provider_message_id__in=names, from_endpoint_id=endpoint_id)
    return _of(rows, "the id that the server gave it")


def _guess(endpoint_id: uuid.UUID, returned: Returned, now: datetime) -> Match | None:
    """The only mail of the last days to one of those that a report is about, if it names no other mail."""
    names_another = returned.envelope_id or returned.attempt_id or returned.original_message_id
    named = {form for told in returned.recipients for form in _forms(told)}
    if names_another or not named:
        return None
    rows = OutboundMessageRecipient.objects.filter(
        address__in=named,
        message__from_endpoint_id=endpoint_id,
        message__submitted_at__gt=now - GUESS_WITHIN,
        attempt__sent_at__isnull=False,
    )
    found = set(rows.order_by().values_list("message_id", flat=True)[:3])
    return Match(found.pop(), None, "its recipient and the time", is_sure=False) if len(found) == 1 else None


def addressee(
    told: ReturnedRecipient, rows: Iterable[OutboundMessageRecipient]
) -> OutboundMessageRecipient | None:
    """Whom of `rows` a report speaks of: the address given at submission counts before the final one."""
    known: Mapping[str, OutboundMessageRecipient] = {normalise(row.address): row for row in rows}
    return next((known[form] for form in map(normalise, _forms(told)) if form in known), None)


def _forms(told: ReturnedRecipient) -> Iterator[str]:
    """Ways in which we may have stored the address, the likeliest first."""
    for address in filter(None, (told.original, told.address)):
        yield address
        yield address.lower()
        yield _XTEXT.sub(lambda found: chr(int(found[1], 16)), address)  # RFC 3461 section 4
        try:
            yield str(parse_address(address))
        except InvalidMail:
            continue
