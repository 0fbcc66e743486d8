"""What sign-ins with Google and Microsoft ask for, grant, and say about whose mailbox it is.

Pure: takes the claims of verified id tokens and the scopes of token answers. How they are fetched and
verified is left to adapters/oauth. Rules from RFC 6749, OpenID Connect Core and the vendors' pages:
developers.google.com/identity/openid-connect and learn.microsoft.com/entra/identity-platform.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from gobii_email.domain.secret import Secret

RENEW_BEFORE = timedelta(minutes=5)
"""An access token is renewed so long before its end."""
STILL_GOOD = timedelta(seconds=30)
"""What an access token must have left to be used while it cannot be renewed."""


@dataclass(frozen=True, slots=True)
class OAuthService:
    """One provider of sign-ins. `asks` are the scopes it is asked for, `extra` further parameters.

    `sends` and `receives` are the scopes that SMTP and IMAP need. `mail_providers` are the ids of the
    providers in providers.toml whose servers take its tokens; `consents_at` is where people withdraw.
    """

    key: str
    name: str
    asks: tuple[str, ...]
    sends: str
    receives: str
    mail_providers: tuple[str, ...]
    consents_at: str
    extra: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    names_scopes_on_refresh: bool = False


GOOGLE = OAuthService(
    key="google",
    name="Google",
    asks=("openid", "email", "https://mail.google.com/"),
    sends="https://mail.google.com/",
    receives="https://mail.google.com/",
    mail_providers=("google",),
    consents_at="https://myaccount.google.com/connections",
    # Without these there is no refresh token, or none at the second sign-in.
    extra=MappingProxyType(
        {"access_type": "offline", "prompt": "consent", "include_granted_scopes": "false"}
    ),
)
MICROSOFT = OAuthService(
    key="microsoft",
    name="Microsoft",
    asks=(
        "openid",
        "email",
        "profile",
        "offline_access",
        "https://outlook.office.com/SMTP.Send",
        "https://outlook.office.com/IMAP.AccessAsUser.All",
    ),
    sends="https://outlook.office.com/SMTP.Send",
    receives="https://outlook.office.com/IMAP.AccessAsUser.All",
    mail_providers=("microsoft365", "outlook"),
    consents_at="https://myapps.microsoft.com or https://account.live.com/consent/Manage",
    extra=MappingProxyType({"prompt": "select_account"}),
    names_scopes_on_refresh=True,  # AADSTS900144 otherwise
)
SERVICES: Mapping[str, OAuthService] = MappingProxyType({one.key: one for one in (GOOGLE, MICROSOFT)})
_OTHER_NAMES = MappingProxyType(
    {
        "gmail": "google",
        "outlook": "microsoft",
        "office365": "microsoft",
        "microsoft365": "microsoft",
    }
)


def service_named(name: str) -> OAuthService | None:
    """The service of a stored provider's name; None for one that nothing is known of."""
    key = name.strip().lower()
    return SERVICES.get(_OTHER_NAMES.get(key, key))


# Tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a token endpoint granted. `scope` is what it named, "" where it granted all that was asked."""

    access_token: Secret
    refresh_token: Secret | None = None
    id_token: Secret | None = None
    lasts: timedelta | None = None
    scope: str = ""


class Reason(StrEnum):
    """Why there are no tokens: who has to do something about it."""

    OWNER = "owner"  # the grant is over; the owner of the mailbox signs in again
    OPERATOR = "operator"  # the installation's client is not accepted
    PASSING = "passing"  # the service does not answer, or is busy


@dataclass(frozen=True, slots=True)
class Denied:
    """No tokens: `error` is the service's own short code or ours, `text` a sentence safe to show."""

    reason: Reason
    error: str
    text: str


_OVER = frozenset(["invalid_grant", "interaction_required", "consent_required", "login_required"])
_CLIENT = frozenset(
    [
        "invalid_client",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "redirect_uri_mismatch",
    ]
)
_CODE = re.compile(r"[a-z][a-z0-9_]{1,39}")
_TOKEN = re.compile(r"[\x21-\x7e]{1,16384}")


def denied(service: OAuthService, error: object) -> Denied:
    """How the `error` of a token endpoint is read (RFC 6749 section 5.2). Never shows more than its code."""
    code = error if isinstance(error, str) and _CODE.fullmatch(error) else "unreadable_error"
    if code in _OVER:
        text = f"The sign-in with {service.name} has expired or was withdrawn. Connect the account again."
        return Denied(Reason.OWNER, code, text)
    if code in _CLIENT:
        named = service.key.upper()
        text = (
            f"{service.name} does not accept this installation's client ({code}): an operator has to "
            f"correct {named}_CLIENT_ID and {named}_CLIENT_SECRET."
        )
        return Denied(Reason.OPERATOR, code, text)
    return Denied(Reason.PASSING, code, f"{service.name} issues no access token just now ({code}).")


def tokens_from(answer: Mapping[str, Any]) -> Tokens | None:
    """The tokens of a token endpoint's JSON object; None when it is no proper grant of a bearer token."""
    access = answer.get("access_token")
    kind = answer.get("token_type")
    if not _is_token(access) or not isinstance(kind, str) or kind.lower() != "bearer":
        return None
    scope = answer.get("scope")
    return Tokens(
        access_token=Secret(str(access)),
        refresh_token=_secret(answer.get("refresh_token")),
        id_token=_secret(answer.get("id_token")),
        lasts=_lasts(answer.get("expires_in")),
        scope=" ".join(scope.split()) if isinstance(scope, str) else "",
    )


def _is_token(value: object) -> bool:
    return isinstance(value, str) and _TOKEN.fullmatch(value) is not None


def _secret(value: object) -> Secret | None:
    return Secret(str(value)) if _is_token(value) else None


def _lasts(value: object) -> timedelta | None:
    try:
        seconds = int(str(value))
    except ValueError:
        return None
    return timedelta(seconds=seconds) if 0 < seconds <= 366 * 86400 else None


def is_due(expires_at: datetime | None, now: datetime) -> bool:
    """Whether a token should be renewed. One without a known end is good until a server refuses it."""
    return expires_at is not None and expires_at - now <= RENEW_BEFORE


def is_still_good(expires_at: datetime | None, now: datetime) -> bool:
    return expires_at is None or expires_at - now > STILL_GOOD


# What was granted


def granted(service: OAuthService, scope: str) -> tuple[str, ...]:
    """Of the scopes that were asked for, those in `scope`; all of them when it names none (RFC 6749 5.1)."""
    named = set(scope.lower().split())
    return tuple(one for one in service.asks if not named or one.lower() in named)


def granted_text(service: OAuthService, scope: str) -> str:
    """`granted` as it is stored: never empty, which stands for tokens of which nothing is known."""
    return " ".join(granted(service, scope)) or "none"


def may_send(service: OAuthService | None, scope: str) -> bool:
    """Whether a sign-in with `scope` lets mail be sent; where nothing is known, the server will say."""
    return _allows(service.sends if service else "", scope)


def may_receive(service: OAuthService | None, scope: str) -> bool:
    return _allows(service.receives if service else "", scope)


def _allows(needed: str, scope: str) -> bool:
    return not needed or not scope or needed.lower() in scope.lower().split()


# Whose mailbox it is

_PERSONAL_TENANT = "9188040d-6c67-4c5b-b112-36a304b66dad"
"""Microsoft's own tenant of personal accounts: Outlook.com, Hotmail, Live."""
_TENANT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TENANT_PLACE = "{tenantid}"


def issuer_for(expected: str, claims: Mapping[str, Any]) -> str | None:
    """The issuer that verified `claims` must name, for the configured `expected` one.

    Microsoft's is a template, to be filled with the token's own tenant; None where that is not one.
    """
    if TENANT_PLACE not in expected:
        return expected
    tenant = claims.get("tid")
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant.lower()):
        return None
    return expected.replace(TENANT_PLACE, tenant)


def is_personal(claims: Mapping[str, Any]) -> bool:
    """Whether it is one of Microsoft's personal accounts, which have servers of their own."""
    return claims.get("tid") == _PERSONAL_TENANT


def mailboxes_of(service: OAuthService, claims: Mapping[str, Any]) -> tuple[str, ...]:
    """The addresses that the service vouches for, in lower case; verified `claims` only.

    Google: `email`, once `email_verified`. Microsoft: `preferred_username`, a name below a domain that the
    tenant has proved to own; `email` is what the tenant's administrator typed, so it counts for personal
    accounts alone, or where Microsoft says that the domain's owner is verified (`xms_edov`).
    """
    email, name = (_address(claims.get(claim)) for claim in ("email", "preferred_username"))
    if service is GOOGLE:
        return _found(email if _is_true(claims.get("email_verified")) else "")
    is_vouched_for = is_personal(claims) or _is_true(claims.get("xms_edov"))
    return _found(name, email if is_vouched_for else "")


def _address(value: object) -> str:
    return value.strip().lower() if isinstance(value, str) and "@" in value and len(value) <= 254 else ""


def _is_true(value: object) -> bool:
    return value is True or value == 1 or (isinstance(value, str) and value.lower() in {"true", "1"})


def _found(*addresses: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address for address in addresses if address))
