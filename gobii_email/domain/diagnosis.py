"""What a test of a mailbox tells: its steps in order, and one sentence with what to do.

Every face shows the same values: admin, console, command and Python. Which steps there are follows from
the protocol; how they are taken is the adapters' business, what they mean for the account the services'.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

SMTP_STEPS = (
    "settings", "policy", "dns", "tcp", "banner", "ehlo", "starttls", "tls", "ehlo_again", "auth", "mail",
    "rcpt", "message",
)  # fmt: skip
IMAP_STEPS = (
    "settings", "policy", "dns", "tcp", "greeting", "starttls", "tls", "capabilities", "auth", "list",
    "select",
)  # fmt: skip
"""All steps, in the order of a connection that begins in clear; with SSL/TLS `tls` follows `tcp`."""


class StepStatus(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a test. Everything in it is safe to show to the mailbox's owner.

    `text` is a sentence, `facts` what was found (texts, numbers, lists of texts), `advice` what to do, `raw`
    what the server said, redacted.
    """

    id: str
    status: StepStatus
    milliseconds: int = 0
    text: str = ""
    facts: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    advice: str = ""
    raw: str = ""

    def as_document(self) -> dict[str, Any]:
        document = {name: getattr(self, name) for name in self.__slots__}
        return document | {"status": str(self.status), "facts": dict(self.facts)}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A whole test: whether it succeeded, `text` in one sentence, and `advice` when it did not."""

    protocol: str
    ok: bool
    steps: Sequence[Step]
    text: str
    advice: str = ""

    def as_document(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "ok": self.ok,
            "text": self.text,
            "advice": self.advice,
            "steps": [step.as_document() for step in self.steps],
        }
