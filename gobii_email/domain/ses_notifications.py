"""What Amazon SES tells in JSON about mail that it carried: bounces, complaints, deliveries.

Topics forward these notifications as mail. Only the object itself is read here, as the SES developer guide
describes it ("Amazon SNS notification contents"); which mail carries one is decided in returned_mail.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gobii_email.domain import dsn
from gobii_email.domain.dsn import Evidence, ReturnedRecipient, Source, Sureness

_EVIDENCE = Evidence(Source.NOTIFICATION, Sureness.LIKELY)
_LISTS = {"bounce": "bouncedRecipients", "complaint": "complainedRecipients", "delivery": "recipients"}


@dataclass(frozen=True, slots=True)
class Notification:
    """At least one recipient, and the Message-ID of the mail it is about, "" where that is not told."""

    recipients: tuple[ReturnedRecipient, ...]
    original_message_id: str = ""


def read_notification(text: str) -> Notification | None:
    """The notification that `text` is, or is wrapped in; None when it is none. Never raises."""
    outer = _object(text) if text.lstrip().startswith("{") else {}
    document = _object(outer.get("Message")) or outer
    name = str(document.get("notificationType") or document.get("eventType") or "").lower()
    recipients = tuple(_recipients(document, name))
    return Notification(recipients, _message_id(document)) if recipients else None


def _object(text: object) -> dict[str, Any]:
    try:
        document = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _below(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _message_id(document: Mapping[str, Any]) -> str:
    message_id = _below(_below(document, "mail"), "commonHeaders").get("messageId")
    return dsn.message_id_in(message_id) if isinstance(message_id, str) else ""


def _recipients(document: Mapping[str, Any], name: str) -> Iterator[ReturnedRecipient]:
    listed = _below(document, name).get(_LISTS.get(name, ""))
    for entry in (listed if isinstance(listed, list) else [])[: dsn.MAX_RECIPIENTS]:
        facts = entry if isinstance(entry, dict) else {"emailAddress": entry}
        address = dsn.clean_address(str(facts.get("emailAddress", "")))
        if not address:
            continue
        if name == "complaint":
            yield dsn.complained(address, Source.NOTIFICATION, Sureness.LIKELY)
        else:
            yield from _reported(facts, address, "failed" if name == "bounce" else "delivered")


def _reported(facts: Mapping[str, Any], address: str, action: str) -> Iterator[ReturnedRecipient]:
    """One recipient, whose facts are those of a delivery status under other names."""
    fields = {
        "Final-Recipient": f"rfc822; {address}",
        "Action": facts.get("action") or action,
        "Status": facts.get("status", ""),
        "Diagnostic-Code": facts.get("diagnosticCode", ""),
    }
    text = "\n".join(f"{name}: {' '.join(str(value).split())}" for name, value in fields.items())
    for recipient in dsn.read_delivery_status(text).recipients:
        yield replace(recipient, evidence=_EVIDENCE)
