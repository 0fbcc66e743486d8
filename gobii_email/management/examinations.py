"""What an operator asks first, each answered by one function in a row: ok, warn or fail, with a hint.

Each looks at one thing and asks no mail server. How long they may take, and how the rows are shown, is
left to `email_doctor`; what the settings alone tell is asked of the system checks.
"""

import os
import ssl
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.checks import CheckMessage
from django.core.checks.messages import ERROR
from django.db import connection, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Min
from django.utils import timezone
from redis import Redis, RedisError

from gobii_email import checks
from gobii_email.adapters.celery_queue import SEND_QUEUE, producer
from gobii_email.adapters.tls import client_context
from gobii_email.conf import Config, config
from gobii_email.domain.lifecycle import AttemptStatus
from gobii_email.encryption import KeyRingError, SecretUnreadable
from gobii_email.models import AgentEmailAccount, AgentEmailOAuthCredential, OutboundMessageAttempt
from gobii_email.services.tell import clock_time

OK, WARN, FAIL = "ok", "warn", "fail"
PATIENCE_SECONDS = 2.0
"""How long one examination may wait for what it asks."""
OVERDUE = timedelta(seconds=60)
LONG_WAIT = timedelta(minutes=10)
MOST_SKEW = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Row:
    """One answer. `text` says what was found, `hint` what to do about it; "" when all is well."""

    name: str
    status: str
    text: str
    hint: str = ""


Examination = Callable[[], Row]


def from_checks(name: str, fine: str, found: Iterable[CheckMessage]) -> Row:
    """The messages of system checks as one row, `fine` when there are none."""
    messages = list(found)
    if not messages:
        return Row(name, OK, fine)
    worst = FAIL if any(message.level >= ERROR for message in messages) else WARN
    return Row(name, worst, " ".join(message.msg for message in messages), messages[0].hint or "")


def python() -> Row:
    import platform

    return from_checks("python", platform.python_version(), checks.check_python())


def settings_() -> Row:
    found = [*checks.check_settings(), *checks.check_time_limits(), *checks.check_database_pool()]
    return from_checks("settings", "all can be read, and do not contradict each other", found)


def networks() -> Row:
    return from_checks("networks", "mailboxes reach public hosts only", checks.check_allowed_networks())


def database() -> Row:
    hint = "See that the database of DATABASE_URL runs and takes connections from here."
    try:
        connection.ensure_connection()
        version = ".".join(map(str, connection.get_database_version()))
        behind = _slow_sqlite() if connection.vendor == "sqlite" else ""
    except Exception as problem:  # every driver has errors of its own
        return Row("database", FAIL, f"not reachable: {brief(problem)}", hint)
    if behind:
        hint = "Set transaction_mode IMMEDIATE and PRAGMA journal_mode=WAL in the database's OPTIONS."
        return Row("database", WARN, f"{connection.display_name} {version}, {behind}", hint)
    return Row("database", OK, f"{connection.display_name} {version}")


def _slow_sqlite() -> str:
    """What makes writers of this SQLite database fail on each other; "" when nothing does."""
    with connection.cursor() as cursor:
        journal = cursor.execute("PRAGMA journal_mode").fetchone()[0]
    mode = str(connection.settings_dict.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED")
    return (
        "" if (journal, mode.upper()) == ("wal", "IMMEDIATE") else f"journal {journal}, transactions {mode}"
    )


def migrations() -> Row:
    executor = MigrationExecutor(connections[router.db_for_write(OutboundMessageAttempt)])
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        names = ", ".join(f"{migration.app_label}.{migration.name}" for migration, _ in plan[:3])
        return Row("migrations", FAIL, f"{len(plan)} not applied: {names}", "Run `manage.py migrate`.")
    return Row("migrations", OK, "all applied")


def clock() -> Row:
    if connection.vendor != "postgresql":
        return Row("clock", OK, "the database is on this machine")
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        skew = abs(cursor.fetchone()[0] - timezone.now())
    text = f"{skew.total_seconds():.1f} s apart from the database"
    if skew > MOST_SKEW:
        return Row("clock", WARN, text, "Let NTP set the clock of this machine and of the database's.")
    return Row("clock", OK, text)


def redis() -> Row:
    return _redis("redis", config().redis_url, "REDIS_URL")


def broker() -> Row:
    url = config().broker_url
    if url == config().redis_url:
        return Row("broker", OK, "the same as redis")
    if url.startswith(("redis", "valkey")):
        return _redis("broker", url, "CELERY_BROKER_URL")
    try:
        with producer(url).connection_for_write() as found:
            found.ensure_connection(max_retries=1, timeout=PATIENCE_SECONDS)
    except Exception as problem:  # every transport has errors of its own
        hint = "See that the broker of CELERY_BROKER_URL runs and takes connections from here."
        return Row("broker", FAIL, f"{_place(url)} not reachable: {brief(problem)}", hint)
    return Row("broker", OK, _place(url))


def _redis(name: str, url: str, variable: str) -> Row:
    try:
        with Redis.from_url(
            url.replace("valkey", "redis", 1),
            socket_timeout=PATIENCE_SECONDS / 2,
            socket_connect_timeout=PATIENCE_SECONDS / 2,
        ) as client:
            facts = client.info()
    except (RedisError, OSError, ValueError) as problem:
        hint = (
            f"See that the server of {variable} runs; mail is kept meanwhile, and goes out when it is back."
        )
        return Row(name, FAIL, f"{_place(url)} not reachable: {brief(problem)}", hint)
    version = facts.get("valkey_version") or facts.get("redis_version")
    kind = "Valkey" if "valkey_version" in facts else "Redis"
    policy = facts.get("maxmemory_policy", "unknown")
    text = f"{kind} {version} at {_place(url)}, maxmemory-policy {policy}"
    if policy not in {"noeviction", "unknown"}:
        return Row(
            name, WARN, text, "Set maxmemory-policy noeviction: a full server would drop hints and counters."
        )
    return Row(name, OK, text)


def workers() -> Row:
    """Which workers answer, and whether one of them sends mail."""
    hint = f"Start one: celery -A worker worker -Q {SEND_QUEUE} --pool threads -c 20"
    try:
        answers = (
            producer(config().broker_url).control.inspect(timeout=PATIENCE_SECONDS / 2).active_queues() or {}
        )
    except Exception as problem:  # every transport has errors of its own
        return Row("workers", FAIL, f"could not be asked: {brief(problem)}", "See the row of the broker.")
    senders = sorted(
        name for name, queues in answers.items() if any(queue["name"] == SEND_QUEUE for queue in queues)
    )
    if not senders:
        others = f"; others: {', '.join(sorted(answers))}" if answers else ""
        return Row("workers", FAIL, f"none that sends mail answers{others}", hint)
    return Row("workers", OK, ", ".join(senders))


def dispatcher() -> Row:
    """Whether somebody looks at what is due: every such row is moved on within a round."""
    now = timezone.now()
    oldest = OutboundMessageAttempt.objects.aggregate(oldest=Min("due_at"))["oldest"]
    if oldest is None or oldest > now - OVERDUE:
        return Row("dispatcher", OK, "nothing is overdue")
    text = f"mail is due since {clock_time(oldest, now)} and nobody looked at it"
    return Row("dispatcher", WARN, text, "Start `manage.py email_dispatcher`, or see why it does not get on.")


def queue() -> Row:
    """Whether mail that nothing holds waits too long."""
    now = timezone.now()
    ready = OutboundMessageAttempt.objects.filter(
        status=AttemptStatus.QUEUED, not_before__lte=now, held_code=""
    )
    count, oldest = ready.count(), ready.aggregate(oldest=Min("not_before"))["oldest"]
    if oldest is None or oldest > now - LONG_WAIT:
        return Row("queue", OK, f"{count} ready to be sent")
    text = f"{count} ready to be sent, the oldest since {clock_time(oldest, now)}"
    return Row("queue", WARN, text, "Start more workers; `email_queue` shows what waits.")


def secrets() -> Row:
    """Whether the key ring is usable, and opens every stored secret, as far as time allows."""
    found = checks.check_key_ring()
    if found:
        return from_checks("secrets", "", found)
    readable, unreadable = 0, []
    end = timezone.now() + timedelta(seconds=PATIENCE_SECONDS / 2)
    try:
        for address, is_readable in _stored_secrets(end):
            readable += is_readable
            if not is_readable:
                unreadable.append(address)
    except KeyRingError:
        text = "mailboxes have stored secrets, and GOBII_ENCRYPTION_KEY is not set"
        return Row("secrets", FAIL, text, "Set GOBII_ENCRYPTION_KEY to the ring they were encrypted with.")
    if unreadable:
        names = ", ".join([*unreadable[:3], *(["…"] if len(unreadable) > 3 else [])])
        text = f"{len(unreadable)} cannot be read ({names}), {readable} can"
        return Row(
            "secrets", FAIL, text, "Put the old key back into GOBII_ENCRYPTION_KEY, or enter them again."
        )
    if not config().encryption_key:
        return Row(
            "secrets",
            WARN,
            "GOBII_ENCRYPTION_KEY is not set",
            "Set it before the first mailbox is connected.",
        )
    return Row("secrets", OK, f"{readable} can be read")


def _stored_secrets(end: datetime) -> Iterator[tuple[str, bool]]:
    """The address of each stored secret and whether it opens, until `end`."""
    for account in AgentEmailAccount.objects.select_related("endpoint").iterator():
        for read in (account.get_smtp_password, account.get_imap_password):
            yield from _opened(account, read)
        if timezone.now() > end:
            return
    for credential in AgentEmailOAuthCredential.objects.select_related("account__endpoint").iterator():
        for read in (credential.get_access_token, credential.get_refresh_token):
            yield from _opened(credential.account, read)
        if timezone.now() > end:
            return


def _opened(account: AgentEmailAccount, read: Callable[[], object]) -> Iterator[tuple[str, bool]]:
    try:
        if read() is not None:
            yield str(account), True
    except SecretUnreadable:
        yield str(account), False


def transports() -> Row:
    """Whether the settings leave mail with and without a mailbox a way out."""
    found = config()
    ways = list(_ways(found))
    if not ways:
        hint = "Set BYO_EMAIL_ENABLED, SIMULATE_EMAIL_DELIVERY, or POSTMARK_SERVER_TOKEN in proprietary mode."
        return Row("transports", FAIL, "no mail can go out: there is no transport", hint)
    if found.proprietary_mode and not found.postmark_server_token:
        text = f"GOBII_PROPRIETARY_MODE is on without POSTMARK_SERVER_TOKEN; in use: {', '.join(ways)}"
        return Row(
            "transports",
            WARN,
            text,
            "Set POSTMARK_SERVER_TOKEN; mail without a mailbox fails or is simulated.",
        )
    if found.postmark_server_token and not found.proprietary_mode:
        text = f"POSTMARK_SERVER_TOKEN is not used; in use: {', '.join(ways)}"
        return Row(
            "transports", WARN, text, "Set GOBII_PROPRIETARY_MODE=true to send through Postmark, or unset it."
        )
    if found.proprietary_mode:
        return from_checks("transports", ", ".join(ways), checks.check_postmark_webhook())
    return Row("transports", OK, ", ".join(ways))


def _ways(found: Config) -> Iterator[str]:
    if found.byo_email_enabled:
        yield "own mailboxes"
    if found.proprietary_mode and found.postmark_server_token:
        yield "Postmark"
    elif found.simulates:
        yield "simulation"


def trust() -> Row:
    """Whether the authorities load that mail servers are verified against."""
    extra = os.environ.get("SSL_CERT_FILE", "")
    hint = "Point SSL_CERT_FILE at a PEM file of certificates, or install the system's ca-certificates."
    if extra and not Path(extra).is_file():
        return Row("trust", FAIL, f"SSL_CERT_FILE names {extra}, which is no file", hint)
    try:
        count = client_context().cert_store_stats()["x509_ca"]
    except (OSError, ssl.SSLError) as problem:
        return Row("trust", FAIL, f"the certificates cannot be loaded: {brief(problem)}", hint)
    directory = ssl.get_default_verify_paths().capath
    if not count and not (directory and any(Path(directory).iterdir())):
        return Row(
            "trust", FAIL, "there are no certificate authorities: no mail server can be verified", hint
        )
    return Row("trust", OK, f"{count} authorities" if count else f"the authorities in {directory}")


EXAMINATIONS: Sequence[tuple[str, Examination]] = (
    ("python", python),
    ("settings", settings_),
    ("database", database),
    ("migrations", migrations),
    ("redis", redis),
    ("broker", broker),
    ("workers", workers),
    ("dispatcher", dispatcher),
    ("queue", queue),
    ("secrets", secrets),
    ("transports", transports),
    ("trust", trust),
    ("networks", networks),
    ("clock", clock),
)


def brief(problem: BaseException) -> str:
    """The kind of a foreign error: its text may hold an address with a password."""
    return type(problem).__name__


def _place(url: str) -> str:
    """Host and port of `url`, without the credentials."""
    parts: Any = urlsplit(url)
    return f"{parts.hostname or 'local'}:{parts.port or 'default'}"
