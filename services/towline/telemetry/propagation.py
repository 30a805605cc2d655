"""W3C trace context between an event or an envelope and the OpenTelemetry context."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_W3C = TraceContextTextMapPropagator()


def extract(traceparent: str | None, tracestate: str | None = None) -> Context:
    """The context that `traceparent` names; an empty one if it is absent or malformed."""
    carrier = {"traceparent": traceparent} if traceparent else {}
    if traceparent and tracestate:
        carrier["tracestate"] = tracestate
    return _W3C.extract(carrier, context=Context())


def inject(context: Context | None = None) -> tuple[str | None, str | None]:
    """`traceparent` and `tracestate` of `context` (default: the current one); None where there is no span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, context=context)
    return carrier.get("traceparent"), carrier.get("tracestate")


@contextmanager
def attached(traceparent: str | None, tracestate: str | None = None) -> Generator[None]:
    """Run the block in the context that `traceparent` names."""
    token = otel_context.attach(extract(traceparent, tracestate))
    try:
        yield
    finally:
        otel_context.detach(token)
