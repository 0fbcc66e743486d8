"""Switching sending off and on again while everything runs: kill switches, and the rollout.

Works before the next transaction with any server, within two seconds in every process; what is held by it
keeps its place and its own expiry, and goes on by itself once the switch is back. Nothing is re-routed.
"""

import uuid
from datetime import datetime

from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone

from gobii_email.domain.lifecycle import AttemptStatus, Provider
from gobii_email.domain.providers import provider_of_host, providers
from gobii_email.domain.rollout import parse_rollout
from gobii_email.models import (
    AgentEmailAccount,
    Lane,
    OutboundMessageAttempt,
    PersistentAgent,
    RolloutChange,
    Suspension,
)
from gobii_email.services import switches
from gobii_email.services.gate import SUSPENDED
from gobii_email.services.intervene import NotPossible

ROLLOUT_CODES = ("byo_email_off", "not_in_rollout")


def suspend(
    scope: Suspension.Scope, subject: str, *, reason: str, until: datetime | None, by: str
) -> Suspension:
    """Stops `subject` until `until` or until it is lifted. Raises NotPossible for what nobody has."""
    if not reason.strip():
        raise NotPossible("A suspension needs a reason: whoever finds the mail waiting will read it.")
    now = timezone.now()
    if until is not None and until <= now:
        raise NotPossible("The suspension would be over already; give a time to come.")
    name = named(scope, subject.strip())
    made = Suspension.objects.create(
        scope=scope, subject=name, reason=reason.strip(), created_at=now, created_by=by, ends_at=until
    )
    switches.forget()
    return made


def lift(suspension: Suspension, *, by: str) -> bool:
    """Ends it and lets its mail go; False when it was over already."""
    now = timezone.now()
    rows = Suspension.objects.in_force(now).filter(pk=suspension.pk)
    if not rows.update(lifted_at=now, lifted_by=by):
        return False
    switches.forget()
    wake(SUSPENDED)
    return True


def change_rollout(*, is_enabled: bool | None, rollout: str, reason: str, by: str) -> RolloutChange:
    """From now on this instead of the settings; None and "" leave each to its setting.

    Raises NotPossible for a rollout that makes no sense.
    """
    try:
        parse_rollout(rollout)
    except ValueError as wrong:
        raise NotPossible(f"{wrong}.") from None
    made = RolloutChange.objects.create(
        at=timezone.now(), is_enabled=is_enabled, rollout=rollout.strip(), reason=reason, changed_by=by
    )
    switches.forget()
    wake(*ROLLOUT_CODES)
    return made


def wake(*codes: str) -> int:
    """Has everything that waits for one of `codes` looked at again; answers how many attempts that are."""
    now = timezone.now()
    Lane.objects.filter(code__in=codes).update(look_at=None, code="", reason="")
    queued = OutboundMessageAttempt.objects.filter(status=AttemptStatus.QUEUED, held_code__in=codes)
    return queued.update(due_at=Greatest(F("not_before"), now), held_code="", held_reason="")


def named(scope: Suspension.Scope, subject: str) -> str:
    """How a suspension's row names `subject`. Raises NotPossible for what nobody has."""
    match scope:
        case Suspension.Scope.ACCOUNT:
            account = AgentEmailAccount.objects.filter(endpoint__address__iexact=subject)
            address = account.values_list("endpoint__address", flat=True).first()
            return _found(address and address.lower(), f"There is no mailbox {subject}.")
        case Suspension.Scope.AGENT:
            return _found(_agent_id(subject), f"There is no agent, or more than one, called {subject}.")
        case Suspension.Scope.PROVIDER:
            return _found(_provider(subject.lower()), _unknown_provider(subject))
    return ""


def _found(name: str | None, otherwise: str) -> str:
    if not name:
        raise NotPossible(otherwise)
    return name


def _agent_id(subject: str) -> str | None:
    try:
        found = PersistentAgent.objects.filter(pk=uuid.UUID(subject))
    except ValueError:
        found = PersistentAgent.objects.filter(name=subject)
    ids = list(found.values_list("pk", flat=True)[:2])
    return str(ids[0]) if len(ids) == 1 else None


def _provider(name: str) -> str | None:
    """The id of a known provider, a transport, or a server that accounts use."""
    if name in set(Provider) or any(provider.id == name for provider in providers()):
        return name
    if (known := provider_of_host(name)) is not None:
        return known.id
    return name if AgentEmailAccount.objects.filter(smtp_host__iexact=name).exists() else None


def _unknown_provider(subject: str) -> str:
    ids = ", ".join(provider.id for provider in providers()[:8])
    return (
        f"{subject} is no provider, transport or server in use. Known are smtp, postmark, {ids} and others."
    )
