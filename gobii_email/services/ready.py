"""Whether this installation can do its work: database, Redis, migrations, key ring.

About what is ours alone: a mail server of somebody else, however broken, changes nothing here. Each component
is asked at most every two seconds by one thread, so that probes cost nothing and wait for nobody.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping

from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.encryption import SecretContext, SecretsEncryption
from gobii_email.services.record import release_connection

FRESH_SECONDS = 2.0
OK = "ok"


def readiness() -> Mapping[str, str]:
    """Each component and how it is: "ok", or in a word why not."""
    return _latest.answer()


def is_ready(components: Mapping[str, str]) -> bool:
    return set(components.values()) == {OK}


def forget() -> None:
    """Has the next question asked anew, in this process."""
    _latest.forget()


def _database() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return OK


def _redis() -> str:
    wiring.ticks().seen()
    return OK


class _Migrations:
    """Once applied they stay so, as long as this process runs."""

    def __init__(self) -> None:
        self.are_applied = False

    def __call__(self) -> str:
        if not self.are_applied:
            executor = MigrationExecutor(connection)
            plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
            self.are_applied = not plan
        return OK if self.are_applied else "not applied"


def _keys() -> str:
    """What this process encrypts, it can decrypt; without a ring there is nothing to."""
    if not config().encryption_key:
        return OK
    ring, context = SecretsEncryption.from_settings(), SecretContext("ready", "self_test", "")
    word = secrets.token_hex(8)
    return OK if ring.decrypt(ring.encrypt(word, context), context).reveal() == word else "not readable"


_COMPONENTS: Mapping[str, Callable[[], str]] = {
    "database": _database,
    "redis": _redis,
    "migrations": _Migrations(),
    "keys": _keys,
}


class _Latest:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._found: Mapping[str, str] = dict.fromkeys(_COMPONENTS, "not asked yet")
        self._fresh_until = 0.0

    def answer(self) -> Mapping[str, str]:
        """The last answers, where somebody is just asking anew."""
        if time.monotonic() >= self._fresh_until and self._lock.acquire(blocking=False):
            try:
                self._found = {name: _asked(ask) for name, ask in _COMPONENTS.items()}
                self._fresh_until = time.monotonic() + FRESH_SECONDS
            finally:
                self._lock.release()
                release_connection()
        return self._found


def _asked(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except Exception as problem:  # every driver has errors of its own
        return type(problem).__name__


_latest = _Latest()
