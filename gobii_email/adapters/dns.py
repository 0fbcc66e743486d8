"""What DNS says about a domain's mail: its exchangers, its announced servers, and which names exist.

Asks all questions of one kind at once, within one deadline for the whole inquiry. Answers are claims of
strangers: only host names are passed on, a bounded number of them, and whether a host counts as existing is
judged as it would be before dialling, so that private names look like names that do not exist.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, TypeVar

import dns.exception
import dns.name
import dns.nameserver
import dns.resolver

from gobii_email.adapters.dialer import Deadline, DialFailed, DialPolicy, is_local_name, resolve_and_vet
from gobii_email.domain.addresses import is_host_name
from gobii_email.domain.mail_services import FOR_READING, FOR_SENDING, ServiceRecord
from gobii_email.domain.outcomes import Cause

Key = TypeVar("Key")
Answer = TypeVar("Answer")

_MOST_RECORDS = 16
_MOST_AT_ONCE = 8
_NO_SUCH_NAME = (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer, dns.name.NameTooLong)


class _Unanswered(OSError):
    """No answer in time, or none that makes sense."""


class DnsInquiry:
    """Questions about one domain. `servers` are name servers to ask; the system's where there are none."""

    def __init__(
        self, deadline: timedelta, policy: DialPolicy, servers: Sequence[tuple[str, int]] = ()
    ) -> None:
        self.is_complete = True
        self._deadline = Deadline(deadline)
        self._policy = replace(policy, resolver=self._addresses)
        self._servers = servers

    def exchangers_and_services(self, domain: str) -> tuple[list[str], list[ServiceRecord]]:
        """The mail exchangers of the best preference, and the announced servers for mail programs.

        Nothing is asked about names that only a private network knows.
        """
        if is_local_name(domain):
            return [], []
        questions: dict[str, Callable[[], list[Any]]] = {"mx": partial(self._records, domain, "MX")}
        for service in (*FOR_SENDING, *FOR_READING):
            questions[service] = partial(self._records, f"_{service}._tcp.{domain}", "SRV")
        answers = self._together(questions)
        return _best_exchangers(answers.pop("mx", [])), [
            record for service, found in answers.items() for record in _services(service, found)
        ]

    def may_be_dialled(self, servers: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
        """Those of `servers`, as (host, port), that exist and are allowed; none of them is dialled.

        Names that only a private network knows are never among them, and nothing is asked about them.
        """
        judged = self._together({server: partial(self._is_allowed, *server) for server in set(servers)})
        return {server for server, is_allowed in judged.items() if is_allowed}

    def _is_allowed(self, host: str, port: int) -> bool:
        if is_local_name(host):
            return False
        try:
            resolve_and_vet(host, port, self._policy, self._deadline)
        except DialFailed as failure:
            if failure.cause is Cause.DNS_FAILED:
                raise _Unanswered from None
            return False
        return True

    def _addresses(self, host: str, port: int) -> list[str]:
        """Every address of `host`; one kind of them may stay unanswered where the other is not."""
        found: list[str] = []
        failure: _Unanswered | None = None
        for kind in ("A", "AAAA"):
            try:
                found += [record.address for record in self._records(host, kind)]
            except _Unanswered as problem:
                failure = problem
        if failure and not found:
            raise failure
        return found

    def _records(self, name: str, kind: str) -> list[Any]:
        try:
            lifetime = self._deadline.seconds_left()
            answer = self._resolver.resolve(f"{name}.", kind, lifetime=lifetime, search=False)
        except _NO_SUCH_NAME:
            return []
        except (dns.exception.DNSException, OSError) as problem:
            raise _Unanswered(type(problem).__name__) from None
        return list(answer)

    @cached_property
    def _resolver(self) -> dns.resolver.Resolver:
        resolver = dns.resolver.Resolver(configure=not self._servers)
        if self._servers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(*server) for server in self._servers]
        return resolver

    def _together(self, questions: Mapping[Key, Callable[[], Answer]]) -> dict[Key, Answer]:
        """What each question got; those without an answer by the deadline are left out and left behind."""
        pool = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="dns")
        asked = {key: pool.submit(ask) for key, ask in questions.items()}
        try:
            wait(asked.values(), timeout=self._deadline.seconds_left())
        except TimeoutError:
            pass
        pool.shutdown(wait=False, cancel_futures=True)
        answered = {key: future.result() for key, future in asked.items() if _is_answered(future)}
        self.is_complete = self.is_complete and len(answered) == len(asked)
        return answered


def _is_answered(future: Future[Any]) -> bool:
    return future.done() and not future.cancelled() and not isinstance(future.exception(), _Unanswered)


def _best_exchangers(records: Sequence[Any]) -> list[str]:
    best = min((record.preference for record in records), default=0)
    hosts = [_host(record.exchange) for record in records if record.preference == best]
    return sorted(filter(None, hosts))[:_MOST_RECORDS]


def _services(service: str, records: Sequence[Any]) -> list[ServiceRecord]:
    """Targets that are no host names are dropped; the root, which denies the service, is kept as ""."""
    told = [
        ServiceRecord(service, _host(record.target), record.port, record.priority, record.weight)
        for record in records
        if record.target == dns.name.root or _host(record.target)
    ]
    return sorted(told, key=lambda record: (record.priority, -record.weight))[:_MOST_RECORDS]


def _host(name: dns.name.Name) -> str:
    """`name` as a host name in lower case, or "" where it is none."""
    text = name.to_text(omit_final_dot=True).lower()
    return text if "." in text and is_host_name(text) else ""
