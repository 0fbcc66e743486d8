"""One turn of a sender's mail, taken for a hint: whose it is, through what it goes, who is told of the rest.

A hint names one attempt, and so the lane it waits in; a turn takes what is due in that lane, a few attempts
at a time, within the account's limits, and goes to the back of the line after a while. A turn that cannot
begin or go on leaves the lane waiting, with the reason.
"""

from gobii_email import wiring
from gobii_email.domain.selection import Use
from gobii_email.models import AgentEmailAccount, Lane
from gobii_email.models.attempts import Origin
from gobii_email.ports import Hint
from gobii_email.services.account_turn import AccountTurn
from gobii_email.services.accountless_turn import AccountlessTurn
from gobii_email.services.recall import origins
from gobii_email.services.record import release_connection
from gobii_email.services.select import transport_for
from gobii_email.services.share import shares
from gobii_email.services.turn import Turn

PARKED = "parked"


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
    if origin is None:
        return "not due"
    turn = Turn(attempt_id, origin, owner)
    outcome = _run(turn)
    _leave(turn, is_done=not (turn.was_postponed or turn.has_more or outcome == PARKED))
    return outcome


def _run(turn: Turn) -> str:
    account = turn.origin.account
    if account is None or not _is_carried_by(account, turn.origin):
        AccountlessTurn(turn).run()
        return turn.summary()
    host = account.smtp_server_name
    if not shares.enter(host, turn.name, lane=turn.lane, attempt_id=turn.attempt_id):
        return PARKED
    try:
        AccountTurn(turn, account).run()
    finally:
        shares.leave(host, turn.name)
    return turn.summary()


def _is_carried_by(account: AgentEmailAccount, origin: Origin) -> bool:
    """Whether mail that was submitted for an account, by the lane's own sender, goes through it now."""
    found = transport_for(account, origin.owner_agent_id, origin.address, had_account=True)
    return isinstance(found, Use)


def _leave(turn: Turn, *, is_done: bool) -> None:
    if is_done and turn.origin.is_handed_out:
        Lane.objects.filter(pk=turn.origin.endpoint_id, code="").update(look_at=None)
        release_connection()
    if turn.has_more:
        wiring.doorbell().ring([Hint(turn.attempt_id, turn.lane)], once=True)
