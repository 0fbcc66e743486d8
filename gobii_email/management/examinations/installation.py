"""What the environment and the settings alone tell: Python, settings, ways out, sign-ins, trust."""

import os
import platform
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from gobii_email import checks
from gobii_email.adapters.tls import client_context
from gobii_email.conf import Config, config
from gobii_email.management.examinations.row import FAIL, OK, WARN, Row, brief, from_checks
from gobii_email.models import AgentEmailOAuthCredential
from gobii_email.services.authorize import configured_providers


def python() -> Row:
    return from_checks("python", platform.python_version(), checks.check_python())


def settings_() -> Row:
    found = [*checks.check_settings(), *checks.check_time_limits(), *checks.check_database_pool()]
    return from_checks("settings", "all can be read, and do not contradict each other", found)


def networks() -> Row:
    return from_checks("networks", "mailboxes reach public hosts only", checks.check_allowed_networks())


def transports() -> Row:
    """Whether the settings leave mail with and without a mailbox a way out."""
    found = config()
    ways = list(_ways(found))
    if not ways:
        hint = "Set BYO_EMAIL_ENABLED, SIMULATE_EMAIL_DELIVERY, or POSTMARK_SERVER_TOKEN in proprietary mode."
        return Row("transports", FAIL, "no mail can go out: there is no transport", hint)
    if found.proprietary_mode and not found.postmark_server_token:
        text = f"GOBII_PROPRIETARY_MODE is on without POSTMARK_SERVER_TOKEN; in use: {', '.join(ways)}"
        hint = "Set POSTMARK_SERVER_TOKEN; mail without a mailbox fails or is simulated."
        return Row("transports", WARN, text, hint)
    if found.postmark_server_token and not found.proprietary_mode:
        text = f"POSTMARK_SERVER_TOKEN is not used; in use: {', '.join(ways)}"
        hint = "Set GOBII_PROPRIETARY_MODE=true to send through Postmark, or unset it."
        return Row("transports", WARN, text, hint)
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


_CLIENTS = {
    "google": ("GOOGLE_CLIENT_ID", "GOOGLE_CLIENT_SECRET"),
    "microsoft": ("MICROSOFT_CLIENT_ID", "MICROSOFT_CLIENT_SECRET"),
}


def sign_in() -> Row:
    """Which providers people can sign in with, and whether the mailboxes that did can renew their tokens."""
    usable = configured_providers()
    lost = sorted(set(AgentEmailOAuthCredential.objects.values_list("provider", flat=True).distinct()))
    lost = [provider for provider in lost if provider in _CLIENTS and provider not in usable]
    if lost:
        missing = " and ".join(name for provider in lost for name in _CLIENTS[provider])
        text = f"mailboxes are signed in with {' and '.join(lost)}, and their tokens cannot be renewed"
        return Row("sign-in", FAIL, text, f"Set {missing}.")
    halves = list(_halves(config()))
    if halves:
        text = f"{' and '.join(name for name, _ in halves)} is set alone"
        return Row("sign-in", WARN, text, f"Set {' and '.join(other for _, other in halves)} as well.")
    if usable and not _is_safe(config().public_url):
        text = f"providers do not send people back to {config().public_url}"
        return Row("sign-in", WARN, text, "Set PUBLIC_URL to the https address of this service.")
    return Row("sign-in", OK, f"with {' and '.join(usable)}" if usable else "not set up: passwords only")


def _halves(found: Config) -> Iterator[tuple[str, str]]:
    """Of each client that has only an id or only a secret: the variable that is set, and the other."""
    for provider, (client_id, secret) in _CLIENTS.items():
        has_id = bool(getattr(found, f"{provider}_client_id"))
        has_secret = bool(getattr(found, f"{provider}_client_secret"))
        if has_id != has_secret:
            yield (client_id, secret) if has_id else (secret, client_id)


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    try:
        is_local = parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_local = False
    return parts.scheme == "https" or is_local


def trust() -> Row:
    """Whether the authorities load that mail servers are verified against."""
    extra = os.environ.get("SSL_CERT_FILE", "")
    hint = "Point SSL_CERT_FILE at a PEM file of certificates, or install the system's ca-certificates."
    if extra and not Path(extra).is_file():
        return Row("trust", FAIL, f"SSL_CERT_FILE names {extra}, which is no file", hint)
    try:
        count = client_context().cert_store_stats()["x509_ca"]
        added, expired = _added(extra) if extra else (0, 0)
    except (OSError, ssl.SSLError) as problem:
        return Row("trust", FAIL, f"the certificates cannot be loaded: {brief(problem)}", hint)
    directory = ssl.get_default_verify_paths().capath
    if not count and not (directory and any(Path(directory).iterdir())):
        text = "there are no certificate authorities: no mail server can be verified"
        return Row("trust", FAIL, text, hint)
    text = f"{count} authorities" if count else f"the authorities in {directory}"
    if expired:
        text = f"{expired} of the {added} authorities in SSL_CERT_FILE are past their time"
        return Row("trust", WARN, text, "Replace them: what they have signed is not trusted any more.")
    return Row("trust", OK, f"{text}, {added} of them from SSL_CERT_FILE" if extra else text)


def _added(path: str) -> tuple[int, int]:
    """How many authorities a file holds, and how many of them have expired."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    now = datetime.now(UTC).timestamp()
    return len(ends), sum(end < now for end in ends)
