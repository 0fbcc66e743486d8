"""`email_quota`: what a mailbox may send, what it has sent, and when many more would be out.

Shows one account and changes nothing. How limits are counted is told in docs/decisions/0006.
"""

from argparse import ArgumentTypeError
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone

from gobii_email.domain.classification import AccountState
from gobii_email.management.message_argument import printable
from gobii_email.management.terminal import EmailCommand
from gobii_email.models import AgentEmailAccount
from gobii_email.ports import LimitScope
from gobii_email.services import accounts, allow
from gobii_email.services.tell import clock_time

Row = dict[str, Any]
MOST_MESSAGES = 1_000_000
_RATES = {"minute": "per_minute", "hour": "per_hour", "day": "per_day"}
_ARTICLES = {"minute": "a minute", "hour": "an hour", "day": "a day"}
_FIELDS = (*_RATES.values(), "connections", "recipients_per_message", "messages_per_connection")


def number_of_messages(text: str) -> int:
    """An argument from 1 to a million."""
    if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= MOST_MESSAGES:
        raise ArgumentTypeError(f"give a whole number of messages from 1 to {MOST_MESSAGES:,}")
    return int(text)


class Command(EmailCommand):
    help = "Shows the limits of a mailbox, what is used of them, and when many more messages would be out."

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument("address", metavar="ADDRESS", help="the mailbox's e-mail address")
        parser.add_argument(
            "--messages",
            type=number_of_messages,
            metavar="N",
            help="says when N more messages, to one recipient each, would be out",
        )

    def handle(self, *args: Any, address: str, messages: int | None, **options: Any) -> None:
        account = self._account(address)
        now = timezone.now()
        found = allow.quota(account, messages or 0, now)
        document = quota_document(account, found, messages, now)
        self.answer(document, self.is_json, "\n".join(_lines(document, now)))
        if found.problem:
            raise CommandError(found.problem, returncode=1)

    def _account(self, address: str) -> AgentEmailAccount:
        account = accounts.find_account(address)
        if account is None:
            self.fail(
                f"There is no account for {address!a}.",
                field="address",
                remedy="`email_account list` shows those there are.",
            )
        return account


def quota_document(
    account: AgentEmailAccount, found: allow.Quota, messages: int | None, now: datetime
) -> Row:
    """Limits with their sources, and what is used of them; `error` where the counters do not answer."""
    held = account.state_at(now) is not AccountState.ACTIVE
    document = {
        "address": account.endpoint.address,
        "limits": {
            name: {"limit": getattr(found.limits, name), "source": found.limits.sources.get(name, "")}
            for name in _FIELDS
        },
        "learned": _learned(found),
        "scopes": [_scope(scope, usage) for scope, usage in found.scopes],
        "held": {"state": account.state, "reason": account.state_reason, "until": account.state_until}
        if held
        else None,
        "queued_recipients": found.queued,
        "messages": messages,
        "out_at": found.out_at,
    }
    if found.problem:
        document["error"] = {"field": "", "reason": found.problem, "remedy": "See that Redis runs."}
    return document


def _learned(found: allow.Quota) -> Row | None:
    lesson = found.learned
    return lesson and {
        "per_minute": lesson.per_minute,
        "connections": lesson.connections,
        "at": lesson.at,
        "reason": lesson.reason,
    }


def _scope(scope: LimitScope, usage: Any) -> Row:
    return {
        "scope": scope.key.partition("#")[0],
        "owner": scope.owner,
        "windows": [
            {"window": window.name, "limit": window.limit, "used": usage and usage.used[window.name]}
            for window in scope.windows
        ],
        "connections": {"limit": scope.connections, "in_use": usage and usage.lanes},
    }


def _lines(document: Row, now: datetime) -> Iterator[str]:
    own, *above = document["scopes"]
    used = {row["window"]: row["used"] for row in own["windows"]}
    for name, field in _RATES.items():
        yield _limit(document, field, _ARTICLES[name], used.get(name), "used")
    yield _limit(document, "connections", "connections", own["connections"]["in_use"], "in use")
    yield _limit(document, "recipients_per_message", "recipients a transaction")
    yield _limit(document, "messages_per_connection", "messages a connection")
    for row in above:
        yield from _above(row)
    if document["learned"]:
        since = clock_time(document["learned"]["at"], now)
        yield f"slowed down since {since}: {printable(document['learned']['reason'])}"
    if document["held"]:
        yield f"held: the mailbox is {document['held']['state']}. {printable(document['held']['reason'])}"
    yield f"{document['queued_recipients']:,} recipients wait in the queue"
    if document["out_at"] and (document["messages"] or document["queued_recipients"]):
        more = f" and {document['messages']:,} messages more" if document["messages"] else ""
        when = clock_time(document["out_at"], now)
        yield f"those{more} would all be out at {when}, if nothing but the limits held them up"


def _limit(document: Row, field: str, unit: str, count: int | None = None, counted: str = "") -> str:
    row = document["limits"][field]
    if row["limit"] is None:
        return f"no limit {unit}"
    known = "" if count is None else f": {count:,} {counted}"
    return f"{row['limit']:,} {unit} ({row['source']}){known}"


def _above(row: Row) -> Iterator[str]:
    """A limit of the server or of the domain, over all their accounts."""
    for window in row["windows"]:
        used = "" if window["used"] is None else f": {window['used']:,} used"
        yield f"{printable(row['owner'])} limit of {window['limit']:,} {_ARTICLES[window['window']]}{used}"
    connections = row["connections"]
    if connections["limit"] is not None:
        used = "" if connections["in_use"] is None else f": {connections['in_use']:,} in use"
        yield f"{printable(row['owner'])} limit of {connections['limit']:,} connections{used}"
