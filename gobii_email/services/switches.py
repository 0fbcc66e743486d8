"""What operators have switched: who takes part in the rollout, and what is suspended.

Read from the database at most once a second in a process, so that a switch works everywhere within two,
without a restart and without a statement a mail. Without an answer of the database nothing is sent.
"""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from django.utils import timezone

from gobii_email.conf import config
from gobii_email.domain.providers import provider_of_host
from gobii_email.domain.rollout import Rollout, parse_rollout
from gobii_email.models import AgentEmailAccount, RolloutChange, Suspension

FRESH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose mail it is and through what it goes: everything that can be suspended.

    `address` is the sender's, `host` its account's server or "", `transport` the provider of the attempt.
    """

    address: str
    agent_id: uuid.UUID | None
    host: str = ""
    transport: str = ""

    def names(self, scope: Suspension.Scope) -> set[str]:
        match scope:
            case Suspension.Scope.ACCOUNT:
                return {self.address.lower()} if self.host else set()
            case Suspension.Scope.AGENT:
                return {str(self.agent_id)}
            case Suspension.Scope.PROVIDER:
                provider = provider_of_host(self.host) if self.host else None
                return {self.host.lower(), self.transport, provider.id if provider else ""} - {""}
        return {""}


@dataclass(frozen=True, slots=True)
class Switches:
    """What is in force at one moment."""

    is_byo_email_enabled: bool
    rollout: Rollout
    suspensions: Sequence[Suspension] = ()

    def includes(self, agent_id: uuid.UUID | None, address: str) -> bool:
        """Whether the rollout does; the flag is another question."""
        return self.rollout.includes(str(agent_id), address)

    def suspension_of(self, subject: Subject, now: datetime) -> Suspension | None:
        """The one that lasts longest of those that keep `subject` from being sent or polled."""
        found = [
            one
            for one in self.suspensions
            if one.subject in subject.names(Suspension.Scope(one.scope))
            and (one.ends_at is None or one.ends_at > now)
        ]
        return max(found, key=lambda one: (one.ends_at is None, one.ends_at or now), default=None)


class _Known:
    """The last reading. One thread reads anew while the others go by what is a moment old."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._switches: Switches | None = None
        self._read_at = 0.0

    def now(self) -> Switches:
        found = self._switches
        if found is not None and time.monotonic() - self._read_at < FRESH_SECONDS:
            return found
        with self._lock:
            if self._switches is None or time.monotonic() - self._read_at >= FRESH_SECONDS:
                self._switches, self._read_at = _read(), time.monotonic()
            return self._switches

    def forget(self) -> None:
        self._switches = None


_known = _Known()


def switches() -> Switches:
    """What is in force now, or was a second ago."""
    return _known.now()


def forget() -> None:
    """Has the next question read anew, in this process; for whoever has just switched something."""
    _known.forget()


def told(suspension: Suspension) -> str:
    """What a suspension stops, and why, in a sentence."""
    scope = Suspension.Scope(suspension.scope).label.lower()
    whose = " ".join(part for part in (str(scope), suspension.subject) if part)
    return f"Suspended: {whose}. {suspension.reason}"


def subject_of(account: AgentEmailAccount) -> Subject:
    """An account as what can be suspended."""
    endpoint = account.endpoint
    return Subject(endpoint.address, endpoint.owner_agent_id, account.smtp_host or account.imap_host)


def settings_alone() -> Switches:
    """What the settings say, whatever was switched since."""
    return Switches(config().byo_email_enabled, config().byo_email_rollout)


def _read() -> Switches:
    found, change = settings_alone(), RolloutChange.objects.order_by("-id").first()
    suspensions = tuple(Suspension.objects.in_force(timezone.now()))
    if change is None:
        return replace(found, suspensions=suspensions)
    return Switches(
        found.is_byo_email_enabled if change.is_enabled is None else change.is_enabled,
        parse_rollout(change.rollout) if change.rollout else found.rollout,
        suspensions,
    )
