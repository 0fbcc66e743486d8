"""`email_keys`: under which key each stored secret is, a new key, and moving every secret under it."""

import os
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser

from gobii_email.conf import config
from gobii_email.domain.secret import Secret
from gobii_email.encryption import SecretsEncryption, new_key, with_first, with_last
from gobii_email.management.progress import Progress as Bar
from gobii_email.management.terminal import EmailCommand
from gobii_email.services import reencrypt

_NEXT = (
    "1. Give every process this ring, whose last key is the new one, and restart them: all can read with it.",
    "2. `email_keys rotate --promote {key}`: give every process that ring, and restart them: new secrets are"
    " encrypted with it.",
    "3. `email_keys reencrypt`, until `email_keys status` says that nothing is under another key.",
    "4. Take the old key out of the ring, and keep it as long as backups of the database that need it.",
)


class Command(EmailCommand):
    help = "Shows under which key secrets are, makes a new key, and encrypts every secret with it."

    def add_arguments(self, parser: CommandParser) -> None:
        acts = parser.add_subparsers(dest="act", required=True, metavar="status|rotate|reencrypt")
        self.add_json_option(acts.add_parser("status", help="counts secrets by key, and tries to open each"))
        self._add_rotate(acts.add_parser("rotate", help="makes a key, or puts one first in the ring"))
        self.add_json_option(
            acts.add_parser("reencrypt", help="moves every secret under the first key of the ring")
        )

    def _add_rotate(self, parser: ArgumentParser) -> None:
        self.add_json_option(parser)
        parser.add_argument("--promote", metavar="KEY", help="no new key: puts this one of the ring first")
        where = parser.add_mutually_exclusive_group(required=True)
        where.add_argument(
            "--to", type=Path, metavar="FILE", help="writes the ring to a new file of mode 600"
        )
        where.add_argument("--print-key", action="store_true", help="prints the ring, with its keys")

    def handle(self, *args: Any, act: str, **options: Any) -> None:
        match act:
            case "status":
                self._status()
            case "rotate":
                self._rotate(options["promote"], options["to"])
            case _:
                self._reencrypt()

    def _status(self) -> None:
        ring = SecretsEncryption.from_settings()
        with Bar("looked at", reencrypt.total(), self.stderr) as bar:  # type: ignore[arg-type]
            found = reencrypt.take_stock(bar.at)
        elsewhere = found.keys.total() - found.keys[ring.primary_key_id]
        document = {
            "primary": ring.primary_key_id,
            "ring": ring.key_ids,
            "secrets": found.by_key,
            "to_reencrypt": elsewhere,
            "unreadable": found.unreadable.count,
            "whose": found.unreadable.whose,
        }
        lines = [f"ring: {', '.join(ring.key_ids)}; new secrets are encrypted with {ring.primary_key_id}"]
        lines += [f"{label}: {_counted(counts)}" for label, counts in found.by_key.items()]
        lines.append(_verdict(elsewhere, ring))
        self._conclude(document, lines, found.unreadable)

    def _reencrypt(self) -> None:
        progress = reencrypt.Progress()
        with Bar("encrypted anew", reencrypt.total(), self.stderr) as bar:  # type: ignore[arg-type]
            for progress in reencrypt.reencrypt():  # noqa: B007
                bar.at(progress.seen)
        document = {
            "seen": progress.seen,
            "reencrypted": progress.done,
            "changed_meanwhile": progress.changed,
            "unreadable": progress.unreadable.count,
            "whose": progress.unreadable.whose,
        }
        text = f"{progress.seen} secrets, {progress.done} of them encrypted anew"
        self._conclude(document, [text], progress.unreadable)

    def _conclude(
        self, document: Mapping[str, Any], lines: list[str], unreadable: reencrypt.Unreadable
    ) -> None:
        """Exit 1 where a secret cannot be read."""
        if unreadable.count:
            more = ", …" if unreadable.count > len(unreadable.whose) else ""
            whose = ", ".join(unreadable.whose) + more
            remedy = "put the missing key back into GOBII_ENCRYPTION_KEY, or enter them again"
            lines.append(f"{unreadable.count} cannot be read ({whose}): {remedy}.")
        self.answer(document, self.is_json, "\n".join(lines))
        if unreadable.count:
            raise SystemExit(1)

    def _rotate(self, promote: str | None, to: Path | None) -> None:
        ring = config().encryption_key
        SecretsEncryption.from_settings()  # raises where the present ring is no good
        entry = Secret(new_key())
        made = with_first(ring, promote) if promote else with_last(ring, entry)
        key = promote or entry.reveal().partition(":")[0]
        if to is not None:
            self._write(to, made)
        steps = [step.format(key=key) for step in _NEXT[1 if promote else 0 :]]
        document = {"key": key, "is_first": bool(promote), "file": to and str(to), "next": steps}
        document |= {} if to else {"ring": made.reveal()}
        where = f"written to {to}; name it in GOBII_ENCRYPTION_KEY_FILE" if to else made.reveal()
        what = f"{key} first" if promote else f"a new key, {key}"
        self.answer(document, self.is_json, "\n".join([f"ring with {what}: {where}", *steps]))

    def _write(self, to: Path, ring: Secret) -> None:
        """To a file that is not there yet: a ring that is in use is never overwritten."""
        try:
            handle = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as problem:
            remedy = "Name a file that is not there yet, in a directory that can be written to."
            self.fail(f"{to} cannot be made: {problem.strerror}.", field="to", remedy=remedy)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(ring.reveal() + "\n")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} under {key}" for key, count in sorted(counts.items())) or "none"


def _verdict(elsewhere: int, ring: SecretsEncryption) -> str:
    if not elsewhere:
        others = ", ".join(ring.key_ids[1:])
        return f"everything is under {ring.primary_key_id}" + (
            f"; {others} may leave the ring" if others else ""
        )
    return f"{elsewhere} are not under {ring.primary_key_id}: run `email_keys reencrypt`"
