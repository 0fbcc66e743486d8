"""Mail that goes nowhere: composed in full, stored, viewable, and called delivered."""

from gobii_email.domain.outcomes import Accepted, Cause, Lost, Outcome
from gobii_email.domain.smtp_replies import Reply, Stage
from gobii_email.ports import Envelope, NotNow, Progress


class SimulationTransport:
    """Takes every message (`ports.MailTransport`); the frozen bytes in the database are the mailbox."""

    def send(self, envelope: Envelope, message: bytes, progress: Progress) -> Outcome:
        try:
            progress.reached(Stage.CONNECT)
        except NotNow as switch:
            return Lost(Stage.CONNECT, Cause.SUSPENDED, str(switch))
        progress.mark()
        return Accepted(Reply(250, "2.0.0", f"simulated, {len(message)} bytes"))
