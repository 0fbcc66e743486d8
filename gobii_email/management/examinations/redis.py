"""Redis or Valkey, as the home of limits and as a broker: reachable, writable, and not forgetful."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis, RedisError, ResponseError

from gobii_email.adapters.celery_queue import producer, redis_client
from gobii_email.conf import config
from gobii_email.management.examinations.row import FAIL, OK, PATIENCE_SECONDS, WARN, Row, brief, place

OLDEST = {"Redis": (6, 2), "Valkey": (7, 2)}
"""The oldest lines that still get security fixes, or got them last."""
NEARLY_FULL = 0.9
_PROBE = "gobii:doctor"


def redis() -> Row:
    return _examined("redis", config().redis_url, "REDIS_URL")


def broker() -> Row:
    url = config().broker_url
    if url == config().redis_url:
        return Row("broker", OK, "the same as redis")
    if url.startswith(("redis", "valkey")):
        return _examined("broker", url, "CELERY_BROKER_URL")
    try:
        with producer(url).connection_for_write() as found:
            found.ensure_connection(max_retries=1, timeout=PATIENCE_SECONDS)
    except Exception as problem:  # every transport has errors of its own
        hint = "See that the broker of CELERY_BROKER_URL runs and takes connections from here."
        return Row("broker", FAIL, f"{place(url)} not reachable: {brief(problem)}", hint)
    return Row("broker", OK, place(url))


def time_of(url: str) -> datetime | None:
    """What time it is there; None where nobody answers."""
    try:
        with _client(url) as client:
            seconds, microseconds = client.time()
    except (RedisError, OSError, ValueError):
        return None
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=microseconds)


def _client(url: str) -> "Redis":
    patience = timedelta(seconds=PATIENCE_SECONDS / 2)
    return redis_client(url.replace("valkey", "redis", 1), patience=patience)


def _examined(name: str, url: str, variable: str) -> Row:
    try:
        with _client(url) as client:
            facts = client.info()
            refusal = _refusal(client)
    except (RedisError, OSError, ValueError) as problem:
        hint = (
            f"See that the server of {variable} runs; mail is kept meanwhile, and goes out when it is back."
        )
        return Row(name, FAIL, f"{place(url)} not reachable: {brief(problem)}", hint)
    kind, version = server(facts)
    text = f"{kind} {version} at {place(url)}, maxmemory-policy {facts.get('maxmemory_policy', 'unknown')}"
    text += f", append-only file {'on' if facts.get('aof_enabled') else 'off'}"
    if refusal:
        return Row(name, FAIL, f"{text}; it refuses writes: {refusal}", _REFUSALS.get(refusal, _ITS_LOG))
    status, more, hint = next(iter(worries(facts)), (OK, "", ""))
    return Row(name, status, f"{text}{more}", hint)


_ITS_LOG = "See the log of the server; mail is kept meanwhile."
_REFUSALS = {
    "READONLY": "Point the address at the primary: this is a replica.",
    "MISCONF": "It cannot save to its disk: make room there, or switch its snapshots off; what is in it is"
    " rebuilt from the database.",
    "OOM": "Give it more memory (maxmemory); mail is kept meanwhile.",
    "NOPERM": "Let its user write keys that begin with gobii.",
}


def _refusal(client: "Redis") -> str:
    """The code with which it refuses to write a key that lives a second; "" when it does not."""
    try:
        client.set(_PROBE, "", px=1000)
    except ResponseError as refused:
        code = str(refused).partition(" ")[0]
        # The client takes some of the codes off and makes them kinds of errors.
        return code if code.isupper() else _CODES.get(brief(refused), brief(refused))
    return ""


_CODES = {"ReadOnlyError": "READONLY", "OutOfMemoryError": "OOM", "NoPermissionError": "NOPERM"}


def server(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Which it is, and its version. Valkey names the Redis it is compatible with as well."""
    if "valkey_version" in facts:
        return "Valkey", str(facts["valkey_version"])
    return "Redis", str(facts.get("redis_version", "0"))


def worries(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What may become an outage: status, text and hint, the most pressing first."""
    found = []
    if facts.get("maxmemory_policy", "noeviction") != "noeviction":
        hint = "Set maxmemory-policy noeviction: a full server would drop hints and counters."
        found.append((WARN, "", hint))
    most, used = int(facts.get("maxmemory") or 0), int(facts.get("used_memory") or 0)
    if most and used > NEARLY_FULL * most:
        text = f", {used / most:.0%} of maxmemory used"
        found.append((WARN, text, "Give it more memory: when it is full, it refuses writes and mail waits."))
    kind, version = server(facts)
    line = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if line < OLDEST[kind]:
        found.append((WARN, "", f"Update {kind} to {'.'.join(map(str, OLDEST[kind]))} or newer."))
    if facts.get("rdb_last_bgsave_status") == "err" or facts.get("aof_last_write_status") == "err":
        hint = "See its log and its disk; what is in it is rebuilt from the database when it is lost."
        found.append((WARN, ", its last save failed", hint))
    return found
