"""What `check --deploy` says of the settings beyond Django's own checks, each with a stable id and a hint.

Warnings wait for that command and for `email_doctor`: every command would repeat them otherwise. What is
wrong at any time is in checks; ids are public and never reused.
"""

import os
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from gobii_email.checks import load_settings
from gobii_email.conf import Config, is_private_way

SECURE_PYTHONS = {(3, 11): 15, (3, 12): 13, (3, 13): 12, (3, 14): 3}
"""First patch release of each line without CVE-2026-1299, which lets a header through unescaped."""

MAIL_PORTS = frozenset({25, 465, 587, 2465, 2525, 2587, 143, 993})
_HERE = {"", "localhost", "127.0.0.1", "::1"}


def check_python(**_: Any) -> list[CheckMessage]:
    """W001: a Python with known holes in its mail modules."""
    line, patch = sys.version_info[:2], sys.version_info[2]
    floor = SECURE_PYTHONS.get(line, 0)
    if patch >= floor:
        return []
    text = f"Python {line[0]}.{line[1]}.{patch} has known holes in its e-mail modules."
    hint = (
        f"Mail is checked before Python sees it, and still: update to {line[0]}.{line[1]}.{floor} or newer."
    )
    return [Warning(text, hint=hint, id="gobii_email.W001")]


def check_allowed_networks(**_: Any) -> list[CheckMessage]:
    """W002: private networks that any mailbox's host may resolve to."""
    found = load_settings()
    if found is None or not found.allowed_networks:
        return []
    text = f"BYO_EMAIL_ALLOWED_NETWORKS lets mailboxes reach {', '.join(map(str, found.allowed_networks))}."
    hint = "Whoever connects a mailbox can then talk to hosts in there: unset it, or name mail servers alone."
    return [Warning(text, hint=hint, id="gobii_email.W002")]


def check_postmark_webhook(**_: Any) -> list[CheckMessage]:
    """W003: Postmark sends, and its reports of delivery and bounces are refused for want of a secret."""
    found = load_settings()
    if found is None or not found.postmark_server_token or found.postmark_webhook_secret:
        return []
    text = "POSTMARK_SERVER_TOKEN is set and POSTMARK_WEBHOOK_SECRET is not: Postmark's reports are refused."
    hint = "Set POSTMARK_WEBHOOK_SECRET to user:password, and the same in the webhook's address at Postmark."
    return [Warning(text, hint=hint, id="gobii_email.W003")]


def check_secret_key(**_: Any) -> list[CheckMessage]:
    """W004: the stand-alone service signs with the key it made for itself."""
    kept = getattr(settings, "VAR", None)
    try:
        is_own = kept is not None and (kept / "secret_key").read_text().strip() == settings.SECRET_KEY
    except OSError:
        return []
    if not is_own:
        return []
    text = "SECRET_KEY is the one this service made for itself in its var directory."
    hint = "Set SECRET_KEY, so that every process and machine signs with the same key."
    return [Warning(text, hint=hint, id="gobii_email.W004")]


def check_sign_in(**_: Any) -> list[CheckMessage]:
    """W006: a client of Google or Microsoft without its secret, or without a way back for people."""
    found = load_settings()
    if found is None:
        return []
    clients = {
        "GOOGLE": (found.google_client_id, found.google_client_secret),
        "MICROSOFT": (found.microsoft_client_id, found.microsoft_client_secret),
    }
    return [
        Warning(text, hint=hint, id="gobii_email.W006")
        for name, (client_id, secret) in clients.items()
        for text, hint in _half_clients(name, bool(client_id), bool(secret), found.public_url)
    ]


def _half_clients(name: str, has_id: bool, has_secret: bool, public_url: str) -> Iterator[tuple[str, str]]:
    if has_id != has_secret:
        given, missing = ("ID", "SECRET") if has_id else ("SECRET", "ID")
        yield (
            f"{name}_CLIENT_{given} is set and {name}_CLIENT_{missing} is not: nobody can sign in there.",
            f"Set {name}_CLIENT_{missing} as it was issued with the client, or unset the other.",
        )
    if has_id and not is_private_way(public_url):
        yield (
            f"{name}_CLIENT_ID is set and PUBLIC_URL is not https: nobody can be sent back from a sign-in.",
            "Set PUBLIC_URL to the https address of this service, and register its callback at the provider.",
        )


def check_deployed_keys(**_: Any) -> list[CheckMessage]:
    """E005: no key ring. E006: one that whoever knows SECRET_KEY knows as well."""
    found = load_settings()
    if found is None:
        return []
    if not found.encryption_key:
        hint = "`python -m gobii_email.encryption` makes one; keep it where the database is not."
        text = "GOBII_ENCRYPTION_KEY is not set: no mailbox can be connected."
        return [Error(text, hint=hint, id="gobii_email.E005")]
    keys = [entry.partition(":")[2].strip() for entry in found.encryption_key.reveal().split(",")]
    if any(key and (key in settings.SECRET_KEY or settings.SECRET_KEY in key) for key in keys):
        hint = "Make a new one: `email_keys rotate`, then `email_keys reencrypt`."
        text = "GOBII_ENCRYPTION_KEY and SECRET_KEY are the same: who can sign sessions can read passwords."
        return [Error(text, hint=hint, id="gobii_email.E006")]
    return []


def check_allowed_hosts(**_: Any) -> list[CheckMessage]:
    """W007: any Host header is believed."""
    if "*" not in settings.ALLOWED_HOSTS:
        return []
    text = "ALLOWED_HOSTS is *: addresses in pages are made of whatever host a request names."
    return [Warning(text, hint="Name the hosts that people use.", id="gobii_email.W007")]


def check_public_networks(**_: Any) -> list[CheckMessage]:
    """W008: unencrypted connections are allowed where an allowed network is, and that one is public."""
    found = load_settings()
    public = [str(one) for one in found.allowed_networks if not one.is_private] if found else []
    if not public:
        return []
    named = ", ".join(public)
    text = f"BYO_EMAIL_ALLOWED_NETWORKS has public networks ({named}): passwords may go out in clear."
    hint = "Unencrypted mailboxes are for private networks alone: name those, or unset it."
    return [Warning(text, hint=hint, id="gobii_email.W008")]


def check_allowed_ports(**_: Any) -> list[CheckMessage]:
    """W009: whoever connects a mailbox may dial what is no mail server."""
    found = load_settings()
    others = sorted(found.allowed_ports - MAIL_PORTS) if found else []
    if not others:
        return []
    text = f"BYO_EMAIL_ALLOWED_PORTS has ports of other services: {', '.join(map(str, others))}."
    hint = "Leave those of mail servers alone: 465, 587, 2525, 993, 143."
    return [Warning(text, hint=hint, id="gobii_email.W009")]


def check_redis(**_: Any) -> list[CheckMessage]:
    """W010: limits and hints in a Redis, or broker, that anybody on the way may read or write."""
    found = load_settings()
    if found is None:
        return []
    urls = {"REDIS_URL": found.redis_url, "CELERY_BROKER_URL": found.broker_url}
    if urls["REDIS_URL"] == urls["CELERY_BROKER_URL"]:
        del urls["CELERY_BROKER_URL"]
    return [
        Warning(text, hint=hint, id="gobii_email.W010")
        for name, url in urls.items()
        for text, hint in _open_to_others(name, url)
    ]


def _open_to_others(name: str, url: str) -> Iterator[tuple[str, str]]:
    parts = urlsplit(url)
    if (parts.hostname or "") in _HERE:
        return
    if not parts.password:
        yield f"{name} has no password.", f"Have it ask for one (requirepass, ACL), and write it into {name}."
    if parts.scheme not in {"rediss", "valkeys", "amqps"}:
        secure = "amqps" if parts.scheme.startswith("amqp") else "rediss"
        yield f"{name} is not encrypted.", f"Use {secure}://, unless the way there is private."


def check_database(**_: Any) -> list[CheckMessage]:
    """W011: SQLite, which is for one machine."""
    if not str(settings.DATABASES["default"]["ENGINE"]).endswith("sqlite3"):
        return []
    text = "The database is SQLite: for one machine and modest volume."
    return [Warning(text, hint="Set DATABASE_URL to a PostgreSQL.", id="gobii_email.W011")]


def check_retention(**_: Any) -> list[CheckMessage]:
    """W012: bodies and messages are kept for ever."""
    found = load_settings()
    if found is None or found.keep_bodies or found.keep_messages:
        return []
    text = "Neither GOBII_KEEP_BODIES nor GOBII_KEEP_MESSAGES is set: what people wrote is kept for ever."
    hint = "Set GOBII_KEEP_BODIES=90d, GOBII_KEEP_RECEIVED=30d and what else is to be let go."
    return [Warning(text, hint=hint, id="gobii_email.W012")]


def check_flower(**_: Any) -> list[CheckMessage]:
    """W013: a Flower that is started without our configuration would answer everybody."""
    if not os.environ.get("FLOWER_UNAUTHENTICATED_API"):
        return []
    text = "FLOWER_UNAUTHENTICATED_API is set: a Flower started without flowerconfig.py answers everybody."
    hint = "Unset it; or set GOBII_TASK_EVENTS=0, so that there is nothing to see."
    return [Warning(text, hint=hint, id="gobii_email.W013")]


def check_public_url(**_: Any) -> list[CheckMessage]:
    """W014: people reach the pages over http, or nobody does."""
    found = load_settings()
    if found is None or urlsplit(found.public_url).scheme == "https":
        return []
    text = f"PUBLIC_URL is {_without_credentials(found)}: sessions and sign-ins need https."
    hint = "Put a proxy with TLS in front, and set PUBLIC_URL to its https:// address."
    return [Warning(text, hint=hint, id="gobii_email.W014")]


def _without_credentials(found: Config) -> str:
    return urlsplit(found.public_url)._replace(query="", fragment="").geturl().rpartition("@")[2]


DEPLOY_CHECKS = (
    check_python,
    check_allowed_networks,
    check_postmark_webhook,
    check_secret_key,
    check_sign_in,
    check_deployed_keys,
    check_allowed_hosts,
    check_public_networks,
    check_allowed_ports,
    check_redis,
    check_database,
    check_retention,
    check_flower,
    check_public_url,
)


def register_deploy_checks() -> None:
    """Called once, when the app is ready."""
    for check in DEPLOY_CHECKS:
        register(check, "gobii_email", Tags.security, deploy=True)
