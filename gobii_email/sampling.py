"""Which spans are exported: all that failed, and of the others a share.

Decided when a span ends, in its own process: a failed span is kept with what ends after it in its trace here,
so with the task around it. What ended before it, or in another process, was decided by the share alone, which
goes by the trace's id as the SDK's own sampler does, so that a trace is kept everywhere or nowhere.
"""

import threading
from collections import OrderedDict

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode

_FAILED_AT_ONCE = 2000
_HALF = (1 << 64) - 1


class KeepFailures(SpanProcessor):
    """Passes on to `exporting` what failed, and `share` (0 to 1) of the rest."""

    def __init__(self, exporting: SpanProcessor, share: float) -> None:
        self._exporting = exporting
        self._below = round(share * (_HALF + 1))
        self._lock = threading.Lock()
        self._failed: OrderedDict[int, None] = OrderedDict()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._exporting.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        trace_id = span.context.trace_id if span.context else 0
        if span.status.status_code is StatusCode.ERROR:
            self._remember(trace_id)
        if trace_id & _HALF < self._below or trace_id in self._failed:
            self._exporting.on_end(span)

    def _remember(self, trace_id: int) -> None:
        with self._lock:
            self._failed[trace_id] = None
            while len(self._failed) > _FAILED_AT_ONCE:
                self._failed.popitem(last=False)

    def shutdown(self) -> None:
        self._exporting.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporting.force_flush(timeout_millis)
