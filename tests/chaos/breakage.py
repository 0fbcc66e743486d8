"""Safeties, each taken out by a function of its name: with it gone the books must not balance any more."""

from collections.abc import Sequence
from typing import Any


def mark() -> None:
    """The dot is sent without a word about it in the database first."""
    from gobii_email.services.lease import Lease

    def unmarked(self: Lease) -> None:
        return None

    Lease.mark = unmarked  # type: ignore[method-assign]


def fence() -> None:
    """Whoever once held an attempt may write to it for ever."""
    from django.utils import timezone

    from gobii_email.models import OutboundMessageAttempt, queue
    from gobii_email.models.attempts import AttemptQuerySet

    def unfenced(self: AttemptQuerySet, attempt_id: Any, token: Any) -> AttemptQuerySet:
        return self.filter(pk=attempt_id)

    def mark_unfenced(marks: Sequence[queue.Mark], **_: Any) -> set[Any]:
        dots = [one.id for one in marks if one.stage == "dot"]
        OutboundMessageAttempt.objects.filter(pk__in=dots).update(marked_at=timezone.now())
        return {one.id for one in marks}

    AttemptQuerySet.held_by = unfenced  # type: ignore[method-assign]
    queue.mark = mark_unfenced  # type: ignore[assignment]
