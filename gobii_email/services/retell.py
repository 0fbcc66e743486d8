"""What a report says of one recipient, for the timeline: a name for the event, a sentence, and facts."""

from dataclasses import dataclass

from gobii_email.domain.dsn import Action, ReturnedRecipient
from gobii_email.domain.smtp_replies import safe_text
from gobii_email.models import OutboundMessageRecipient

MAX_ADDRESS_CHARACTERS = 320

_TEXTS = {
    Action.FAILED: "Bounced from {}",
    Action.DELIVERED: "Delivered to {}",
    Action.DELAYED: "Not delivered to {} yet, a server keeps trying",
    Action.RELAYED: "Passed on for {}, to where no more reports come from",
    Action.EXPANDED: "Delivered to {}, and passed on to others from there",
    Action.COMPLAINED: "{} reported it as spam",
}
_NAMES = {Action.FAILED: "bounced"}


@dataclass(frozen=True, slots=True)
class Told:
    """What is said of somebody, and whom of ours that is; None where nobody of ours is named."""

    said: ReturnedRecipient
    recipient: OutboundMessageRecipient | None

    @property
    def name(self) -> str:
        """Their address, as we wrote to it where we did."""
        if self.recipient is not None:
            return self.recipient.address
        return safe_text(self.said.address, max_characters=MAX_ADDRESS_CHARACTERS)

    @property
    def code(self) -> str:
        """The enhanced status that was written; "" where none was."""
        return self.said.status if self.said.is_status_written else ""

    @property
    def event_name(self) -> str:
        return _NAMES.get(self.said.action, str(self.said.action))

    @property
    def sentence(self) -> str:
        diagnostic = self.said.diagnostic
        parts = (diagnostic,) if self.code in diagnostic else (self.code, diagnostic)
        said = " ".join(part for part in parts if part)
        return _TEXTS[self.said.action].format(self.name) + (f": {said}" if said else ".")

    @property
    def facts(self) -> dict[str, str]:
        """Beside the status, where it was read and how sure that is."""
        return {
            "recipient": self.name,
            "status": self.code,
            "read_in": str(self.said.evidence.source),
            "sureness": str(self.said.evidence.sureness),
        }
