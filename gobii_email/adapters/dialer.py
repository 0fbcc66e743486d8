"""Opens sockets to hosts that customers named, and to nothing else.

Knows which addresses and ports may be dialled: a host is resolved once, every address it has is
judged, also the IPv4 address hidden in an IPv6 one, and only a judged address is connected to.
What is spoken afterwards is left to the protocols; the tables follow the IANA special-purpose
registries (RFC 6890) and the metadata addresses that cloud vendors document.
"""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import idna

from gobii_email.domain.outcomes import Cause

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Sequence[str]]

MAX_ADDRESSES_DIALLED = 6


class DialFailed(Exception):
    """No socket: `cause` says why, `text` is a sentence that names no address the resolver gave."""

    def __init__(self, cause: Cause, text: str) -> None:
        super().__init__(text)
        self.cause = cause
        self.text = text


class Deadline:
    """A moment by which a step must be over, never later than that of the whole it is part of."""

    __slots__ = ("_at", "seconds")

    def __init__(self, span: timedelta, *, within: "Deadline | None" = None) -> None:
        self.seconds = span.total_seconds()
        self._at = time.monotonic() + self.seconds
        if within is not None and within._at < self._at:
            self._at = within._at
            self.seconds = within.seconds

    def seconds_left(self) -> float:
        """Always positive; raises TimeoutError once the moment has passed."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return left


def system_resolver(host: str, port: int) -> Sequence[str]:
    """Every address of `host`, as the operating system knows it; raises socket.gaierror."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """What may be dialled beyond the public internet, and on which ports.

    `allowed_networks` are private networks whose hosts are welcome; without them no IP literal,
    no local name and no private address is dialled.
    """

    allowed_networks: tuple[Network, ...] = ()
    allowed_ports: frozenset[int] = frozenset({465, 587, 2525, 993, 143})
    resolver: Resolver = system_resolver

    def allows(self, address: Address) -> bool:
        """Whether `address` lies in a network this deployment has opened.

        Who opens 127.0.0.1 means this machine, so ::1 is open as well: `localhost` is often both.
        """
        if address == _LOOPBACK_6:
            return self.allows(_LOOPBACK_4) or self._has(address)
        return address not in _METADATA and self._has(address)

    def _has(self, address: Address) -> bool:
        return any(
            address.version == network.version and address in network for network in self.allowed_networks
        )


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


_LOOPBACK_4, _LOOPBACK_6 = ip_address("127.0.0.1"), ip_address("::1")
# Credentials of the machine itself are served here: not even an allowed network opens these.
_METADATA = frozenset(
    ip_address(text)
    for text in (
        "169.254.169.254",  # most clouds
        "169.254.169.253",  # AWS, resolver
        "169.254.170.2",  # AWS ECS
        "169.254.170.23",  # AWS EKS
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure wire server
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd00:ec2::23",  # AWS EKS
        "fd20:ce::254",  # Google
    )
)

_DENIED_V4 = _networks(
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
# Global unicast and the well-known NAT64 prefix; all other IPv6 is local, reserved or multicast.
_PUBLIC_V6 = _networks("2000::/3", "64:ff9b::/96")
_DENIED_V6 = _networks(
    "2001::/23",  # protocol assignments, Teredo among them
    "2001:db8::/32",
    "2620:4f:8000::/48",
    "3fff::/20",
)
_NAT64 = _networks("64:ff9b::/96", "64:ff9b:1::/48")
_COMPATIBLE = ip_network("::/96")
_ISATAP_MARK = 0x00005EFE

_LOCAL_SUFFIXES = (
    "localhost",
    "local",
    "localdomain",
    "internal",
    "intranet",
    "lan",
    "home",
    "corp",
    "private",
    "home.arpa",
    "in-addr.arpa",
    "ip6.arpa",
    "onion",
)
_LABEL = re.compile(r"^(?!-)[a-z0-9_-]{1,63}(?<!-)$")
_NUMERIC_LABEL = re.compile(r"^(?:[0-9]+|0x[0-9a-f]*)$")
_NOT_ALLOWED = "The host {host} is not on the public internet, and its network has not been opened for mail."


def ascii_host(host: str) -> str:
    """`host` as it is dialled, asked of DNS and found in certificates: lower case, A-labels, no last dot.

    An IP literal comes back in its canonical form without brackets. Raises DialFailed for anything
    else that is not a host name, also for the odd spellings of addresses that resolvers accept
    (`0x7f.1`, `2130706433`, `127.1`).
    """
    name = host.strip()
    if not name.isascii():
        name = _to_a_labels(name)
    name = name.removesuffix(".").lower()
    if (literal := ip_literal(name)) is not None:
        return str(literal)
    labels = name.split(".")
    if _NUMERIC_LABEL.match(labels[-1]):
        raise DialFailed(Cause.ADDRESS_NOT_ALLOWED, f"{_shown(host)} is not a host name.")
    if len(name) > 253 or not all(_LABEL.match(label) for label in labels):
        raise DialFailed(Cause.HOST_UNKNOWN, f"{_shown(host)} is not a host name.")
    return name


def ip_literal(host: str) -> Address | None:
    """The address that `host` spells out, also in brackets, or None when it is a name."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address(bare)
    except ValueError:
        return None
    return None if "%" in bare else _unmapped(address)


def resolve_and_vet(host: str, port: int, policy: DialPolicy, deadline: Deadline) -> list[Address]:
    """The addresses of `host` to dial, in the resolver's order, at least one.

    Raises DialFailed when the port is not allowed, when the name has no address, or when any one
    of its addresses is not to be dialled: a host that mixes good and bad ones is refused.
    """
    require_port(port, policy)
    name = ascii_host(host)
    literal = ip_literal(name)
    addresses = [literal] if literal else _resolve(name, port, policy.resolver, deadline)
    must_be_opened = literal is not None or is_local_name(name)
    for address in addresses:
        if not _may_be_dialled(address, policy, must_be_opened=must_be_opened):
            raise DialFailed(Cause.ADDRESS_NOT_ALLOWED, _NOT_ALLOWED.format(host=_shown(host)))
    return addresses


def require_port(port: int, policy: DialPolicy) -> None:
    """Raises DialFailed, naming the ports that are allowed, where `port` is not among them."""
    if port not in policy.allowed_ports:
        ports = ", ".join(map(str, sorted(policy.allowed_ports)))
        raise DialFailed(
            Cause.PORT_NOT_ALLOWED, f"Port {port} is not open for mail here; allowed are {ports}."
        )


class VettedAddresses:
    """What was found for a host a moment ago, so that not every connection asks the resolver.

    Good addresses only, for `lifetime`, by host, port and policy; safe to use from all threads.
    """

    def __init__(self, lifetime: timedelta = timedelta(seconds=30), max_hosts: int = 1000) -> None:
        self._lifetime = lifetime.total_seconds()
        self._max_hosts = max_hosts
        self._known: dict[tuple[str, int, DialPolicy], tuple[float, Sequence[Address]]] = {}

    def of(self, host: str, port: int, policy: DialPolicy, deadline: Deadline) -> Sequence[Address]:
        """As `resolve_and_vet`, which is asked where nothing is known any more."""
        until, addresses = self._known.get((host, port, policy), (0.0, ()))
        if time.monotonic() >= until:
            addresses = resolve_and_vet(host, port, policy, deadline)
            if len(self._known) >= self._max_hosts:
                self._known.clear()
            self._known[host, port, policy] = (time.monotonic() + self._lifetime, addresses)
        return addresses

    def forget(self, host: str, port: int, policy: DialPolicy) -> None:
        self._known.pop((host, port, policy), None)


def dial(
    host: str, port: int, policy: DialPolicy, deadline: Deadline, known: VettedAddresses | None = None
) -> socket.socket:
    """A connected socket to a vetted address of `host`, trying the next one when one fails.

    Raises DialFailed. The name is resolved once, or not at all where `known` still has its addresses
    from a dial that did not fail; the address judged is the address connected to.
    """
    find = resolve_and_vet if known is None else known.of
    addresses = find(host, port, policy, deadline)[:MAX_ADDRESSES_DIALLED]
    failure = DialFailed(Cause.TIMEOUT, _too_slow(host, port, deadline))
    for position, address in enumerate(addresses):
        try:
            share = deadline.seconds_left() / (len(addresses) - position)
            return _connect(address, port, share)
        except OSError as error:
            failure = _connect_failure(error, host, port, deadline)
            if known is not None:
                known.forget(host, port, policy)
    raise failure


def _connect_failure(error: OSError, host: str, port: int, deadline: Deadline) -> DialFailed:
    match error:
        case TimeoutError():
            return DialFailed(Cause.TIMEOUT, _too_slow(host, port, deadline))
        case ConnectionRefusedError():
            text = f"{_shown(host)} refuses connections on port {port}."
            return DialFailed(Cause.CONNECTION_REFUSED, text)
    return DialFailed(Cause.CONNECTION_LOST, f"{_shown(host)} cannot be reached on port {port}.")


def _connect(address: Address, port: int, seconds: float) -> socket.socket:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(seconds)
        sock.connect((str(address), port))
        if _unmapped(ip_address(sock.getpeername()[0])) != address:
            raise ConnectionAbortedError("connected to another address than the one that was vetted")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _resolve(name: str, port: int, resolver: Resolver, deadline: Deadline) -> list[Address]:
    texts = _answer_in_time(name, port, resolver, deadline)
    addresses = [_unmapped(ip_address(text)) for text in texts]
    if not addresses:
        raise DialFailed(Cause.HOST_UNKNOWN, f"There is no host named {_shown(name)}.")
    return list(dict.fromkeys(addresses))


def _answer_in_time(name: str, port: int, resolver: Resolver, deadline: Deadline) -> Sequence[str]:
    # The resolver of the system knows no deadline: it is left behind in its own thread, where it
    # ends by the limits of the system's configuration.
    answers: list[Sequence[str] | BaseException] = []

    def ask() -> None:
        try:
            answers.append(resolver(name, port))
        except (OSError, ValueError) as error:
            answers.append(error)

    thread = threading.Thread(target=ask, name="resolver", daemon=True)
    thread.start()
    with contextlib.suppress(TimeoutError):
        thread.join(deadline.seconds_left())
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, BaseException):
        raise _resolution_failure(name, answer) from None
    return answer


def _resolution_failure(name: str, error: BaseException) -> DialFailed:
    unknown = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
    if isinstance(error, socket.gaierror) and error.errno in unknown:
        return DialFailed(Cause.HOST_UNKNOWN, f"There is no host named {_shown(name)}.")
    return DialFailed(Cause.DNS_FAILED, f"The name {_shown(name)} could not be looked up just now.")


def _may_be_dialled(address: Address, policy: DialPolicy, *, must_be_opened: bool) -> bool:
    faces = (address, *_embedded(address))
    return all(policy.allows(face) or (not must_be_opened and is_public(face)) for face in faces)


def is_public(address: Address) -> bool:
    """Whether `address` is one of the public internet; what an IPv6 one embeds is judged by itself."""
    if address in _METADATA:
        return False
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _DENIED_V4)
    if address.sixtofour is not None:
        return True  # judged by the IPv4 address it holds
    return any(address in network for network in _PUBLIC_V6) and not any(
        address in network for network in _DENIED_V6
    )


def _embedded(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses that `address` may lead to by translation or tunnel."""
    if isinstance(address, IPv4Address):
        return
    value = int(address)
    low = IPv4Address(value & 0xFFFFFFFF)
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    is_isatap = (value >> 32) & 0xFDFFFFFF == _ISATAP_MARK
    is_compatible = address in _COMPATIBLE and value > 1
    if is_isatap or is_compatible or any(address in network for network in _NAT64):
        yield low


def _unmapped(address: Address) -> Address:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def is_local_name(name: str) -> bool:
    """Whether `name` is one that only a private network knows, by its form alone."""
    return "." not in name or any(name.endswith("." + suffix) for suffix in _LOCAL_SUFFIXES)


def _to_a_labels(name: str) -> str:
    try:
        return idna.encode(name, uts46=True).decode("ascii")
    except UnicodeError:
        raise DialFailed(Cause.HOST_UNKNOWN, f"{_shown(name)} is not a host name.") from None


def _too_slow(host: str, port: int, deadline: Deadline) -> str:
    return f"{_shown(host)} did not answer on port {port} within {deadline.seconds:g} seconds."


def _shown(host: str) -> str:
    """`host` fit for a sentence: one line, nothing that paints on a screen, not endless."""
    text = "".join(character if character.isprintable() else "?" for character in host.strip())
    return (text if len(text) <= 100 else text[:99] + "…") or "An empty text"
