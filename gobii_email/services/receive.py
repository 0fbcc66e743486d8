"""Understanding one stored mail: a report about sent mail, a message for the agent, or neither, with why.

Idempotent and fenced by the row's state: a mail is read again until one transaction has written what it is,
so whoever is killed in between loses and doubles nothing. What may be fetched at all is decided in admission.
"""

import logging
import uuid
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.authentication_results import NOTHING, assess
from gobii_email.domain.dsn import addresses_in
from gobii_email.domain.mail_reading import MailReading
from gobii_email.domain.senders import message_id_of, sender_of
from gobii_email.models import PersistentAgentCommsEndpoint, ReceivedMail
from gobii_email.ports import INBOUND_QUEUE, Call, GaveUp
from gobii_email.services import keep_files
from gobii_email.services.admission import Fetch, Verdict, is_listened_to, too_large, wanted
from gobii_email.services.announce import announce
from gobii_email.services.prove import StillSending
from gobii_email.services.record import release_connection
from gobii_email.services.sort_mail import doubt_about, end_mail, sort_mail
from gobii_email.services.take_in import Letter

__all__ = ["Fetch", "NotReleasable", "Verdict", "read_what_is_stored", "receive", "release", "wanted"]

logger = logging.getLogger(__name__)

State = ReceivedMail.State

MOST_TRIES = 2
"""So often a mail may end its reader."""
MOST_READINGS = 5
"""So often it may be begun at all, whatever ended that."""
RECEIVE = "gobii_email.receive_mail"
"""The task that calls `receive`."""
LEFT_FOR = timedelta(seconds=60)
"""Whoever stored a mail reads it at once; after this somebody else is asked to."""
BATCH = 200
_HEADER_ONLY = (
    "[{why} Only its header was read; text and files are still in the mailbox, folder {folder}. "
    "Ask the sender for a smaller mail or a link.]"
)


class NotReleasable(Exception):
    """A mail cannot be let out of quarantine; the text says why."""


def receive(mail_id: uuid.UUID | str) -> ReceivedMail.State:
    """Reads the mail if nobody has, tells the agent if nobody has, and answers what it is now.

    A mail that is to be read again later stays STORED. Raises ReceivedMail.DoesNotExist.
    """
    mail = _loaded(mail_id)
    if mail.state == State.STORED:
        _read(mail)
    elif mail.state == State.RECEIVED and mail.announced_at is None:
        announce(mail.pk)
    return State(mail.state)


def release(mail_id: uuid.UUID | str, *, by: str) -> ReceivedMail.State:
    """Lets a mail out of quarantine because a person says so: who sent it is not asked again.

    Raises NotReleasable where it is not in quarantine, or cannot be read this time either.
    """
    mail = _loaded(mail_id)
    if mail.state != State.QUARANTINED:
        raise NotReleasable(f"It is not in quarantine any more: {mail.get_state_display()}.")
    if mail.raw is None or mail.endpoint is None:
        raise NotReleasable("Nothing is left of it to be read, or nobody to read it for.")
    found = _understood(mail, mail.endpoint)
    if isinstance(found, GaveUp):
        raise NotReleasable(f"It could not be read: {found.reason}.")
    _write(mail, mail.endpoint, found, released_by=by)
    logger.info("mail.released", extra={"mail_id": str(mail.pk)})
    return State(mail.state)


def _loaded(mail_id: uuid.UUID | str) -> ReceivedMail:
    rows = ReceivedMail.objects.select_related("endpoint__owner_agent__user", "endpoint__agentemailaccount")
    return rows.get(pk=mail_id)


def _read(mail: ReceivedMail) -> None:
    endpoint = mail.endpoint
    if endpoint is None or endpoint.owner_agent is None or mail.raw is None:
        end_mail(mail, State.SKIPPED, "Its mailbox was deleted, or nothing was stored of it.")
    elif not _begin(mail):
        mail.refresh_from_db(fields=["state", "reason"])
    elif mail.readings > MOST_READINGS:
        end_mail(mail, State.QUARANTINED, f"It was begun to be read {MOST_READINGS} times, and never ended.")
    elif isinstance(found := _understood(mail, endpoint), GaveUp):
        _give_up(mail, found)
    else:
        _write_or_wait(mail, endpoint, found)


def _begin(mail: ReceivedMail) -> bool:
    """Counts a reading, in a commit of its own; False when somebody else has read it meanwhile."""
    mail.readings += 1
    rows = ReceivedMail.objects.filter(pk=mail.pk, state=State.STORED)
    return bool(rows.update(readings=F("readings") + 1))


def _understood(mail: ReceivedMail, endpoint: PersistentAgentCommsEndpoint) -> MailReading | GaveUp:
    release_connection()
    return wiring.mail_reader().read(bytes(mail.raw or b""), [endpoint.address])


def _give_up(mail: ReceivedMail, found: GaveUp) -> None:
    logger.warning("mail.reader_gave_up", extra={"mail_id": str(mail.pk), "why": found.reason})
    if mail.readings >= MOST_TRIES:
        end_mail(mail, State.QUARANTINED, f"The reader gave up: {found.reason}.")
    else:
        _read(mail)


def _write_or_wait(mail: ReceivedMail, endpoint: PersistentAgentCommsEndpoint, reading: MailReading) -> None:
    try:
        _write(mail, endpoint, reading)
    except StillSending:
        # What it speaks of has not been written down yet; that is no fault of this mail.
        ReceivedMail.objects.filter(pk=mail.pk).update(readings=F("readings") - 1)


def _write(
    mail: ReceivedMail, endpoint: PersistentAgentCommsEndpoint, reading: MailReading, released_by: str = ""
) -> None:
    """Says what the mail is, unless somebody else has; keeps its files only where it becomes a message."""
    letter = _letter(mail, endpoint, reading)
    is_message = is_listened_to(endpoint, letter.sender) and (released_by or not doubt_about(letter))
    files = keep_files.keep(mail.pk, reading.content.files) if is_message else []
    was = mail.state
    with transaction.atomic():
        now = timezone.now()
        if _is_still(mail, was):
            sort_mail(replace(letter, files=files), now=now, released_by=released_by)
    if mail.state != State.RECEIVED:
        keep_files.drop(files)


def _is_still(mail: ReceivedMail, state: str) -> bool:
    """Locks the row; where somebody else has read it meanwhile, `mail` is as they left it."""
    found = ReceivedMail.objects.select_for_update(no_key=True).values_list("state").get(pk=mail.pk)[0]
    mail.state = found
    return bool(found == state)


def _letter(mail: ReceivedMail, endpoint: PersistentAgentCommsEndpoint, reading: MailReading) -> Letter:
    fields = reading.fields
    sender = sender_of(fields)
    account = getattr(endpoint, "agentemailaccount", None)
    found = NOTHING if account is None else assess(fields, sender, account.imap_host)
    mail.rfc_message_id = message_id_of(fields)
    mail.from_address = sender or next(iter(addresses_in(fields.get("from")[:1_000])), "")[:320]
    mail.kind, mail.is_automated = reading.returned.kind, reading.is_automated
    mail.authentication = found.verdict
    raw = mail.raw or b""
    is_header = mail.size > config().max_received_bytes and len(raw) < mail.size
    note = _HEADER_ONLY.format(why=too_large(mail.size), folder=mail.folder) if is_header else ""
    return Letter(mail, endpoint, reading, sender, found, note=note)


def read_what_is_stored(now: datetime) -> int:
    """Asks workers for mail that nobody has read, or told the agent of, for a while; for how many."""
    rows, since = ReceivedMail.objects, now - LEFT_FOR
    unread = rows.filter(state=State.STORED, stored_at__lte=since).order_by("stored_at")
    untold = rows.filter(state=State.RECEIVED, announced_at__isnull=True, read_at__lte=since).order_by(
        "read_at"
    )
    keys = [key for found in (unread, untold) for key in found.values_list("pk", flat=True)[:BATCH]]
    asked = _asked.lately(now)
    wanted_now = [key for key in keys if key not in asked]
    if wanted_now and wiring.doorbell().call([Call(RECEIVE, str(key), INBOUND_QUEUE) for key in wanted_now]):
        _asked.note(wanted_now, now)
    return len(wanted_now)


class _Asked:
    """Which mails this process has asked for, so that a backlog is not asked for in every round."""

    def __init__(self) -> None:
        self._at: dict[uuid.UUID, datetime] = {}

    def lately(self, now: datetime) -> set[uuid.UUID]:
        self._at = {key: at for key, at in self._at.items() if at > now - LEFT_FOR}
        return set(self._at)

    def note(self, keys: Iterable[uuid.UUID], now: datetime) -> None:
        self._at |= dict.fromkeys(keys, now)


_asked = _Asked()
