"""`email_account`: connect a mailbox, test it, switch it on, hold it, remove it.

An entry point only: reads arguments or the JSON document, calls one service, shows the result.
Passwords come in the document alone, never as an argument, and are never shown.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from gobii_email.management.account_discovery import show_discovery
from gobii_email.management.mailbox_test import MailboxTest
from gobii_email.management.message_argument import printable
from gobii_email.management.terminal import EmailCommand, length_of_time
from gobii_email.models import AgentEmailAccount, Mailbox
from gobii_email.services import accounts, hold, learn

EXAMPLE = '{"agent": …, "address": …, "smtp": {…}}'
_LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection", "pool_ttl")


def account_document(account: AgentEmailAccount) -> dict[str, object]:
    """Everything about an account that may be seen."""
    return {
        "account_id": str(account.pk),
        "address": account.endpoint.address,
        "agent": account.endpoint.owner_agent and account.endpoint.owner_agent.name,
        "agent_id": account.endpoint.owner_agent_id,
        "smtp": _server(account, "smtp"),
        "imap": {
            **_server(account, "imap"),
            "folder": account.imap_folder,
            "copies_to_sent": account.copies_to_sent,
            "poll_interval": account.poll_interval_sec,
            "idle": account.imap_idle_enabled,
            "last_polled_at": account.last_polled_at,
            **_mailbox(account),
        },
        "limits": {name: getattr(account, name) for name in _LIMITS},
        "is_outbound_enabled": account.is_outbound_enabled,
        "is_inbound_enabled": account.is_inbound_enabled,
        "state": account.state_at(timezone.now()),
        "state_reason": account.state_reason,
        "state_until": account.state_until,
        "connection_last_ok_at": account.connection_last_ok_at,
        "connection_error": account.connection_error,
    }


def _mailbox(account: AgentEmailAccount) -> dict[str, object]:
    """What keeps the mailbox from being polled, or from being watched."""
    mailbox: Mailbox | None = getattr(account, "mailbox", None)
    if mailbox is None:
        return {}
    return {
        "backoff_until": account.backoff_until,
        "held": mailbox.hold_reason,
        "watch_problem": mailbox.watch_problem if account.imap_idle_enabled else "",
    }


def _server(account: AgentEmailAccount, side: str) -> dict[str, object]:
    parts = {
        part: getattr(account, f"{side}_{part}") for part in ("host", "port", "security", "auth", "username")
    }
    return {
        **parts,
        "has_password": getattr(account, f"{side}_password_encrypted") is not None,
        "is_tested": getattr(account, f"is_{side}_tested"),
        "last_ok_at": getattr(account, f"{side}_last_ok_at"),
        "error": getattr(account, f"{side}_error"),
    }


def account_line(account: AgentEmailAccount) -> str:
    """One line for people: address, directions, test, state."""
    directions = [name for name, is_on in _directions(account).items() if is_on]
    facts = [
        f"{account.smtp_host or 'no host'}:{account.smtp_port or '-'}",
        f"enabled: {' and '.join(directions) or 'nothing'}",
        "tested" if account.is_smtp_tested else "not tested in its present settings",
        str(account.state_at(timezone.now())),
    ]
    return f"{account.endpoint.address}  {', '.join(facts)}"


def _directions(account: AgentEmailAccount) -> dict[str, bool]:
    return {"outbound": account.is_outbound_enabled, "inbound": account.is_inbound_enabled}


def sent_mail_document(account: AgentEmailAccount) -> dict[str, object]:
    """What was learned of the account's Sent folder, and the last trouble with it."""
    habit = learn.habit_of(account, timezone.now())
    return {"habit": habit.sentence(), "trouble": learn.latest_trouble(account)}


def document_text(document: Mapping[str, object]) -> str:
    """The document as indented lines, empty values left out."""
    lines = []
    for name, value in document.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        lines += [
            f"{f'{name} {row}'.strip():<24} {_shown(found)}" for row, found in rows if found not in (None, "")
        ]
    return "\n".join(lines)


def _shown(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else printable(value)


class Command(EmailCommand):
    help = "Connects, tests, enables, holds and removes the mailboxes of agents."

    def add_arguments(self, parser: CommandParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
        apply = actions.add_parser("apply", help="create or update one account from a JSON document")
        apply.add_argument("file", metavar="FILE", help="the document, or - for standard input")
        self.add_json_option(apply)
        self.add_json_option(actions.add_parser("list", help="every account in a line"))
        self._add(actions, "discover", "find the servers of an address; nothing is stored or dialled")
        self._add(actions, "show", "everything about one account but its secrets")
        pause = self._add(actions, "pause", "hold the account's mail")
        pause.add_argument("--reason", default="Paused by hand.", help="why, for whoever looks next")
        pause.add_argument(
            "--for", dest="span", type=length_of_time, help="end by itself after e.g. 30m or 4h"
        )
        self._add(actions, "resume", "end any hold and let the mail go")
        self._add(actions, "delete", "remove the account and its secrets; messages stay")
        test = self._add(actions, "test", "test the connection, step by step, and store the result")
        MailboxTest.add_arguments(test)
        for name, text in (
            ("enable", "switch on what was tested"),
            ("disable", "switch off: queued mail waits, new mail takes the installation's own transport"),
        ):
            action = self._add(actions, name, text)
            action.add_argument("--outbound", action="store_true", help="sending")
            action.add_argument("--inbound", action="store_true", help="receiving")

    def _add(self, actions: Any, name: str, text: str) -> CommandParser:
        parser: CommandParser = actions.add_parser(name, help=text)
        parser.add_argument("address", metavar="ADDRESS", help="the mailbox's e-mail address")
        self.add_json_option(parser)
        return parser

    def handle(self, *args: Any, **options: Any) -> None:
        getattr(self, f"_{options['action']}")(options)

    def _account(self, options: dict[str, Any]) -> AgentEmailAccount:
        account = accounts.find_account(options["address"])
        if account is None:
            self.fail(
                f"There is no account for {options['address']!a}.",
                field="address",
                remedy="`email_account list` shows those there are.",
            )
        return account

    def _show_account(self, account: AgentEmailAccount, said: str) -> None:
        self.answer(account_document(account), self.is_json, f"{said} {account_line(account)}".strip())

    # Actions

    def _apply(self, options: dict[str, Any]) -> None:
        account = accounts.apply_account(self._document(options["file"]))
        self.answer(account_document(account), True, "")

    def _document(self, name: str) -> object:
        try:
            data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        except OSError as wrong:
            self.usage(
                f"{name}: {wrong.strerror}.", field="FILE", remedy="Name a file, or - for standard input."
            )
        try:
            return json.loads(data.decode("utf-8-sig"))
        except json.JSONDecodeError as wrong:
            where = f"line {wrong.lineno}, column {wrong.colno}"
            text, remedy = f"{name}: not JSON: {wrong.msg} at {where}.", f"Write {EXAMPLE}."
            self.usage(text, field="FILE", remedy=remedy)
        except (UnicodeDecodeError, RecursionError, ValueError):
            self.usage(f"{name}: not JSON in UTF-8.", field="FILE", remedy="Save it as UTF-8.")

    def _discover(self, options: dict[str, Any]) -> None:
        show_discovery(self, options["address"])

    def _list(self, options: dict[str, Any]) -> None:
        found = list(
            AgentEmailAccount.objects.select_related("endpoint__owner_agent", "mailbox").order_by(
                "endpoint__address"
            )
        )
        lines = [account_line(account) for account in found] or ["No accounts yet."]
        self.answer([account_document(account) for account in found], self.is_json, "\n".join(lines))

    def _show(self, options: dict[str, Any]) -> None:
        account = self._account(options)
        document = account_document(account) | {"sent_mail": sent_mail_document(account)}
        self.answer(document, self.is_json, document_text(document))

    def _pause(self, options: dict[str, Any]) -> None:
        account, span = self._account(options), options["span"]
        if not options["reason"].strip():
            self.usage("--reason is empty.", field="reason", remedy="Say why, for whoever looks next.")
        if span is not None and not span:
            remedy = "Give e.g. 30m, or leave it out: then it lasts until somebody resumes it."
            self.usage("--for is no time at all.", field="for", remedy=remedy)
        hold.pause(account, reason=options["reason"].strip(), until=span and timezone.now() + span)
        self._show_account(account, "Paused:")

    def _resume(self, options: dict[str, Any]) -> None:
        account = self._account(options)
        waiting = hold.resume(account)
        self._show_account(account, f"Resumed, {waiting} waiting:")

    def _delete(self, options: dict[str, Any]) -> None:
        account = self._account(options)
        document = {"account_id": str(account.pk), "address": account.endpoint.address, "deleted": True}
        accounts.delete(account)
        self.answer(
            document, self.is_json, f"Removed the account of {document['address']}; its messages stay."
        )

    def _test(self, options: dict[str, Any]) -> None:
        MailboxTest(self, self._account(options), options).run()

    def _enable(self, options: dict[str, Any]) -> None:
        outbound = options["outbound"] or not options["inbound"]
        account = accounts.enable(self._account(options), outbound=outbound, inbound=options["inbound"])
        self._show_account(account, "Enabled:")

    def _disable(self, options: dict[str, Any]) -> None:
        both = not (options["outbound"] or options["inbound"])
        account = accounts.disable(
            self._account(options), outbound=options["outbound"] or both, inbound=options["inbound"] or both
        )
        self._show_account(account, "Disabled:")
