"""A name server on loopback, for tests of what DNS may answer.

Speaks UDP and TCP on one port, each in its own thread. Knows the records it is given and denies all other
names; single names can be made to fail in the ways that name servers do. Keeps what it was asked.
"""

import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

Fault = Callable[[dns.message.Message], bytes]
"""What is sent in answer to a question, instead of what is known; nothing where it is empty."""


def servfail(question: dns.message.Message) -> bytes:
    return _refusal(question, dns.rcode.SERVFAIL)


def silence(question: dns.message.Message) -> bytes:
    return b""


def garbage(question: dns.message.Message) -> bytes:
    return question.to_wire()[:2] + b"\x80\x00 no message of the DNS"


class StubDnsServer:
    """`with StubDnsServer({"example.org": {"MX": ["10 mx.example.org."]}}) as dns: dns.address`.

    `records` are by name, then by type, each in the form of a zone file. `faults` are by name. Answers larger
    than 512 octets come truncated over UDP and whole over TCP.
    """

    def __init__(
        self,
        records: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
        faults: Mapping[str, Fault] | None = None,
    ) -> None:
        self.records = dict(records or {})
        self.faults = dict(faults or {})
        self.asked: list[tuple[str, str]] = []
        self.over_tcp: list[str] = []
        self._udp, self._tcp = _on_one_port()
        self._udp.stub = self._tcp.stub = self

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._udp.server_address[:2]
        return str(host), int(port)

    def __enter__(self) -> Self:
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in (self._udp, self._tcp)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in (self._udp, self._tcp):
            server.shutdown()
            server.server_close()
        for thread in self._threads:
            thread.join(30)

    def answer(self, wire: bytes, most: int) -> bytes:
        """The answer to the question in `wire`, truncated to `most` octets."""
        question, name = _question_in(wire)
        self.asked.append((name, dns.rdatatype.to_text(question.question[0].rdtype)))
        if name in self.faults:
            return self.faults[name](question)
        answer = self._known(question, name)
        whole = answer.to_wire(max_size=65535)
        return whole if len(whole) <= most else _truncated(question)

    def _known(self, question: dns.message.Message, name: str) -> dns.message.Message:
        answer = dns.message.make_response(question, recursion_available=True)
        if name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        kind = dns.rdatatype.to_text(question.question[0].rdtype)
        seen: set[str] = set()
        while name in self.records and name not in seen:
            seen.add(name)
            aliases = self.records[name].get("CNAME", [])
            for told, values in (("CNAME", aliases), (kind, self.records[name].get(kind, []))):
                if values:
                    answer.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", told, *values))
            name = aliases[0].rstrip(".").lower() if aliases else ""
        return answer


def _question_in(wire: bytes) -> tuple[dns.message.Message, str]:
    """The question, and the name it is about."""
    question = dns.message.from_wire(wire)
    return question, question.question[0].name.to_text(omit_final_dot=True).lower()


def in_the_name_of(other: str, kind: str, value: str) -> Fault:
    """Answers with a record of another name than was asked about."""

    def answer(question: dns.message.Message) -> bytes:
        response = dns.message.make_response(question)
        response.answer.append(dns.rrset.from_text(other, 60, "IN", kind, value))
        return response.to_wire()

    return answer


def _refusal(question: dns.message.Message, code: dns.rcode.Rcode) -> bytes:
    answer = dns.message.make_response(question)
    answer.set_rcode(code)
    return answer.to_wire()


def _truncated(question: dns.message.Message) -> bytes:
    answer = dns.message.make_response(question)
    answer.flags |= dns.flags.TC
    return answer.to_wire()


class _Udp(socketserver.ThreadingUDPServer):
    daemon_threads = True
    stub: StubDnsServer


class _Tcp(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    stub: StubDnsServer


def _on_one_port() -> tuple[_Udp, _Tcp]:
    """A port that is free for UDP may be taken for TCP, so this may need another look."""
    for _ in range(20):
        udp = _Udp(("127.0.0.1", 0), _OverUdp)
        try:
            return udp, _Tcp(udp.server_address, _OverTcp)
        except OSError:
            udp.server_close()
    raise OSError("no port is free for both UDP and TCP")


class _OverUdp(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        wire, back = self.request
        answer = self.server.stub.answer(wire, 512)
        if answer:
            back.sendto(answer, self.client_address)


class _OverTcp(socketserver.BaseRequestHandler):
    server: Any

    def handle(self) -> None:
        self.request.settimeout(30)
        wire = self._exactly(struct.unpack("!H", self._exactly(2))[0])
        answer = self.server.stub.answer(wire, 65535)
        self.server.stub.over_tcp.append(_question_in(wire)[1])
        self.request.sendall(struct.pack("!H", len(answer)) + answer)

    def _exactly(self, octets: int) -> bytes:
        wire = bytes(self.request.recv(octets, socket.MSG_WAITALL))
        if len(wire) < octets:
            raise ConnectionError("the question broke off")
        return wire
