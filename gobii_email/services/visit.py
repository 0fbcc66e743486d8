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
from gobii_email.models import AgentEmailAccount, Mailbox, OutboundMessageAttempt, SentCopy
from gobii_email.ports import CONTROL_QUEUE, Call, Clock, LookedFor, LookFailed, SentMail
from gobii_email.services import learn, measure, reconcile
from gobii_email.services.file_sent import file_copy, files_copies, is_time_to_file
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


def look_for_copy(attempt_id: str, *, clock: Clock = timezone.now) -> str:
    """Looks for the copy of one attempt in doubt now, and for all that is due with it; its short outcome."""
    rows = OutboundMessageAttempt.objects.filter(pk=uuid.UUID(attempt_id), status=AttemptStatus.IN_DOUBT)
    with transaction.atomic():
        attempts = rows.locked(1)
        if not attempts:
            return "not in doubt"
        reconcile.look_at_doubt(attempts[0], clock())
    endpoint_id = attempts[0].from_endpoint_id
    return "no such mailbox" if endpoint_id is None else visit_sent(str(endpoint_id), clock=clock)


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
        measure.imap_failed(account.imap_host, "sent", failed.code, is_login=failed.blames_login)
        logger.warning("sent.look_failed", extra={"account_id": str(account.pk), "why": failed.code})
        _note_failed(account, left, failed, clock())
        return "failed"
    _note_health(account, "")
    return f"looked for {len(copies)}"


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
