"""Which refusals say that an address is no good, so that nobody should write to it again.

Only statuses about the address itself (RFC 3463 section 3.2, RFC 7505) that a server wrote out. Those about
the sender (5.1.7, 5.1.8), a full mailbox (5.2.2), a route that was not found (5.4.4: as often a fault of the
asking server's DNS), content and policy come and go.
"""

import re

from gobii_email.domain.classification import read_reply
from gobii_email.domain.smtp_replies import Reply, Stage

DEAD = frozenset(["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"])
"""No such mailbox, no such domain, no address, moved away, no mail there (null MX), disabled."""

# Gmail says 5.2.1 of a closed mailbox, and of one that gets too much mail this hour.
_PASSES = re.compile(
    r"too (?:quickly|many|much)|\brate\b|temporar|try again|over ?quota|mailbox (?:is )?full", re.I
)


def is_dead(enhanced_status: str, said: str) -> bool:
    """Whether a refusal with this status and these words is about the address, and for good."""
    if enhanced_status not in DEAD or _PASSES.search(said):
        return False
    # Some say "no such user" to whom they do not trust.
    return read_reply(Stage.RCPT, Reply(550, enhanced_status, said)).category != "policy/spam"
