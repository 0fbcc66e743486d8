"""`email_suspend`: kill switches. Stops a mailbox, an agent, a provider or everything, and goes on again."""

from datetime import timedelta
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from gobii_email.management.terminal import EmailCommand, length_of_time
from gobii_email.models import Suspension
from gobii_email.services.suspend import lift, suspend

BY = "email_suspend"


class Command(EmailCommand):
    help = (
        "Stops sending and polling before the next transaction, for a reason that whoever waits will read. "
        "The mail waits; nothing is lost or goes another way."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        what = parser.add_mutually_exclusive_group(required=True)
        what.add_argument("--account", metavar="ADDRESS")
        what.add_argument("--agent", metavar="ID", help="an agent's id, or its name where it is the only one")
        what.add_argument("--provider", metavar="NAME", help="google, microsoft365, smtp, a host, …")
        what.add_argument("--all", action="store_true", help="everything")
        what.add_argument("--list", action="store_true", help="what is suspended now")
        what.add_argument("--cancel", type=int, metavar="NUMBER", help="goes on again")
        parser.add_argument("--reason", default="", help="required; a sentence for whoever waits")
        parser.add_argument(
            "--for", type=length_of_time, dest="span", help="such as 30m; without: until --cancel"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if options["list"]:
            self._list()
        elif options["cancel"] is not None:
            self._cancel(options["cancel"])
        else:
            self._suspend(options)

    def _suspend(self, options: dict[str, Any]) -> None:
        if not options["reason"].strip():
            remedy = "Say why, for whoever waits: --reason TEXT."
            self.usage("--reason is missing.", field="reason", remedy=remedy)
        scope = next(one for one in Suspension.Scope if options[one.value])
        span: timedelta | None = options["span"]
        made = suspend(
            scope,
            "" if scope is Suspension.Scope.ALL else options[scope.value],
            reason=options["reason"],
            until=None if span is None else timezone.now() + span,
            by=BY,
        )
        self.answer(_document(made), self.is_json, f"Suspended: {_sentence(made)}")

    def _list(self) -> None:
        found = list(Suspension.objects.in_force(timezone.now()))
        text = "\n".join(map(_sentence, found)) or "Nothing is suspended."
        self.answer({"suspensions": list(map(_document, found))}, self.is_json, text)

    def _cancel(self, number: int) -> None:
        found = Suspension.objects.filter(pk=number).first()
        if found is None or not lift(found, by=BY):
            remedy = "See email_suspend --list."
            self.fail(f"No suspension {number} is in force.", field="cancel", remedy=remedy)
        self.answer(_document(found) | {"is_lifted": True}, self.is_json, f"Lifted: {_sentence(found)}")


def _document(found: Suspension) -> dict[str, Any]:
    return {
        "number": found.pk,
        "scope": found.scope,
        "subject": found.subject,
        "reason": found.reason,
        "created_at": found.created_at,
        "created_by": found.created_by,
        "ends_at": found.ends_at,
    }


def _sentence(found: Suspension) -> str:
    until = (
        "until it is cancelled" if found.ends_at is None else f"until {found.ends_at:%Y-%m-%d %H:%M:%S} UTC"
    )
    whose = " ".join(part for part in (Suspension.Scope(found.scope).label.lower(), found.subject) if part)
    return f"{found.pk}: {whose}, {until}: {found.reason}"
