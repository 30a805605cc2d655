"""Spans on their way out: batched by the SDK; what is lost on the way is counted, and the end is bounded.

The SDK's batch processor drops spans without a count when its queue is full, and at the end waits for a
collector that does not answer for as long as it likes: a role's SIGTERM must not hang on that. Its private
parts are used for it here.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from towline.telemetry import metrics

_log = logging.getLogger(__name__)

dropped: Final = metrics.counter("towline.telemetry.spans_dropped")


class CountingExporter(SpanExporter):
    """Passes spans on and counts those that could not be delivered.

    Args:
        exporter: Where they go.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: D102 — inherited
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            if result is not SpanExportResult.SUCCESS:
                dropped.add(len(spans), {"reason": "export_failed"})
        return result

    def shutdown(self) -> None:  # noqa: D102 — inherited
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: D102 — inherited
        return self._exporter.force_flush(timeout_millis)


class SpanBatches(BatchSpanProcessor):
    """The SDK's batch processor, see the module.

    Args:
        exporter: Where batches go.
        end_within_ms: How long `shutdown` waits for what is left to go out.
        options: As for the SDK's.
    """

    def __init__(self, exporter: SpanExporter, *, end_within_ms: int, **options: Any) -> None:
        super().__init__(CountingExporter(exporter), **options)
        self._end_within_ms = end_within_ms
        self._batches = cast("Any", self._batch_processor)
        self._queue = self._batches._queue  # noqa: SLF001

    def on_end(self, span: ReadableSpan) -> None:
        """A span has ended; if the queue is full, the oldest one in it is lost."""
        if span.context and span.context.trace_flags.sampled:
            if len(self._queue) == self._queue.maxlen:
                dropped.add(1, {"reason": "queue_full"})
            self._batches.emit(span)

    def shutdown(self) -> None:
        """Export what is left, within bounds."""
        self._batches.shutdown(timeout_millis=self._end_within_ms)
        if left := len(self._queue):
            _log.warning("spans_lost_at_the_end", extra={"count": left})
