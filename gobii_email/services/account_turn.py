"""The part of a turn that goes through the account's own server: mail after mail, within its limits.

Begins where neither the account nor its server is to be left alone, and ends where the next mail would end
as the last one did, where the limits are reached, or where others have waited long enough. Connections are
kept by the transport, places at the limiter by `admit`, holds by `hold`.
"""

import time
from collections.abc import Sequence
from datetime import datetime

from django.utils import timezone

from gobii_email import metrics, wiring
from gobii_email.conf import config
from gobii_email.domain.classification import AccountState, Scope, read_reply
from gobii_email.domain.judgement import judge
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome, Refused
from gobii_email.domain.quotas import Limits
from gobii_email.domain.smtp_replies import Stage
from gobii_email.encryption import SecretUnreadable
from gobii_email.models import AgentEmailAccount
from gobii_email.models.queue import Work, narrow
from gobii_email.ports import Entered, Hint, LimiterUnavailable, Reuse, Sender, SmtpServer, Wait
from gobii_email.services import allow, hold
from gobii_email.services.admit import Place, scopes_of
from gobii_email.services.gate import gate_of_account
from gobii_email.services.learn import expect_copies
from gobii_email.services.lease import Lease, keeper
from gobii_email.services.recall import origins
from gobii_email.services.record import release_connection
from gobii_email.services.renew import ReconnectNeeded, TokenUnavailable, access_token, renewed_token
from gobii_email.services.select import obstacle_of_the_moment
from gobii_email.services.send import longest_send, send_by_account
from gobii_email.services.share import newcomers, shares
from gobii_email.services.turn import AT_ONCE, Turn
from gobii_email.services.wait import wait

MOST_A_TURN = 200
"""Mails after which a turn goes to the back of the line."""
FAIR_TURN, FAIR_SECONDS = 20, 2.0
"""Mails and seconds after which it does so where somebody waits for the thread."""
QUICK = 0.02
"""Seconds a mail takes at a server so near that the turn is in the way of others, and not its server."""
FAILURES_OF_A_HOST = 3
"""Connections in a row, whoever's, after which a server that cannot be reached is left alone."""
CALL_AGAIN_AFTER = 1.0
"""Seconds after which a turn calls again for another one of its lane."""
READ_AGAIN_AFTER = 1.0
"""Seconds after which a turn reads the account again."""


class AccountTurn:
    """Takes what is due in the lane of `turn` to the server of `account`."""

    def __init__(self, turn: Turn, account: AgentEmailAccount) -> None:
        self.turn = turn
        self.account = account
        self.host = account.smtp_server_name
        self.limits: Limits
        self.place: Place
        self.gate = gate_of_account(account)
        self.is_probe = False
        self.sender: Sender | None = None
        self.obstacle: Wait | None = None
        self.was_accepted = self.has_renewed = False
        self.called_at = -CALL_AGAIN_AFTER
        self.is_quick = True
        self.count = 0
        self.read_at = time.monotonic()

    def run(self) -> None:
        now = timezone.now()
        if not (self._may_begin(now) and self._has_token(now)):
            return
        try:
            self._run_within_limits(now)
        except LimiterUnavailable:
            metrics.LIMITER_UNAVAILABLE.inc()
            reason = "The rate counters (Redis) do not answer, and nothing is sent without them."
            self._wait("limiter_away", reason, now + config().breaker_pause, now)

    def _may_begin(self, now: datetime) -> bool:
        """Reads what is in force now; False when the account or its server is to be left alone."""
        origin = self.turn.origin
        obstacle = self.gate.obstacle() or obstacle_of_the_moment(self.account, origin, now)
        if obstacle is not None:
            self._wait(obstacle.code, obstacle.reason, obstacle.until, now)
            if obstacle.code in set(AccountState):
                hold.wake_if_free(origin.endpoint_id, now)
            return False
        was_left_alone = origin.host_backoff_until is not None
        self.is_probe = was_left_alone or self.account.state != AccountState.ACTIVE
        self.limits = allow.limits_in_force(self.account, now)
        scopes = scopes_of(self.account, now, is_probe=self.is_probe, is_host_probe=was_left_alone)
        self.place = Place(self.turn.name, scopes)
        release_connection()
        return True

    def _has_token(self, now: datetime) -> bool:
        """Renews the access token of an account with OAuth where it is time, before anything is claimed."""
        if not self._is_by_token:
            return True
        try:
            access_token(self.account)
        except TokenUnavailable as problem:
            self._wait("token_unavailable", str(problem), problem.until, now)
            return False
        except ReconnectNeeded as problem:
            self._wait(str(AccountState.AUTH_NEEDED), str(problem), None, now)
            hold.wake_if_free(self.turn.origin.endpoint_id, now)
            return False
        except SecretUnreadable:
            return True  # and the first mail finds the same, which holds the account
        return True

    @property
    def _is_by_token(self) -> bool:
        return self.account.smtp_auth == AgentEmailAccount.AuthMode.OAUTH2

    def _wait(self, code: str, reason: str, until: datetime | None, now: datetime) -> None:
        wait(self.turn.origin.endpoint_id, code, reason, until, now)
        release_connection()
        self.turn.postpone()

    def _wait_for_limit(self, found: Wait, now: datetime) -> None:
        if found.is_full:
            # Whoever leaves rings again; this is for the case that its worker is dead.
            wait(self.turn.origin.endpoint_id, "", "", found.until, now, tells=False)
            release_connection()
            self.turn.postpone()
            return
        self._wait("rate_limit", found.reason, found.until, now)

    def _run_within_limits(self, now: datetime) -> None:
        kept = self.turn.kept
        entered = self.place.enter(kept.length)
        if isinstance(entered, Wait):
            self._wait_for_limit(entered, now)
            return
        kept.scopes = self.place.scopes
        kept.touch(longest_send(0))
        keeper.keep(kept)
        try:
            self._work(entered)
        finally:
            try:
                self.turn.flush(Provider.SMTP)
            finally:
                self._leave_server()
                keeper.let_go(kept)
                self.turn.has_more |= self.place.leave()
        if self.was_accepted:
            expect_copies(self.account, timezone.now())
            release_connection()

    # Batches

    def _work(self, entered: Entered) -> None:
        turn = self.turn
        while not turn.is_over:
            works = turn.claim(1 if self.is_probe else min(entered.room, self._as_many_as_go()))
            if not works and not turn.has_more:
                return
            self._call_for_help(entered)
            self._send_batch(works)
            self.place.settle()
            turn.note_written(Provider.SMTP)
            if self.obstacle is not None:
                turn.flush(Provider.SMTP)
                self._wait_for_limit(self.obstacle, timezone.now())
                return
            if turn.is_over or not turn.has_more or self._must_stop():
                return
            again = self.place.room()
            if isinstance(again, Wait):
                turn.flush(Provider.SMTP)
                self._wait_for_limit(again, timezone.now())
                return
            entered = again

    def _as_many_as_go(self) -> int:
        """How many this turn is likely to send before it makes room for those who wait."""
        pace = shares.pace(self.host)
        if not (pace and shares.is_waited_for(self.host)):
            return AT_ONCE
        return max(1, round((FAIR_SECONDS - self.turn.seconds) / pace))

    def _call_for_help(self, entered: Entered) -> None:
        """There is more than one turn can do, and the account may have another one: rings for it.

        Not where others wait for this worker's threads: it would only stand in line with them.
        """
        connections = self.place.scopes[0].connections
        has_place = connections is None or entered.lanes < connections
        may_call = self.turn.seconds - self.called_at >= CALL_AGAIN_AFTER and not self.is_probe
        if self.turn.has_more and has_place and may_call and not shares.is_waited_for(self.host):
            self.called_at = self.turn.seconds
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
            self.place.give_back(sum(map(len, asked[begun:granted])))
        finally:
            self.turn.release(works[begun:])

    def _admitted(self, costs: Sequence[int]) -> int:
        admission = self.place.admit(costs)
        if admission.granted == 0:
            # There may be room for a smaller mail, but the first in line is not passed by.
            self.obstacle = admission.wait
        return admission.granted

    def _must_stop(self) -> bool:
        """Whether the turn ends after the mail before, for whatever reason."""
        turn = self.turn
        is_long = self.count >= FAIR_TURN or turn.seconds > FAIR_SECONDS
        if (
            turn.is_out_of_time
            or self.is_probe
            or self.count >= MOST_A_TURN
            or (is_long and shares.makes_room(self.host, turn.name))
        ):
            turn.is_over = True
        elif time.monotonic() - self.read_at > READ_AGAIN_AFTER:
            self._read_again()
        return turn.is_over

    def _read_again(self) -> None:
        """An account that was paused, changed or removed meanwhile ends the turn; the next one sees why."""
        self.read_at = time.monotonic()
        origin = origins.of(self.turn.lane, self.turn.attempt_id)
        before = self.turn.origin
        if origin is None or not origin.is_as(before):
            self.turn.is_over = self.turn.has_more = True

    # One mail

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
        done = shares.done(self.host, turn.name)
        self.is_quick = done.seconds < QUICK
        if done.parked is not None:
            # A quick answer made a place for another lane, long before this turn ends.
            wiring.doorbell().ring([Hint(done.parked)])
        self.place.count(outcome, len(addresses))
        if isinstance(outcome, Lost) and outcome.cause is Cause.SUSPENDED:
            self._stop(work)
            return
        is_part = len(addresses) < len(work.addresses)
        turn.settle(work, outcome, Provider.SMTP, is_part=is_part)
        turn.has_more |= is_part
        self._go_on_after(outcome, addresses)

    def _stop(self, work: Work) -> None:
        """Nothing was said of `work`: it goes back to the queue, and the lane waits for the switch."""
        self.turn.release([work])
        self.turn.is_over = True
        if (switched := self.gate.obstacle()) is not None:
            self._wait(switched.code, switched.reason, switched.until, timezone.now())

    def _outcome(self, work: Work, addresses: Sequence[str]) -> Outcome:
        try:
            server = self._server()
        except SecretUnreadable as problem:
            return Lost(Stage.AUTH, Cause.SECRET_UNREADABLE, str(problem))
        assert self.sender is not None
        if len(addresses) < len(work.addresses) and not narrow(work, addresses):
            return Lost(Stage.CONNECT, Cause.LEASE_LOST, "This attempt had been taken over.")
        outcome = send_by_account(work, addresses, server, self.sender, self._lease(work))
        return self._with_another_token(work, addresses, outcome) or outcome

    def _with_another_token(self, work: Work, addresses: Sequence[str], refusal: Outcome) -> Outcome | None:
        """How it ends with a new access token, where the `refusal` is about the old one; None where not.

        Once a turn, so that a mailbox that takes no token is held and not asked again and again.
        """
        refused = self.server.secret
        if not self._is_by_token or refused is None or self.has_renewed or not _is_about_login(refusal):
            return None
        self.has_renewed = True
        try:
            if renewed_token(self.account, refused) is None:
                return None
        except TokenUnavailable as problem:
            return Lost(Stage.AUTH, Cause.TOKEN_UNAVAILABLE, str(problem))
        except (ReconnectNeeded, SecretUnreadable):
            return None
        self._leave_server()
        server = self._server()
        assert self.sender is not None
        self.turn.kept.touch(longest_send(work.size))
        return send_by_account(work, addresses, server, self.sender, self._lease(work))

    def _lease(self, work: Work) -> Lease:
        return Lease(work, Provider.SMTP, self.gate)

    def _leave_server(self) -> None:
        sender, self.sender = self.sender, None
        if sender is not None:
            sender.close()

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


def _is_about_login(outcome: Outcome) -> bool:
    """Whether a server refused the login itself, which for an access token may be its end."""
    if not isinstance(outcome, Refused) or outcome.stage is not Stage.AUTH:
        return False
    return read_reply(Stage.AUTH, outcome.reply).hold is AccountState.AUTH_NEEDED
