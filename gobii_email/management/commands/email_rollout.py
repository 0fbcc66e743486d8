"""`email_rollout`: who takes part in own mailboxes, switched while everything runs."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.conf import config
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import RolloutChange
from gobii_email.services.suspend import change_rollout
from gobii_email.services.switches import switches

BY = "email_rollout"


class Command(EmailCommand):
    help = (
        "Shows or changes who takes part in own mailboxes, without a restart. What is changed here replaces "
        "BYO_EMAIL_ENABLED and BYO_EMAIL_ROLLOUT until --reset. Mail that was submitted for a mailbox that "
        "is not included waits, and goes out once it is included again."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        flag = parser.add_mutually_exclusive_group()
        flag.add_argument("--on", action="store_true", help="own mailboxes are served")
        flag.add_argument("--off", action="store_true", help="no own mailbox is sent through or polled")
        flag.add_argument("--reset", action="store_true", help="as the settings say")
        parser.add_argument("--to", default="", metavar="WHOM", help="`all`, `25%%`, or agents and addresses")
        parser.add_argument("--reason", default="", help="for the record")

    def handle(self, *args: Any, on: bool, off: bool, reset: bool, to: str, reason: str, **_: Any) -> None:
        if reset and to:
            self.usage("--reset and --to contradict each other.", field="to", remedy="Give one of them.")
        if on or off or reset or to:
            self._change(on=on, off=off, reset=reset, to=to, reason=reason)
        self._show()

    def _change(self, *, on: bool, off: bool, reset: bool, to: str, reason: str) -> None:
        """What is not named stays as it was."""
        before = RolloutChange.objects.order_by("-id").first()
        is_enabled = before.is_enabled if before else None
        change_rollout(
            is_enabled=None if reset else True if on else False if off else is_enabled,
            rollout="" if reset else to or (before.rollout if before else ""),
            reason=reason,
            by=BY,
        )

    def _show(self) -> None:
        found, last = switches(), RolloutChange.objects.order_by("-id").first()
        whom = found.rollout.text
        document = {
            "is_enabled": found.is_byo_email_enabled,
            "rollout": whom,
            "setting_is_enabled": config().byo_email_enabled,
            "changed_at": last.at if last else None,
            "changed_by": last.changed_by if last else "",
            "reason": last.reason if last else "",
        }
        flag = "on" if found.is_byo_email_enabled else "off"
        since = (
            f" Last changed {last.at:%Y-%m-%d %H:%M} UTC: {last.reason or 'no reason given'}." if last else ""
        )
        self.answer(document, self.is_json, f"Own mailboxes are {flag}, for {whom}.{since}")
