"""The one place that knows which adapter is real."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from django.core.signals import setting_changed

from gobii_email.adapters.celery_queue import CeleryDoorbell
from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.dns import DnsInquiry
from gobii_email.adapters.idle_loop import IdleLoop
from gobii_email.adapters.imap import ImapDeadlines, ImapMailboxes
from gobii_email.adapters.imap_idle import IdleSpans, ImapIdle
from gobii_email.adapters.imap_sent import ImapSentFolders
from gobii_email.adapters.postmark import PostmarkTransport
from gobii_email.adapters.redis_attendance import RedisAttendance
from gobii_email.adapters.redis_leases import RedisLeases
from gobii_email.adapters.redis_limiter import RedisLimiter
from gobii_email.adapters.redis_tallies import RedisTallies
from gobii_email.adapters.simulation import SimulationTransport
from gobii_email.adapters.smtp import Deadlines, SmtpTransport
from gobii_email.conf import Config, config
from gobii_email.domain.lifecycle import Provider
from gobii_email.domain.oauth_tokens import SERVICES
from gobii_email.ports import (
    Attendance,
    DomainInquiry,
    Doorbell,
    Leases,
    Limiter,
    MailReader,
    MailTransport,
    NotWatched,
    SentFolders,
    Tallies,
    TokenIssuer,
)


@lru_cache(maxsize=1)
def doorbell() -> Doorbell:
    settings = config()
    return CeleryDoorbell(
        settings.broker_url,
        settings.redis_url,
        hint_lifetime=settings.hint_lifetime,
        breaker_pause=settings.breaker_pause,
    )


@lru_cache(maxsize=1)
def smtp_transport() -> SmtpTransport:
    settings = config()
    step = settings.deadline_step
    return SmtpTransport(
        _dial_policy(),
        Deadlines(
            banner=step,
            ehlo=step,
            auth=step,
            envelope=settings.deadline_envelope,
            body=settings.deadline_body,
            dot=settings.deadline_dot,
            **_deadlines_of_any_server(),
        ),
    )


@lru_cache(maxsize=1)
def imap_mailboxes() -> ImapMailboxes:
    return ImapMailboxes(_dial_policy(), _imap_deadlines())


@lru_cache(maxsize=1)
def sent_folders() -> SentFolders:
    return ImapSentFolders(_dial_policy(), _imap_deadlines())


@lru_cache(maxsize=1)
def imap_idle() -> ImapIdle:
    settings = config()
    spans = IdleSpans(answer=settings.deadline_step, reissue=settings.idle_reissue)
    return ImapIdle(_dial_policy(), _imap_deadlines(), spans)


def idle_loop(on_news: Callable[[str], None], on_lost: Callable[[str, NotWatched], None]) -> IdleLoop:
    """A new one, not started."""
    return IdleLoop(on_news, on_lost)


@lru_cache(maxsize=1)
def leases() -> Leases:
    return RedisLeases(config().redis_url)


def _imap_deadlines() -> ImapDeadlines:
    step = config().deadline_step
    return ImapDeadlines(greeting=step, command=step, **_deadlines_of_any_server())


def _deadlines_of_any_server() -> dict[str, Any]:
    settings = config()
    return {
        "connect": settings.deadline_connect,
        "tls": settings.deadline_step,
        "probe": settings.deadline_test,
        "blocked": settings.test_blocked_after,
    }


@lru_cache(maxsize=1)
def mail_reader() -> MailReader:
    # What it knows of bounces is large, and only processes that receive mail need it.
    from gobii_email.adapters.mail_reader import BoundedMailReader
    from gobii_email.domain.received_content import FileLimits

    settings = config()
    return BoundedMailReader(
        FileLimits(
            settings.max_received_file_bytes, settings.max_received_files, settings.refused_file_types
        ),
        processor_time=settings.reading_deadline,
        memory_bytes=settings.reading_memory_bytes,
    )


@lru_cache(maxsize=1)
def attendance() -> Attendance:
    return RedisAttendance(config().redis_url)


@lru_cache(maxsize=1)
def watchers() -> Attendance:
    return RedisAttendance(config().redis_url, "gobii:watchers")


@lru_cache(maxsize=1)
def ticks() -> Attendance:
    return RedisAttendance(config().redis_url, "gobii:ticks")


@lru_cache(maxsize=1)
def tallies() -> Tallies:
    return RedisTallies(config().redis_url)


@lru_cache(maxsize=1)
def limiter() -> Limiter:
    return RedisLimiter(config().redis_url)


@lru_cache(maxsize=1)
def token_issuers() -> Mapping[str, TokenIssuer]:
    """The services that this installation is registered at, by their key."""
    settings = config()
    return {key: _token_issuer(settings, key) for key in SERVICES if _is_registered(settings, key)}


def _is_registered(settings: Config, key: str) -> bool:
    return bool(getattr(settings, f"{key}_client_id") and getattr(settings, f"{key}_client_secret"))


def _token_issuer(settings: Config, key: str) -> TokenIssuer:
    # Its libraries take a fifth of a second to load, and most processes never need them.
    from gobii_email.adapters.oauth import Endpoints, OAuthProvider

    def of(name: str) -> Any:
        return getattr(settings, f"{key}_{name}", "")

    at = Endpoints(
        authorize=of("authorize_url"),
        token=of("token_url"),
        jwks=of("jwks_url"),
        revoke=of("revoke_url"),
        issuer=of("issuer"),
        client_id=of("client_id"),
        client_secret=of("client_secret"),
    )
    return OAuthProvider(SERVICES[key], at)


def domain_inquiry() -> DomainInquiry:
    """A new one for each domain that is asked about: its deadline begins now."""
    settings = config()
    return DnsInquiry(settings.dns_deadline, _dial_policy(), settings.dns_servers)


def _dial_policy() -> DialPolicy:
    settings = config()
    return DialPolicy(allowed_networks=settings.allowed_networks, allowed_ports=settings.allowed_ports)


def transport(provider: Provider) -> MailTransport:
    """The transport for mail without an account of its own. Raises ValueError for SMTP, which needs one."""
    match provider:
        case Provider.POSTMARK:
            settings = config()
            return PostmarkTransport(token=settings.postmark_server_token, api_url=settings.postmark_api_url)
        case Provider.SIMULATION:
            return SimulationTransport()
    raise ValueError(f"mail for {provider} goes through the account's own server")


_MADE_ONCE = (
    attendance,
    doorbell,
    smtp_transport,
    imap_idle,
    imap_mailboxes,
    leases,
    limiter,
    mail_reader,
    sent_folders,
    tallies,
    ticks,
    token_issuers,
    watchers,
)


def _forget(**_: object) -> None:
    if smtp_transport.cache_info().currsize:
        smtp_transport().close_all()
    if mail_reader.cache_info().currsize:
        mail_reader().close()
    for made in _MADE_ONCE:
        made.cache_clear()


setting_changed.connect(_forget, dispatch_uid="gobii_email.wiring")
