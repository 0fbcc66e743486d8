"""The text that Prometheus reads: what all processes of this machine counted, and how everything stands.

Gauges are read from the database when somebody asks, at most every ten seconds, and so seldom that reading
them takes a twentieth of the time at most. Without the database the counts are shown all the same.
"""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from django.utils import timezone
from django.utils.crypto import constant_time_compare
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from gobii_email import metrics
from gobii_email.conf import config
from gobii_email.services.record import release_connection
from gobii_email.services.take_stock import Stock, take_stock

FRESH_SECONDS = 10.0
MOST_OF_THE_TIME = 0.05
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition() -> bytes:
    """Everything, in the text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Everything())
    return generate_latest(registry)


def is_token(given: str) -> bool:
    """Whether `given`, an Authorization header, carries METRICS_TOKEN."""
    token = config().metrics_token
    return bool(token) and constant_time_compare(given, f"Bearer {token.reveal()}")


class _Everything(Collector):
    def collect(self) -> Iterator[object]:  # type: ignore[override]
        counted = metrics.counts.collect()
        yield from counted
        yield from _zeros({family.name for family in counted})
        yield from _gauges(_latest.stock())


def _zeros(counted: set[str]) -> Iterator[CounterMetricFamily]:
    """Counters that nobody raised so far: from nothing to one would be no increase to Prometheus."""
    for one in metrics.ALL:
        if isinstance(one, metrics.Counter) and not one.labels:
            family = CounterMetricFamily(one.name, one.about, value=0)
            if family.name not in counted:
                yield family


class _Latest:
    """The stock as it was taken last; None where it cannot be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self._stock: Stock | None = None
        self._fresh_until = 0.0

    def stock(self) -> Stock | None:
        with self._lock:
            if time.monotonic() >= self._fresh_until:
                began = time.monotonic()
                self._stock = _stock()
                ended = time.monotonic()
                self._fresh_until = ended + max(FRESH_SECONDS, (ended - began) / MOST_OF_THE_TIME)
            return self._stock


_latest = _Latest()


def forget() -> None:
    """Has the next question read anew, in this process."""
    _latest.forget()


def _stock() -> Stock | None:
    found: list[Stock] = []

    @metrics.harmless
    def read() -> None:
        found.append(take_stock(timezone.now()))

    try:
        read()
    finally:
        release_connection()
    return found[0] if found else None


def _gauges(stock: Stock | None) -> Iterator[GaugeMetricFamily]:
    yield _one(metrics.GAUGES_READ, 0 if stock is None else 1)
    if stock is None:
        return
    waiting, accounts = stock.waiting, stock.accounts
    yield _many(metrics.MESSAGES, _by_one({"queued": waiting.queued, **stock.under_way}))
    yield _one(metrics.READY, waiting.ready)
    yield _one(metrics.OLDEST_WAITING, waiting.oldest_seconds(stock.at))
    yield _one(metrics.OLDEST_READY, waiting.ready_seconds(stock.at))
    yield _many(metrics.ACCOUNTS, accounts.states)
    yield _many(metrics.BACKOFF, {(provider, cause): n for (cause, provider), n in accounts.causes.items()})
    yield _many(metrics.HELD_BACK, _by_one(accounts.held_back))
    yield _many(metrics.LANES_WAITING, _by_one(stock.lanes))
    yield _one(metrics.MAILBOXES_OVERDUE, stock.overdue)
    yield _one(metrics.MAILBOX_OVERDUE_SECONDS, stock.overdue_seconds)
    yield _many(metrics.SUSPENSIONS, _by_one(stock.suspensions))
    yield _one(metrics.ENABLED, stock.is_enabled)
    yield from _known(metrics.ROLLOUT, stock.rollout_percent)
    yield from _known(metrics.DISPATCHER_SEEN, stock.dispatcher_seconds)
    yield from _known(metrics.BEAT_TICK, stock.tick_seconds)


def _one(gauge: metrics.Gauge, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(gauge.name, gauge.about, value=value)


def _known(gauge: metrics.Gauge, value: float | None) -> Iterable[GaugeMetricFamily]:
    return [] if value is None else [_one(gauge, value)]


def _by_one(counts: Mapping[str, int]) -> Mapping[tuple[str], int]:
    return {(name,): count for name, count in counts.items()}


def _many(gauge: metrics.Gauge, values: Mapping[Any, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(gauge.name, gauge.about, labels=gauge.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family
