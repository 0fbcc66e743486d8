"""`email_poll`: reads what is new in one mailbox now, and says what it found.

Does what a worker does when the mailbox is due, whatever it waits for; success ends a hold or a backoff.
"""

from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db.models import Count
from django.utils import timezone

from gobii_email.management.terminal import EmailCommand
from gobii_email.models import AgentEmailAccount, ReceivedMail
from gobii_email.services import accounts
from gobii_email.services.poll import BASELINE, BUSY, Visit, visit

_BUSY = "A worker is reading the mailbox just now; ask again in a minute."
_BASELINE = "This was the first poll: mail that comes from now on is read."


class Command(EmailCommand):
    help = "Reads what is new in a mailbox now, whatever it waits for, and says what it found."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("address", metavar="ADDRESS", help="the mailbox's e-mail address")

    def handle(self, *args: Any, address: str, **options: Any) -> None:
        account = accounts.find_account(address)
        if account is None:
            self.fail(
                f"There is no account for {address!a}.",
                field="address",
                remedy="`email_account list` shows those there are.",
            )
        began_at = timezone.now()
        found = visit(account.pk, owner="email_poll", is_asked_for=True)
        account.refresh_from_db()
        document = _document(account, found, _states(account, began_at))
        if self.is_json or found.is_ok:
            self.answer(document, self.is_json, _sentence(document))
        if not found.is_ok:
            raise CommandError(_problem(found), returncode=1)


def _states(account: AgentEmailAccount, since: datetime) -> dict[str, int]:
    """What became of the mails that were stored since then, so far."""
    rows = ReceivedMail.objects.filter(endpoint=account.pk, stored_at__gte=since).order_by()
    counted = rows.values_list("state").annotate(count=Count("pk"))
    return dict(counted)


def _document(account: AgentEmailAccount, found: Visit, states: dict[str, int]) -> dict[str, Any]:
    document = {
        "address": account.endpoint.address,
        "ok": found.is_ok,
        "outcome": found.outcome,
        "folder": account.imap_folder,
        "new": found.found,
        "states": states,
        "missing": found.missing,
        "has_more": found.has_more,
        "last_seen_uid": account.last_seen_uid,
        "next_poll_at": found.due_at,
        "text": found.text,
    }
    if not found.is_ok:
        document["error"] = {"field": "imap", "reason": _problem(found), "remedy": ""}
    return document


def _problem(found: Visit) -> str:
    return _BUSY if found.outcome == BUSY else found.text


def _sentence(document: dict[str, Any]) -> str:
    count = document["new"]
    kinds = ", ".join(f"{number} {state}" for state, number in sorted(document["states"].items()))
    parts = [f"{document['address']}: {count or 'no'} new mail{'' if count == 1 else 's'}"]
    parts[0] += f" ({kinds})." if kinds else "."
    if document["outcome"] == BASELINE:
        parts = [f"{document['address']}: {_BASELINE}"]
    parts += [document["text"]] if document["text"] else []
    parts += ["There is more; it is read next."] if document["has_more"] else []
    return " ".join(parts)
