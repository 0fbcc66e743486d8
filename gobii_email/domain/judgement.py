"""What one ending means for the attempt and for each of its recipients.

Pure: takes the outcome of a transport and the addresses it was for, returns statuses. The reading of a
single reply is left to classification, the writing down to services/settle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from gobii_email.domain.advice import for_token
from gobii_email.domain.classification import Reading, Verdict, read_loss, read_reply
from gobii_email.domain.lifecycle import Move, RecipientStatus
from gobii_email.domain.outcomes import Accepted, Lost, Outcome, Refused
from gobii_email.domain.smtp_replies import Reply, Stage


@dataclass(frozen=True, slots=True)
class RecipientJudgement:
    """A recipient's status and the reply it rests on, None when no server spoke of it."""

    status: RecipientStatus
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    """`reading` speaks for the attempt; `hold` is the reading that asks to hold the account, if any does.

    `retry_after` is the longest wait that an answer asked for. `unasked` are recipients whose turn is in
    another part of the message.
    """

    move: Move
    reading: Reading
    recipients: Mapping[str, RecipientJudgement]
    hold: Reading | None
    retry_after: timedelta | None = None
    unasked: tuple[str, ...] = ()

    @property
    def only_unasked(self) -> bool:
        """Whether those to try again are just those nobody was asked about."""
        return bool(self.unasked) and len(self.to_retry) == len(self.unasked)

    @property
    def to_retry(self) -> tuple[str, ...]:
        """The addresses that may be tried again."""
        return self._with(RecipientStatus.DEFERRED)

    @property
    def accepted(self) -> tuple[str, ...]:
        return self._with(RecipientStatus.ACCEPTED)

    def _with(self, status: RecipientStatus) -> tuple[str, ...]:
        return tuple(address for address, found in self.recipients.items() if found.status is status)


def judge(
    outcome: Outcome, addresses: Sequence[str], *, unasked: Sequence[str] = (), by_token: bool = False
) -> Judgement:
    """Reads `outcome` for an attempt that was for `addresses`; `unasked` ones follow in another part.

    `by_token` says that the account signs in with an access token, so no password is to blame.
    """
    singled_out = {
        address: (reply, read_reply(Stage.RCPT, reply)) for address, reply in outcome.refused.items()
    }
    reading, others = _for_the_rest(outcome)
    reading = replace(reading, advice=for_token(reading.advice)) if by_token else reading
    recipients = dict.fromkeys(addresses, others)
    recipients |= dict.fromkeys(unasked, RecipientJudgement(RecipientStatus.DEFERRED))
    recipients |= {
        address: RecipientJudgement(_status(reading), reply)
        for address, (reply, reading) in singled_out.items()
        if address in recipients
    }
    readings = [reading, *(one for _, one in singled_out.values())]
    return Judgement(
        move=_move(outcome, [found.status for found in recipients.values()]),
        reading=reading,
        recipients=recipients,
        hold=next((found for found in readings if found.hold is not None), None),
        retry_after=max((found.retry_after for found in readings if found.retry_after), default=None),
        unasked=tuple(unasked),
    )


def may_retry(reading: Reading) -> bool:
    """Whether the same mail may succeed later: temporary, or the account's fault and not the mail's."""
    return reading.hold is not None or reading.verdict is Verdict.TEMPORARY


def _status(reading: Reading) -> RecipientStatus:
    return RecipientStatus.DEFERRED if may_retry(reading) else RecipientStatus.REFUSED


def _for_the_rest(outcome: Outcome) -> tuple[Reading, RecipientJudgement]:
    """The attempt's reading, and what it means for recipients that were not refused one by one."""
    match outcome:
        case Accepted(reply=reply):
            return read_reply(Stage.DOT, reply), RecipientJudgement(RecipientStatus.ACCEPTED, reply)
        case Refused(stage=stage, reply=reply):
            reading = read_reply(stage, reply)
            return reading, RecipientJudgement(_status(reading), reply)
        case Lost(is_marked=True):
            return read_loss(outcome), RecipientJudgement(RecipientStatus.PENDING)
        case Lost():
            reading = read_loss(outcome)
            return reading, RecipientJudgement(_status(reading))


def _move(outcome: Outcome, statuses: Sequence[RecipientStatus]) -> Move:
    match outcome:
        case Accepted():
            return Move.ACCEPTED
        case Lost(is_marked=True):
            return Move.LOST_AFTER_MARK
        case Lost() if RecipientStatus.DEFERRED in statuses:
            return Move.LOST_BEFORE_MARK
    return Move.TEMPORARY if RecipientStatus.DEFERRED in statuses else Move.PERMANENT
