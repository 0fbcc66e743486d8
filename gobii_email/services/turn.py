"""What a turn of a lane does whoever carries its mail: claim, end, settle, give back.

A turn belongs to one thread, and its attempts to it by their leases. Whom it sends through is left to
`account_turn` and `accountless_turn`, and how an ending is written to `settle`.
"""

import time
import uuid
from collections.abc import Sequence
from datetime import datetime

from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider
from gobii_email.domain.outcomes import Outcome
from gobii_email.models import OutboundMessageAttempt
from gobii_email.models.attempts import Origin
from gobii_email.models.queue import Acceptance, Claim, Work, claim, release
from gobii_email.services import measure
from gobii_email.services.end import end_unsent
from gobii_email.services.lease import Kept
from gobii_email.services.recall import origins
from gobii_email.services.record import Entry, acceptances, persist, release_connection
from gobii_email.services.settle import acceptance_of, settle
from gobii_email.services.share import shares

AT_ONCE = 20
"""Attempts claimed together: what a lost worker gives back at most."""
LONGEST_TURN = 30.0
"""Seconds after which a turn goes to the back of the line."""

Written = tuple[Work, Outcome, Entry[Acceptance]]


class Turn:
    """One thread's turn with one lane.

    `has_more` says that somebody has to go on with the lane, `is_over` that it is not this turn, and
    `was_postponed` that the lane waits, for a reason that stands in its row.
    """

    def __init__(self, attempt_id: str, origin: Origin, owner: str) -> None:
        self.attempt_id = attempt_id
        self.origin = origin
        self.owner = owner
        self.token = uuid.uuid4()
        self.name = str(self.token)
        self.lane = "" if origin.endpoint_id is None else str(origin.endpoint_id)
        self.kept = Kept(self.name, config().lease)
        self.began_at = time.monotonic()
        self.outcomes: dict[str, str] = {}
        self.written: list[Written] = []
        self.has_more = self.is_over = False
        self.was_postponed = False

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self.began_at

    @property
    def is_out_of_time(self) -> bool:
        return shares.is_stopping or self.seconds > LONGEST_TURN

    def claim(self, limit: int = AT_ONCE) -> list[Work]:
        """Up to `limit` due attempts, and no more than AT_ONCE, that are still worth sending."""
        now = timezone.now()
        limit = min(limit, AT_ONCE)
        lease_until = now + self.kept.length
        works = claim(Claim(self.origin.endpoint_id, limit, self.owner, now, lease_until, self.token))
        self.kept.works = works
        expired = [work for work in works if work.expires_at is not None and work.expires_at <= now]
        for work in expired:
            reason = "The message expired before it could be sent."
            self.end(work, Move.EXPIRED, "expired", reason, now)
        self.has_more = len(works) == limit
        release_connection()
        measure.taken(works, now)
        return [work for work in works if work not in expired]

    def release(self, works: Sequence[Work]) -> None:
        if works:
            release(works)
            release_connection()
            self.has_more = True

    def postpone(self) -> None:
        """The lane was made to wait: nobody has to go on with it before that is over."""
        self.was_postponed, self.has_more, self.is_over = True, False, True

    def end(self, work: Work, move: Move, code: str, reason: str, now: datetime) -> None:
        self.outcomes[str(work.id)] = end_unsent(self._attempt_of(work), move, code, reason, now)

    def settle(self, work: Work, outcome: Outcome, provider: Provider, *, is_part: bool = False) -> None:
        """Writes how it ended: an ordinary acceptance together with others, anything else by itself."""
        row = acceptance_of(work, outcome, provider, is_part=is_part, now=timezone.now())
        if row is None:
            self._settle_alone(work, outcome, provider)
        else:
            self.outcomes[str(work.id)] = "sent"
            self.written.append((work, outcome, acceptances.put(row)))

    def flush(self, provider: Provider) -> None:
        """Waits until every acceptance is written; one that was not ours any more is noted as late."""
        acceptances.hurry()
        written, self.written = self.written, []
        self._note(written, provider)

    def note_written(self, provider: Provider) -> None:
        """The same for those that are written by now, without waiting for the others."""
        over = [entry.is_over for _, _, entry in self.written]
        rows = list(zip(self.written, over, strict=True))
        self.written = [row for row, is_over in rows if not is_over]
        self._note([row for row, is_over in rows if is_over], provider)

    def _note(self, written: Sequence[Written], provider: Provider) -> None:
        accepted, problems = [], []
        for work, outcome, entry in written:
            try:
                if entry.wait():
                    accepted.append((work, entry.value))
                else:
                    self._settle_alone(work, outcome, provider)
            except Exception as problem:
                problems.append(problem)  # of this mail; the others are noted nevertheless
        measure.accepted(accepted, self.origin.account)
        if problems:
            raise problems[0]

    def summary(self) -> str:
        """What became of the attempt that was hinted at, or of the others where it was not in the turn."""
        if self.attempt_id in self.outcomes:
            return self.outcomes[self.attempt_id]
        if self.outcomes:
            return ", ".join(sorted(set(self.outcomes.values())))
        return "postponed" if self.was_postponed else "not due"

    def _settle_alone(self, work: Work, outcome: Outcome, provider: Provider) -> None:
        def write() -> str:
            try:
                attempt = self._attempt_of(work)
            except OutboundMessageAttempt.DoesNotExist:
                return "deleted"
            is_ours = settle(attempt, outcome, provider=provider, now=timezone.now())
            return str(attempt.status) if is_ours else "lease lost"

        self.outcomes[str(work.id)] = persist(write, within=config().lease)
        origins.forget(self.lane)
        release_connection()

    def _attempt_of(self, work: Work) -> OutboundMessageAttempt:
        """The row of `work`, as it was claimed: who took it over since then is found by the fence.

        Its account is as the turn found it: what its server answers is about the settings that were used.
        """
        attempt = OutboundMessageAttempt.objects.for_delivery(str(work.id))
        attempt.lease_token, attempt.status = work.token, AttemptStatus.SENDING
        if attempt.from_endpoint is not None and self.origin.account is not None:
            attempt.from_endpoint.agentemailaccount = self.origin.account
        return attempt
