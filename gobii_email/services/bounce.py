"""What received mail proves of mail that was sent: bounces, delays, deliveries, complaints, answers.

First whose mail it speaks of (services/correlate), then what that proves, in one transaction that locks the
message's attempts before the message. What fits no mail of the mailbox it came to changes nothing.
"""

import logging
from collections.abc import Sequence
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from gobii_email import metrics
from gobii_email.domain.addresses import normalise
from gobii_email.domain.dsn import Action, Evidence, ReturnedRecipient, Source, Sureness, message_id_in
from gobii_email.domain.inbound_mail import Fields
from gobii_email.domain.lifecycle import AttemptStatus, RecipientStatus
from gobii_email.domain.returned_mail import Kind, Returned
from gobii_email.domain.smtp_replies import safe_text
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
    PersistentAgentMessage,
    ReceivedMail,
)
from gobii_email.services import correlate
from gobii_email.services.complain import complained
from gobii_email.services.correlate import Match
from gobii_email.services.prove import (
    Proof,
    StillSending,
    end_doubt,
    locked_attempts,
    may_have_been_taken,
    prove,
)
from gobii_email.services.retell import MAX_ADDRESS_CHARACTERS, Told
from gobii_email.services.suppress import suppress_bounced
from gobii_email.services.tell import event, tell

logger = logging.getLogger(__name__)

MOST_NOTES = 50
"""Events that change no status, for each message: whoever got a mail could send reports about it for ever."""

_STATUSES = {Action.FAILED: RecipientStatus.BOUNCED, Action.DELIVERED: RecipientStatus.DELIVERED}
_NOBODY = Evidence(Source.COPY, Sureness.WEAK)


def note_returned(mail: ReceivedMail, returned: Returned, fields: Fields) -> bool:
    """Writes down what `returned`, the reading of `mail`, proves; whether it was about a mail sent from here.

    Raises StillSending, having written nothing, while the mail it speaks of is being sent: to be read again.
    """
    if mail.endpoint_id is None or returned.kind is Kind.ORDINARY:
        return False
    now = timezone.now()
    match = correlate.find(mail.endpoint_id, returned, now)
    if match is None:
        return _unmatched(mail, returned, "It names no mail that went out from this mailbox.")
    with transaction.atomic():
        is_ours = _Story(mail, match, now).note(returned)
    if is_ours:
        metrics.BOUNCES.inc(str(returned.kind))
    return is_ours


def note_reply(mail: ReceivedMail, message: PersistentAgentMessage | None, fields: Fields) -> bool:
    """Takes `mail`, received as `message` or kept from the agent, for proof that what it answers had arrived.

    Only what In-Reply-To names was read by whoever answers: References may come from a later mail.
    """
    if mail.endpoint_id is None or _is_own(mail):
        return False
    match = correlate.by_message_id(mail.endpoint_id, message_id_in(fields.raw("in-reply-to")))
    if match is None:
        return False
    who = safe_text(mail.from_address, max_characters=MAX_ADDRESS_CHARACTERS) or "Somebody"
    with transaction.atomic():
        return _Story(mail, match, timezone.now()).answered("replied", f"{who} replied to it.")


def _is_own(mail: ReceivedMail) -> bool:
    return mail.endpoint is not None and normalise(mail.from_address) == normalise(mail.endpoint.address)


def _unmatched(mail: ReceivedMail, returned: Returned, why: str) -> bool:
    logger.info("report.unmatched", extra={"mail_id": str(mail.pk), "why": f"{returned.kind}: {why}"})
    mail.reason = why
    ReceivedMail.objects.filter(pk=mail.pk).update(reason=why)
    return False


class _Story:
    """One message with its attempts locked, while a received mail is read for what it proves of it."""

    def __init__(self, mail: ReceivedMail, match: Match, now: datetime) -> None:
        self.mail, self.match, self.now = mail, match, now
        self.attempts = locked_attempts(match.message_id)
        self.recipients = list(OutboundMessageRecipient.objects.filter(message_id=match.message_id))
        self.notes = list(
            OutboundMessageEvent.objects.filter(message_id=match.message_id, data__has_key="mail")
        )

    def note(self, returned: Returned) -> bool:
        if returned.kind is Kind.AUTOREPLY:
            who = safe_text(self.mail.from_address, max_characters=MAX_ADDRESS_CHARACTERS) or "Somebody"
            return not _is_own(self.mail) and self.answered(
                "autoreply", f"An automatic answer came from {who}."
            )
        told = self._told(returned)
        if not self.match.is_sure:
            return self._guessed(returned, told)
        attempt = self._attempt([one.recipient for one in told if one.recipient])
        if attempt is None:
            why = "It speaks of a mail that no server took in the attempt that it names."
            return _unmatched(self.mail, returned, why)
        self._about(attempt)
        named = [one.recipient.address for one in told if one.recipient]
        end_doubt(attempt, self.attempts, self._evidence(returned), self.now, named=named)
        for one in told:
            self._note_one(one, attempt)
        if not told:
            self._note_once(attempt, "report", f"A report came that names nobody: {returned.kind}.")
        return True

    def answered(self, name: str, text: str) -> bool:
        """Somebody got the mail: evidence for a doubt, and a note."""
        attempt = self._attempt([])
        if attempt is None:
            return False
        self._about(attempt)
        end_doubt(attempt, self.attempts, f"The server had it: {text}", self.now)
        self._note_once(attempt, name, text)
        return True

    def _told(self, returned: Returned) -> list[Told]:
        told = [Told(said, correlate.addressee(said, self.recipients)) for said in returned.recipients]
        is_nobody_known = not any(one.recipient for one in told)
        if is_nobody_known and self._is_complaint_or_bare(returned) and len(self.recipients) == 1:
            (only,) = self.recipients
            action = Action.COMPLAINED if returned.kind is Kind.COMPLAINT else Action.FAILED
            said = ReturnedRecipient(only.address, action, "", _NOBODY, is_status_written=False)
            return [Told(said, only)]
        return told

    def _is_complaint_or_bare(self, returned: Returned) -> bool:
        """Whether a report may hide or leave out its recipient: complaints do, some servers do."""
        is_bare_failure = returned.kind is Kind.FAILED and not returned.recipients
        return is_bare_failure or returned.kind is Kind.COMPLAINT

    def _attempt(self, named: Sequence[OutboundMessageRecipient]) -> OutboundMessageAttempt | None:
        """The attempt in question: the one that is named, else the latest that may have reached `named`.

        Raises StillSending where its outcome is yet to be written, and nothing else explains the report.
        """
        is_exact = self.match.attempt_id is not None
        own = {self.match.attempt_id} if is_exact else {row.attempt_id for row in named}
        asked = [attempt for attempt in self.attempts if attempt.pk in own]
        others = [] if is_exact else [attempt for attempt in self.attempts if attempt.pk not in own]
        taken = [attempt for attempt in (*asked, *others) if may_have_been_taken(attempt)]
        waited_for = asked if taken else [*asked, *others]
        if any(attempt.status == AttemptStatus.SENDING for attempt in waited_for):
            raise StillSending("the mail that it speaks of is being sent")
        return taken[0] if taken else None

    def _about(self, attempt: OutboundMessageAttempt) -> None:
        self.mail.about = attempt
        ReceivedMail.objects.filter(pk=self.mail.pk).update(about=attempt)

    def _guessed(self, returned: Returned, told: Sequence[Told]) -> bool:
        """A guess is told, and proves nothing."""
        ours = [one for one in told if one.recipient]
        attempt = self._attempt([one.recipient for one in ours if one.recipient])
        if attempt is None or not ours:
            return _unmatched(self.mail, returned, "It names no mail that went out from this mailbox.")
        self._about(attempt)
        text = f"A report without a sign of this mail may be about it: {ours[0].sentence}"
        self._note_once(attempt, "possible_report", text, **self._facts(ours[0]))
        return True

    def _note_one(self, told: Told, named: OutboundMessageAttempt) -> None:
        recipient, action = told.recipient, told.said.action
        if recipient is not None and action is Action.COMPLAINED:
            complained(recipient, named, self._event(told, named), self.now)
        elif recipient is None or not self._is_carried_by(named, recipient):
            self._note_elsewhere(told, named)
        elif action in _STATUSES:
            self._prove(told, recipient, named)
        else:
            self._note_once(named, str(action), told.sentence, **self._facts(told))

    def _is_carried_by(self, named: OutboundMessageAttempt, recipient: OutboundMessageRecipient) -> bool:
        """Whether what became of `named` decides about `recipient`, and no later attempt does."""
        recipient.refresh_from_db()
        return recipient.attempt_id == named.pk

    def _note_elsewhere(self, told: Told, named: OutboundMessageAttempt) -> None:
        """About somebody we did not write to, such as where an alias leads; or about an earlier copy."""
        whose = "of an earlier copy" if told.recipient else "about an address behind those it went to"
        text = f"A report {whose}: {told.sentence}"
        self._note_once(named, "other_report", text, **self._facts(told))

    def _prove(
        self, told: Told, recipient: OutboundMessageRecipient, attempt: OutboundMessageAttempt
    ) -> None:
        proof = Proof.of(_STATUSES[told.said.action], told.said.diagnostic, told.code)
        is_news = prove(recipient, attempt, proof, self._event(told, attempt), self.now)
        if is_news and told.said.evidence.sureness is not Sureness.WEAK:
            suppress_bounced(attempt, recipient, proof, self.now)

    def _event(self, told: Told, attempt: OutboundMessageAttempt) -> OutboundMessageEvent:
        return event(attempt, told.event_name, told.sentence, at=self.now, **self._facts(told))

    def _facts(self, told: Told) -> dict[str, str]:
        return {**told.facts, "matched_by": self.match.by, "mail": str(self.mail.pk)}

    def _evidence(self, returned: Returned) -> str:
        return f"The server had it: a report came about it ({returned.kind}), matched by {self.match.by}."

    def _note_once(self, attempt: OutboundMessageAttempt, name: str, text: str, **facts: str) -> None:
        """Tells it unless this very mail has told it before, or too much has been told already."""
        mail = str(self.mail.pk)
        key = (name, mail, facts.get("recipient"))
        known = {(note.event, note.data["mail"], note.data.get("recipient")) for note in self.notes}
        if key in known or len(self.notes) >= MOST_NOTES:
            return
        note = event(attempt, name, text, at=self.now, **{"mail": mail, **facts})
        self.notes.append(note)
        tell([note])
