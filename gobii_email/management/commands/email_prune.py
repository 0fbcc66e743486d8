"""`email_prune`: lets go of what is older than the settings keep, as beat has it done every hour."""

from typing import Any

from django.core.management.base import CommandParser

from gobii_email.management.terminal import EmailCommand, length_of_time
from gobii_email.services.prune import KINDS, LONGEST_SECONDS, prune, what_is_due

_LIMITS = {
    "bodies": "GOBII_KEEP_BODIES",
    "events": "GOBII_KEEP_EVENTS",
    "messages": "GOBII_KEEP_MESSAGES",
    "received": "GOBII_KEEP_RECEIVED",
    "received_rows": "GOBII_KEEP_MESSAGES",
    "tests": "GOBII_KEEP_TESTS",
}


class Command(EmailCommand):
    help = "Lets go of bodies, timelines, messages, received mail and tests that are older than GOBII_KEEP_*."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("--dry-run", action="store_true", help="only counts")
        parser.add_argument(
            "--for", type=length_of_time, dest="span", help="begins nothing new after this (10m)"
        )

    def handle(self, *args: Any, dry_run: bool, span: Any, **options: Any) -> None:
        seconds = LONGEST_SECONDS if span is None else span.total_seconds()
        done = what_is_due() if dry_run else prune(seconds=seconds)
        kept = [kind.name for kind in KINDS if kind.name not in done]
        document = {"is_dry_run": dry_run, "pruned": done, "kept_for_ever": kept}
        verb = "would be let go" if dry_run else "let go"
        lines = [f"{name.replace('_', ' ')}: {count} {verb}" for name, count in done.items()]
        unset = sorted({_LIMITS[name] for name in kept})
        lines += [f"kept for ever, because it is not set: {', '.join(unset)}"] if unset else []
        self.answer(document, self.is_json, "\n".join(lines))
