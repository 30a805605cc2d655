"""W3C trace context between OpenTelemetry and events, and the spans of sending and processing them.

Without an OpenTelemetry SDK all of it does nothing. Span names and attributes follow the semantic
conventions for messaging: a PRODUCER span ``send <topic>`` whose context the event carries, and a CONSUMER
span ``process <topic>`` below it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanContext,
    SpanKind,
    TraceFlags,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from towline.contracts.events import Event

# Named, not the globally configured propagator: the contract says W3C, whatever a process prefers elsewhere.
_W3C: Final = TraceContextTextMapPropagator()
_VERSION_0: Final = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
tracer: Final = trace.get_tracer("towline.contracts")

SYSTEM: Final = "messaging.system"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
PARTITION: Final = "messaging.destination.partition.id"
CONSUMER_GROUP: Final = "messaging.consumer.group.name"
MESSAGE_ID: Final = "messaging.message.id"
OFFSET: Final = "messaging.kafka.offset"
RUN_ID: Final = "towline.run_id"
EVENT_TYPE: Final = "towline.event_type"


def tracing_is_on() -> bool:
    """Whether this process has set up a tracer provider: without one, spans are not worth preparing."""
    return not isinstance(trace.get_tracer_provider(), ProxyTracerProvider | NoOpTracerProvider)


def current_trace() -> tuple[str | None, str | None]:
    """The current span's traceparent and tracestate; (None, None) outside any trace."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier.get("traceparent"), carrier.get("tracestate")


def context_from(traceparent: str | None, tracestate: str | None = None) -> Context:
    """The context that `traceparent` names; an empty one if it is absent or malformed."""
    if traceparent is None:
        return Context()
    if tracestate is None and (named := _VERSION_0.fullmatch(traceparent)) is not None:
        # The usual case, in a quarter of the propagator's time.
        trace_id, span_id, flags = (int(part, 16) for part in named.groups())
        if trace_id and span_id:
            about = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
            return trace.set_span_in_context(NonRecordingSpan(about), Context())
    carrier = {"traceparent": traceparent} | ({} if tracestate is None else {"tracestate": tracestate})
    return _W3C.extract(carrier, context=Context())


def context_of(event: Event) -> Context:
    """The OpenTelemetry context that an event carries, to start a consumer's span in the same trace.

    Example:
        ``with tracer.start_as_current_span("handle result", context=context_of(event)): …``
    """
    return context_from(event.traceparent, event.tracestate)


@contextmanager
def sending(events: Sequence[tuple[str, Event]]) -> Generator[list[Event]]:
    """The spans of publishing events, each given with its topic's full name; gives the events to publish.

    Each span is below the trace that its event names, else below the current span, and the event carries
    the span's context on. A publish that is tried again has a span for each try.
    """
    if not tracing_is_on():
        yield [event for _, event in events]
        return
    spans: list[Span] = []
    traced: list[Event] = []
    for topic, event in events:
        context = None if event.traceparent is None else context_of(event)
        attributes = _attributes("send", topic, event)
        span = tracer.start_span(f"send {topic}", context, SpanKind.PRODUCER, attributes)
        spans.append(span)
        about = span.get_span_context()
        if about.is_valid:
            traceparent = f"00-{about.trace_id:032x}-{about.span_id:016x}-{about.trace_flags:02x}"
            tracestate = about.trace_state.to_header() if about.trace_state else None
            event = replace(event, traceparent=traceparent, tracestate=tracestate)
        traced.append(event)
    try:
        yield traced
    except BaseException as error:
        for span in spans:
            span.record_exception(error)
            span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        for span in spans:
            span.end()


def process_attributes(
    topic: str, partition: int, offset: int, event: Event, *, group: str | None = None
) -> dict[str, str | int]:
    """Attributes of a ``process`` span."""
    attributes = _attributes("process", topic, event)
    attributes[PARTITION] = str(partition)
    attributes[OFFSET] = offset
    if group is not None:
        attributes[CONSUMER_GROUP] = group
    return attributes


def note_processed(topic: str, event: Event) -> None:
    """A span that says that `event` has arrived where it was waited for, linked with the waiting trace."""
    if tracing_is_on():
        waiting = trace.get_current_span().get_span_context()
        links = [Link(waiting)] if waiting.is_valid else []
        attributes = _attributes("process", topic, event)
        tracer.start_span(
            f"process {topic}", context_of(event), SpanKind.CONSUMER, attributes, links=links
        ).end()


class Processing:
    """The span of the event that an iterator has handed out: current until the next one is asked for."""

    def __init__(self) -> None:
        self._span: Span | None = None
        self._before: Context = Context()

    def begin(self, event: Event, topic: str, attributes: Mapping[str, str | int]) -> None:
        """`event` is handed out: what its consumer does now is below its span."""
        if not tracing_is_on():
            return
        self._before = otel_context.get_current()
        self._span = tracer.start_span(f"process {topic}", context_of(event), SpanKind.CONSUMER, attributes)
        otel_context.attach(trace.set_span_in_context(self._span, self._before))

    def end(self) -> None:
        """Its consumer is done with it. Idempotent."""
        span, self._span = self._span, None
        if span is None:
            return
        span.end()
        # Not detached by token: the next event may be asked for in another task than the last one was.
        if trace.get_current_span() is span:
            otel_context.attach(self._before)


def _attributes(operation: str, topic: str, event: Event) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        SYSTEM: "kafka",
        OPERATION_NAME: operation,
        OPERATION_TYPE: operation,
        DESTINATION: topic,
        MESSAGE_ID: event.id,
        EVENT_TYPE: event.type,
    }
    run_id = getattr(event.data, "run_id", None)
    if run_id is not None:
        attributes[RUN_ID] = run_id
    return attributes
