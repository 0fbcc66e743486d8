"""Which spans are exported: failures always, of the rest a share, and whole traces of it."""

from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, Tracer

from gobii_email import tracing
from gobii_email.sampling import KeepFailures


@pytest.fixture
def exported() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracer(exported: InMemorySpanExporter, share: float) -> Tracer:
    provider = TracerProvider()
    provider.add_span_processor(KeepFailures(SimpleSpanProcessor(exported), share))
    return provider.get_tracer("test")


def names(exported: InMemorySpanExporter) -> list[str]:
    return [span.name for span in exported.get_finished_spans()]


def journey(of: Tracer, *, fails: bool) -> None:
    with of.start_as_current_span("task"):
        with of.start_as_current_span("token"):
            pass
        with of.start_as_current_span("send") as send:
            if fails:
                send.set_status(Status(StatusCode.ERROR))


def test_a_failed_span_is_kept_with_the_task_around_it(exported: InMemorySpanExporter) -> None:
    journey(tracer(exported, 0), fails=True)
    assert names(exported) == ["send", "task"], "what ended before it is gone"


def test_without_a_share_what_succeeds_is_dropped(exported: InMemorySpanExporter) -> None:
    journey(tracer(exported, 0), fails=False)
    assert names(exported) == []


def test_with_the_whole_share_everything_is_kept(exported: InMemorySpanExporter) -> None:
    journey(tracer(exported, 1), fails=False)
    assert names(exported) == ["token", "send", "task"]


def test_a_share_keeps_whole_traces(exported: InMemorySpanExporter) -> None:
    of = tracer(exported, 0.5)
    for _ in range(400):
        journey(of, fails=False)
    assert 100 < len(exported.get_finished_spans()) / 3 < 300
    assert {names(exported).count(name) for name in ("task", "token", "send")} == {
        names(exported).count("task")
    }


def test_the_setting_decides(settings: Any) -> None:
    inner = SimpleSpanProcessor(InMemorySpanExporter())
    assert tracing._sampled(inner) is inner
    settings.GOBII_TRACES_SHARE = "0.1"
    assert isinstance(tracing._sampled(inner), KeepFailures)
