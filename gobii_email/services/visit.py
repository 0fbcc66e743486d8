"""Visiting an account's Sent folder: everything that is to be looked for there, over one connection.

The dispatcher hands accounts out by `Mailbox.sent_look_at`; a visit takes each copy under a lease, so doubled
and lost hints change nothing. What is seen of doubtful mail goes to reconcile, of other mail to learn and
file_sent. No transaction is open while the server is waited for.
"""

import logging
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Min
from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.evidence import Sight
from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.models import (
    AgentEmailAccount,
    Mailbox,
    OutboundMessageAttempt,
    PersistentAgentMessage,
    SentCopy,
)
from gobii_email.ports import CONTROL_QUEUE, Call, Clock, LookedFor, LookFailed, SentMail
from gobii_email.services import learn, measure, reconcile
from gobii_email.services.file_sent import file_copy, files_copies, is_time_to_file
from gobii_email.services.intervene import NotPossible, open_attempt
from gobii_email.services.look import obstacle, sent_mail_of
from gobii_email.services.record import release_connection
from gobii_email.services.switches import switches

logger = logging.getLogger(__name__)

VISIT_SENT, LOOK_FOR_COPY = "gobii_email.visit_sent", "gobii_email.look_for_copy"
BATCH = 200
AT_ONCE = 20
LEASE = timedelta(minutes=15)
"""Longer than a visit can take: a copy whose worker died is taken up again after this."""


def hand_out_looks(now: datetime) -> int:
    """Rings for Sent folders that are to be visited, each once a hint's lifetime; answers for how many."""
    if not switches().is_byo_email_enabled or not Mailbox.objects.filter(sent_look_at__lte=now).exists():
        return 0
    with transaction.atomic():
        due = Mailbox.objects.filter(sent_look_at__lte=now).order_by("sent_look_at")
        skips = connection.features.has_select_for_update_skip_locked
        ids = list(due.select_for_update(skip_locked=skips).values_list("pk", flat=True)[:BATCH])
        Mailbox.objects.filter(pk__in=ids).update(sent_look_at=now + config().hint_lifetime)
    calls = [Call(VISIT_SENT, str(pk), CONTROL_QUEUE) for pk in ids]
    if calls and not wiring.doorbell().call(calls):
        Mailbox.objects.filter(pk__in=ids).update(sent_look_at=timezone.now() + config().breaker_pause)
    return len(ids)


def ask_for_look(message: PersistentAgentMessage) -> None:
    """Has a worker look for the copy of `message` now. Raises NotPossible, which says what is in the way."""
    attempt, now = open_attempt(message), timezone.now()
    if attempt is None or attempt.status != AttemptStatus.IN_DOUBT:
        raise NotPossible(f"The message is not in doubt; it is {message.latest_status}.")
    account = AgentEmailAccount.objects.filter(pk=attempt.from_endpoint_id).first()
    if account is None and not attempt.message.had_account:
        raise NotPossible("It was not sent from a mailbox of the agent's own: there is no Sent to look into.")
    if hindrance := obstacle(account, now):
        raise NotPossible(f"Nobody can look into Sent: {hindrance.reason}.")
    if reconcile.was_looked_for_lately(attempt, now):
        raise NotPossible("It was looked for a moment ago; the timeline tells what was seen.")
    if not wiring.doorbell().call([Call(LOOK_FOR_COPY, str(attempt.pk), CONTROL_QUEUE)]):
        raise NotPossible("No worker can be called just now; it is looked for by itself later.")


def look_for_copy(attempt_id: str, *, clock: Clock = timezone.now) -> str:
    """Looks for the copy of one attempt in doubt because somebody asked; its short outcome.

    Whatever is due by itself stays so: a copy that is missing proves something in those looks alone.
    """
    rows = OutboundMessageAttempt.objects.select_related("message")
    rows = rows.defer("message__body", "message__raw_payload")
    attempt = rows.filter(pk=uuid.UUID(attempt_id), status=AttemptStatus.IN_DOUBT).first()
    if attempt is None:
        return "not in doubt"
    accounts = AgentEmailAccount.objects.select_related("endpoint", "oauth_credential")
    account = accounts.filter(pk=attempt.from_endpoint_id).first()
    if account is None or obstacle(account, clock()) is not None:
        return "not now"
    if reconcile.was_looked_for_lately(attempt, clock()):
        return "looked for a moment ago"
    wanted = LookedFor(attempt.message.rfc_message_id, str(attempt.pk), reconcile.since(attempt))
    try:
        with sent_mail_of(account) as sent:
            release_connection()
            looked = sent.look(wanted)
    except LookFailed as failed:
        _tell_of_failure(account, failed)
        reconcile.note_asked_failure(attempt, failed.text, clock())
        return "failed"
    return "found" if reconcile.note_asked_sight(attempt, looked, clock()) else "not found"


def visit_sent(account_id: str, *, clock: Clock = timezone.now) -> str:
    """Looks for all copies that are due in the account's Sent folder; answers a short outcome."""
    now = clock()
    accounts = AgentEmailAccount.objects.select_related("endpoint", "oauth_credential")
    account = accounts.filter(pk=uuid.UUID(account_id)).first()
    mailbox = Mailbox.objects.filter(pk=uuid.UUID(account_id)).first()
    if account is None or mailbox is None:
        return "no such mailbox"
    hindrance = obstacle(account, now)
    if hindrance is not None:
        _leave(mailbox, None if hindrance.is_lasting else now + LEASE)
        return "not now"
    has_more = learn.take_samples(account, mailbox, now, files=files_copies(account))
    copies = _take_due(account, now)
    outcome = _visit(account, copies, clock) if copies else "nothing due"
    _leave(mailbox, _next_visit(account, clock(), has_more=has_more))
    return outcome


def _take_due(account: AgentEmailAccount, now: datetime) -> list[SentCopy]:
    """Up to AT_ONCE copies that nobody else has, the doubtful first."""
    skips = connection.features.has_select_for_update_skip_locked
    with transaction.atomic():
        due = SentCopy.objects.filter(endpoint=account.pk, look_at__lte=now).order_by(
            "-is_doubtful", "look_at"
        )
        ids = list(due.select_for_update(skip_locked=skips).values_list("pk", flat=True)[:AT_ONCE])
        SentCopy.objects.filter(pk__in=ids).update(look_at=now + LEASE)
    rows = SentCopy.objects.select_related("attempt__message")
    rows = rows.defer("attempt__message__body", "attempt__message__raw_payload")
    return list(rows.filter(pk__in=ids).order_by("-is_doubtful", "since"))


def _visit(account: AgentEmailAccount, copies: Sequence[SentCopy], clock: Clock) -> str:
    left = list(copies)
    try:
        with sent_mail_of(account) as sent:
            while left:
                _look(account, left[0], sent, clock)
                left.pop(0)
    except LookFailed as failed:
        _tell_of_failure(account, failed)
        _note_failed(account, left, failed, clock())
        return "failed"
    _note_health(account, "")
    return f"looked for {len(copies)}"


def _tell_of_failure(account: AgentEmailAccount, failed: LookFailed) -> None:
    measure.imap_failed(account.imap_host, "sent", failed.code, is_login=failed.blames_login)
    logger.warning("sent.look_failed", extra={"account_id": str(account.pk), "why": failed.code})


def _look(account: AgentEmailAccount, copy: SentCopy, sent: SentMail, clock: Clock) -> None:
    attempt = copy.attempt
    if copy.is_doubtful and not reconcile.is_still_doubtful(copy):
        SentCopy.objects.filter(pk=copy.pk).update(look_at=None)
        return
    release_connection()
    looked = sent.look(LookedFor(attempt.message.rfc_message_id, str(copy.pk), copy.since))
    now = clock()
    if copy.is_doubtful:
        reconcile.note_doubtful_sight(copy, account, looked, now)
        return
    sight = learn.note_sight(copy, looked, now)
    if sight is not Sight.ABSENT or not files_copies(account):
        return
    if is_time_to_file(copy, learn.habit_of(account, now), now):
        file_copy(copy, sent, now, tried_until=now + LEASE)


def _note_failed(
    account: AgentEmailAccount, copies: Sequence[SentCopy], failed: LookFailed, now: datetime
) -> None:
    for copy in copies:
        note = reconcile.note_doubtful_failure if copy.is_doubtful else learn.note_failure
        note(copy, failed.text, now)
    if failed.blames_login:
        _note_health(account, failed.text)


def _note_health(account: AgentEmailAccount, error: str) -> None:
    """Where the mailbox is polled, the polls tell."""
    if account.imap_error != error and not account.is_inbound_enabled:
        AgentEmailAccount.objects.filter(pk=account.pk).update(imap_error=error)


def _next_visit(account: AgentEmailAccount, now: datetime, *, has_more: bool) -> datetime | None:
    copies = SentCopy.objects.filter(endpoint=account.pk, look_at__isnull=False)
    nearest: datetime | None = copies.aggregate(at=Min("look_at"))["at"]
    if not has_more:
        return nearest
    later = now + learn.SETTLED + learn.MARGIN
    return later if nearest is None else min(nearest, later)


def _leave(mailbox: Mailbox, at: datetime | None) -> None:
    """Unless somebody has asked for another visit meanwhile."""
    rows = Mailbox.objects.filter(pk=mailbox.pk)
    if mailbox.sent_look_at is None:
        rows = rows.filter(sent_look_at__isnull=True)
    else:
        rows = rows.filter(sent_look_at=mailbox.sent_look_at)
    rows.update(sent_look_at=at)
    release_connection()
