"""The part of a turn whose mail no account carries: through the installation's own transport, or not at all.

Each mail is looked at by itself, because those that were submitted for an account are held and never
switched. No limit stands before them; what may go, goes one after the other.
"""

from django.utils import timezone

from gobii_email.domain.lifecycle import Move, Provider
from gobii_email.domain.outcomes import Cause, Lost
from gobii_email.domain.selection import Hold, NoTransport, Use
from gobii_email.models.queue import Work
from gobii_email.services.end import postpone
from gobii_email.services.gate import SUSPENDED, gate_without_account
from gobii_email.services.lease import Lease, keeper
from gobii_email.services.select import LOOK_AGAIN_AFTER, transport_for
from gobii_email.services.send import longest_send, send_without_account
from gobii_email.services.turn import Turn


class AccountlessTurn:
    """Takes what is due in the lane of `turn`, mail by mail."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def run(self) -> None:
        self.turn.kept.touch(longest_send(0))
        keeper.keep(self.turn.kept)
        try:
            self._work()
        finally:
            keeper.let_go(self.turn.kept)

    def _work(self) -> None:
        turn = self.turn
        while not turn.is_over:
            works = turn.claim()
            for position, work in enumerate(works):
                turn.is_over = turn.is_out_of_time
                if turn.is_over:
                    turn.release(works[position:])
                    break
                self._send(work)
            turn.is_over = turn.is_over or not turn.has_more

    def _send(self, work: Work) -> None:
        turn, now = self.turn, timezone.now()
        match transport_for(
            turn.origin.account, work.owner_agent_id, work.from_address, had_account=work.had_account
        ):
            case NoTransport(reason=reason):
                turn.end(work, Move.PERMANENT, "no_transport", reason, now)
            case Hold(code=code, reason=reason):
                turn.outcomes |= postpone([work], code, reason, now + LOOK_AGAIN_AFTER, now)
            case Use(provider=Provider.SMTP):
                turn.release([work])  # The account became usable a moment ago: its own turn takes it.
                turn.is_over = True
            case Use(provider=provider):
                self._send_through(provider, work)

    def _send_through(self, provider: Provider, work: Work) -> None:
        turn, gate = self.turn, gate_without_account(work, provider)
        turn.kept.touch(longest_send(work.size))
        outcome = send_without_account(work, provider, Lease(work, provider, gate))
        if isinstance(outcome, Lost) and outcome.cause is Cause.SUSPENDED:
            now = timezone.now()
            found = gate.obstacle() or Hold(SUSPENDED, outcome.text)
            until = found.until or now + LOOK_AGAIN_AFTER
            turn.outcomes |= postpone([work], found.code, found.reason, until, now)
            return
        turn.settle(work, outcome, provider)
        turn.flush(provider)
