"""Safeties, each taken out by a function of its name: with it gone the books must not balance any more."""

from typing import Any


def mark() -> None:
    """The dot is sent without a word about it in the database first."""
    from gobii_email.services.lease import Lease

    def unmarked(self: Lease) -> None:
        return None

    Lease.mark = unmarked  # type: ignore[method-assign]


def fence() -> None:
    """Whoever once held an attempt may write to it for ever."""
    from gobii_email.models.attempts import AttemptQuerySet

    def unfenced(self: AttemptQuerySet, attempt_id: Any, token: Any) -> AttemptQuerySet:
        return self.filter(pk=attempt_id)

    AttemptQuerySet.held_by = unfenced  # type: ignore[method-assign]
