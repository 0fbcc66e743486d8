"""The one place that reads settings: each has a type, a unit, a default and a sentence.

A value comes from the Django setting of that name, else from the environment variable, else from the
file that NAME_FILE points to, else from the default. All errors are reported at once.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed

from gobii_email.domain.rollout import Rollout, parse_rollout
from gobii_email.domain.secret import Secret

Network = IPv4Network | IPv6Network

# A Django setting of this name is a host project's own broker, which our hints must not go to.
_ENVIRONMENT_ONLY = {"CELERY_BROKER_URL"}

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_SPAN_SECONDS = 36_525 * 86_400
SHORTEST_KEPT = timedelta(days=2)


def flag(text: str) -> bool:
    if text.lower() in {"1", "true", "yes", "on"}:
        return True
    if text.lower() in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError(f"{text!r} is neither true nor false")


def optional_flag(text: str) -> bool | None:
    return None if text == "" else flag(text)


def span(text: str) -> timedelta:
    """`90`, `90s`, `15m`, `4h`, `2d`: a length of time, in seconds where no unit is named."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if not found:
        raise ValueError(f"{text!r} is not a length of time such as 90s, 15m or 4h")
    seconds = float(found.group(1)) * _UNITS[found.group(2) or "s"]
    if seconds > _LONGEST_SPAN_SECONDS:
        raise ValueError(f"{text[:40]!r} is longer than a hundred years")
    return timedelta(seconds=seconds)


def kept(text: str) -> timedelta | None:
    """How long something is kept; None, for ever, where nothing is said."""
    found = span(text) if text.strip() else None
    if found is not None and found < SHORTEST_KEPT:
        raise ValueError(f"{text!r} is less than 2d: limits and late answers need the last days")
    return found


def spans(text: str) -> tuple[timedelta, ...]:
    return tuple(span(part) for part in text.split(",") if part.strip())


def number(text: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{text!r} is not a whole number")
    return int(text)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError(f"{text!r} is not a share from 0 to below 1")
    return value


def portion(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(f"{text!r} is not a share from 0 to 1")
    return value


def words(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower() for part in text.split(",") if part.strip())


def at_least(least: int) -> Callable[[str], int]:
    """A parser of whole numbers from `least` on."""

    def parse(text: str) -> int:
        if number(text) < least:
            raise ValueError(f"{text!r} is less than {least}")
        return number(text)

    return parse


def one_of(*names: str) -> Callable[[str], str]:
    """A parser of one of `names`."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"{text[:40]!r} is none of {', '.join(names)}")
        return text

    return parse


def networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def name_servers(text: str) -> tuple[tuple[str, int], ...]:
    """`192.0.2.53`, `192.0.2.53:5300` or `[2001:db8::53]:5300`, any number of them: (address, port) each."""
    return tuple(_name_server(part.strip()) for part in text.split(",") if part.strip())


def listener(text: str) -> tuple[str, int] | None:
    """`9464`, `0.0.0.0:9464` or `[::]:9464`: (address, port); loopback where only the port is named."""
    if not text:
        return None
    if text.isdigit():
        text = f"127.0.0.1:{text}"
    host, _, port = text.rpartition(":")
    if not 1 <= number(port) <= 65535:
        raise ValueError("ports are numbers from 1 to 65535")
    return str(ip_address(host.strip("[]"))), number(port)


def _name_server(text: str) -> tuple[str, int]:
    try:
        return str(ip_address(text)), 53
    except ValueError:
        host, _, port = text.rpartition(":")
    if not 1 <= number(port) <= 65535:
        raise ValueError("ports are numbers from 1 to 65535")
    return str(ip_address(host.removeprefix("[").removesuffix("]"))), number(port)


def ports(text: str) -> frozenset[int]:
    found = frozenset(number(part) for part in text.split(",") if part.strip())
    if not all(1 <= port <= 65535 for port in found):
        raise ValueError("ports are numbers from 1 to 65535")
    return found


def is_private_way(url: str) -> bool:
    """Whether tokens and codes may travel to `url`: https, or http on this machine alone."""
    parts = urlsplit(url)
    is_here = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and is_here))


def endpoint(text: str) -> str:
    """An address that tokens are sent to; "" for none."""
    if text and not is_private_way(text):
        raise ValueError("an address begins with https://, or with http:// on the loopback address")
    parts = urlsplit(text)
    if parts.username is not None or parts.fragment:
        raise ValueError("an address has neither a user name nor a fragment")
    return text


def setting(name: str, parse: Callable[[str], Any], default: str, meaning: str) -> Any:
    """One row of the settings table. `default` is written as in the environment."""
    return field(metadata={"name": name, "parse": parse, "default": default, "meaning": meaning})


@dataclass(frozen=True, slots=True)
class Config:
    """Every setting, typed. Names in the environment are given with each row."""

    redis_url: str = setting(
        "REDIS_URL", str, "redis://127.0.0.1:6379/0", "rate counters, leases, broker unless overridden"
    )
    own_broker_url: str = setting(
        "GOBII_BROKER_URL", str, "", "broker of this app alone, for host projects with another one"
    )
    celery_broker_url: str = setting(
        "CELERY_BROKER_URL", str, "", "broker, from the environment only; REDIS_URL when empty"
    )
    encryption_key: Secret = setting(
        "GOBII_ENCRYPTION_KEY", Secret, "", "key ring `kid:base64key[,kid:base64key…]`, first is primary"
    )
    byo_email_enabled_setting: bool | None = setting(
        "BYO_EMAIL_ENABLED", optional_flag, "", "own mailboxes; empty: on unless GOBII_PROPRIETARY_MODE"
    )
    byo_email_rollout: Rollout = setting(
        "BYO_EMAIL_ROLLOUT", parse_rollout, "all", "`all`, a percentage, or a list of agents and addresses"
    )
    proprietary_mode: bool = setting(
        "GOBII_PROPRIETARY_MODE", flag, "false", "SaaS: Postmark carries mail without an account"
    )
    simulate_setting: bool | None = setting(
        "SIMULATE_EMAIL_DELIVERY",
        optional_flag,
        "",
        "simulate mail with neither account nor Postmark; empty: on unless GOBII_PROPRIETARY_MODE",
    )
    postmark_server_token: Secret = setting("POSTMARK_SERVER_TOKEN", Secret, "", "Postmark's server token")
    postmark_webhook_secret: Secret = setting(
        "POSTMARK_WEBHOOK_SECRET", Secret, "", "`user:password` of its webhook; two lines while rotating"
    )
    postmark_api_url: str = setting(
        "POSTMARK_API_URL", str, "https://api.postmarkapp.com/", "Postmark's address; another one in tests"
    )
    task_events: bool = setting("GOBII_TASK_EVENTS", flag, "true", "Celery task events, which Flower shows")
    messages_per_connection: int = setting(
        "GOBII_MESSAGES_PER_CONNECTION", number, "1", "default of the account limit of that name"
    )
    allowed_networks: tuple[Network, ...] = setting(
        "BYO_EMAIL_ALLOWED_NETWORKS", networks, "", "CIDRs of private networks account hosts may be in"
    )
    allowed_ports: frozenset[int] = setting(
        "BYO_EMAIL_ALLOWED_PORTS", ports, "465,587,2525,993,143", "ports account hosts may be dialled at"
    )
    retry_schedule: tuple[timedelta, ...] = setting(
        "GOBII_RETRY_SCHEDULE", spans, "1m,2m,5m,10m,20m,40m,1h,2h,4h", "waits between attempts; last repeats"
    )
    retry_jitter: float = setting("GOBII_RETRY_JITTER", share, "0.1", "random share by which waits vary")
    expires_after: timedelta = setting("GOBII_EXPIRES_AFTER", span, "24h", "a message's life when unnamed")
    lease: timedelta = setting(
        "GOBII_LEASE", span, "60s", "how long a silent worker keeps an attempt; renewed while it works"
    )
    doubt_resend_after: timedelta = setting(
        "GOBII_DOUBT_RESEND_AFTER", span, "15m", "wait without evidence before on_doubt=resend sends again"
    )
    evidence_least: timedelta = setting(
        "GOBII_EVIDENCE_LEAST",
        span,
        "5m",
        "least age of a doubt before a copy missing in Sent proves anything",
    )
    deadline_connect: timedelta = setting("GOBII_DEADLINE_CONNECT", span, "15s", "total, to connect")
    deadline_step: timedelta = setting(
        "GOBII_DEADLINE_STEP", span, "30s", "total, for each of banner, EHLO, TLS and AUTH"
    )
    deadline_envelope: timedelta = setting(
        "GOBII_DEADLINE_ENVELOPE", span, "120s", "total, for MAIL and all RCPT"
    )
    deadline_body: timedelta = setting(
        "GOBII_DEADLINE_BODY", span, "60s", "total, for the body, plus its size at 64 kB/s"
    )
    deadline_dot: timedelta = setting(
        "GOBII_DEADLINE_DOT", span, "600s", "for the answer to the finished message (RFC 5321 4.5.3.2.6)"
    )
    deadline_test: timedelta = setting(
        "GOBII_DEADLINE_TEST", span, "40s", "total, for one test of a mailbox's connection"
    )
    test_blocked_after: timedelta = setting(
        "GOBII_TEST_BLOCKED_AFTER", span, "3s", "when a test of a host that is unknown or not allowed answers"
    )
    tests_per_minute: int = setting(
        "GOBII_TESTS_PER_MINUTE", number, "6", "tests from pages, of one mailbox and by one person"
    )
    tests_per_hour: int = setting("GOBII_TESTS_PER_HOUR", number, "60", "the same in an hour")
    dispatch_every: timedelta = setting(
        "GOBII_DISPATCH_EVERY", span, "1s", "pause of the dispatcher between two rounds without work"
    )
    hint_lifetime: timedelta = setting(
        "GOBII_HINT_LIFETIME", span, "60s", "an unclaimed attempt is handed out again after this"
    )
    ring_grace: timedelta = setting(
        "GOBII_RING_GRACE", span, "5s", "the dispatcher leaves a fresh attempt to its own ring this long"
    )
    breaker_pause: timedelta = setting(
        "GOBII_BREAKER_PAUSE", span, "5s", "no ring is tried for this long after the broker failed"
    )
    dns_deadline: timedelta = setting(
        "GOBII_DNS_DEADLINE", span, "5s", "total, for all questions about the domain of one mailbox"
    )
    dns_servers: tuple[tuple[str, int], ...] = setting(
        "GOBII_DNS_SERVERS", name_servers, "", "name servers to ask about such domains; empty: the system's"
    )
    max_received_bytes: int = setting(
        "GOBII_MAX_RECEIVED_BYTES",
        number,
        "26214400",
        "of one received mail; of a larger one the header is read",
    )
    max_received_file_bytes: int = setting(
        "GOBII_MAX_RECEIVED_FILE_BYTES",
        number,
        "10485760",
        "of one file in a received mail; larger ones are noted",
    )
    max_received_files: int = setting(
        "GOBII_MAX_RECEIVED_FILES", number, "50", "files kept of one received mail; further ones are noted"
    )
    refused_file_types: tuple[str, ...] = setting(
        "GOBII_REFUSED_FILE_TYPES", words, "", "endings of file names that are not kept, such as `exe,js`"
    )
    inbound_authentication: str = setting(
        "INBOUND_AUTHENTICATION",
        one_of("quarantine_failures", "require", "ignore"),
        "quarantine_failures",
        "mail whose sender the mailbox's own server refutes: `quarantine_failures`; also what it does not"
        " confirm: `require`; neither: `ignore`",
    )
    reading_deadline: timedelta = setting(
        "GOBII_READING_DEADLINE",
        span,
        "10s",
        "processor time to understand one received mail; thrice this in all",
    )
    reading_memory_bytes: int = setting(
        "GOBII_READING_MEMORY_BYTES",
        at_least(268_435_456),
        "536870912",
        "address space of the process that reads mail",
    )
    email_received_task: str = setting(
        "EMAIL_RECEIVED_TASK", str, "", "Celery task to run with the id of each received message"
    )
    email_received_queue: str = setting(
        "EMAIL_RECEIVED_QUEUE", str, "celery", "the queue that this task is put in"
    )
    idle_enabled: bool = setting(
        "IMAP_IDLE_ENABLED", flag, "true", "mailboxes that ask for it are watched for new mail"
    )
    idle_max_connections: int = setting(
        "IMAP_IDLE_MAX_CONNECTIONS", number, "2000", "mailboxes that one `run_imap_idlers` watches at most"
    )
    idle_scan_interval: timedelta = setting(
        "IMAP_IDLE_SCAN_INTERVAL_SEC", span, "20s", "how often it looks which mailboxes are to be watched"
    )
    idle_reissue: timedelta = setting(
        "IMAP_IDLE_REISSUE_SEC", span, "25m", "longest IDLE; then it is begun anew (RFC 2177: within 29 min)"
    )
    idle_debounce: timedelta = setting(
        "IMAP_IDLE_DEBOUNCE_SEC", span, "5s", "between two polls of one mailbox that news asks for"
    )
    idle_lease: timedelta = setting(
        "IMAP_IDLE_LEASE_TTL_SEC", span, "60s", "how long mailboxes stay with a watcher that fell silent"
    )
    max_message_bytes: int = setting("GOBII_MAX_MESSAGE_BYTES", number, "25000000", "of one serialised mail")
    max_recipients: int = setting("GOBII_MAX_RECIPIENTS", number, "500", "To, Cc and Bcc together")
    answers_per_hour: int = setting(
        "GOBII_ANSWERS_PER_HOUR", number, "20", "automatic answers of one sender to one correspondent"
    )
    failed_sign_ins: int = setting(
        "GOBII_FAILED_SIGN_INS",
        number,
        "10",
        "of one user name in 15 minutes, thrice this from one address; 0: no limit",
    )
    proxies: int = setting(
        "GOBII_PROXIES", number, "0", "reverse proxies before `web`, each of which adds to X-Forwarded-For"
    )
    keep_bodies: timedelta | None = setting(
        "GOBII_KEEP_BODIES", kept, "", "bodies and files of messages, sent and received; empty: for ever"
    )
    keep_events: timedelta | None = setting(
        "GOBII_KEEP_EVENTS", kept, "", "the timeline of messages that are over; empty: as long as the message"
    )
    keep_messages: timedelta | None = setting(
        "GOBII_KEEP_MESSAGES",
        kept,
        "",
        "messages that are over, with attempts, recipients and idempotency keys; empty: for ever",
    )
    keep_received: timedelta | None = setting(
        "GOBII_KEEP_RECEIVED", kept, "", "received mail as it came, after it was read; empty: for ever"
    )
    keep_tests: timedelta | None = setting(
        "GOBII_KEEP_TESTS", kept, "", "reports of connection tests; empty: for ever"
    )
    metrics_dir: str = setting(
        "GOBII_METRICS_DIR", str, "", "where processes add up counts; empty: `metrics` under GOBII_VAR"
    )
    metrics_token: Secret = setting(
        "METRICS_TOKEN", Secret, "", "bearer token for `/metrics`, beside the session of a staff member"
    )
    metrics_port: tuple[str, int] | None = setting(
        "GOBII_METRICS_PORT",
        listener,
        "",
        "`[address:]port`, loopback unless named, where workers, dispatchers and watchers show `/metrics`",
    )
    traces_share: float = setting(
        "GOBII_TRACES_SHARE", portion, "1", "share of traces that are exported; failed spans always are"
    )
    heartbeat_file: str = setting(
        "GOBII_HEARTBEAT_FILE",
        str,
        "",
        "a file that a worker touches every 10 s while it takes tasks, and beat at least every 30 s",
    )
    public_url: str = setting("PUBLIC_URL", str, "http://127.0.0.1:8000", "where people reach this service")
    google_client_id: str = setting(
        "GOOGLE_CLIENT_ID", str, "", "this installation's OAuth client at Google; sign-in is off without it"
    )
    google_client_secret: Secret = setting("GOOGLE_CLIENT_SECRET", Secret, "", "that client's secret")
    google_authorize_url: str = setting(
        "GOOGLE_AUTHORIZE_URL",
        endpoint,
        "https://accounts.google.com/o/oauth2/v2/auth",
        "where people sign in",
    )
    google_token_url: str = setting(
        "GOOGLE_TOKEN_URL", endpoint, "https://oauth2.googleapis.com/token", "where tokens are issued"
    )
    google_jwks_url: str = setting(
        "GOOGLE_JWKS_URL", endpoint, "https://www.googleapis.com/oauth2/v3/certs", "keys of its id tokens"
    )
    google_revoke_url: str = setting(
        "GOOGLE_REVOKE_URL", endpoint, "https://oauth2.googleapis.com/revoke", "where tokens are revoked"
    )
    google_issuer: str = setting(
        "GOOGLE_ISSUER", str, "https://accounts.google.com", "issuer of its id tokens"
    )
    microsoft_client_id: str = setting(
        "MICROSOFT_CLIENT_ID",
        str,
        "",
        "this installation's OAuth client at Microsoft; sign-in is off without it",
    )
    microsoft_client_secret: Secret = setting("MICROSOFT_CLIENT_SECRET", Secret, "", "that client's secret")
    microsoft_authorize_url: str = setting(
        "MICROSOFT_AUTHORIZE_URL",
        endpoint,
        "https://login.microsoftonline.com/common/oauth2/v2.0/authorize",
        "where people sign in",
    )
    microsoft_token_url: str = setting(
        "MICROSOFT_TOKEN_URL",
        endpoint,
        "https://login.microsoftonline.com/common/oauth2/v2.0/token",
        "where tokens are issued",
    )
    microsoft_jwks_url: str = setting(
        "MICROSOFT_JWKS_URL",
        endpoint,
        "https://login.microsoftonline.com/common/discovery/v2.0/keys",
        "keys of its id tokens",
    )
    microsoft_issuer: str = setting(
        "MICROSOFT_ISSUER",
        str,
        "https://login.microsoftonline.com/{tenantid}/v2.0",
        "issuer of its id tokens; `{tenantid}` stands for the tenant of whoever signs in",
    )

    @property
    def byo_email_enabled(self) -> bool:
        chosen = self.byo_email_enabled_setting
        return not self.proprietary_mode if chosen is None else chosen

    @property
    def simulates(self) -> bool:
        chosen = self.simulate_setting
        return not self.proprietary_mode if chosen is None else chosen

    @property
    def broker_url(self) -> str:
        # In Celery's own order: it lets the environment's CELERY_BROKER_URL win over everything.
        return self.celery_broker_url or self.own_broker_url or self.redis_url


def read_text(name: str, default: str = "", environment: Mapping[str, str] = os.environ) -> str:
    """The environment variable `name`, else the content of the file `NAME_FILE` names, else `default`."""
    if name in environment:
        return environment[name].strip()
    path = environment.get(f"{name}_FILE")
    if path:
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as problem:
            raise ValueError(f"{name}_FILE: {problem.strerror}: {path}") from None
    return default


def load() -> Config:
    """Reads every setting anew. Raises ImproperlyConfigured with one line a wrong value."""
    values: dict[str, Any] = {}
    problems: list[str] = []
    for row in fields(Config):
        name, parse, default = row.metadata["name"], row.metadata["parse"], row.metadata["default"]
        given = MISSING if name in _ENVIRONMENT_ONLY else getattr(settings, name, MISSING)
        try:
            if given is MISSING:
                values[row.name] = parse(read_text(name, default))
            else:
                values[row.name] = parse(given) if isinstance(given, str) else _typed(given, parse)
        except ValueError as problem:
            problems.append(f"{name}: {problem}")
    if problems:
        raise ImproperlyConfigured("\n".join(["Settings that cannot be used:", *problems]))
    return Config(**values)


def _typed(given: object, parse: Callable[[str], Any]) -> object:
    """A Django setting may already be of the right type; lists are read like their text form."""
    if isinstance(given, (list, tuple, set, frozenset)) and parse in _LISTS:
        return parse(",".join(str(item) for item in given))
    if isinstance(given, int | float) and not isinstance(given, bool) and parse in {span, share, portion}:
        return parse(str(given))
    return given


_LISTS = {networks, ports, name_servers, parse_rollout, words}


@lru_cache(maxsize=1)
def config() -> Config:
    """The settings in force, read once a process; read again after Django's override_settings."""
    return load()


def _forget(*, setting: str, **_: object) -> None:
    config.cache_clear()


setting_changed.connect(_forget, dispatch_uid="gobii_email.conf")
