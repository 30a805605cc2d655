"""W3C trace context between OpenTelemetry and events. Without an OpenTelemetry SDK all of it does nothing."""

from __future__ import annotations

from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from towline.contracts.events import Event

# Named, not the globally configured propagator: the contract says W3C, whatever a process prefers elsewhere.
_W3C: Final = TraceContextTextMapPropagator()
tracer: Final = trace.get_tracer("towline.contracts")


def current_trace() -> tuple[str | None, str | None]:
    """The current span's traceparent and tracestate; (None, None) outside any trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent"), carrier.get("tracestate")


def context_of(event: Event) -> Context:
    """The OpenTelemetry context that an event carries, to start a consumer's span in the same trace.

    Example:
        ``with tracer.start_as_current_span("handle result", context=context_of(event)): …``
    """
    carrier: dict[str, str] = {}
    if event.traceparent is not None:
        carrier["traceparent"] = event.traceparent
    if event.tracestate is not None:
        carrier["tracestate"] = event.tracestate
    return _W3C.extract(carrier, context=Context())
