"""One turn of a sender's mail: enter, claim, select, admit, send, settle, leave.

A hint names one attempt, and so the lane it waits in; a turn takes what is due in that lane, a few attempts
at a time, within the account's limits, and goes to the back of the line after a while. A turn that cannot
begin or go on leaves the lane waiting, with the reason. How an ending is written is left to settle.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.utils import timezone

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.domain.classification import AccountState, Scope
from gobii_email.domain.judgement import judge
from gobii_email.domain.lifecycle import AttemptStatus, Move, Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome
from gobii_email.domain.quotas import Limits
from gobii_email.domain.selection import Hold, NoTransport, Selection, Use
from gobii_email.domain.smtp_replies import Stage
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount, Lane, OutboundMessageAttempt
from gobii_email.models.attempts import Origin
from gobii_email.models.queue import Acceptance, Claim, Work, claim, narrow, release
from gobii_email.ports import (
    Entered,
    Forgotten,
    Hint,
    LimiterUnavailable,
    LimitScope,
    Reuse,
    Sender,
    SmtpServer,
    Spent,
    Wait,
)
from gobii_email.services import allow, hold
from gobii_email.services.end import end_unsent, postpone
from gobii_email.services.lease import Kept, Lease, keeper
from gobii_email.services.recall import origins
from gobii_email.services.record import Entry, acceptances, persist, release_connection
from gobii_email.services.select import LOOK_AGAIN_AFTER, obstacle_of_the_moment, transport_for
from gobii_email.services.send import longest_send, send_by_account, send_without_account
from gobii_email.services.settle import acceptance_of, settle
from gobii_email.services.share import newcomers, shares
from gobii_email.services.wait import wait

logger = logging.getLogger(__name__)

AT_ONCE = 20
"""Attempts claimed together: what a lost worker gives back at most."""
MOST_A_TURN, LONGEST_TURN = 200, 30.0
"""Mails and seconds after which a turn goes to the back of the line."""
FAIR_TURN, FAIR_SECONDS = 20, 2.0
"""The same where somebody waits for the thread."""
QUICK = 0.02
"""Seconds a mail takes at a server so near that the turn is in the way of others, and not its server."""
PROBE = "probe:"
PARKED = "parked"
FAILURES_OF_A_HOST = 3
"""Connections in a row, whoever's, after which a server that cannot be reached is left alone."""
READ_AGAIN_AFTER = 1.0
"""Seconds after which a turn reads the account again."""


def deliver(attempt_id: str, *, owner: str, lane: str = "") -> str:
    """Takes a turn for the lane of `attempt_id`, and for lanes that were parked; answers its short outcome.

    The outcome is the attempt's own status if it was in the turn, else "not due", "postponed" or the like.
    Who names the `lane` is content with what this worker found out about it a moment ago.
    """
    outcome = _take_turn(attempt_id, owner, lane)
    while (parked := shares.next_parked()) is not None:
        _take_turn(parked, owner, "")
    return outcome


def _take_turn(attempt_id: str, owner: str, lane: str) -> str:
    origin = origins.of(lane, attempt_id)
    return "not due" if origin is None else Turn(attempt_id, origin, owner).run()


@dataclass
class Sent:
    """A mail whose end is still to be known to the limiter: what it cost, and when."""

    cost: int
    at: float


class Turn:
    """One thread's turn with one lane."""

    def __init__(self, attempt_id: str, origin: Origin, owner: str) -> None:
        self.attempt_id = attempt_id
        self.origin = origin
        self.owner = owner
        self.token = uuid.uuid4()
        self.name = str(self.token)
        self.lane = "" if origin.endpoint_id is None else str(origin.endpoint_id)
        self.kept = Kept(self.name, config().lease)
        self.began_at = self.read_at = time.monotonic()
        self.outcomes: dict[str, str] = {}
        self.written: list[tuple[Work, Outcome, Entry[Acceptance]]] = []
        self.has_more = self.is_over = False
        self.was_postponed = False

    def run(self) -> str:
        outcome = self._run()
        is_done = not (self.was_postponed or self.has_more or outcome == PARKED)
        if is_done and self.origin.is_handed_out:
            Lane.objects.filter(pk=self.origin.endpoint_id, code="").update(look_at=None)
            release_connection()
        if self.has_more:
            wiring.doorbell().ring([Hint(self.attempt_id, self.lane)], once=True)
        return outcome

    def _run(self) -> str:
        account = self.origin.account
        if account is None or not isinstance(self._selection(account), Use):
            self._work_without_account()
        elif not shares.enter(
            account.smtp_server_name, self.name, lane=self.lane, attempt_id=self.attempt_id
        ):
            return PARKED
        else:
            try:
                AccountTurn(self, account).run()
            finally:
                shares.leave(account.smtp_server_name, self.name)
        return self._summary()

    def _selection(self, account: AgentEmailAccount | None) -> Selection:
        """What mail takes that was submitted for an account: by the lane's own sender."""
        origin = self.origin
        return transport_for(account, origin.owner_agent_id, origin.address, had_account=True)

    def _summary(self) -> str:
        if self.attempt_id in self.outcomes:
            return self.outcomes[self.attempt_id]
        if self.outcomes:
            return ", ".join(sorted(set(self.outcomes.values())))
        return "postponed" if self.was_postponed else "not due"

    # What both kinds of turn do

    def claim(self, limit: int) -> list[Work]:
        """Up to `limit` due attempts that are still worth sending."""
        now = timezone.now()
        lease_until = now + self.kept.length
        works = claim(Claim(self.origin.endpoint_id, limit, self.owner, now, lease_until, self.token))
        self.kept.works = works
        expired = [work for work in works if work.expires_at is not None and work.expires_at <= now]
        for work in expired:
            reason = "The message expired before it could be sent."
            self.end(work, Move.EXPIRED, "expired", reason, now)
        self.has_more = len(works) == limit
        release_connection()
        return [work for work in works if work not in expired]

    def attempt_of(self, work: Work) -> OutboundMessageAttempt:
        """The row of `work`, as it was claimed: who took it over since then is found by the fence.

        Its account is as the turn found it: what its server answers is about the settings that were used.
        """
        attempt = OutboundMessageAttempt.objects.for_delivery(str(work.id))
        attempt.lease_token, attempt.status = work.token, AttemptStatus.SENDING
        if attempt.from_endpoint is not None and self.origin.account is not None:
            attempt.from_endpoint.agentemailaccount = self.origin.account
        return attempt

    def end(self, work: Work, move: Move, code: str, reason: str, now: datetime) -> None:
        self.outcomes[str(work.id)] = end_unsent(self.attempt_of(work), move, code, reason, now)

    def settle(self, work: Work, outcome: Outcome, provider: Provider, *, is_part: bool = False) -> None:
        """Writes how it ended: an ordinary acceptance together with others, anything else by itself."""
        row = acceptance_of(work, outcome, provider, is_part=is_part, now=timezone.now())
        if row is None:
            self.settle_alone(work, outcome, provider)
        else:
            self.outcomes[str(work.id)] = "sent"
            self.written.append((work, outcome, acceptances.put(row)))

    def settle_alone(self, work: Work, outcome: Outcome, provider: Provider) -> None:
        def write() -> str:
            try:
                attempt = self.attempt_of(work)
            except OutboundMessageAttempt.DoesNotExist:
                return "deleted"
            is_ours = settle(attempt, outcome, provider=provider, now=timezone.now())
            return str(attempt.status) if is_ours else "lease lost"

        self.outcomes[str(work.id)] = persist(write, within=config().lease)
        origins.forget(self.lane)
        release_connection()

    def flush(self, provider: Provider) -> None:
        """Waits until every acceptance is written; one that was not ours any more is noted as late."""
        acceptances.hurry()
        written, self.written = self.written, []
        for work, outcome, entry in written:
            if not entry.wait():
                self.settle_alone(work, outcome, provider)

    def release(self, works: Sequence[Work]) -> None:
        if works:
            release(works)
            release_connection()
            self.has_more = True

    # Mail that no account carries

    def _work_without_account(self) -> None:
        self.kept.touch(longest_send(0))
        keeper.keep(self.kept)
        try:
            while not self.is_over:
                works = self.claim(AT_ONCE)
                for position, work in enumerate(works):
                    if self._must_stop():
                        self.release(works[position:])
                        break
                    self._send_without_account(work)
                self.is_over = self.is_over or not self.has_more
        finally:
            keeper.let_go(self.kept)

    def _must_stop(self) -> bool:
        self.is_over = shares.is_stopping or time.monotonic() - self.began_at > LONGEST_TURN
        return self.is_over

    def _send_without_account(self, work: Work) -> None:
        now = timezone.now()
        match transport_for(
            self.origin.account, work.owner_agent_id, work.from_address, had_account=work.had_account
        ):
            case NoTransport(reason=reason):
                self.end(work, Move.PERMANENT, "no_transport", reason, now)
            case Hold(code=code, reason=reason):
                self.outcomes |= postpone([work], code, reason, now + LOOK_AGAIN_AFTER, now)
            case Use(provider=Provider.SMTP):
                self.release([work])  # The account became usable a moment ago: its own turn takes it.
                self.is_over = True
            case Use(provider=provider):
                self.kept.touch(longest_send(work.size))
                outcome = send_without_account(work, provider, Lease(work, provider))
                self.settle(work, outcome, provider)
                self.flush(provider)


class AccountTurn:
    """The part of a turn that goes through the account's own server."""

    def __init__(self, turn: Turn, account: AgentEmailAccount) -> None:
        self.turn = turn
        self.account = account
        self.host = account.smtp_server_name
        self.limiter = wiring.limiter()
        self.scopes: list[LimitScope] = []
        self.limits: Limits
        self.is_probe = False
        self.sender: Sender | None = None
        self.obstacle: Wait | None = None
        self.spent: list[Sent] = []
        self.returned = 0
        self.was_accepted = self.has_called_for_help = False
        self.is_quick = True
        self.count = 0

    def run(self) -> None:
        now = timezone.now()
        if not self._may_begin(now):
            return
        try:
            self._run_within_limits(now)
        except LimiterUnavailable:
            reason = "The rate counters (Redis) do not answer, and nothing is sent without them."
            self._wait("limiter_away", reason, now + config().breaker_pause, now)

    def _may_begin(self, now: datetime) -> bool:
        """Reads what is in force now; False when the account or its server is to be left alone."""
        origin = self.turn.origin
        obstacle = obstacle_of_the_moment(self.account, origin, now)
        if obstacle is not None:
            until = origin.host_backoff_until if obstacle.code == "host_backoff" else self.account.state_until
            self._wait(obstacle.code, obstacle.reason, until, now)
            if obstacle.code in set(AccountState):
                hold.wake_if_free(origin.endpoint_id, now)
            return False
        self.limits = allow.limits_in_force(self.account, now)
        self.scopes = allow.scopes_of(self.account, now)
        self.is_probe = self.account.state != AccountState.ACTIVE or origin.host_backoff_until is not None
        if self.is_probe:
            # One mail finds out whether the hold is over; the others wait for its answer.
            self.scopes[0] = replace(self.scopes[0], connections=1)
        if origin.host_backoff_until is not None:
            # The same for all accounts of a server that was left alone.
            self.scopes.append(
                LimitScope(f"{PROBE}{self.host}", f"{self.account.smtp_host}'s", connections=1)
            )
        release_connection()
        return True

    def _wait(self, code: str, reason: str, until: datetime | None, now: datetime) -> None:
        wait(self.turn.origin.endpoint_id, code, reason, until, now)
        release_connection()
        self.turn.was_postponed, self.turn.has_more, self.turn.is_over = True, False, True

    # Limits

    def _run_within_limits(self, now: datetime) -> None:
        kept = self.turn.kept
        entered = self._known(lambda: self.limiter.enter(self.turn.name, self.scopes, lease=kept.length))
        if isinstance(entered, Wait):
            self._wait_for_limit(entered, now)
            return
        kept.scopes = self.scopes
        kept.touch(longest_send(0))
        keeper.keep(kept)
        try:
            self._work(entered)
        finally:
            try:
                self.turn.flush(Provider.SMTP)
            finally:
                if self.sender is not None:
                    self.sender.close()
                keeper.let_go(kept)
                self._leave()

    def _known(self, ask: Callable[[], Entered | Wait | Forgotten]) -> Entered | Wait:
        for _ in range(3):
            answer = ask()
            if not isinstance(answer, Forgotten):
                return answer
            self._restore(answer)
        raise LimiterUnavailable("Redis forgets the counters as soon as they are restored")

    def _restore(self, forgotten: Forgotten) -> None:
        for scope in self.scopes:
            if scope.key in forgotten.keys and scope.key.startswith(PROBE):
                self.limiter.restore(scope, ())
        allow.restore(
            [scope for scope in self.scopes if not scope.key.startswith(PROBE)], forgotten, timezone.now()
        )
        release_connection()

    def _wait_for_limit(self, found: Wait, now: datetime) -> None:
        if found.is_full:
            # Whoever leaves rings again; this is for the case that its worker is dead.
            wait(self.turn.origin.endpoint_id, "", "", found.until, now, tells=False)
            release_connection()
            self.turn.was_postponed, self.turn.has_more, self.turn.is_over = True, False, True
            return
        self._wait("rate_limit", found.reason, found.until, now)

    def _leave(self) -> None:
        try:
            self._tell_limiter()
            if self.limiter.leave(self.turn.name, self.scopes):
                self.turn.has_more = True
        except LimiterUnavailable:
            logger.warning("limiter.unreachable")

    def _tell_limiter(self) -> None:
        """Turns what was reserved into what was spent."""
        spent, returned, now = self.spent, self.returned, time.monotonic()
        self.spent, self.returned = [], 0
        if spent or returned:
            ago = [Spent(one.cost, timedelta(seconds=now - one.at)) for one in spent]
            self.limiter.settle(self.turn.name, self.scopes, spent=ago, returned=returned)

    # Mails

    def _work(self, entered: Entered) -> None:
        turn = self.turn
        while not turn.is_over:
            works = turn.claim(1 if self.is_probe else min(AT_ONCE, entered.room))
            if not works and not turn.has_more:
                return
            self._call_for_help(entered)
            self._send_batch(works)
            self._tell_limiter()
            if self.obstacle is not None:
                turn.flush(Provider.SMTP)
                self._wait_for_limit(self.obstacle, timezone.now())
                return
            if turn.is_over or not turn.has_more or self._must_stop():
                return
            again = self._known(lambda: self.limiter.room(turn.name, self.scopes))
            if isinstance(again, Wait):
                turn.flush(Provider.SMTP)
                self._wait_for_limit(again, timezone.now())
                return
            entered = again

    def _call_for_help(self, entered: Entered) -> None:
        """There is more than one turn can do, and the account may have another one: rings for it."""
        connections = self.scopes[0].connections
        has_place = connections is None or entered.lanes < connections
        if self.turn.has_more and has_place and not (self.has_called_for_help or self.is_probe):
            self.has_called_for_help = True
            wiring.doorbell().ring([Hint(self.turn.attempt_id, self.turn.lane)], once=True)

    def _send_batch(self, works: Sequence[Work]) -> None:
        """Sends as many as may go now; the others, whatever ends it, go back to the queue."""
        asked = [work.addresses[: self.limits.most_recipients] for work in works]
        begun = 0
        try:
            granted = self._admitted([len(addresses) for addresses in asked])
            for work in works[:granted]:
                if self.turn.is_over or (begun and self._must_stop()):
                    break
                begun += 1
                self._send(work, asked[begun - 1])
            self.returned += sum(map(len, asked[begun:granted]))
        finally:
            self.turn.release(works[begun:])

    def _admitted(self, costs: Sequence[int]) -> int:
        """How many of these, in order, may go now."""
        if not costs:
            return 0
        answer = self.limiter.admit(self.turn.name, self.scopes, costs)
        if isinstance(answer, Forgotten):
            return 0  # `room` restores it before anything more is sent
        if answer.granted == 0:
            # There may be room for a smaller mail, but the first in line is not passed by.
            self.obstacle = answer.wait
        return answer.granted

    def _must_stop(self) -> bool:
        """Whether the turn ends after the mail before, for whatever reason."""
        spent = time.monotonic() - self.turn.began_at
        is_long = self.count >= FAIR_TURN or spent > FAIR_SECONDS
        if (
            shares.is_stopping
            or self.is_probe
            or self.count >= MOST_A_TURN
            or spent > LONGEST_TURN
            or (is_long and shares.is_anybody_waiting())
        ):
            self.turn.is_over = True
        elif time.monotonic() - self.turn.read_at > READ_AGAIN_AFTER:
            self._read_again()
        return self.turn.is_over

    def _read_again(self) -> None:
        """An account that was paused, changed or removed meanwhile ends the turn; the next one sees why."""
        self.turn.read_at = time.monotonic()
        origin = origins.of(self.turn.lane, self.turn.attempt_id)
        before = self.turn.origin
        if origin is None or not origin.is_as(before):
            self.turn.is_over = self.turn.has_more = True

    def _send(self, work: Work, addresses: Sequence[str]) -> None:
        turn = self.turn
        turn.kept.touch(longest_send(work.size))
        self.count += 1
        if self.count == 1:
            with newcomers.first_mail(turn.lane):
                outcome = self._outcome(work, addresses)
        else:
            if self.is_quick:
                newcomers.give_way(turn.lane)
            shares.begin(self.host, turn.name)
            outcome = self._outcome(work, addresses)
        self.is_quick = shares.done(self.host, turn.name) < QUICK
        self._count_cost(outcome, len(addresses))
        is_part = len(addresses) < len(work.addresses)
        turn.settle(work, outcome, Provider.SMTP, is_part=is_part)
        turn.has_more |= is_part
        self._go_on_after(outcome, addresses)

    def _outcome(self, work: Work, addresses: Sequence[str]) -> Outcome:
        try:
            server = self._server()
        except SecretUnreadable as problem:
            return Lost(Stage.AUTH, Cause.SECRET_UNREADABLE, str(problem))
        assert self.sender is not None
        if len(addresses) < len(work.addresses) and not narrow(work, addresses):
            return Lost(Stage.CONNECT, Cause.LEASE_LOST, "This attempt had been taken over.")
        return send_by_account(work, addresses, server, self.sender, Lease(work, Provider.SMTP))

    def _server(self) -> SmtpServer:
        """The account's server, with its secret opened once a turn."""
        if self.sender is None:
            self.server = self.account.smtp_server()
            self.sender = wiring.smtp_transport().open(self.server, self._reuse())
        return self.server

    def _reuse(self) -> Reuse:
        return Reuse(
            key=f"{self.account.endpoint_id}:{self.account.smtp_fingerprint()}",
            messages=self.limits.messages_per_connection,
            idle=self.limits.pool_ttl,
            connections=self.limits.connections,
        )

    def _count_cost(self, outcome: Outcome, cost: int) -> None:
        """Reserved until now; what no server took is given back."""
        if isinstance(outcome, Accepted) or (isinstance(outcome, Lost) and outcome.is_marked):
            self.spent.append(Sent(cost, time.monotonic()))
        else:
            self.returned += cost

    def _go_on_after(self, outcome: Outcome, addresses: Sequence[str]) -> None:
        """Ends the turn where the next mail would end likewise; what was learned is in the rows by now."""
        if isinstance(outcome, Accepted):
            self._note_success()
            if not outcome.refused:
                return
        judgement = judge(outcome, addresses)
        is_its_own = isinstance(outcome, Accepted) or judgement.reading.scope in {
            Scope.RECIPIENT,
            Scope.MESSAGE,
        }
        if is_its_own and judgement.hold is None:
            return
        self.turn.is_over = self.turn.has_more = True
        if not isinstance(outcome, Lost) or judgement.reading.scope is not Scope.HOST:
            return
        if shares.unwell(self.host) >= FAILURES_OF_A_HOST:
            hold.leave_host_alone(self.host, outcome.text, timezone.now())
            origins.forget(self.turn.lane)
            release_connection()

    def _note_success(self) -> None:
        """Once a turn."""
        if not self.was_accepted:
            self.was_accepted = True
            shares.well(self.host)
            if hold.note_success(self.account, self.turn.origin, timezone.now()):
                origins.forget(self.turn.lane)
            release_connection()
