"""A turn's place at the limiter: what it may send now, and what of that it has sent.

Reserved before it is sent, spent once a server took it or may have taken it, given back otherwise. Counters
that Redis forgot are restored on the way (`services/allow`); without Redis nothing is admitted.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.utils import timezone

from gobii_email import wiring
from gobii_email.domain.outcomes import Accepted, Lost, Outcome
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import Admission, Entered, Forgotten, LimiterUnavailable, LimitScope, Spent, Wait
from gobii_email.services import allow
from gobii_email.services.record import release_connection

logger = logging.getLogger(__name__)

PROBE = "probe:"


def scopes_of(
    account: AgentEmailAccount, now: datetime, *, is_probe: bool, is_host_probe: bool
) -> list[LimitScope]:
    """What limits a turn of `account`, its own scope first.

    A probe finds out with one mail whether a hold is over, and the account's others wait for its answer;
    a host probe does so for all accounts of a server that was left alone.
    """
    own, *shared = allow.scopes_of(account, now)
    if is_probe:
        own = replace(own, connections=1)
    if is_host_probe:
        key = f"{PROBE}{account.smtp_server_name}"
        shared.append(LimitScope(key, f"{account.smtp_host}'s", connections=1))
    return [own, *shared]


@dataclass
class Sent:
    """A mail whose end is still to be known to the limiter: what it cost, and when."""

    cost: int
    at: float


class Place:
    """What one turn holds at the limiter under `name`; only `leave` hides that the limiter is away."""

    def __init__(self, name: str, scopes: Sequence[LimitScope]) -> None:
        self.name = name
        self.scopes = scopes
        self._limiter = wiring.limiter()
        self._spent: list[Sent] = []
        self._returned = 0

    def enter(self, lease: timedelta) -> Entered | Wait:
        return self._known(lambda: self._limiter.enter(self.name, self.scopes, lease=lease))

    def room(self) -> Entered | Wait:
        return self._known(lambda: self._limiter.room(self.name, self.scopes))

    def admit(self, costs: Sequence[int]) -> Admission:
        """How many of these, in order, may go now."""
        if not costs:
            return Admission(0)
        answer = self._limiter.admit(self.name, self.scopes, costs)
        # What is forgotten `room` restores, before anything more is sent.
        return Admission(0) if isinstance(answer, Forgotten) else answer

    def count(self, outcome: Outcome, cost: int) -> None:
        """Reserved until now; what no server took is given back."""
        if isinstance(outcome, Accepted) or (isinstance(outcome, Lost) and outcome.is_marked):
            self._spent.append(Sent(cost, time.monotonic()))
        else:
            self.give_back(cost)

    def give_back(self, cost: int) -> None:
        self._returned += cost

    def settle(self) -> None:
        """Turns what was reserved into what was spent."""
        spent, returned, now = self._spent, self._returned, time.monotonic()
        self._spent, self._returned = [], 0
        if spent or returned:
            ago = [Spent(one.cost, timedelta(seconds=now - one.at)) for one in spent]
            self._limiter.settle(self.name, self.scopes, spent=ago, returned=returned)

    def leave(self) -> bool:
        """Whether somebody asked in vain meanwhile."""
        try:
            self.settle()
            return self._limiter.leave(self.name, self.scopes)
        except LimiterUnavailable:
            logger.warning("limiter.unreachable")
            return False

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
                self._limiter.restore(scope, ())
        counted = [scope for scope in self.scopes if not scope.key.startswith(PROBE)]
        allow.restore(counted, forgotten, timezone.now())
        release_connection()
