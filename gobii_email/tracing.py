"""Where spans go: an exporter when the OTEL_* variables ask for one, nothing otherwise.

Only this file and `sampling` touch the OpenTelemetry SDK, which is an extra. Whoever starts a process calls
`start_exporting`; a host project that sets up its own provider before keeps it.
"""

import logging
import os
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from opentelemetry import trace

from gobii_email.conf import config

logger = logging.getLogger(__name__)

_OTLP = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}


def wanted_exporters(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Names of the span exporters that the standard OTEL_* variables ask for; empty for none."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return []
    has_endpoint = any(
        environment.get(name)
        for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    )
    names = environment.get("OTEL_TRACES_EXPORTER", "otlp" if has_endpoint else "none").split(",")
    return [name.strip() for name in names if name.strip() not in ("", "none")]


def start_exporting() -> bool:
    """Sets the tracer provider up for this process; False when none is wanted or can be had."""
    names = wanted_exporters()
    if not names:
        return False
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.error("tracing.sdk_missing", extra={"text": "Install gobii-email[otel] to export spans."})
        return False
    if isinstance(trace.get_tracer_provider(), TracerProvider):
        return True
    service = os.environ.get("OTEL_SERVICE_NAME", "gobii-email")
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    for name in names:
        exporter = _exporter(name)
        if exporter is not None:
            provider.add_span_processor(_sampled(BatchSpanProcessor(exporter())))
    trace.set_tracer_provider(provider)
    return True


def _sampled(exporting: Any) -> Any:
    from gobii_email.sampling import KeepFailures

    share = config().traces_share
    return exporting if share == 1 else KeepFailures(exporting, share)


def _exporter(name: str):  # noqa: ANN202 - a class of the SDK, which may be absent
    if name == "otlp":
        name = _OTLP.get(os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"), name)
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        logger.error("tracing.exporter_missing", extra={"text": f"No exporter {name!r} is installed."})
        return None
    return found[0].load()


def flush() -> None:
    """Sends what is still waiting; a no-op without an SDK."""
    force_flush = getattr(trace.get_tracer_provider(), "force_flush", None)
    if force_flush is not None:
        force_flush(5000)
