"""What the environment and the settings alone tell: Python, settings, ways out, sign-ins, trust."""

import os
import platform
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from gobii_email import checks, deploy_checks
from gobii_email.adapters.tls import client_context
from gobii_email.conf import Config, config
from gobii_email.domain.oauth_tokens import service_named
from gobii_email.management.examinations.row import FAIL, OK, WARN, Row, brief, from_checks
from gobii_email.models import AgentEmailOAuthCredential
from gobii_email.services.authorize import configured_providers
from gobii_email.services.switches import switches


def python() -> Row:
    return from_checks("python", platform.python_version(), deploy_checks.check_python())


def settings_() -> Row:
    found = [*checks.check_settings(), *checks.check_time_limits(), *checks.check_database_pool()]
    return from_checks("settings", "all can be read, and do not contradict each other", found)


def networks() -> Row:
    return from_checks(
        "networks", "mailboxes reach public hosts only", deploy_checks.check_allowed_networks()
    )


def retention() -> Row:
    return from_checks("retention", "what is old is let go", deploy_checks.check_retention())


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
        return from_checks("transports", ", ".join(ways), deploy_checks.check_postmark_webhook())
    return Row("transports", OK, ", ".join(ways))


def _ways(found: Config) -> Iterator[str]:
    if switches().is_byo_email_enabled:
        yield "own mailboxes"
    if found.proprietary_mode and found.postmark_server_token:
        yield "Postmark"
    elif found.simulates:
        yield "simulation"


def sign_in() -> Row:
    """Which providers people can sign in with, and whether the mailboxes that did can renew their tokens."""
    usable = configured_providers()
    lost = sorted(_signed_in_with() - set(usable))
    if lost:
        missing = " and ".join(f"{name.upper()}_CLIENT_ID and {name.upper()}_CLIENT_SECRET" for name in lost)
        text = f"mailboxes are signed in with {' and '.join(lost)}, whose tokens cannot be renewed here"
        return Row("sign-in", WARN, text, f"Set {missing}, or keep applying new tokens.")
    fine = f"with {' and '.join(usable)}" if usable else "not set up: passwords only"
    return from_checks("sign-in", fine, deploy_checks.check_sign_in())


def _signed_in_with() -> set[str]:
    """The services that stored tokens come from."""
    names = AgentEmailOAuthCredential.objects.order_by().values_list("provider", flat=True).distinct()
    services = [service_named(name) for name in names]
    return {service.key for service in services if service is not None}


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
    if added and expired == added:
        text = f"every authority in SSL_CERT_FILE is past its time ({added})"
        return Row("trust", WARN, text, "Replace them: what they have signed is not trusted any more.")
    return Row("trust", OK, f"{text}, {added} of them from SSL_CERT_FILE" if extra else text)


def _added(path: str) -> tuple[int, int]:
    """How many authorities a file holds, and how many of them have expired."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(path)
    ends = [ssl.cert_time_to_seconds(str(found["notAfter"])) for found in context.get_ca_certs()]
    now = datetime.now(UTC).timestamp()
    return len(ends), sum(end < now for end in ends)
