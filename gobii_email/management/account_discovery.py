"""What `email_account discover` shows: the settings found for an address as a card, or as one document.

An entry point only: asks the service, shows the answer. Stores nothing, and needs no account.
"""

from collections.abc import Iterator

from django.core.management.base import CommandError

from gobii_email.domain.discovery import Discovery, Source
from gobii_email.domain.providers import Endpoint
from gobii_email.management.terminal import EmailCommand
from gobii_email.services.discover import discover

_FOUND_BY = {
    Source.TABLE: "the provider of this address",
    Source.MX: "the provider that takes this domain's mail",
    Source.SRV: "announced by the domain in DNS, not confirmed",
    Source.GUESS: "guessed from customary names, not confirmed",
}
_SECURITY = {"ssl": "TLS", "starttls": "STARTTLS"}
_WAYS = {"password": "password", "app_password": "app password"}
_SERVICES = {"google": "Google", "microsoft": "Microsoft"}


def show_discovery(command: EmailCommand, address: str) -> None:
    """Answers with what was found; ends the command with 1 where that is nothing."""
    found = discover(address)
    document = found.as_document()
    if found.source is Source.NONE:
        document["error"] = {"field": "address", "reason": found.advice, "remedy": ""}
    command.answer(document, command.is_json, discovery_text(found))
    if found.source is Source.NONE:
        raise CommandError(found.advice, returncode=1)


def discovery_text(found: Discovery) -> str:
    """The card: servers, user name, ways to sign in, advice, and a line for each thing to know."""
    if found.source is Source.NONE:
        return "\n".join([f"{found.address}: nothing found", *_notes(found)])
    name = f"{found.provider.name}: " if found.provider else ""
    rows = {
        "sending": _server(found.smtp),
        "receiving": _server(found.imap),
        "user name": found.username or "made up by the provider, not the address",
        "sign in": " or ".join(_ways_in(found)),
    }
    if found.provider:
        checked = f", looked at on {found.provider.checked_at}" if found.provider.checked_at else ""
        rows["facts from"] = f"{found.provider.source}{checked}"
    lines = [f"  {label:<10} {value}" for label, value in rows.items()]
    title = f"{found.address}: {name}{_FOUND_BY[found.source]}"
    return "\n".join([title, *lines, f"→ {found.advice}", *_notes(found)])


def _server(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return "nothing found"
    return f"{endpoint.host}:{endpoint.port} {_SECURITY[endpoint.security]}"


def _ways_in(found: Discovery) -> Iterator[str]:
    for way in found.auth:
        yield _WAYS.get(way) or f"with {_SERVICES[found.oauth_provider]}"


def _notes(found: Discovery) -> list[str]:
    return [f"! {caveat}" for caveat in found.caveats]
