"""Writing down how an attempt ended: its status, each recipient, the message, what comes next.

One transaction, fenced by the lease; a late worker changes nothing, its answer is kept as an event.
What an ending means is decided in domain/judgement; locks are taken in the order attempt, message.
"""

import logging
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from django.db import transaction

from gobii_email.domain.classification import Verdict
from gobii_email.domain.judgement import Judgement, RecipientJudgement, judge
from gobii_email.domain.lifecycle import (
    AttemptStatus,
    Move,
    Provider,
    RecipientStatus,
    after,
)
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.models import (
    OutboundMessageAttempt,
    OutboundMessageEvent,
    OutboundMessageRecipient,
)
from gobii_email.models.queue import Acceptance, Work
from gobii_email.services import hold, measure
from gobii_email.services.follow import (
    Next,
    counted,
    doubt_due_at,
    next_attempt_at,
    people,
    queue_next,
    refresh_message,
)
from gobii_email.services.resolve import resolve
from gobii_email.services.suppress import suppress_refused
from gobii_email.services.tell import event, tell

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """An outcome, read: everything that is written about the end of one attempt."""

    outcome: Outcome
    judgement: Judgement
    move: Move
    following: Next | None
    said: str

    @property
    def gives_up(self) -> bool:
        """Whether recipients that could be tried again are not, because no time is left."""
        return bool(self.judgement.to_retry) and self.following is None


def acceptance_of(
    work: Work, outcome: Outcome, provider: Provider, *, is_part: bool, now: datetime
) -> Acceptance | None:
    """The ordinary ending, fit to be written together with others; None for every other one.

    Ordinary is: a first attempt that a server accepted for everybody the message is for, and not `is_part`.
    """
    if not isinstance(outcome, Accepted) or outcome.refused or work.number != 1 or is_part:
        return None
    if provider is Provider.SIMULATION:
        return None
    reply, facts = outcome.reply, outcome.facts
    stage_ms = dict(facts.stage_ms)
    data = {"number": 1, "stage": "", "verdict": Verdict.ACCEPTED, "scope": "", "stage_ms": stage_ms}
    return Acceptance(
        id=work.id,
        token=work.token,
        provider=str(provider),
        at=now,
        code=reply.code if provider is Provider.SMTP else None,
        enhanced=reply.enhanced,
        reply=reply.text,
        queue_id=outcome.provider_message_id,
        stage_ms=stage_ms,
        tls=facts.tls,
        peer=facts.peer_address,
        said=_accepted_text(1, len(work.addresses), reply),
        data=data,
    )


def settle(
    attempt: OutboundMessageAttempt, outcome: Outcome, *, provider: Provider | None, now: datetime
) -> bool:
    """Writes the end of `attempt`; False when somebody else had ended it, then only the answer is noted.

    `provider` is None where a worker was lost before it could write down which one it had selected.
    """
    ending = _read(attempt, outcome, provider, now)
    with transaction.atomic():
        if not _write_attempt(attempt, ending, provider, now):
            _note_late_answer(attempt, ending, now)
            return False
        _write_recipients(attempt, ending)
        if provider is Provider.SMTP:
            suppress_refused(attempt, outcome.refused, now)
        events = [_ending_event(attempt, ending, now)]
        if ending.following is not None and ending.move is not Move.LOST_AFTER_MARK:
            events.append(queue_next(attempt, ending.judgement.to_retry, ending.following, now))
        if provider is Provider.SMTP:
            events += hold.react(attempt, ending.judgement, ending.said, now)
        tell(events)
        refresh_message(attempt, now, own=_statuses(ending) if attempt.number == 1 else None)
        reading, account = ending.judgement.reading, hold.account_of(attempt)
        transaction.on_commit(partial(measure.ended, attempt, outcome, reading, account))
    return True


def _note_late_answer(attempt: OutboundMessageAttempt, ending: Ending, now: datetime) -> None:
    """Keeps the answer that a worker brings after its lease was lost.

    It overwrites nothing. Where the very same lease is the one in doubt, the server's own answer is the
    evidence that ends the doubt, for each recipient as the server said.
    """
    outcome, said = ending.outcome, ending.said
    if isinstance(outcome, Lost):
        logger.info("attempt.lease_lost", extra={"attempt_id": str(attempt.pk)})
        return
    rows = OutboundMessageAttempt.objects.select_related("message").select_for_update(of=("self",))
    present = rows.get(pk=attempt.pk)
    is_its_own = present.lease_token == attempt.lease_token
    is_in_doubt = is_its_own and present.status == AttemptStatus.IN_DOUBT
    if is_its_own and not is_in_doubt and present.reply and present.reply == outcome.reply.text:
        # No late answer: this very one was committed. Only the confirmation was lost, and with it the count.
        reading, account = ending.judgement.reading, hold.account_of(attempt)
        transaction.on_commit(partial(measure.ended, present, outcome, reading, account))
        return
    logger.warning("attempt.late_answer", extra={"attempt_id": str(attempt.pk)})
    tell([event(attempt, "late_answer", f"A worker that had lost its lease reports: {said}", at=now)])
    if is_in_doubt:
        if isinstance(outcome, Accepted):
            move = Move.FOUND
        else:
            move = Move.ABSENT if ending.judgement.to_retry else Move.GIVEN_UP
        _write_recipients(
            attempt, ending, only=attempt.addresses if move is Move.GIVEN_UP else outcome.refused
        )
        resolve(present, move, evidence=f"The late answer of its own worker ends the doubt: {said}", now=now)


def _read(
    attempt: OutboundMessageAttempt, outcome: Outcome, provider: Provider | None, now: datetime
) -> Ending:
    account = hold.account_of(attempt)
    by_token = account is not None and account.smtp_auth == account.AuthMode.OAUTH2
    judgement = judge(outcome, attempt.addresses, unasked=_left_for_another_part(attempt), by_token=by_token)
    following = _following(attempt, judgement, provider, now)
    move = judgement.move
    if move is Move.ACCEPTED and provider is Provider.SIMULATION:
        move = Move.CONFIRMED
    if move in {Move.TEMPORARY, Move.LOST_BEFORE_MARK} and following is None:
        move = Move.EXPIRED
    return Ending(outcome, judgement, move, following, what_was_said(outcome))


def _left_for_another_part(attempt: OutboundMessageAttempt) -> list[str]:
    """Recipients of `attempt` that it was not for in the end: see `send_part`."""
    deferred = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk, status=RecipientStatus.DEFERRED)
    return list(deferred.exclude(address__in=attempt.addresses).values_list("address", flat=True))


def _following(
    attempt: OutboundMessageAttempt, judgement: Judgement, provider: Provider | None, now: datetime
) -> Next | None:
    """When to try the deferred recipients again; None when there are none, or no time is left for them."""
    if not judgement.to_retry:
        return None
    expires_at = attempt.message.expires_at or now
    # Only an account can be held and woken by its owner; without one the schedule decides.
    if judgement.hold is not None and provider is Provider.SMTP:
        until = hold.ends_at(judgement.hold, now)
        due_at = min(until or expires_at, expires_at)
        return Next(now, due_at, held_code=str(judgement.hold.hold), held_reason=judgement.hold.advice)
    if judgement.only_unasked:
        return Next(now, now)
    at = next_attempt_at(attempt, now, judgement.retry_after)
    return None if at is None else Next(not_before=at, due_at=at)


def what_was_said(outcome: Outcome) -> str:
    """The server's reply, or the sentence about the lost connection."""
    match outcome:
        case Accepted(reply=reply):
            return str(reply)
        case Refused(stage=stage, reply=reply):
            return f"{reply} (at {stage})"
        case Lost(text=text):
            return text


def _write_attempt(
    attempt: OutboundMessageAttempt, ending: Ending, provider: Provider | None, now: datetime
) -> bool:
    """The fenced write. Sets the same values on `attempt` when it succeeded."""
    status = after(AttemptStatus.SENDING, ending.move)
    outcome, reading = ending.outcome, ending.judgement.reading
    reply = None if isinstance(outcome, Lost) else outcome.reply
    is_failure = not isinstance(outcome, Accepted)
    values: dict[str, object] = {
        "status": status,
        "provider": provider or "",
        "stage": _stage(outcome),
        "verdict": reading.verdict,
        "scope": reading.scope if is_failure else "",
        "smtp_code": reply.code if reply and provider is Provider.SMTP else None,
        "enhanced_status": reply.enhanced if reply else "",
        "reply": reply.text if reply else "",
        "error_code": _error_code(ending),
        "error_message": ending.said if is_failure else "",
        "provider_message_id": outcome.provider_message_id if isinstance(outcome, Accepted) else "",
        "stage_ms": dict(outcome.facts.stage_ms),
        "tls": outcome.facts.tls,
        "peer_address": outcome.facts.peer_address,
        "finished_at": None if status is AttemptStatus.IN_DOUBT else now,
        "sent_at": now if isinstance(outcome, Accepted) else None,
        "delivered_at": now if status is AttemptStatus.DELIVERED else None,
        "due_at": doubt_due_at(attempt, now) if status is AttemptStatus.IN_DOUBT else None,
    }
    return OutboundMessageAttempt.objects.held_by(attempt.pk, attempt.lease_token).write(attempt, **values)


def _stage(outcome: Outcome) -> str:
    """Where it ended; "" when it was accepted, or when a lost worker took that knowledge with it."""
    match outcome:
        case Accepted() | Lost(cause=Cause.WORKER_LOST, is_marked=False):
            return ""
        case Refused(stage=stage) | Lost(stage=stage):
            return str(stage)


def _error_code(ending: Ending) -> str:
    if ending.move is Move.EXPIRED:
        return "expired"
    match ending.outcome:
        case Lost(cause=cause):
            return str(cause)
        case Refused():
            return ending.judgement.reading.category
    return ""


def _statuses(ending: Ending) -> list[RecipientStatus]:
    return [_written(found, ending).status for found in ending.judgement.recipients.values()]


def _written(found: RecipientJudgement, ending: Ending) -> RecipientJudgement:
    """What is stored of a recipient: delivered where the transport vouches for it, refused out of time."""
    if found.status is RecipientStatus.ACCEPTED and ending.move is Move.CONFIRMED:
        return RecipientJudgement(RecipientStatus.DELIVERED, found.reply)
    if found.status is RecipientStatus.DEFERRED and ending.gives_up:
        return RecipientJudgement(RecipientStatus.REFUSED, found.reply)
    return found


def _write_recipients(
    attempt: OutboundMessageAttempt, ending: Ending, *, only: Collection[str] | None = None
) -> None:
    """One statement for each different result; usually there is one. `only` these addresses, if given.

    Whom a doubt is about becomes pending again, also after an earlier attempt was deferred: whatever ends
    the doubt tells them by that from those who are to be tried again.
    """
    groups: dict[RecipientJudgement, list[str]] = defaultdict(list)
    for address, found in ending.judgement.recipients.items():
        if only is not None and address not in only:
            continue
        groups[_written(found, ending)].append(address)
    for found, addresses in groups.items():
        if found.status is RecipientStatus.PENDING and ending.move is not Move.LOST_AFTER_MARK:
            continue
        values: dict[str, object] = {"status": found.status}
        if found.reply is not None:
            values |= {
                "smtp_code": found.reply.code,
                "enhanced_status": found.reply.enhanced,
                "reply": found.reply.text,
            }
        rows = OutboundMessageRecipient.objects.filter(attempt_id=attempt.pk)
        if only is not None or len(groups) > 1:
            rows = rows.filter(address__in=addresses)
        rows.update(**values)


def _ending_event(attempt: OutboundMessageAttempt, ending: Ending, now: datetime) -> OutboundMessageEvent:
    data = {
        "number": attempt.number,
        "stage": attempt.stage,
        "verdict": attempt.verdict,
        "scope": attempt.scope,
        "stage_ms": attempt.stage_ms,
    }
    return event(attempt, str(attempt.status), _ending_text(attempt, ending), at=now, **data)


def _accepted_text(number: int, recipients: int, said: object) -> str:
    return f"Attempt {number}: the server accepted it for {counted(recipients)}: {said}."


def _ending_text(attempt: OutboundMessageAttempt, ending: Ending) -> str:
    number, said, judgement = attempt.number, ending.said, ending.judgement
    match ending.move:
        case Move.CONFIRMED:
            return (
                f"Simulated: composed and stored for {people(judgement.accepted)}, nothing left this machine."
            )
        case Move.ACCEPTED:
            asked = len(judgement.recipients) - len(judgement.unasked)
            others = asked - len(judgement.accepted)
            refused = f" {others} of {asked} recipients were refused." if others else ""
            later = f" {people(judgement.unasked)} follow in another part." if judgement.unasked else ""
            return _accepted_text(number, len(judgement.accepted), said) + refused + later
        case Move.LOST_AFTER_MARK:
            return f"Attempt {number}: in doubt. The server may have it; no answer came: {said}"
        case Move.EXPIRED:
            return f"Attempt {number}: given up, because the message expires before another attempt: {said}"
        case Move.PERMANENT:
            return f"Attempt {number}: refused for good: {said}"
    return f"Attempt {number}: not this time: {said}"
