"""Which hosts, addresses and ports may be dialled; tables against the real judgement, sockets on loopback."""

import dataclasses
import socket
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest

from gobii_email.adapters.dialer import (
    Deadline,
    DialFailed,
    DialPolicy,
    VettedAddresses,
    ascii_host,
    dial,
    resolve_and_vet,
    system_resolver,
)
from gobii_email.domain.outcomes import Cause
from gobii_email.testing.smtp_server import RawServer, Script

PUBLIC = (
    "93.184.216.34",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "192.0.1.1",
    "198.20.0.1",
    "223.255.255.254",
)
PUBLIC_V6 = ("2a00:1450:4001:81b::2005", "2606:4700::1111", "2001:4860:4860::8888", "2001:200::1")
NOT_PUBLIC = (
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255"),
    *("127.0.0.1", "127.1.2.3", "169.254.169.254", "169.254.170.2", "168.63.129.16", "172.16.0.1"),
    *("172.31.255.255", "192.0.0.1", "192.0.0.8", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1"),
    *("192.88.99.1", "192.168.1.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
    *("::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "64:ff9b:1::808:808"),
    *("2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "2001::1", "2001:0:7f00:1::1", "2001:2::1"),
    *(
        "2001:10::1",
        "2001:20::1",
        "2001:db8::1",
        "3fff::1",
        "3fff:fff::1",
        "5f00::1",
        "100::1",
        "100:0:0:1::1",
    ),
    *("fc00::1", "fd00:ec2::254", "fd20:ce::254", "fdff::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1"),
    *("ff0e::1", "4000::1", "2620:4f:8000::1"),
    *("2a00:1450::5efe:10.0.0.1", "2a00:1450::200:5efe:127.0.0.1"),  # ISATAP
)
PUBLIC_BY_TRANSLATION = ("64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8", "2a00:1450::5efe:8.8.8.8")


def policy(*addresses: str, allowed: Sequence[str] = (), ports: Sequence[int] = (587,)) -> DialPolicy:
    return DialPolicy(
        tuple(ip_network(text) for text in allowed), frozenset(ports), lambda _host, _port: addresses
    )


def soon(seconds: float = 60) -> Deadline:
    return Deadline(timedelta(seconds=seconds))


def refusal(host: str, given: DialPolicy, port: int = 587) -> DialFailed:
    with pytest.raises(DialFailed) as caught:
        resolve_and_vet(host, port, given, soon())
    return caught.value


@pytest.mark.parametrize("address", [*PUBLIC, *PUBLIC_V6, *PUBLIC_BY_TRANSLATION])
def test_a_name_with_a_public_address_is_dialled(address: str) -> None:
    (vetted,) = resolve_and_vet("mail.example", 587, policy(address), soon())
    assert str(vetted) == address.removeprefix("::ffff:") or vetted == ip_address(address)


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_a_name_with_an_address_that_is_not_public_is_refused(address: str) -> None:
    failure = refusal("mail.example", policy(address))
    assert failure.cause is Cause.ADDRESS_NOT_ALLOWED
    assert address not in failure.text or address == "::"


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_one_bad_address_among_good_ones_refuses_the_host(address: str) -> None:
    mixed = policy("93.184.216.34", address, "2606:4700::1111")
    assert refusal("mail.example", mixed).cause is Cause.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize("address", [*PUBLIC, *PUBLIC_V6, *NOT_PUBLIC[:-2]])
def test_an_ip_literal_is_refused_unless_its_network_is_opened(address: str) -> None:
    assert refusal(address, policy("93.184.216.34")).cause in (Cause.ADDRESS_NOT_ALLOWED, Cause.HOST_UNKNOWN)


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1"),
        ("postfix", "127.0.0.2"),
        ("mail.internal", "127.0.0.3"),
        ("mail.example", "::ffff:127.0.0.4"),
        ("mail.example", "10.9.9.9"),
    ],
)
def test_an_opened_network_is_dialled_by_literal_and_by_any_name(host: str, answer: str) -> None:
    opened = policy(answer, allowed=("127.0.0.0/8", "::1/128", "10.9.0.0/16"))
    assert resolve_and_vet(host, 587, opened, soon()) == [
        ip_address(answer.removeprefix("::ffff:")) if answer != "::1" else ip_address("::1")
    ]


def test_who_opens_loopback_opens_it_in_both_families_but_nothing_beside_it() -> None:
    opened = policy("::1", "127.0.0.1", allowed=("127.0.0.0/8",))
    assert resolve_and_vet("localhost", 587, opened, soon()) == [ip_address("::1"), ip_address("127.0.0.1")]
    assert not opened.allows(ip_address("fd00::1"))
    assert not policy(allowed=("10.0.0.0/8",)).allows(ip_address("::1"))


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"],
)
def test_cloud_metadata_is_dialled_by_nobody(address: str) -> None:
    opened = policy(address, allowed=("0.0.0.0/0", "::/0"))
    assert refusal("mail.example", opened).cause is Cause.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize("address", ["2002:7f00:1::", "64:ff9b::7f00:1", "2a00::5efe:7f00:1", "::7f00:1"])
def test_an_opened_outer_network_does_not_open_the_inner_address(address: str) -> None:
    assert refusal("mail.example", policy(address, allowed=("::/0",))).cause is Cause.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST.", "x.localhost", "printer.local", "metadata.google.internal", "redis"),
        *("svc.cluster.local", "nas.lan", "router.home.arpa", "intranet.corp", "host.localdomain"),
    ],
)
def test_a_local_name_is_refused_even_with_a_public_address(host: str) -> None:
    assert refusal(host, policy("93.184.216.34")).cause is Cause.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        *("0x7f.1", "2130706433", "0177.0.0.1", "127.1", "0x7f000001", "127.0.0.1.", "10.1", "1.2.3.4.5"),
        *("127。0。0。1", "１２７.0.0.1", "①②⑦.0.0.1", "mail.example.127", "0x7F.0X1"),
    ],
)
def test_odd_spellings_of_addresses_never_reach_the_resolver(host: str) -> None:
    def resolver(_host: str, _port: int) -> Sequence[str]:
        raise AssertionError("asked the resolver")

    failure = refusal(host, DialPolicy((), frozenset({587}), resolver))
    assert failure.cause is Cause.ADDRESS_NOT_ALLOWED


@pytest.mark.parametrize(
    "host",
    [
        *(
            "",
            " ",
            ".",
            "a..b",
            "-a.example",
            "a-.example",
            "a b.example",
            "a/b.example",
            "user@mail.example",
        ),
        *(
            "mail.example:25",
            "x" * 64 + ".example",
            ".".join(["abcdefgh"] * 29),
            "a\r\nb.example",
            "a\0.example",
        ),
        *(
            "fe80::1%eth0",
            "http://mail.example",
            "\u202email.example",
            "a.example#",
            "*.example",
            "mail.example\n",
        ),
    ],
)
def test_what_is_no_host_name_is_refused_in_one_printable_line(host: str) -> None:
    if host == "mail.example\n":
        assert ascii_host(host) == "mail.example"
        return
    failure = refusal(host, policy("93.184.216.34"))
    assert failure.cause is Cause.HOST_UNKNOWN
    assert failure.text.isprintable() and len(failure.text) < 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("Mail.EXAMPLE.", "mail.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER。example", "xn--bcher-kva.example"),
        ("[::1]", "::1"),
        ("_submission.example", "_submission.example"),
    ],
)
def test_a_host_is_asked_for_in_its_ascii_form(host: str, expected: str) -> None:
    assert ascii_host(host) == expected


@pytest.mark.parametrize("port", [25, 22, 80, 6379, 0, -1, 70000])
def test_only_mail_ports_are_dialled_and_no_name_is_looked_up_for_others(port: int) -> None:
    failure = refusal("mail.example", policy("93.184.216.34", ports=(465, 587)), port)
    assert failure.cause is Cause.PORT_NOT_ALLOWED
    assert "465, 587" in failure.text


def test_the_default_ports_are_those_of_submission_and_imap() -> None:
    assert DialPolicy().allowed_ports == {465, 587, 2525, 993, 143}


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), Cause.HOST_UNKNOWN),
        (socket.gaierror(socket.EAI_AGAIN, "x"), Cause.DNS_FAILED),
        (socket.gaierror(socket.EAI_FAIL, "x"), Cause.DNS_FAILED),
        (OSError("x"), Cause.DNS_FAILED),
    ],
)
def test_a_name_that_is_not_known_differs_from_a_resolver_that_fails(error: OSError, cause: Cause) -> None:
    def resolver(_host: str, _port: int) -> Sequence[str]:
        raise error

    assert refusal("mail.example", DialPolicy((), frozenset({587}), resolver)).cause is cause


def test_a_name_without_addresses_is_not_known() -> None:
    assert refusal("mail.example", policy()).cause is Cause.HOST_UNKNOWN


def test_a_resolver_that_hangs_costs_no_more_than_the_deadline() -> None:
    released = threading.Event()

    def resolver(_host: str, _port: int) -> Sequence[str]:
        released.wait(60)
        return ["93.184.216.34"]

    began = time.monotonic()
    with pytest.raises(DialFailed) as caught:
        resolve_and_vet("mail.example", 587, DialPolicy((), frozenset({587}), resolver), soon(0.2))
    released.set()
    assert caught.value.cause is Cause.DNS_FAILED
    assert time.monotonic() - began < 30


def test_the_system_knows_the_loopback_by_name() -> None:
    assert set(system_resolver("localhost", 587)) <= {"127.0.0.1", "::1"}


def test_a_rebinding_resolver_is_asked_once_for_each_dial() -> None:
    asked = []

    def resolver(_host: str, _port: int) -> Sequence[str]:
        asked.append(1)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    with RawServer(Script.hang) as server:
        opened = DialPolicy((ip_network("127.0.0.0/8"),), frozenset({server.port}), resolver)
        dial("mail.example", server.port, opened, soon()).close()
        assert len(asked) == 1
        with pytest.raises(DialFailed) as caught:
            dial("mail.example", server.port, opened, soon())
    assert caught.value.cause is Cause.ADDRESS_NOT_ALLOWED


def _counting(*answers: str) -> tuple[list[str], DialPolicy]:
    asked: list[str] = []

    def resolver(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return answers

    return asked, DialPolicy((ip_network("127.0.0.0/8"),), frozenset({587, 465}), resolver)


def test_vetted_addresses_are_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, opened = _counting("127.0.0.1")
    known, now = VettedAddresses(timedelta(seconds=30)), time.monotonic()
    for passed, times in [(0, 1), (29, 1), (31, 2), (60, 2), (62, 3)]:
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: now + passed)
        assert known.of("mail.example", 587, opened, soon()) == [ip_address("127.0.0.1")]
        assert len(asked) == times


def test_what_is_known_holds_for_its_host_port_and_policy_alone() -> None:
    asked, opened = _counting("127.0.0.1")
    known = VettedAddresses()
    for host, port in [("a.example", 587), ("b.example", 587), ("a.example", 465), ("a.example", 587)]:
        known.of(host, port, opened, soon())
    assert asked == ["a.example", "b.example", "a.example"]
    with pytest.raises(DialFailed):
        known.of("a.example", 587, DialPolicy((), frozenset({587}), opened.resolver), soon())
    with pytest.raises(DialFailed):
        known.of("a.example", 25, opened, soon())


def test_refusals_are_not_kept() -> None:
    asked, opened = _counting("169.254.169.254")
    known = VettedAddresses()
    for _ in range(2):
        with pytest.raises(DialFailed):
            known.of("mail.example", 587, opened, soon())
    assert len(asked) == 2


def test_only_so_many_hosts_are_known() -> None:
    asked, opened = _counting("127.0.0.1")
    known = VettedAddresses(max_hosts=2)
    for host in ("a.example", "b.example", "c.example", "c.example", "a.example"):
        known.of(host, 587, opened, soon())
    assert asked == ["a.example", "b.example", "c.example", "a.example"]


def test_addresses_are_forgotten_when_one_cannot_be_dialled() -> None:
    with RawServer(Script.hang) as server:
        asked, opened = _counting("127.0.0.1")
        opened = dataclasses.replace(opened, allowed_ports=frozenset({server.port}))
        known = VettedAddresses()
        for _ in range(2):
            dial("mail.example", server.port, opened, soon(), known).close()
        assert len(asked) == 1
    for times in (1, 2):
        with pytest.raises(DialFailed):
            dial("mail.example", server.port, opened, soon(), known)
        assert len(asked) == times


def test_no_thread_is_started_for_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, opened = _counting("127.0.0.1")
    monkeypatch.setattr(threading, "Thread", None)
    assert resolve_and_vet("127.0.0.1", 587, opened, soon()) == [ip_address("127.0.0.1")]
    assert asked == []


def test_the_next_address_is_dialled_when_one_refuses() -> None:
    with RawServer(Script.hang) as server:
        opened = policy("127.0.0.9", "127.0.0.1", allowed=("127.0.0.0/8",), ports=(server.port,))
        with dial("mail.example", server.port, opened, soon()) as sock:
            assert sock.getpeername()[0] == "127.0.0.1"


def test_a_peer_that_is_not_the_vetted_address_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(Script.hang) as server:
        opened = policy("127.0.0.1", allowed=("127.0.0.0/8",), ports=(server.port,))
        monkeypatch.setattr(socket.socket, "getpeername", lambda _: ("10.0.0.1", server.port))
        with pytest.raises(DialFailed) as caught:
            dial("mail.example", server.port, opened, soon())
    assert caught.value.cause is Cause.CONNECTION_LOST


def test_an_address_that_does_not_answer_costs_no_more_than_the_deadline() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        with pytest.raises(DialFailed) as caught:
            dial("127.0.0.1", port, policy(allowed=("127.0.0.0/8",), ports=(port,)), soon(0.3))
        for filler in fillers:
            filler.close()
    assert caught.value.cause is Cause.TIMEOUT
    assert "0.3 seconds" in caught.value.text
    assert time.monotonic() - began < 30


def test_a_deadline_lies_never_beyond_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    whole = Deadline(timedelta(seconds=1))
    assert Deadline(timedelta(seconds=60), within=whole).seconds_left() <= 1
    assert Deadline(timedelta(milliseconds=1), within=whole).seconds_left() <= 0.001
    with pytest.raises(TimeoutError):
        Deadline(timedelta(0)).seconds_left()
