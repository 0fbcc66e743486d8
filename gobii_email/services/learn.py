"""Learning from an account's ordinary mail whether its server files sent mail itself, and how soon.

A few mails an hour are looked for in Sent once they were accepted. What was learned lies in the newest
SentCopy rows of an account; it is forgotten with the settings that it was learned with.
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from django.db.models import Q

from gobii_email.domain.evidence import Copy, Looked, Sight, copy_of, seen
from gobii_email.domain.filing_habit import Habit, Observation, next_look
from gobii_email.domain.lifecycle import Provider
from gobii_email.models import AgentEmailAccount, Mailbox, OutboundMessageAttempt, SentCopy

SETTLED = timedelta(minutes=1)
"""How old an acceptance is when its copy is looked for first."""
MARGIN = timedelta(seconds=5)
ASKED_EVERY = 3600.0
SAMPLE = 5
MOST_FILED = 200
GIVEN_UP_AFTER = timedelta(hours=1)
"""A copy that is not there by then is not filed by the server."""
FAILING_FOR = timedelta(hours=24)
KEPT = 100
FRESH = timedelta(days=90)
LONGEST_OUTAGE = timedelta(days=7)

State = SentCopy.State
_ROUTE = frozenset({"smtp_host", "smtp_port", "smtp_username", "imap_host", "imap_port", "imap_username"})


class _Asked:
    """The accounts whose Sent folder this process has asked to be visited, for an hour each."""

    def __init__(self) -> None:
        self._at: OrderedDict[uuid.UUID, float] = OrderedDict()

    def is_new(self, account_id: uuid.UUID) -> bool:
        now = time.monotonic()
        if now - self._at.get(account_id, now - ASKED_EVERY) < ASKED_EVERY:
            return False
        self._at[account_id] = now
        self._at.move_to_end(account_id)
        while len(self._at) > 10_000:
            self._at.popitem(last=False)
        return True

    def forget(self) -> None:
        self._at.clear()


asked = _Asked()


def expect_copies(account: AgentEmailAccount, now: datetime) -> None:
    """After a turn with acceptances: has the Sent folder visited soon, at most once an hour a process.

    Each time where copies are filed there. Costs other accounts no statement.
    """
    if not account.is_imap_tested or not (account.copies_to_sent or asked.is_new(account.pk)):
        return
    at = now + SETTLED + MARGIN
    rows = Mailbox.objects.filter(pk=account.pk)
    later = Q(sent_look_at__isnull=True)
    if not account.imap_error:  # else a login that is refused would be tried for every mail
        later |= Q(sent_look_at__gt=at)
    if not rows.filter(later).update(sent_look_at=at):
        Mailbox.objects.get_or_create(account_id=account.pk, defaults={"sent_look_at": at})


def take_samples(account: AgentEmailAccount, mailbox: Mailbox, now: datetime, *, files: bool) -> bool:
    """Makes rows for acceptances since the last visit: all where copies are filed, else a few.

    Whether there are others that are too young yet.
    """
    until = now - SETTLED
    since = max(mailbox.sent_seen_until or now - timedelta(hours=1), now - LONGEST_OUTAGE)
    rows = OutboundMessageAttempt.objects.filter(
        from_endpoint=account.pk, sent_at__gt=since, provider=Provider.SMTP, sent_copy__isnull=True
    )
    ripe = rows.filter(sent_at__lte=until)
    if files:
        taken = list(ripe.order_by("sent_at").values_list("pk", "sent_at")[:MOST_FILED])
        if len(taken) == MOST_FILED:
            until = taken[-1][1] or until
    else:
        taken = list(ripe.filter(number=1).order_by("-sent_at").values_list("pk", "sent_at")[:SAMPLE])
    SentCopy.objects.bulk_create(
        [SentCopy(attempt_id=pk, endpoint_id=account.pk, since=at, look_at=now) for pk, at in taken if at],
        ignore_conflicts=True,
    )
    Mailbox.objects.filter(pk=account.pk).update(sent_seen_until=until)
    if taken:
        _prune(account)
    return files and rows.filter(sent_at__gt=until).exists()


def _prune(account: AgentEmailAccount) -> None:
    newest = SentCopy.objects.filter(endpoint=account.pk).order_by("-since")
    beyond = list(newest.values_list("pk", flat=True)[KEPT : KEPT + 1000])
    SentCopy.objects.filter(pk__in=beyond, look_at__isnull=True).delete()


def habit_of(
    account: AgentEmailAccount,
    now: datetime,
    *,
    places: Mapping[str, int] | None = None,
    before: datetime | None = None,
) -> Habit:
    """What is known of the account's server now.

    With `places`, only from copies in these folders as they are now; with `before`, None known where too
    little was seen of mail older than that: what was learned later may be about another server.
    """
    rows = SentCopy.objects.filter(endpoint=account.pk, is_doubtful=False, since__gt=now - FRESH)
    rows = rows.filter(state__in=[State.FOUND, State.ABSENT, State.APPENDED])
    copies = list(rows.order_by("-since")[:KEPT])
    if places is not None:
        copies = [copy for copy in copies if copy.state != State.FOUND or _is_in(copy, places)]
    if (
        before is not None
        and not Habit(_observed(copy for copy in copies if copy.since < before)).files_itself
    ):
        return Habit()
    return Habit(_observed(copies))


def _is_in(copy: SentCopy, places: Mapping[str, int]) -> bool:
    return copy.uid_validity is not None and places.get(copy.folder) == copy.uid_validity


def _observed(copies: Iterable[SentCopy]) -> list[Observation]:
    """A copy that we had to file was missing until then."""
    return [
        Observation(copy.state == State.FOUND, timedelta(seconds=copy.lag_seconds or 0)) for copy in copies
    ]


def note_sight(copy: SentCopy, looked: Looked, now: datetime) -> Sight:
    """Writes down what a look shows of an ordinary mail's copy, and when to look again."""
    attempt_id, is_alone = str(copy.attempt_id), copy.attempt.number == 1
    sight = seen(looked, attempt_id, is_alone=is_alone)
    found = copy_of(looked, attempt_id, is_alone=is_alone)
    copy.looks += 1
    copy.reason = ""
    if found is not None:
        _note_found(copy, found, now)
    elif sight is Sight.UNCLEAR:
        # One copy of another attempt is enough for whoever opens the folder, and teaches nothing.
        copy.state, copy.look_at = State.UNKNOWN, None
    else:
        _note_missing(copy, now)
    copy.save()
    return sight


def _note_found(copy: SentCopy, found: Copy, now: datetime) -> None:
    """What was looked for in vain before took at least until then, whatever the server's clock says."""
    age = now - copy.since
    by_its_date = max(found.filed_at - copy.since, timedelta(0))
    missing_for = timedelta(seconds=copy.lag_seconds or 0)
    if copy.state != State.APPENDED:
        copy.state = State.FOUND
        copy.lag_seconds = max(min(by_its_date, age), missing_for).total_seconds()
    copy.folder, copy.uid_validity, copy.uid = found.folder, found.uid_validity, found.uid
    copy.found_at, copy.look_at = now, None


def _note_missing(copy: SentCopy, now: datetime) -> None:
    age = now - copy.since
    if age >= GIVEN_UP_AFTER:
        copy.state, copy.look_at = State.ABSENT, None
        return
    copy.lag_seconds = age.total_seconds()
    copy.look_at = now + min(next_look(age) or GIVEN_UP_AFTER, GIVEN_UP_AFTER - age)


def note_failure(copy: SentCopy, reason: str, now: datetime) -> None:
    """That nobody could look, which teaches nothing; tried again for a day, less and less often."""
    age = now - copy.since
    copy.reason = reason
    if age >= FAILING_FOR:
        copy.look_at = None
        if copy.state == State.AWAITED:
            copy.state = State.UNKNOWN
    else:
        copy.look_at = now + max(SETTLED, min(age, timedelta(hours=4)))
    copy.save()


def forget_habit(account: AgentEmailAccount, changed: Iterable[str], now: datetime) -> None:
    """Forgets what was learned with other settings, where one of the `changed` fields is among them."""
    if _ROUTE & set(changed):
        SentCopy.objects.filter(endpoint=account.pk, is_doubtful=False).delete()
        Mailbox.objects.filter(pk=account.pk).update(sent_seen_until=now)


def latest_trouble(account: AgentEmailAccount) -> str:
    """Why the newest copy could not be looked for or filed, "" where all is well."""
    newest = SentCopy.objects.filter(endpoint=account.pk, is_doubtful=False).order_by("-since").first()
    return "" if newest is None else newest.reason
