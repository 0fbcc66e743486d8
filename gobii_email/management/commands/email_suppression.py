"""`email_suppression`: whom a sender does not write to any more; entering somebody, and lifting."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.domain.addresses import normalise
from gobii_email.management.message_argument import operator, printable
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import PersistentAgentCommsEndpoint, Suppression
from gobii_email.services import suppress
from gobii_email.services.gather import senders_by_address

MOST_SHOWN = 1_000


class Command(EmailCommand):
    help = "Shows whom a sender does not write to any more, enters somebody, or lets somebody be written to."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("address", metavar="ADDRESS", help="the sender's e-mail address")
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--list", action="store_true", help="show them, the latest first (the default)")
        what.add_argument("--add", metavar="RECIPIENT", help="do not write to RECIPIENT any more")
        what.add_argument("--lift", metavar="RECIPIENT", help="let RECIPIENT be written to again")
        parser.add_argument("--reason", default="", help="why, with --add")

    def handle(
        self, *args: Any, address: str, add: str | None, lift: str | None, reason: str, **options: Any
    ) -> None:
        if reason and add is None:
            self.usage("--reason belongs to --add.", field="reason", remedy="Name the RECIPIENT with --add.")
        sender = self._sender(address)
        if add is not None:
            self._add(sender, add, reason)
        elif lift is not None:
            self._lift(sender, lift)
        else:
            self._show(sender)

    def _sender(self, address: str) -> PersistentAgentCommsEndpoint:
        name = normalise(address)
        found = senders_by_address({name}).get(name) if name.isprintable() else None
        if found is None:
            self.fail(
                f"No agent owns the e-mail address {address[:320]!a}.",
                field="address",
                remedy="`email_account list` shows those that have an account.",
            )
        return found

    def _add(self, sender: PersistentAgentCommsEndpoint, recipient: str, reason: str) -> None:
        is_new = suppress.suppress_by_hand(sender, recipient, reason, by=operator())
        said = "is not written to any more" if is_new else "was not written to any more already"
        self._say(sender, recipient, said, changed=is_new)

    def _lift(self, sender: PersistentAgentCommsEndpoint, recipient: str) -> None:
        rows = suppress.in_force(sender).filter(address=normalise(recipient))
        if not suppress.lift(rows, by=operator()):
            self.fail(
                f"{recipient[:320]!a} is not suppressed for {sender.address}.",
                field="lift",
                remedy=f"`email_suppression {sender.address}` shows who is.",
            )
        self._say(sender, recipient, "may be written to again", changed=True)

    def _say(self, sender: PersistentAgentCommsEndpoint, recipient: str, said: str, *, changed: bool) -> None:
        document = {"address": sender.address, "recipient": normalise(recipient), "changed": changed}
        self.answer(document, self.is_json, f"{printable(recipient)} {said} by {sender.address}.")

    def _show(self, sender: PersistentAgentCommsEndpoint) -> None:
        rows = list(suppress.in_force(sender)[:MOST_SHOWN])
        lines = [f"{row.address}  {row.created_at:%Y-%m-%d}  {printable(row.reason)}" for row in rows]
        document = {"address": sender.address, "suppressed": list(map(_document, rows))}
        self.answer(document, self.is_json, "\n".join(lines) or f"{sender.address} may write to everybody.")


def _document(row: Suppression) -> dict[str, Any]:
    return {
        "recipient": row.address,
        "cause": row.cause,
        "reason": row.reason,
        "enhanced_status": row.enhanced_status or None,
        "message_id": row.message_id and str(row.message_id),
        "since": row.created_at,
    }
