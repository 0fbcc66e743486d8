"""How much an account may send: its limits, and what its server's answers taught about them.

Pure. A limit that is not set is its provider's, and for an unknown provider a cautious one (Nylas, "improving
email delivery", and facts of our own). What was learned is only ever below that, and grows back by itself.
"""

from dataclasses import dataclass
from datetime import timedelta

LIMITS = ("per_minute", "per_hour", "per_day", "max_connections", "messages_per_connection")
MOST = 1_000_000_000
"""A limit above this is a mistake; who wants none says this."""
LONGEST_POOL_TTL = 3600
"""Seconds: no server keeps a silent connection longer."""


@dataclass(frozen=True, slots=True)
class Window:
    """At most `limit` (>= 1) recipients in any `span`; `name` is minute, hour or day."""

    name: str
    span: timedelta
    limit: int
