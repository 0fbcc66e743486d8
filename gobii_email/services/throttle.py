"""Keeping people from guessing passwords: failed sign-ins are counted by user name and by address.

An attempt counts before its password is looked at, so that many at once gain nothing, and is taken back when
it succeeds. Neither user names nor addresses are written down: keys are digests under the secret key.
"""

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_address, ip_network

from django.utils import timezone
from django.utils.crypto import salted_hmac

from gobii_email import wiring
from gobii_email.conf import config
from gobii_email.services.tell import clock_time

logger = logging.getLogger(__name__)

SPAN = timedelta(minutes=15)
PEOPLE_OF_AN_ADDRESS = 3
"""So many times the failures of one user name may come from one address, which people share."""


class TooManySignIns(Exception):
    """Another sign-in is not tried now; the sentence says when it may be."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """One that is under way, as it was counted."""

    by_name: str
    by_address: Sequence[str]


def begin(username: str, address: str) -> SignIn | None:
    """Counts a sign-in from `address`, "" where it is not known; None where they are not limited.

    Raises TooManySignIns, before anybody looks at the password.
    """
    most = config().failed_sign_ins
    if not most:
        return None
    by_address = [_key("address", _neighbourhood(address))] if address else []
    sign_in = SignIn(_key("name", unicodedata.normalize("NFKC", username).casefold()), by_address)
    counts = wiring.tallies().add([sign_in.by_name, *by_address], SPAN)
    limits = (most, most * PEOPLE_OF_AN_ADDRESS)
    over = [(one, limit) for one, limit in zip(counts, limits, strict=False) if one.count > limit]
    if not over:
        return sign_in
    if any(one.count == limit + 1 for one, limit in over):
        logger.warning("sign_in.throttled", extra={"client": address})
    now = timezone.now()
    when = clock_time(now + max(one.left for one, _ in over), now)
    raise TooManySignIns(f"Too many sign-ins have failed. The next may be tried at {when}.")


def succeeded(sign_in: SignIn | None) -> None:
    """The user name starts afresh; others who guess from the same address do not."""
    if sign_in is not None:
        wiring.tallies().forget([sign_in.by_name])
        wiring.tallies().take_back(sign_in.by_address)


def _key(kind: str, value: str) -> str:
    return salted_hmac(f"gobii_email.sign_in.{kind}", value, algorithm="sha256").hexdigest()


def _neighbourhood(address: str) -> str:
    """An IPv6 network of one household, where everybody has more addresses than can be counted."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((found, 64), strict=False)) if found.version == 6 else address
