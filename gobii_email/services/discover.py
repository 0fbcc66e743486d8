"""Finding the servers of a mailbox from its address alone.

Looks into the table of providers first, then at what DNS says of the domain: its mail exchangers, the servers
it announces (RFC 6186, RFC 8314), and at last whether customary names exist. Nothing is dialled or fetched,
and a domain that only a private network knows is answered like one that says nothing.
"""

from collections.abc import Sequence

from gobii_email import wiring
from gobii_email.domain.addresses import MailAddress, parse_address
from gobii_email.domain.discovery import Discovery, Servers, Source, of_dns, of_nothing, of_provider
from gobii_email.domain.mail_services import FOR_READING, FOR_SENDING, ServiceRecord, best_first, is_denied
from gobii_email.domain.providers import Endpoint, provider_of_address, provider_of_mx
from gobii_email.ports import DomainInquiry

__all__ = ["Discovery", "Source", "discover"]

_MOST_CANDIDATES = 4
_NAMES_FOR_SENDING, _NAMES_FOR_READING = ("smtp", "mail"), ("imap", "mail")


def discover(address: str) -> Discovery:
    """The best settings that can be found. Raises InvalidMail for what is no address.

    Trouble with DNS is a caveat and no exception. Takes GOBII_DNS_DEADLINE at most; asks nobody about the
    domains of the table.
    """
    mailbox = parse_address(address)
    provider = provider_of_address(str(mailbox))
    if provider:
        return of_provider(mailbox, provider, Source.TABLE)
    return _asked(mailbox, wiring.domain_inquiry())


def _asked(mailbox: MailAddress, inquiry: DomainInquiry) -> Discovery:
    exchangers, records = inquiry.exchangers_and_services(mailbox.domain)
    provider = next(filter(None, map(provider_of_mx, exchangers)), None)
    if provider:
        return of_provider(mailbox, provider, Source.MX)
    denied = _denied(records)
    announced = _allowed(inquiry, best_first(records, FOR_SENDING), best_first(records, FOR_READING), denied)
    if any(announced):
        return of_dns(mailbox, announced, Source.SRV, is_complete=inquiry.is_complete)
    guessed = _allowed(inquiry, *_guesses(mailbox.domain, denied), denied)
    if any(guessed):
        return of_dns(mailbox, guessed, Source.GUESS, is_complete=inquiry.is_complete)
    return of_nothing(mailbox, guessed, is_complete=inquiry.is_complete)


def _denied(records: Sequence[ServiceRecord]) -> tuple[str, ...]:
    uses = {"sending": FOR_SENDING, "receiving": FOR_READING}
    return tuple(use for use, services in uses.items() if is_denied(records, services))


def _guesses(domain: str, denied: Sequence[str]) -> tuple[list[Endpoint], list[Endpoint]]:
    """Customary names, none for what the domain denies; TLS from the start, as RFC 8314 asks."""
    sending = [Endpoint(f"{name}.{domain}", 465, "ssl") for name in _NAMES_FOR_SENDING]
    reading = [Endpoint(f"{name}.{domain}", 993, "ssl") for name in _NAMES_FOR_READING]
    return [] if "sending" in denied else sending, [] if "receiving" in denied else reading


def _allowed(
    inquiry: DomainInquiry, sending: Sequence[Endpoint], reading: Sequence[Endpoint], denied: tuple[str, ...]
) -> Servers:
    """The first for sending and the first for reading that exist and that this installation may dial."""
    candidates = [*sending[:_MOST_CANDIDATES], *reading[:_MOST_CANDIDATES]]
    good = inquiry.may_be_dialled([(found.host, found.port) for found in candidates])

    def first(servers: Sequence[Endpoint]) -> Endpoint | None:
        return next((found for found in servers if (found.host, found.port) in good), None)

    return Servers(first(sending), first(reading), denied)
