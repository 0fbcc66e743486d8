"""What is proven of mail that a server took: shared by all that tells of it later, by mail or by a provider.

Evidence moves a recipient, then its attempt, then the message, in the caller's transaction. Whose evidence
it is, and whether it can be believed, is decided by the caller; told twice, it changes nothing.
"""

import re
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from django.db import connection, transaction

from gobii_email import metrics
from gobii_email.domain.lifecycle import AttemptStatus, Move, RecipientStatus, after
from gobii_email.domain.readings import Scope, Verdict
from gobii_email.domain.smtp_replies import Reply, reply_from, safe_text
from gobii_email.models import OutboundMessageAttempt, OutboundMessageEvent, OutboundMessageRecipient
from gobii_email.services.follow import refresh_message
from gobii_email.services.resolve import resolve
from gobii_email.services.tell import event, tell
from gobii_email.signals import recipient_bounced

_REPLY = re.compile(r"\b([245]\d\d)[ -](.*)")
_SINCE = {
    RecipientStatus.DELIVERED: {RecipientStatus.ACCEPTED},
    RecipientStatus.BOUNCED: {RecipientStatus.ACCEPTED, RecipientStatus.DELIVERED},
}
"""Which status each proof follows. A bounce is the last word, whatever comes late."""


class StillSending(Exception):
    """The report overtook our own note that a server took the mail; it has to be read again later."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What became of a recipient, DELIVERED or BOUNCED, and what the receiving server said, safe to show."""

    status: RecipientStatus
    said: str = ""
    smtp_code: int | None = None
    enhanced_status: str = ""

    @classmethod
    def of(cls, status: RecipientStatus, said: str, enhanced_status: str = "") -> "Proof":
        """With the code and the text in words such as `smtp;550 5.1.1 No such user`."""
        found = _REPLY.search(safe_text(said))
        reply = Reply(0, text=safe_text(said)) if found is None else reply_from(int(found[1]), found[2])
        return cls(status, reply.text, reply.code or None, reply.enhanced or enhanced_status)

    @property
    def sentence(self) -> str:
        """All that was said, "" where nothing was."""
        parts = (str(self.smtp_code or ""), self.enhanced_status, self.said)
        return " ".join(part for part in parts if part)


def locked_attempts(message_id: uuid.UUID) -> list[OutboundMessageAttempt]:
    """All attempts of a message, the latest first, locked in this order: whoever ends one comes first."""
    rows = OutboundMessageAttempt.objects.select_related("message").filter(message_id=message_id)
    if connection.features.has_select_for_update_of:
        rows = rows.select_for_update(of=("self",))
    return list(rows.order_by("-number"))


def may_have_been_taken(attempt: OutboundMessageAttempt) -> bool:
    """Whether a server took the mail in this attempt, or nobody knows, so that it can be reported on."""
    match attempt.status:
        case AttemptStatus.SENT | AttemptStatus.DELIVERED | AttemptStatus.IN_DOUBT:
            return True
        case AttemptStatus.DEFERRED:
            return was_repeated_in_doubt(attempt)
        case AttemptStatus.FAILED:
            return attempt.sent_at is not None or attempt.marked_at is not None
    return False


def was_repeated_in_doubt(attempt: OutboundMessageAttempt) -> bool:
    """Whether the mail was queued again although a server may have had it."""
    return attempt.status == AttemptStatus.DEFERRED and attempt.verdict == Verdict.IN_DOUBT


def end_doubt(
    attempt: OutboundMessageAttempt,
    attempts: Sequence[OutboundMessageAttempt],
    evidence: str,
    now: datetime,
    *,
    named: Collection[str] = (),
) -> None:
    """Settles that a server took `attempt`, one of the locked `attempts`, if that was not known.

    What was queued again for want of proof is withdrawn for whom the server had taken it: for those `named`,
    and for all whom no server ever put off. Raises StillSending while it is being sent again.
    """
    if attempt.status == AttemptStatus.IN_DOUBT:
        resolve(attempt, Move.FOUND, evidence=safe_text(evidence), now=now)
    elif was_repeated_in_doubt(attempt):
        later = [other for other in attempts if other.number > attempt.number]
        if any(other.status == AttemptStatus.SENDING for other in later):
            raise StillSending(f"attempt {attempt.pk} is being repeated")
        for other in later:
            if other.status in (AttemptStatus.QUEUED, AttemptStatus.IN_DOUBT):
                _take_back(attempt, other, named, now)
        _write_found(attempt, evidence, now)


def _take_back(
    attempt: OutboundMessageAttempt, later: OutboundMessageAttempt, named: Collection[str], now: datetime
) -> None:
    rows = OutboundMessageRecipient.objects.filter(attempt_id=later.pk)
    mine = [row for row in rows if row.address in attempt.addresses]
    taken = [row for row in mine if row.address in named or row.smtp_code is None]
    rows.filter(pk__in=[row.pk for row in taken]).update(status=RecipientStatus.ACCEPTED, attempt=attempt)
    left = [address for address in later.addresses if address not in {row.address for row in taken}]
    if left:
        OutboundMessageAttempt.objects.filter(pk=later.pk).write(later, addresses=left)
    else:
        _withdraw(later, now)


def _withdraw(later: OutboundMessageAttempt, now: datetime) -> None:
    """Ends a repetition that nobody needs any more; whether its own copy arrived may never be known."""
    move = Move.CANCELLED if later.status == AttemptStatus.QUEUED else Move.ABSENT
    if move is Move.ABSENT:
        transaction.on_commit(partial(metrics.DOUBTS_ENDED.inc, "withdrawn"))
    status = after(AttemptStatus(later.status), move)
    rows = OutboundMessageAttempt.objects.filter(pk=later.pk)
    rows.write(later, status=status, due_at=None, finished_at=now, held_code="", held_reason="")
    text = f"Attempt {later.number} is not needed: an earlier one had arrived."
    tell([event(later, "repetition_withdrawn", text, at=now)])


def _write_found(attempt: OutboundMessageAttempt, evidence: str, now: datetime) -> None:
    status = after(after(AttemptStatus(attempt.status), Move.STILL_IN_DOUBT), Move.FOUND)
    OutboundMessageAttempt.objects.filter(pk=attempt.pk).write(
        attempt,
        status=status,
        verdict=Verdict.ACCEPTED,
        sent_at=attempt.marked_at or now,
        error_code="",
        error_message="",
    )
    tell([event(attempt, "doubt_found", safe_text(evidence), at=now)])
    refresh_message(attempt, now)


def prove(
    recipient: OutboundMessageRecipient,
    attempt: OutboundMessageAttempt,
    proof: Proof,
    told: OutboundMessageEvent,
    now: datetime,
) -> bool:
    """Writes `proof` about a recipient of the locked `attempt`, and the event; False when it was known."""
    if RecipientStatus(recipient.status) not in _SINCE[proof.status]:
        return False
    recipient.status, recipient.reply = proof.status, proof.said
    recipient.smtp_code, recipient.enhanced_status = proof.smtp_code, proof.enhanced_status
    recipient.save(update_fields=["status", "smtp_code", "enhanced_status", "reply"])
    if proof.status is RecipientStatus.BOUNCED:
        _signal_bounce(recipient)
    tell([told])
    _move_attempt(attempt, proof, now)
    refresh_message(attempt, now)
    return True


def _signal_bounce(recipient: OutboundMessageRecipient) -> None:
    tell_others = partial(
        recipient_bounced.send_robust,
        sender=OutboundMessageRecipient,
        message_id=str(recipient.message_id),
        attempt_id=str(recipient.attempt_id),
        address=recipient.address,
        reply=recipient.reply,
    )
    transaction.on_commit(tell_others)


def _move_attempt(attempt: OutboundMessageAttempt, proof: Proof, now: datetime) -> None:
    """Delivered, or failed, once all that it had accepted are."""
    accepted = {RecipientStatus.ACCEPTED, RecipientStatus.DELIVERED, RecipientStatus.BOUNCED}
    statuses = accepted & set(OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk).statuses())
    status = AttemptStatus(attempt.status)
    rows = OutboundMessageAttempt.objects.filter(pk=attempt.pk)
    if statuses == {RecipientStatus.DELIVERED} and status is AttemptStatus.SENT:
        rows.write(attempt, status=after(status, Move.CONFIRMED), delivered_at=now)
    elif statuses == {RecipientStatus.BOUNCED} and status in {AttemptStatus.SENT, AttemptStatus.DELIVERED}:
        rows.write(
            attempt,
            status=after(status, Move.BOUNCED),
            verdict=Verdict.PERMANENT,
            scope=Scope.RECIPIENT,
            smtp_code=proof.smtp_code,
            enhanced_status=proof.enhanced_status,
            error_code="bounced",
            error_message=proof.sentence or "It bounced.",
        )
