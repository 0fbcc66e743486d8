"""What a person may do about one message: the words for each act, when it makes sense, and doing it.

Every face offers the same acts in the same words. What they change is left to `intervene` and `visit`.
"""

from dataclasses import dataclass

from gobii_email.domain.lifecycle import MessageStatus as S
from gobii_email.models import PersistentAgentMessage
from gobii_email.services import intervene, visit


@dataclass(frozen=True, slots=True)
class Act:
    """One thing to do about a message: its button, the question, and in which statuses it makes sense."""

    name: str
    button: str
    question: str
    done: str
    statuses: frozenset[S]


ACTS = {
    act.name: act
    for act in (
        Act(
            "retry",
            "Retry",
            "Send it now to everybody who does not have it yet? Who has it is left out.",
            "It is due now.",
            frozenset({S.QUEUED, S.FAILED, S.PARTIALLY_SENT, S.CANCELLED}),
        ),
        Act(
            "cancel",
            "Cancel",
            "Withdraw it? What a server may already have cannot be called back.",
            "Withdrawn; no server has it.",
            frozenset({S.QUEUED, S.SENDING}),
        ),
        Act(
            "look",
            "Look in Sent",
            "Look for it in the mailbox's Sent folder now? What is found there ends the doubt.",
            "A worker looks for it now; the timeline tells what it sees.",
            frozenset({S.IN_DOUBT}),
        ),
        Act(
            "resolve-sent",
            "It was sent",
            "Did the recipient or the provider confirm that it arrived? It is then settled as sent.",
            "Settled as sent.",
            frozenset({S.IN_DOUBT}),
        ),
        Act(
            "resolve-resend",
            "Send it again",
            "Are you sure that the server does not have it? Otherwise the recipients get it twice.",
            "Settled as not sent; it is sent again.",
            frozenset({S.IN_DOUBT}),
        ),
        Act(
            "resolve-failed",
            "It failed",
            "Give it up? It is then settled as failed and not sent again.",
            "Settled as failed.",
            frozenset({S.IN_DOUBT}),
        ),
    )
}


def acts_for(message: PersistentAgentMessage) -> list[Act]:
    """Those that make sense now; none about a message that was received."""
    return [act for act in ACTS.values() if message.is_outbound and message.latest_status in act.statuses]


def perform(act: Act, message: PersistentAgentMessage, *, by: str, default_transport: bool = False) -> str:
    """Does it; answers what came of it. Raises NotPossible."""
    if act.name == "retry":
        intervene.retry(message, by=by, use_default_transport=default_transport)
    elif act.name == "cancel":
        if not intervene.cancel(message, by=by):
            raise intervene.NotPossible("It cannot be withdrawn any more: a server has it or may have it.")
    elif act.name == "look":
        visit.ask_for_look(message)
    else:
        intervene.resolve_by_hand(message, act.name.removeprefix("resolve-"), by=by)
    return act.done
