"""What an understood mail is: a report, a message, something to be kept back, or nobody's business here.

To be called in a transaction that holds the row of the mail. Every way out leaves a state and, where it
becomes no message, a sentence that says why.
"""

from datetime import datetime
from functools import partial

from django.db import transaction
from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.authentication_results import Authentication
from gobii_email.domain.automated_mail import has_null_return_path
from gobii_email.domain.dsn import Sureness
from gobii_email.domain.returned_mail import Kind
from gobii_email.models import PersistentAgentCommsEndpoint, ReceivedMail
from gobii_email.services.admission import (
    NOT_ALLOWED,
    OWN,
    UNREADABLE,
    is_listened_to,
    own_message_ids,
)
from gobii_email.services.announce import announce
from gobii_email.services.bounce import note_reply, note_returned
from gobii_email.services.take_in import Letter, take_in

State = ReceivedMail.State

_WRITTEN = (
    "state", "reason", "read_at", "rfc_message_id", "from_address", "kind", "is_automated",
    "authentication", "message",
)  # fmt: skip
_NOT_OURS = "It is a report about no mail of this mailbox."


def doubt_about(letter: Letter) -> str:
    """Why the policy keeps it back, "" where it does not."""
    policy, found = config().inbound_authentication, letter.assessment
    is_refuted = found.verdict is Authentication.FAILED
    is_unproven = found.verdict is not Authentication.PASSED
    if (is_refuted and policy != "ignore") or (is_unproven and policy == "require"):
        return f"{found.text} (INBOUND_AUTHENTICATION={policy})"
    return ""


def sort_mail(letter: Letter, *, now: datetime, released_by: str = "") -> None:
    """Writes what the mail is. With `released_by` a person vouches for it. Raises StillSending."""
    state, reason = _found(letter, now, released_by)
    end_mail(letter.mail, state, reason)
    if state is State.RECEIVED:
        transaction.on_commit(partial(announce, letter.mail.pk), robust=True)


def end_mail(mail: ReceivedMail, state: ReceivedMail.State, reason: str) -> None:
    """Writes what is known of the mail, and that it was read; what is nobody's business is not kept."""
    mail.state, mail.reason, mail.read_at = state, reason, timezone.now()
    written = list(_WRITTEN)
    if state is State.SKIPPED and mail.kind in ("", Kind.ORDINARY, Kind.AUTOREPLY):
        mail.raw = None
        written.append("raw")
    mail.save(update_fields=written)


def _found(letter: Letter, now: datetime, released_by: str) -> tuple[ReceivedMail.State, str]:
    mail, returned = letter.mail, letter.reading.returned
    if letter.sender == letter.endpoint.address or own_message_ids(letter.endpoint, [mail.rfc_message_id]):
        return State.SKIPPED, OWN
    is_listened = is_listened_to(letter.endpoint, letter.sender)
    is_about_ours = returned.kind is not Kind.ORDINARY and note_returned(
        mail, returned, letter.reading.fields
    )
    if returned.is_report and (is_about_ours or not is_listened or _is_certain(letter)):
        return (State.REPORT, "") if is_about_ours else (State.SKIPPED, mail.reason or _NOT_OURS)
    if not is_listened:
        return _of_nobody_listened_to(letter, is_about_ours)
    if not released_by and (doubt := doubt_about(letter)):
        return State.QUARANTINED, doubt
    _lock(letter.endpoint)
    if (earlier := _earlier(mail)) is not None:
        return State.SKIPPED, f"It was received before, as mail {earlier.pk}."
    mail.message = take_in(letter, now)
    if returned.kind is Kind.ORDINARY:
        note_reply(mail, mail.message, letter.reading.fields)
    return State.RECEIVED, f"Released by {released_by}. {mail.reason}" if released_by else ""


def _of_nobody_listened_to(letter: Letter, is_about_ours: bool) -> tuple[ReceivedMail.State, str]:
    """It may still prove that a mail of ours arrived."""
    if is_about_ours or note_reply(letter.mail, None, letter.reading.fields):
        return State.REPORT, "Its sender is not listened to; it shows that a mail of ours arrived."
    return State.SKIPPED, NOT_ALLOWED if letter.sender else UNREADABLE


def _is_certain(letter: Letter) -> bool:
    """Whether it was no person who wrote it: people write of failures too, and an agent should read that."""
    evidence = letter.reading.returned.evidence.get("kind")
    is_sure = evidence is not None and evidence.sureness is Sureness.SURE
    return is_sure or has_null_return_path(letter.reading.fields)


def _lock(endpoint: PersistentAgentCommsEndpoint) -> None:
    """Two copies of a mail that are read at once are read one after the other from here on."""
    # Without the key: mail that is being submitted refers to it and must not wait.
    rows = PersistentAgentCommsEndpoint.objects.select_for_update(no_key=True)
    rows.values_list("pk").get(pk=endpoint.pk)


def _earlier(mail: ReceivedMail) -> ReceivedMail | None:
    """A copy of `mail` that became a message: of the same Message-ID and sender, else of the same bytes.

    The sender counts, or whoever learns an id could send another mail under it first.
    """
    rows = ReceivedMail.objects.filter(
        endpoint=mail.endpoint_id,
        rfc_message_id=mail.rfc_message_id,
        from_address=mail.from_address,
        state=State.RECEIVED,
    ).exclude(pk=mail.pk)
    if mail.rfc_message_id:
        return rows.only("pk").first()
    same_size = rows.filter(size=mail.size)[:5]
    return next((row for row in same_size if bytes(row.raw or b"") == bytes(mail.raw or b"")), None)
