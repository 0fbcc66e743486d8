"""What DNS answers, asked of a real name server on a socket: the true, the false and the broken."""

import threading
from datetime import timedelta
from ipaddress import ip_network

import pytest

from gobii_email.adapters.dialer import DialPolicy
from gobii_email.adapters.dns import DnsInquiry
from gobii_email.domain.mail_services import ServiceRecord
from gobii_email.testing.dns_server import StubDnsServer, garbage, in_the_name_of, servfail, silence

DOMAIN = "shop.example"
SENDING = f"_submissions._tcp.{DOMAIN}"
ANSWERED, BRIEFLY, HURRIED = timedelta(seconds=60), timedelta(seconds=3), timedelta(seconds=0.4)


def inquiry(server, deadline=ANSWERED, policy=None):
    return DnsInquiry(deadline, policy or DialPolicy(), [server.address])


def asked(records=None, faults=None, deadline=ANSWERED):
    """(exchangers, services, whether all was answered) of DOMAIN at such a name server."""
    with StubDnsServer(records, faults) as server:
        inquirer = inquiry(server, deadline)
        return (*inquirer.exchangers_and_services(DOMAIN), inquirer.is_complete)


def test_the_exchangers_of_the_best_preference_are_told():
    records = {DOMAIN: {"MX": ["20 backup.example.", "10 B.mx.example.", "10 a.mx.example."]}}
    assert asked(records) == (["a.mx.example", "b.mx.example"], [], True)


def test_services_are_told_with_their_order():
    records = {
        SENDING: {"SRV": ["10 5 465 b.example.", "0 1 465 A.example.", "10 9 465 c.example."]},
        f"_imap._tcp.{DOMAIN}": {"SRV": ["0 0 0 ."]},
    }
    assert asked(records)[1] == [
        ServiceRecord("submissions", "a.example", 465, 0, 1),
        ServiceRecord("submissions", "c.example", 465, 10, 9),
        ServiceRecord("submissions", "b.example", 465, 10, 5),
        ServiceRecord("imap", "", 0, 0, 0),
    ]


def test_names_that_do_not_exist_are_an_answer():
    assert asked() == ([], [], True)
    assert asked({DOMAIN: {"A": ["192.0.2.1"]}}) == ([], [], True)


@pytest.mark.parametrize(
    ("fault", "deadline"),
    [(servfail, ANSWERED), (silence, BRIEFLY), (garbage, BRIEFLY)],
    ids=["servfail", "silence", "garbage"],
)
def test_what_is_answered_is_told_although_other_questions_are_not(fault, deadline):
    records = {DOMAIN: {"MX": ["10 mx.example."]}}
    exchangers, services, is_complete = asked(records, {SENDING: fault}, deadline)
    assert (exchangers, services, is_complete) == (["mx.example"], [], False)


def test_no_answer_at_all_ends_at_the_deadline():
    with StubDnsServer(faults={DOMAIN: silence, SENDING: silence}) as server:
        inquirer = inquiry(server, HURRIED)
        assert inquirer.exchangers_and_services(DOMAIN) == ([], [])
        assert inquirer.may_be_dialled([("mail.shop.example", 465)]) == set()
        assert not inquirer.is_complete


def test_a_name_server_that_is_not_there_is_no_answer():
    with StubDnsServer() as server:
        gone = server.address
    inquirer = DnsInquiry(HURRIED, DialPolicy(), [gone])
    assert inquirer.exchangers_and_services(DOMAIN) == ([], [])
    assert not inquirer.is_complete


def test_a_truncated_answer_is_asked_for_again_over_tcp():
    targets = [f"{n} 0 465 a-rather-long-name-of-a-server-{n:02}.example." for n in range(40)]
    with StubDnsServer({SENDING: {"SRV": targets}}) as server:
        _, services = inquiry(server).exchangers_and_services(DOMAIN)
        assert set(server.over_tcp) == {SENDING}
    assert [record.priority for record in services] == list(range(16))


def test_an_alias_is_followed_and_a_ring_of_aliases_is_no_answer():
    followed = {
        SENDING: {"CNAME": ["mail.hoster.example."]},
        "mail.hoster.example": {"SRV": ["0 0 465 smtp.hoster.example."]},
    }
    assert [record.host for record in asked(followed)[1]] == ["smtp.hoster.example"]
    ring = {SENDING: {"CNAME": ["a.example."]}, "a.example": {"CNAME": [f"{SENDING}."]}}
    assert asked(ring)[1] == []


def test_an_answer_in_the_name_of_another_is_not_believed():
    forged = in_the_name_of("_submissions._tcp.other.example.", "SRV", "0 0 465 evil.example.")
    assert asked(faults={SENDING: forged})[1] == []


def test_targets_that_are_no_host_names_are_dropped():
    targets = [
        r"0 0 465 a\032b.example.",
        r"0 0 465 \195\188.example.",
        "0 0 465 under_score.example.",
        "0 0 465 -dash.example.",
        "0 0 465 127.0.0.1.",
        "0 0 465 localhost.",
        r"0 0 465 <script>.example.",
        r"0 0 465 x\010y.example.",
        "0 0 465 xn--bcher-kva.example.",
    ]
    records = {SENDING: {"SRV": targets}, DOMAIN: {"MX": [r"0 a\032b.example.", "0 ."]}}
    exchangers, services, is_complete = asked(records)
    assert exchangers == []
    assert [record.host for record in services] == ["xn--bcher-kva.example"]
    assert is_complete


@pytest.mark.parametrize(
    "domain", ["printer.local", "shop.internal", "localhost", "mail.corp", "x.home.arpa"]
)
def test_nothing_is_asked_about_names_of_a_private_network(domain):
    with StubDnsServer() as server:
        server.records[f"mail.{domain}"] = {"A": ["93.184.216.34"]}
        assert inquiry(server).exchangers_and_services(domain) == ([], [])
        assert inquiry(server).may_be_dialled([(f"mail.{domain}", 465)]) == set()
        assert server.asked == []


HOSTS = {
    "public.example": {"A": ["93.184.216.34"]},
    "six.example": {"AAAA": ["2606:2800:220:1::1"]},
    "alias.example": {"CNAME": ["public.example."]},
    "private.example": {"A": ["10.1.2.3"]},
    "mixed.example": {"A": ["93.184.216.34", "192.168.0.1"]},
    "half.example": {"A": ["93.184.216.34"], "AAAA": ["::ffff:127.0.0.1"]},
    "nat64.example": {"AAAA": ["64:ff9b::a9fe:a9fe"]},
    "metadata.example": {"A": ["169.254.169.254"]},
}


def test_private_hosts_are_like_hosts_that_do_not_exist():
    servers = [(name, 465) for name in (*HOSTS, "absent.example")]
    with StubDnsServer(HOSTS) as server:
        inquirer = inquiry(server)
        assert inquirer.may_be_dialled(servers) == {
            ("public.example", 465),
            ("six.example", 465),
            ("alias.example", 465),
        }
        assert inquirer.is_complete


def test_what_the_installation_has_opened_counts_and_ports_it_has_not_do_not():
    policy = DialPolicy(allowed_networks=(ip_network("10.0.0.0/8"),), allowed_ports=frozenset({465}))
    with StubDnsServer(HOSTS) as server:
        found = inquiry(server, policy=policy).may_be_dialled(
            [("private.example", 465), ("private.example", 25), ("metadata.example", 465)]
        )
    assert found == {("private.example", 465)}


def test_a_host_whose_other_addresses_stay_unknown_still_exists(monkeypatch):
    def only_a(self, name, kind, _real=DnsInquiry._records):
        return _real(self, name if kind == "A" else "broken.example", kind)

    monkeypatch.setattr(DnsInquiry, "_records", only_a)
    with StubDnsServer(HOSTS, {"broken.example": servfail}) as server:
        assert inquiry(server).may_be_dialled([("public.example", 465)]) == {("public.example", 465)}


def test_hosts_that_are_not_answered_for_are_left_out_and_said_to_be():
    with StubDnsServer(HOSTS, {"slow.example": servfail}) as server:
        inquirer = inquiry(server)
        found = inquirer.may_be_dialled([("slow.example", 465), ("public.example", 465)])
        assert (found, inquirer.is_complete) == ({("public.example", 465)}, False)
        assert inquirer.may_be_dialled([("public.example", 465)]) and not inquirer.is_complete


def test_questions_are_asked_at_once():
    waiting, all_there, met = set(), threading.Event(), []

    def meets(question):
        waiting.add(question.question[0].name)
        if len(waiting) == 5:
            all_there.set()
        met.append(all_there.wait(30))
        return servfail(question)

    names = [
        DOMAIN,
        *(f"_{service}._tcp.{DOMAIN}" for service in ("submissions", "submission", "imaps", "imap")),
    ]
    with StubDnsServer(faults=dict.fromkeys(names, meets)) as server:
        inquiry(server).exchangers_and_services(DOMAIN)
    assert len(met) >= 5 and all(met), "what is late is asked for again"


def test_a_domain_too_long_for_its_services_has_none():
    domain = ".".join(["a" * 60] * 4)
    with StubDnsServer({domain: {"MX": ["10 mx.example."]}}) as server:
        inquirer = inquiry(server)
        assert inquirer.exchangers_and_services(domain) == (["mx.example"], [])
        assert inquirer.is_complete
