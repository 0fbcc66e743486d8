"""Leaving an account or a host alone for a while, and taking its mail up again.

An account is held for what is its own fault or its provider's limit; a host is backed off for all its
accounts. Held mail stays queued, uses up no attempt, and keeps its own end of life.
"""

import logging
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Q
from django.db.models.functions import Greatest
from django.utils import timezone

from gobii_email.domain.classification import AccountState, Reading, Scope, Verdict
from gobii_email.domain.judgement import Judgement
from gobii_email.domain.lifecycle import AttemptStatus, Move
from gobii_email.models import AgentEmailAccount, Lane, MailHost, OutboundMessageAttempt, OutboundMessageEvent
from gobii_email.models.attempts import Origin
from gobii_email.services import allow
from gobii_email.services.poll_schedule import poll_now
from gobii_email.services.tell import clock_time, event

logger = logging.getLogger(__name__)

HEALTH_IS_FRESH_FOR = timedelta(minutes=1)
FIRST_HOST_BACKOFF = timedelta(seconds=30)
LONGEST_HOST_BACKOFF = timedelta(minutes=15)


def ends_at(reading: Reading, now: datetime) -> datetime | None:
    """When a hold that `reading` asks for ends by itself; None when a person has to act."""
    return None if reading.hold_for is None else now + reading.hold_for


def react(
    attempt: OutboundMessageAttempt, judgement: Judgement, said: str, now: datetime
) -> list[OutboundMessageEvent]:
    """Updates the hold and the learned pace of the account that sent `attempt`; tells what changed."""
    account = account_of(attempt)
    if account is None:
        return []
    return _learned(attempt, account, judgement, said, now) + _reaction(
        attempt, account, judgement, said, now
    )


def _learned(
    attempt: OutboundMessageAttempt,
    account: AgentEmailAccount,
    judgement: Judgement,
    said: str,
    now: datetime,
) -> list[OutboundMessageEvent]:
    text = allow.learn_from(account, judgement.hold or judgement.reading, said, now)
    return [] if text is None else [event(attempt, "slowed_down", text, at=now)]


def _reaction(
    attempt: OutboundMessageAttempt,
    account: AgentEmailAccount,
    judgement: Judgement,
    said: str,
    now: datetime,
) -> list[OutboundMessageEvent]:
    if judgement.hold is not None:
        return _hold(attempt, account, judgement.hold, said, now)
    if judgement.move is Move.ACCEPTED:
        return []
    if judgement.reading.scope is Scope.HOST and judgement.reading.verdict is Verdict.TEMPORARY:
        AgentEmailAccount.objects.filter(pk=account.pk).update(smtp_error=said)
        # What the network did to one connection is no wish of the server's: the schedule is enough.
        return [] if attempt.smtp_code is None else [_back_off(attempt, account, said, now)]
    return []


def account_of(attempt: OutboundMessageAttempt) -> AgentEmailAccount | None:
    """The account of the attempt's endpoint, if both still exist."""
    return getattr(attempt.from_endpoint, "agentemailaccount", None) if attempt.from_endpoint else None


def note_success(account: AgentEmailAccount, origin: Origin, now: datetime) -> bool:
    """Remembers that sending works, at most once a minute, and ends a hold or backoff that has run out.

    Whether there was anything to write.
    """
    if origin.host_backoff_until is not None:
        MailHost.objects.filter(name=account.smtp_server_name).delete()
    is_fresh = account.smtp_last_ok_at is not None and now - account.smtp_last_ok_at < HEALTH_IS_FRESH_FOR
    if is_fresh and not account.smtp_error and account.state == AccountState.ACTIVE:
        return origin.host_backoff_until is not None
    healthy: dict[str, object] = {"smtp_last_ok_at": now, "smtp_error": ""}
    rows = AgentEmailAccount.objects.filter(pk=account.pk)
    if account.state != AccountState.ACTIVE:
        # Only the hold that was in force when the turn began: a pause made since then stays.
        rows = rows.filter(state=account.state, state_until=account.state_until)
        healthy |= {"state": AccountState.ACTIVE, "state_reason": "", "state_until": None}
    rows.update(**healthy)
    return True


def _hold(
    attempt: OutboundMessageAttempt, account: AgentEmailAccount, reading: Reading, said: str, now: datetime
) -> list[OutboundMessageEvent]:
    """Holds the account, save where a longer hold is in force or other settings were tested meanwhile."""
    until = ends_at(reading, now)
    reason = f"{reading.advice} ({said})"
    # A hold that waits for a person, and a pause, are not shortened by what came after them.
    stays = ~Q(state=AccountState.ACTIVE) & Q(state_until__isnull=True)
    stays |= Q(state=AccountState.PAUSED, state_until__gt=now)
    rows = AgentEmailAccount.objects.filter(
        pk=account.pk, smtp_tested_fingerprint=account.smtp_tested_fingerprint
    )
    if not rows.exclude(stays).update(
        state=str(reading.hold), state_reason=reason, state_until=until, smtp_error=reason
    ):
        wake_if_free(attempt.from_endpoint_id, now)
        return []
    logger.warning("account.held", extra={"attempt_id": str(attempt.pk), "state": str(reading.hold)})
    span = "until somebody acts" if until is None else f"until {clock_time(until, now)}"
    return [
        event(
            attempt,
            "account_held",
            f"The mailbox is held {span}: {reading.advice}",
            at=now,
            state=str(reading.hold),
            category=reading.category,
        )
    ]


def _back_off(
    attempt: OutboundMessageAttempt, account: AgentEmailAccount, said: str, now: datetime
) -> OutboundMessageEvent:
    until = leave_host_alone(account.smtp_server_name, said, now)
    text = f"{account.smtp_server_name} is left alone until {clock_time(until, now)}."
    return event(attempt, "host_backoff", text, at=now)


def leave_host_alone(name: str, reason: str, now: datetime) -> datetime:
    """Backs off from the server `name` (host:port) for all its accounts; answers until when."""
    host, _ = MailHost.objects.get_or_create(name=name)
    until = host.backoff_until
    if until is None or until <= now:
        # Grows once a round, however many connections failed in it.
        until = now + min(FIRST_HOST_BACKOFF * 2 ** min(host.failures, 10), LONGEST_HOST_BACKOFF)
        MailHost.objects.filter(pk=host.pk, failures=host.failures).update(
            failures=F("failures") + 1, backoff_until=until, reason=reason, updated_at=now
        )
    return until


def pause(account: AgentEmailAccount, *, reason: str, until: datetime | None = None) -> None:
    """Stops sending for `account` until `until` or until it is resumed. Its mail waits."""
    _set_state(account, AccountState.PAUSED, reason, until)


def resume(account: AgentEmailAccount) -> int:
    """Ends any hold of `account` and lets its mail go; answers how many attempts were waiting."""
    _set_state(account, AccountState.ACTIVE, "", None)
    return wake(account.endpoint_id)


def _set_state(account: AgentEmailAccount, state: AccountState, reason: str, until: datetime | None) -> None:
    account.state, account.state_reason, account.state_until = state, reason, until
    account.save(update_fields=["state", "state_reason", "state_until", "updated_at"])


def wake_if_free(endpoint_id: uuid.UUID | None, now: datetime) -> None:
    """Lets mail go that was put back while its account's hold was ended: it was not there to be woken."""
    with transaction.atomic():
        # Locked, so that a hold whose end is just being committed is seen as ended.
        account = AgentEmailAccount.objects.select_for_update().filter(pk=endpoint_id).first()
        if account is not None and account.state_at(now) is AccountState.ACTIVE:
            wake(account.endpoint_id)


def clear_backoff(account: AgentEmailAccount) -> int:
    """Ends what time alone would end: a limit or quota of `account`, its own backoff and its server's.

    Pauses and holds that wait for a person stay. Answers how many attempts were waiting.
    """
    was_left_alone = account.backoff_until is not None
    AgentEmailAccount.objects.filter(pk=account.pk).update(backoff_until=None)
    account.backoff_until = None
    if was_left_alone:
        poll_now(account)
    waiting = end_host_backoff(account.smtp_server_name)
    if account.state in {AccountState.LIMITED, AccountState.QUOTA}:
        waiting += resume(account)
    return waiting


def end_host_backoff(name: str) -> int:
    """Takes up again what goes to the server `name` (host:port); answers how many attempts were waiting."""
    MailHost.objects.filter(name=name).delete()
    host, _, port = name.rpartition(":")
    if not port.isdigit():
        return 0
    is_active = Q(state=AccountState.ACTIVE) | Q(state_until__lte=timezone.now())
    accounts = AgentEmailAccount.objects.filter(is_active, smtp_host=host, smtp_port=int(port))
    return _wake(accounts.values_list("pk", flat=True))


def wake(endpoint_id: uuid.UUID) -> int:
    """Makes the held mail of an endpoint due now, and its lane; the dispatcher hands it out."""
    return _wake([endpoint_id])


def _wake(endpoint_ids: Iterable[uuid.UUID]) -> int:
    Lane.objects.filter(pk__in=endpoint_ids).update(look_at=None, code="", reason="")
    queued = OutboundMessageAttempt.objects.filter(
        from_endpoint_id__in=endpoint_ids, status=AttemptStatus.QUEUED
    )
    return queued.exclude(held_code="").update(
        due_at=Greatest(F("not_before"), timezone.now()), held_code="", held_reason=""
    )
