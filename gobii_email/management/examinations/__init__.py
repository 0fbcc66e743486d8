"""What an operator asks first, each answered by one function in a row: ok, warn or fail, with a hint.

Each looks at one thing and asks no mail server. How long they may take, and how the rows are shown, is
left to `email_doctor`; what the settings alone tell is asked of the system checks.
"""

from collections.abc import Sequence

from gobii_email.management.examinations import (
    installation,
    mailboxes,
    outcomes,
    polls,
    processes,
    redis,
    storage,
    switched,
)
from gobii_email.management.examinations.row import Examination

EXAMINATIONS: Sequence[tuple[str, Examination]] = (
    ("python", installation.python),
    ("settings", installation.settings_),
    ("database", storage.database),
    ("migrations", storage.migrations),
    ("redis", redis.redis),
    ("broker", redis.broker),
    ("workers", processes.workers),
    ("dispatcher", processes.dispatcher),
    ("watchers", processes.watchers),
    ("beat", processes.beat),
    ("versions", processes.versions),
    ("queue", processes.queue),
    ("keys", mailboxes.keys),
    ("secrets", mailboxes.secrets),
    ("accounts", mailboxes.accounts),
    ("polls", polls.polls),
    ("tokens", mailboxes.tokens),
    ("budget", outcomes.budget),
    ("sign-in", installation.sign_in),
    ("transports", installation.transports),
    ("switches", switched.switched),
    ("retention", installation.retention),
    ("trust", installation.trust),
    ("networks", installation.networks),
    ("clock", storage.clock),
)
