"""The one list of metrics, with their labels. None of them is by account, agent, recipient or raw host.

What is counted is counted where it happens, once it is committed; what stands in the database is read when
somebody asks (`services/take_stock`). A metric that cannot be kept is said once in the log and never in the
way of a mail. A `provider` is an id of `domain/providers`, else "other"; "none" stands where nothing applies.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from gobii_email.conf import config
from gobii_email.shared_counts import SharedCounts

logger = logging.getLogger(__name__)

P = ParamSpec("P")
_said: set[str] = set()


def harmless(measure: Callable[P, None]) -> Callable[P, None]:
    """`measure`, which says once a process that it cannot, and then nothing."""

    @wraps(measure)
    def safely(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            measure(*args, **kwargs)
        except Exception as problem:
            kind = type(problem).__name__
            if kind not in _said:
                _said.add(kind)
                logger.warning("metrics.failed", extra={"error": kind, "text": str(problem)})

    return safely


def directory() -> Path | None:
    """Where the processes of this machine add up their counts; None where they keep none."""
    found = config().metrics_dir
    return Path(found) if found else None


counts = SharedCounts(directory)


@dataclass(frozen=True, slots=True)
class Counter:
    """Only rises; its name ends in _total."""

    name: str
    about: str
    labels: Sequence[str] = ()

    @harmless
    def inc(self, *values: str, by: float = 1) -> None:
        counts.add(self.name, self.about, self.labels, values, by)


@dataclass(frozen=True, slots=True)
class Histogram:
    name: str
    about: str
    bounds: Sequence[float]
    labels: Sequence[str] = ()

    def observe(self, amount: float, *values: str) -> None:
        self.observe_all([amount], *values)

    @harmless
    def observe_all(self, amounts: Iterable[float], *values: str) -> None:
        found = [max(amount, 0) for amount in amounts]
        if found:
            counts.observe(self.name, self.about, self.labels, values, self.bounds, found)


@dataclass(frozen=True, slots=True)
class Gauge:
    """What is so now, by the database or by Redis: the same from every process, so take the largest."""

    name: str
    about: str
    labels: Sequence[str] = field(default_factory=tuple)


Metric = Counter | Histogram | Gauge

_WAITS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14400)
_STAGES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

ATTEMPTS = Counter(
    "gobii_email_attempts_total",
    "Attempts that ended: how, at which stage of the dialogue, and whose doing it was.",
    ("transport", "provider", "outcome", "stage", "blame"),
)
QUEUE_WAIT = Histogram(
    "gobii_email_queue_wait_seconds",
    "From when an attempt might start until a worker took it, where no limit and no hold kept it.",
    _WAITS,
)
ACCEPT = Histogram(
    "gobii_email_accept_seconds",
    "From submission until a server accepted the message.",
    _WAITS,
    ("transport",),
)
STAGE = Histogram("gobii_email_stage_seconds", "Each stage of a dialogue with a server.", _STAGES, ("stage",))
DOUBTS = Counter("gobii_email_doubts_total", "Attempts of which nobody knew whether the server has them.")
DOUBTS_ENDED = Counter(
    "gobii_email_doubts_ended_total", "Doubts that ended: found, absent (sent again) or given_up.", ("how",)
)
RETRIES = Counter("gobii_email_retries_total", "Further attempts that were queued.")
POSTPONED = Counter(
    "gobii_email_postponed_total", "How often a sender's mail was made to wait, and what for.", ("cause",)
)
POLLS = Counter(
    "gobii_email_polls_total", "Visits to mailboxes that ended.", ("provider", "outcome", "blame")
)
POLL_LAG = Histogram("gobii_email_poll_lag_seconds", "How late a due mailbox was visited.", _WAITS)
IMAP_FAILURES = Counter(
    "gobii_email_imap_failures_total",
    "Dialogues with IMAP servers that failed: `purpose` is poll, sent or idle.",
    ("provider", "purpose", "blame"),
)
BOUNCES = Counter(
    "gobii_email_bounces_total", "Reports about our mail that came back and fitted one, by kind.", ("kind",)
)
OAUTH_REFRESHES = Counter(
    "gobii_email_oauth_refreshes_total",
    "Requests for new access tokens: granted, or why not (owner, operator, passing).",
    ("provider", "outcome"),
)
POOL_EVENTS = Counter(
    "gobii_email_pool_events_total",
    "SMTP connections: opened, reused for another mail, or found stale when they were to be.",
    ("event",),
)
DECRYPT_FAILURES = Counter(
    "gobii_email_decrypt_failures_total", "Stored secrets that did not decrypt: look at the key ring first."
)
LEASES_LOST = Counter(
    "gobii_email_leases_lost_total", "Attempts that a worker found taken over, or whose worker was lost."
)
LIMITER_UNAVAILABLE = Counter(
    "gobii_email_limiter_unavailable_total", "Turns that Redis did not let begin or go on, by not answering."
)

GAUGES_READ = Gauge(
    "gobii_email_gauges_read", "Whether the gauges below could be read: 1, or 0 and none is here."
)
MESSAGES = Gauge("gobii_email_messages", "Messages queued, being sent or in doubt.", ("status",))
READY = Gauge("gobii_email_ready", "Attempts that a free worker would take now.")
OLDEST_WAITING = Gauge(
    "gobii_email_oldest_waiting_seconds", "Age of the oldest attempt whose time has come, whatever holds it."
)
OLDEST_READY = Gauge(
    "gobii_email_oldest_ready_seconds",
    "How long the oldest attempt waits that nothing holds: too few workers.",
)
ACCOUNTS = Gauge("gobii_email_accounts", "Accounts in use.", ("state", "provider"))
BACKOFF = Gauge(
    "gobii_email_accounts_in_backoff",
    "Accounts in use that do not send or receive freely; one may be counted under several causes.",
    ("provider", "cause"),
)
HELD_BACK = Gauge(
    "gobii_email_accounts_held_back",
    "Accounts in use that sign-in, a block, a setting or a server keeps from working, each once.",
    ("provider",),
)
LANES_WAITING = Gauge("gobii_email_lanes_waiting", "Senders whose mail waits as a whole.", ("code",))
MAILBOXES_OVERDUE = Gauge("gobii_email_mailboxes_overdue", "Mailboxes that should have been polled by now.")
MAILBOX_OVERDUE_SECONDS = Gauge("gobii_email_mailbox_overdue_seconds", "How overdue the worst of them is.")
SUSPENSIONS = Gauge("gobii_email_suspensions", "Suspensions in force.", ("scope",))
DISPATCHER_SEEN = Gauge(
    "gobii_email_dispatcher_seen_seconds", "Since the last good round of any dispatcher; absent if unknown."
)
BEAT_TICK = Gauge(
    "gobii_email_beat_tick_seconds", "Since beat's last tick was carried out; absent if unknown."
)
ENABLED = Gauge("gobii_email_enabled", "Whether own mailboxes are switched on (BYO_EMAIL_ENABLED): 1 or 0.")
ROLLOUT = Gauge(
    "gobii_email_rollout_percent",
    "Percentage of senders in the rollout; absent where they are listed by name.",
)

ALL: Sequence[Metric] = tuple(
    value for value in list(globals().values()) if isinstance(value, Counter | Histogram | Gauge)
)


def stages(dialogues: Iterable[Mapping[str, int]]) -> None:
    """Notes how many milliseconds each stage of each dialogue took."""
    spent: dict[str, list[float]] = defaultdict(list)
    for dialogue in dialogues:
        for stage, milliseconds in dialogue.items():
            spent[stage].append(milliseconds / 1000)
    for stage, seconds in spent.items():
        STAGE.observe_all(seconds, stage)


def as_markdown() -> str:
    """The table of docs/telemetry.md."""
    head = ["| metric | kind | labels | says |", "|---|---|---|---|"]
    return "\n".join(head + [_row(one) for one in ALL])


def _row(one: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in one.labels)
    return f"| `{one.name}` | {type(one).__name__.lower()} | {labels} | {one.about} |"
