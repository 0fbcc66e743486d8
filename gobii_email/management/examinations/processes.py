"""The processes that move mail: who answers, who was seen lately, what they run, and what is left lying."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Min
from django.utils import timezone

from gobii_email import wiring
from gobii_email.adapters.celery_queue import producer
from gobii_email.conf import config
from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.management.examinations.row import FAIL, OK, PATIENCE_SECONDS, WARN, Row, brief, named
from gobii_email.models import OutboundMessageAttempt
from gobii_email.ports import SEND_QUEUE, AttendanceUnknown, LeasesUnavailable
from gobii_email.services import attend
from gobii_email.services.enlist import watchable
from gobii_email.services.share_watches import lease_of
from gobii_email.services.tell import clock_time

OVERDUE = timedelta(seconds=60)
LONG_WAIT = timedelta(minutes=10)
_BEAT = "celerybeat@"


def workers() -> Row:
    """Which workers answer, which queues they take from, and whether one of them sends mail."""
    hint = f"Start one: celery -A worker worker -Q {SEND_QUEUE} --pool threads -c 20"
    try:
        answers = _asked("active_queues")
    except Exception as problem:  # every transport has errors of its own
        return Row("workers", FAIL, f"could not be asked: {brief(problem)}", "See the row of the broker.")
    queues = {name: sorted(queue["name"] for queue in found) for name, found in answers.items()}
    text = "; ".join(f"{name} ({', '.join(found)})" for name, found in sorted(queues.items()))
    if not any(SEND_QUEUE in found for found in queues.values()):
        others = f"; others: {text}" if text else ""
        return Row("workers", FAIL, f"none that sends mail answers{others}", hint)
    return Row("workers", OK, text)


def beat() -> Row:
    """A beat answers only while it ticks, within the last minute; a worker notes what it takes up of that."""
    try:
        ticking = sorted(name for name in _asked("ping") if name.startswith(_BEAT))
    except Exception as problem:  # every transport has errors of its own
        return Row("beat", WARN, f"could not be asked: {brief(problem)}", "See the row of the broker.")
    if not ticking:
        hint = "Start one: celery -A worker beat. Mail goes out without it; housekeeping does not happen."
        return Row("beat", WARN, f"none has ticked in the last minute{_last_tick()}", hint)
    return Row("beat", OK, f"{', '.join(ticking)} ticked in the last minute{_last_tick()}")


def _last_tick() -> str:
    try:
        at = max((at for _, at in attend.ticks().values()), default=None)
    except AttendanceUnknown:
        return ""
    return f"; the last tick that a worker took up was at {clock_time(at, timezone.now())}" if at else ""


def versions() -> Row:
    """Whether every process runs what is installed here: one that was not restarted runs what was before."""
    try:
        running = dict(_asked("email_versions"))
    except Exception as problem:  # every transport has errors of its own
        return Row("versions", WARN, f"workers not asked: {brief(problem)}", "See the row of the broker.")
    running |= {f"dispatcher {name}": what for name, (what, _) in _dispatchers_at_work().items()}
    running |= {f"watcher {name}": what for name, (what, _) in _at_work(attend.watchers).items()}
    others = sorted(name for name, what in running.items() if what != attend.VERSIONS)
    if others:
        text = f"{named(others)} run {running[others[0]]}; here: {attend.VERSIONS}"
        return Row("versions", WARN, text, "Restart them: they run what was installed when they started.")
    return Row("versions", OK, attend.VERSIONS)


def _asked(command: str) -> Mapping[str, Any]:
    """What everybody answers within a second, by name; nobody who does not know `command`."""
    control = producer(config().broker_url).control
    replies = control.broadcast(command, reply=True, timeout=PATIENCE_SECONDS / 2) or []
    answers = {name: answer for reply in replies for name, answer in reply.items()}
    return {name: answer for name, answer in answers.items() if not _is_error(answer)}


def _is_error(answer: object) -> bool:
    return isinstance(answer, dict) and "error" in answer


def _dispatchers_at_work() -> dict[str, tuple[str, datetime]]:
    return _at_work(attend.dispatchers)


def _at_work(seen: Callable[[], Mapping[str, tuple[str, datetime]]]) -> dict[str, tuple[str, datetime]]:
    try:
        known = seen()
    except AttendanceUnknown:
        return {}
    earliest = timezone.now() - attend.LATELY
    return {name: (what, at) for name, (what, at) in known.items() if at > earliest}


def dispatcher() -> Row:
    """Whether somebody looks at what is due: every such row is moved on within a round."""
    now = timezone.now()
    at_work = _dispatchers_at_work()
    oldest = min(_oldest_due(), default=None)
    if oldest is not None and oldest <= now - OVERDUE:
        text = f"mail is due since {clock_time(oldest, now)} and nobody looked at it"
        if at_work:
            hint = f"See why it does not get on: the log of {named(sorted(at_work))}, and the database."
            return Row("dispatcher", WARN, text, hint)
        return Row("dispatcher", FAIL, text, "Start `manage.py email_dispatcher`.")
    if not at_work:
        hint = "Start `manage.py email_dispatcher`: without one, mail that had to wait stays where it is."
        return Row("dispatcher", WARN, f"none was seen in the last minute{_last_seen(now)}", hint)
    return Row("dispatcher", OK, f"{', '.join(sorted(at_work))}; nothing is overdue")


def watchers() -> Row:
    """Whether every mailbox that asks to be watched is; those that are not are polled as usual."""
    known = {wanted.account_id: wanted for wanted in watchable()}
    at_work = sorted(_at_work(attend.watchers))
    try:
        leased = wiring.leases().taken([lease_of(key) for key in known])
    except LeasesUnavailable as problem:
        return Row("watchers", WARN, f"Redis cannot tell: {problem}", "See the row of redis.")
    text = f"mailboxes that ask to be watched: {len(known)}"
    if not known:
        return Row("watchers", OK, text)
    if not at_work:
        hint = "Start `manage.py run_imap_idlers`; until then they are polled."
        return Row("watchers", WARN, f"{text}; no watcher was seen in the last minute", hint)
    problems = [wanted.address for wanted in known.values() if wanted.problem]
    text += f"; cannot be: {len(problems)} ({named(sorted(problems))})" if problems else ""
    waiting = sum(lease_of(key) not in leased for key in known)
    if waiting:
        hint = "Start more `manage.py run_imap_idlers`, or raise IMAP_IDLE_MAX_CONNECTIONS; they are polled."
        return Row("watchers", WARN, f"{text}; waiting for a watcher: {waiting}", hint)
    return Row("watchers", OK, f"{text}; by {named(at_work)}")


def _oldest_due() -> Iterator[datetime]:
    """Of each half that has an index of its own; what is over has no time, and is by far the most."""
    for statuses in ([AttemptStatus.QUEUED], [AttemptStatus.SENDING, AttemptStatus.IN_DOUBT]):
        found = OutboundMessageAttempt.objects.filter(status__in=statuses).aggregate(oldest=Min("due_at"))
        if found["oldest"] is not None:
            yield found["oldest"]


def _last_seen(now: datetime) -> str:
    try:
        known = attend.dispatchers()
    except AttendanceUnknown as problem:
        return f" (Redis cannot tell: {problem})"
    if not known:
        return ""
    name, (_, at) = max(known.items(), key=lambda one: one[1][1])
    return f"; {name} was at {clock_time(at, now)}"


def queue() -> Row:
    """Whether mail that nothing holds waits too long."""
    now = timezone.now()
    ready = OutboundMessageAttempt.objects.filter(
        status=AttemptStatus.QUEUED, not_before__lte=now, held_code=""
    )
    count, oldest = ready.count(), ready.aggregate(oldest=Min("not_before"))["oldest"]
    if oldest is None or oldest > now - LONG_WAIT:
        return Row("queue", OK, f"{count} ready to be sent")
    text = f"{count} ready to be sent, the oldest since {clock_time(oldest, now)}"
    return Row("queue", WARN, text, "Start more workers; `email_queue` shows what waits.")
