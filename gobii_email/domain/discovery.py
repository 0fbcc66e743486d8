"""What was found out about a mailbox from its address, and how far it can be trusted.

Pure: puts settings, ways to sign in, advice and warnings together; where they come from is decided by who
asks. What DNS says is a claim of whoever answers (RFC 6186 section 6), so it is never called confirmed.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from gobii_email.domain.addresses import MailAddress
from gobii_email.domain.mail_services import is_within
from gobii_email.domain.providers import Endpoint, Provider, provider_of_host, similar_domain

_HOW_TO_SIGN_IN = "Enter the mailbox's own password, or an app password where your provider offers one."
_BY_HAND = (
    "Enter by hand host, port and security of the servers for sending (SMTP) and receiving (IMAP); your "
    "provider's help pages name them."
)
_ANNOUNCED = (
    "These servers are what the domain says of itself in DNS, which proves nothing about who runs them: "
    "compare them with your provider's help pages before you enter a password."
)
_GUESSED = (
    "These servers are a guess: their names exist, and nobody has said that they are the right ones. "
    "Compare them with your provider's help pages before you enter a password. Where port 465 does not "
    "answer, try 587 with STARTTLS."
)
_NOT_CHECKED = "These settings were not checked against the provider's pages: a test shows whether they work."
_UNANSWERED = "DNS left a question without an answer, so there may be more to find: try again in a minute."


class Source(StrEnum):
    """Where settings come from, the most trustworthy first."""

    TABLE = "table"
    MX = "mx"
    SRV = "srv"
    GUESS = "guess"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Servers:
    """What DNS led to, None where that is nothing. `denied` names what the domain says it does not offer."""

    smtp: Endpoint | None = None
    imap: Endpoint | None = None
    denied: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(server for server in (self.smtp, self.imap) if server)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found for `address`. `smtp` or `imap` is None where nothing was, or where there is none.

    `auth` is how the mailbox may sign in here, the best first; `username` is empty where the address does not
    tell it. `advice` says what to do next, each of `caveats` what to know before.
    """

    address: str
    source: Source
    provider: Provider | None = None
    smtp: Endpoint | None = None
    imap: Endpoint | None = None
    username: str = ""
    auth: tuple[str, ...] = ()
    advice: str = ""
    caveats: tuple[str, ...] = ()

    @property
    def is_confirmed(self) -> bool:
        """Whether the servers are those of a provider we know, and not what DNS says."""
        return self.source in {Source.TABLE, Source.MX}

    @property
    def oauth_provider(self) -> str:
        """`google` or `microsoft` where the mailbox can be opened by signing in there, else empty."""
        return self.provider.oauth if self.provider else ""

    def as_document(self) -> dict[str, object]:
        """All of it as JSON knows it; of the provider its id and name, and where its facts are from."""
        return {
            "address": self.address,
            "source": self.source,
            "is_confirmed": self.is_confirmed,
            "provider": _provider_document(self.provider) if self.provider else None,
            "smtp": asdict(self.smtp) if self.smtp else None,
            "imap": asdict(self.imap) if self.imap else None,
            "username": self.username,
            "auth": list(self.auth),
            "oauth_provider": self.oauth_provider,
            "advice": self.advice,
            "caveats": list(self.caveats),
        }


def _provider_document(provider: Provider) -> dict[str, str | None]:
    return {
        "id": provider.id,
        "name": provider.name,
        "source": provider.source,
        "checked_at": provider.checked_at.isoformat() if provider.checked_at else None,
    }


def of_provider(mailbox: MailAddress, provider: Provider, source: Source) -> Discovery:
    """The settings of a provider in the table."""
    return Discovery(
        address=str(mailbox),
        source=source,
        provider=provider,
        smtp=provider.smtp,
        imap=provider.imap,
        username=provider.username_of(str(mailbox)),
        auth=_ways_in(provider),
        advice=provider.advice,
        caveats=provider.caveats if provider.checked_at else (*provider.caveats, _NOT_CHECKED),
    )


def of_dns(mailbox: MailAddress, servers: Servers, source: Source, *, is_complete: bool) -> Discovery:
    """Settings that DNS led to, at least one; where the host is a known provider's, with its advice."""
    provider = provider_of_host(next(iter(servers)).host)
    return Discovery(
        address=str(mailbox),
        source=source,
        provider=provider,
        smtp=servers.smtp,
        imap=servers.imap,
        username=provider.username_of(str(mailbox)) if provider else str(mailbox),
        auth=_ways_in(provider) if provider else ("password",),
        advice=provider.advice if provider else _HOW_TO_SIGN_IN,
        caveats=(
            _ANNOUNCED if source is Source.SRV else _GUESSED,
            *_strangers(servers, mailbox.domain),
            *_gaps(servers, mailbox.domain, is_complete),
            *(provider.caveats if provider else ()),
        ),
    )


def of_nothing(mailbox: MailAddress, servers: Servers, *, is_complete: bool) -> Discovery:
    """That nothing was found, and what to do by hand."""
    return Discovery(
        address=str(mailbox),
        source=Source.NONE,
        username=str(mailbox),
        advice=f"Nothing was found for {mailbox.domain}. {_typing_error(mailbox.domain)} {_BY_HAND}",
        caveats=tuple(_gaps(servers, mailbox.domain, is_complete)),
    )


def _ways_in(provider: Provider) -> tuple[str, ...]:
    """Without sign-ins that only other programs are registered for."""
    return tuple(way for way in provider.auth if way != "oauth2" or provider.oauth)


def _strangers(servers: Servers, domain: str) -> Iterator[str]:
    for host in dict.fromkeys(server.host for server in servers):
        if not is_within(host, domain):
            yield f"{host} lies outside {domain}: go on only if that is your provider's server."


def _gaps(servers: Servers, domain: str, is_complete: bool) -> Iterator[str]:
    for use in servers.denied:
        yield f"{domain} says in DNS that it offers no {use} with mail programs."
    if not is_complete:
        yield _UNANSWERED


def _typing_error(domain: str) -> str:
    meant = similar_domain(domain)
    return f"Did you mean {meant}?" if meant else "Look for a typing error in the address."
