"""Doubts and evidence: looking for the copy of a doubtful mail, and deciding what was seen proves.

Found is proof wherever the copy lies. Missing is proof only by the account's own habit, some time after the
doubt began, in a folder that was seen at least twice; a look that failed proves nothing. The rule and its
reasons stand in decision 9; who opens mailboxes is visit.
"""

import logging
from datetime import datetime, timedelta

from django.db import transaction

from gobii_email.conf import config
from gobii_email.domain.evidence import Copy, Looked, Sight, copy_of, seen
from gobii_email.domain.filing_habit import ENOUGH, FIRST_LOOK, Habit, next_look, spoken
from gobii_email.domain.lifecycle import AttemptStatus, Move
from gobii_email.models import (
    AgentEmailAccount,
    Mailbox,
    OutboundMessageAttempt,
    OutboundMessageEvent,
    SentCopy,
)
from gobii_email.services.follow import doubt_began, is_followed, resend_at
from gobii_email.services.learn import habit_of
from gobii_email.services.look import obstacle
from gobii_email.services.resolve import resolve
from gobii_email.services.tell import clock_time, event, tell

logger = logging.getLogger(__name__)

LEAST_LOOKS = 2
LATE = timedelta(minutes=5)
"""How long a look that is due is waited for, before a mail is sent again without it."""
AGAIN = timedelta(minutes=5)
"""When to ask again whether a mailbox that must not be opened now may be."""
NOTHING_CAME = "No evidence came; sent again as the message asks (on_doubt=resend)."

_UNSEEN = "Nobody could look for the mail in Sent, which proves nothing: {reason}"

State = SentCopy.State


# What the dispatcher decides


def look_at_doubt(attempt: OutboundMessageAttempt, now: datetime) -> bool:
    """Has the copy of a doubtful mail looked for; where nobody can look, its own policy decides.

    Whether it is sent again. To be called with its row locked; opens no connection.
    """
    account = AgentEmailAccount.objects.filter(pk=attempt.from_endpoint_id).first()
    if account is None and not attempt.message.had_account:
        return _leave_to_policy(attempt, now)
    hindrance = obstacle(account, now)
    if hindrance is None:
        return _have_looked_for(attempt, now)
    was_looked_for = SentCopy.objects.filter(pk=attempt.pk).exists()
    copy = _copy_for(attempt, None)
    _say(copy, attempt, f"Nobody looks for the mail in Sent: {hindrance.reason}.", now)
    copy.save()
    if hindrance.is_lasting:
        return _leave_to_policy(attempt, now, was_looked_for=was_looked_for)
    _be_due(attempt, now + AGAIN)
    return False


def _leave_to_policy(attempt: OutboundMessageAttempt, now: datetime, *, was_looked_for: bool = False) -> bool:
    """Sends it again where the message says so; what was never looked for was due for just that."""
    at = _resend_at(attempt, now)
    if at is None or (was_looked_for and now < at):
        _be_due(attempt, at)
        return False
    return _send_again(attempt, now)


def _resend_at(attempt: OutboundMessageAttempt, now: datetime) -> datetime | None:
    """Never once the message has expired: then it would be called failed, though the server may have it."""
    expires_at = attempt.message.expires_at
    return None if expires_at is not None and expires_at <= now else resend_at(attempt)


def _send_again(attempt: OutboundMessageAttempt, now: datetime) -> bool:
    return resolve(attempt, Move.ABSENT, evidence=NOTHING_CAME, now=now, is_proven=False)


def _have_looked_for(attempt: OutboundMessageAttempt, now: datetime) -> bool:
    copy = _copy_for(attempt, now)
    resend = _resend_at(attempt, now)
    if resend is not None and now >= resend and copy.look_at is not None and copy.look_at <= now - LATE:
        return _send_again(attempt, now)
    if copy.look_at is None:
        copy.state, copy.look_at = State.AWAITED, now
        copy.save()
    if copy.look_at <= now:
        Mailbox.objects.update_or_create(account_id=attempt.from_endpoint_id, defaults={"sent_look_at": now})
    _be_due(attempt, now + LATE)
    return False


def _copy_for(attempt: OutboundMessageAttempt, look_at: datetime | None) -> SentCopy:
    values = {
        "endpoint_id": attempt.from_endpoint_id,
        "since": since(attempt),
        "is_doubtful": True,
        "look_at": look_at,
    }
    copy, _ = SentCopy.objects.get_or_create(attempt=attempt, defaults=values)
    copy.attempt = attempt
    return copy


def since(attempt: OutboundMessageAttempt) -> datetime:
    """No copy of it is older."""
    return attempt.marked_at or attempt.queued_at


def _be_due(attempt: OutboundMessageAttempt, at: datetime | None) -> None:
    rows = OutboundMessageAttempt.objects.filter(pk=attempt.pk, status=AttemptStatus.IN_DOUBT)
    rows.update(due_at=at)


# What a look shows


def note_doubtful_sight(copy: SentCopy, account: AgentEmailAccount, looked: Looked, now: datetime) -> None:
    """Ends the doubt about `copy`'s attempt if what was seen proves anything; else tells what it does not."""
    attempt = copy.attempt
    is_alone = not _may_be_another(attempt)
    found = copy_of(looked, str(attempt.pk), is_alone=is_alone)
    sight = seen(looked, str(attempt.pk), is_alone=is_alone)
    with transaction.atomic():
        if found is not None:
            _end_found(copy, found, now)
        elif sight is Sight.UNCLEAR:
            text = (
                "Sent has a copy that another attempt of this message left, which says nothing of this one."
            )
            _go_on(copy, text, now)
        elif not _is_same_folder(copy, looked):
            _go_on(copy, "The folder of sent mail was made anew meanwhile; that proves nothing.", now)
        else:
            copy.looks += 1
            _note_missing(copy, habit_of(account, now, places=looked.places, before=copy.since), now)
        copy.save()


def note_doubtful_failure(copy: SentCopy, reason: str, now: datetime) -> None:
    """That nobody could look, which is never taken for absence."""
    with transaction.atomic():
        _go_on(copy, _UNSEEN.format(reason=reason), now)
        copy.save()


def was_looked_for_lately(attempt: OutboundMessageAttempt, now: datetime) -> bool:
    """Whether a look was told of within half a minute: nobody can have a server asked without a pause."""
    looks = OutboundMessageEvent.objects.filter(message=attempt.message_id, event="looked")
    return looks.filter(at__gt=now - FIRST_LOOK).exists()


def note_asked_sight(attempt: OutboundMessageAttempt, looked: Looked, now: datetime) -> bool:
    """Ends the doubt if the look that somebody asked for found the copy; whether it did."""
    found = copy_of(looked, str(attempt.pk), is_alone=not _may_be_another(attempt))
    if found is None:
        text = "Looked for in Sent because somebody asked: not there, which proves nothing by itself."
        tell([event(attempt, "looked", text, at=now)])
        return False
    with transaction.atomic():
        copy = _copy_for(attempt, None)
        _end_found(copy, found, now)
        copy.save()
    return True


def note_asked_failure(attempt: OutboundMessageAttempt, reason: str, now: datetime) -> None:
    """That nobody could look when somebody asked."""
    tell([event(attempt, "looked", _UNSEEN.format(reason=reason), at=now)])


def _may_be_another(attempt: OutboundMessageAttempt) -> bool:
    """Whether another attempt of the message may have reached the server."""
    others = OutboundMessageAttempt.objects.filter(message=attempt.message_id, marked_at__isnull=False)
    return others.exclude(pk=attempt.pk).exists()


def _is_same_folder(copy: SentCopy, looked: Looked) -> bool:
    """Whether the folder still is what it was at the first look, which is remembered."""
    if not copy.folder:
        copy.folder, copy.uid_validity = next(iter(looked.places.items()))
    return looked.places.get(copy.folder) == copy.uid_validity


def _end_found(copy: SentCopy, found: Copy, now: datetime) -> None:
    place = f'"{found.folder}" (UIDVALIDITY {found.uid_validity}, UID {found.uid})'
    evidence = f"Found in {place}, filed at {clock_time(found.filed_at, now)}: the server has it."
    if resolve(copy.attempt, Move.FOUND, evidence=evidence, now=now):
        logger.info("doubt.found", extra={"attempt_id": str(copy.attempt_id)})
    copy.state, copy.found_at, copy.look_at = State.FOUND, now, None
    copy.lag_seconds = max((found.filed_at - copy.since).total_seconds(), 0)
    copy.folder, copy.uid_validity, copy.uid = found.folder, found.uid_validity, found.uid


def _note_missing(copy: SentCopy, habit: Habit, now: datetime) -> None:
    age = now - doubt_began(copy.attempt)
    patience = habit.proof_after(config().evidence_least)
    if not habit.files_itself:
        _go_on(copy, _of_no_habit(habit), now)
    elif age >= patience and copy.looks >= LEAST_LOOKS:
        _end_absent(copy, habit, age, now)
    else:
        since = clock_time(now - age + patience, now)
        text = (
            f"Not in Sent yet. This server files sent mail itself, usually within {spoken(habit.usual_lag)}; "
            f"from {since} on its absence proves that it was not sent."
        )
        _go_on(copy, text, now, no_later_than=max(now - age + patience, now + FIRST_LOOK))


def _of_no_habit(habit: Habit) -> str:
    if habit.looked_for < ENOUGH:
        why = "it was not known yet, when this mail was sent, whether this server files sent mail itself"
    else:
        why = "this server does not reliably file sent mail itself"
    return f"Not in Sent, which proves nothing: {why}."


def _end_absent(copy: SentCopy, habit: Habit, age: timedelta, now: datetime) -> None:
    evidence = (
        f"Not in Sent {spoken(age)} after the doubt began, in {copy.looks} looks. This server "
        f"{habit.sentence()}: it never took the mail."
    )
    # A doubt that came back is about a mail that was sent again since, and that came to nothing.
    move = Move.GIVEN_UP if is_followed(copy.attempt) else Move.ABSENT
    if resolve(copy.attempt, move, evidence=evidence, now=now):
        logger.info("doubt.absent", extra={"attempt_id": str(copy.attempt_id)})
    copy.state, copy.look_at = State.ABSENT, None


def _go_on(copy: SentCopy, text: str, now: datetime, *, no_later_than: datetime | None = None) -> None:
    """Tells `text` if that is news, and looks again later; sends again without proof when it is time."""
    attempt = copy.attempt
    resend = _resend_at(attempt, now)
    if resend is not None and now >= resend:
        _say(copy, attempt, text, now)
        copy.state, copy.look_at = State.UNKNOWN, None
        _send_again(attempt, now)
        return
    pause = next_look(now - doubt_began(attempt))
    if pause is None:
        text += " Nobody looks any more; a bounce, an answer or a person decides."
        copy.state = State.UNKNOWN
    wishes = [at for at in (resend, no_later_than) if at is not None]
    copy.look_at = None if pause is None else min([now + pause, *wishes])
    _say(copy, attempt, text, now)
    _be_due(attempt, copy.look_at or resend)


def _say(copy: SentCopy, attempt: OutboundMessageAttempt, text: str, now: datetime) -> None:
    """Once, however often it is seen."""
    if copy.reason != text:
        copy.reason = text
        tell([event(attempt, "looked", text, at=now)])


def is_still_doubtful(copy: SentCopy) -> bool:
    return copy.attempt.status == AttemptStatus.IN_DOUBT
