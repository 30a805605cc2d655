"""W3C trace context between an event or an envelope and the OpenTelemetry context."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace

from towline.contracts.tracing import context_from as extract
from towline.contracts.tracing import current_trace as inject

__all__ = ["extract", "in_trace", "inject"]


@contextmanager
def in_trace(traceparent: str | None, tracestate: str | None = None) -> Generator[None]:
    """Run the block in the trace that `traceparent` names.

    A current span of that trace stays current: it is nearer to the block than the one that is named.
    What else is in the context (baggage) stays too.
    """
    named = trace.get_current_span(extract(traceparent, tracestate))
    about, current = named.get_span_context(), trace.get_current_span().get_span_context()
    if not about.is_valid or (current.is_valid and current.trace_id == about.trace_id):
        yield
        return
    token = otel_context.attach(trace.set_span_in_context(named))
    try:
        yield
    finally:
        otel_context.detach(token)
