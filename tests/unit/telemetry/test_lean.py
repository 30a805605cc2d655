"""The lean provider against the SDK's own: the same program gives the same spans."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, Span, TracerProvider, sampling
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)

from towline.contracts.tracing import context_from
from towline.telemetry.lean import LeanSpan, LeanTracerProvider, provider

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = context_from(f"00-{TRACE}-00f067aa0ba902b7-01", "vendor=1")
NOT_SAMPLED = context_from(f"00-{TRACE}-00f067aa0ba902b7-00")


class Counting(IdGenerator):
    """The same ids in both runs."""

    def __init__(self) -> None:
        self.last = 0

    def generate_span_id(self) -> int:
        self.last += 1
        return self.last

    def generate_trace_id(self) -> int:
        return self.generate_span_id()


class Named(StrEnum):
    ONE = "one"
    TWO = "two"


Program = Callable[[Tracer], None]


def nested(tracer: Tracer) -> None:
    with tracer.start_as_current_span("root", attributes={"a": "b", "n": 1, "t": True, "f": 0.5}) as root:
        with tracer.start_as_current_span("child", kind=SpanKind.CLIENT) as child:
            child.set_attribute("late", "x")
            child.set_attributes({"a": 1, "list": ["x", "y"], "late": "y"})
            child.update_name("renamed")
        root.set_status(StatusCode.OK)
        root.set_status(StatusCode.ERROR, "ignored after ok")


def remote(tracer: Tracer) -> None:
    link = Link(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1)), {"why": "approver"})
    span = tracer.start_span("process", SAMPLED, SpanKind.CONSUMER, {"k": "v"}, [link], start_time=5)
    span.add_link(SpanContext(9, 10, is_remote=False))
    span.add_event("event", {"e": 1}, timestamp=6)
    span.set_status(Status(StatusCode.ERROR, "no"))
    span.set_status(StatusCode.UNSET)
    span.end(9)
    span.end(10)
    span.set_attribute("too", "late")
    span.add_event("too late")
    span.update_name("too late")
    span.set_status(StatusCode.OK)


def failing(tracer: Tracer) -> None:
    with pytest.raises(ValueError, match="no"), tracer.start_as_current_span("fails", SAMPLED):
        raise ValueError("no")


def quietly_failing(tracer: Tracer) -> None:
    options: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}
    with pytest.raises(ValueError, match="no"), tracer.start_span("fails", SAMPLED, **options):
        raise ValueError("no")
    with pytest.raises(ValueError, match="no"), tracer.start_as_current_span("fails", SAMPLED, **options):
        raise ValueError("no")


def unsampled(tracer: Tracer) -> None:
    with (
        tracer.start_as_current_span("not sampled", NOT_SAMPLED),
        tracer.start_as_current_span("nor its child"),
    ):
        pass


def odd_values(tracer: Tracer) -> None:
    odd: dict[Any, Any] = {
        "member": Named.ONE,
        Named.TWO: "its name",
        "none": None,
        "bytes": b"x",
        "object": object(),
        "mixed": [1, "x"],
        "": "empty key",
        5: "no text",
    }
    tracer.start_span("odd", SAMPLED, attributes=odd).end()


def many(tracer: Tracer) -> None:
    span = tracer.start_span("many", SAMPLED, attributes={f"a{n}": n for n in range(200)})
    span.set_attribute("one more", 1)
    span.end()


def run(made: TracerProvider, program: Program) -> list[dict[str, Any]]:
    exporter = InMemorySpanExporter()
    made.add_span_processor(SimpleSpanProcessor(exporter))
    program(made.get_tracer("test", "1"))
    return [described(span) for span in exporter.get_finished_spans()]


def described(span: ReadableSpan) -> dict[str, Any]:
    events = [
        (event.name, {k: v for k, v in (event.attributes or {}).items() if k != "exception.stacktrace"})
        for event in span.events
    ]
    return {
        "name": span.name,
        "context": span.context,
        "flags": span.context and span.context.trace_flags,
        "state": span.context and span.context.trace_state,
        "parent": span.parent,
        "kind": span.kind,
        "attributes": {k: v for k, v in (span.attributes or {}).items() if not str(v).startswith("<object")},
        "events": events,
        "links": [(link.context, dict(link.attributes or {})) for link in span.links],
        "status": (span.status.status_code, span.status.description),
        "times": (span.start_time, span.end_time) if span.start_time == 5 else None,
        "scope": span.instrumentation_scope,
        "resource": span.resource,
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
    }


@pytest.mark.parametrize(
    "program",
    [nested, remote, failing, quietly_failing, unsampled, odd_values],
    ids=lambda program: program.__name__,
)
def test_the_same_program_gives_the_same_spans(program: Program) -> None:
    options: dict[str, Any] = {"shutdown_on_exit": False}
    lean = run(LeanTracerProvider(id_generator=Counting(), **options), program)
    full = run(TracerProvider(id_generator=Counting(), **options), program)
    assert lean == full


def test_attributes_are_bounded() -> None:
    (span,) = run(LeanTracerProvider(shutdown_on_exit=False), many)
    assert len(span["attributes"]) == 128
    assert span["dropped"][0] == 200 + 1 - 128


def test_a_span_with_a_parent_is_lean_and_one_of_the_sdks() -> None:
    span = LeanTracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("s", SAMPLED)
    assert isinstance(span, LeanSpan)
    assert isinstance(span, Span)
    assert span.get_span_context().trace_state == TraceState([("vendor", "1")])


def test_a_sampler_that_is_not_parent_based_is_asked() -> None:
    made = LeanTracerProvider(sampler=sampling.ALWAYS_OFF, shutdown_on_exit=False)
    assert run(made, remote) == []


def test_a_parent_based_sampler_with_rules_of_its_own_is_asked() -> None:
    sampler = sampling.ParentBased(sampling.ALWAYS_ON, remote_parent_sampled=sampling.ALWAYS_OFF)
    assert run(LeanTracerProvider(sampler=sampler, shutdown_on_exit=False), remote) == []


def test_a_tracer_is_made_once_and_never_for_a_provider_with_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    made = LeanTracerProvider(shutdown_on_exit=False)
    assert made.get_tracer("a", "1") is made.get_tracer("a", "1")
    assert made.get_tracer("a", "1") is not made.get_tracer("a", "2")
    assert isinstance(provider(None), LeanTracerProvider)
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "5")
    assert type(provider(None)) is TracerProvider


def test_what_the_durable_task_sdk_needs_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    from durabletask.internal import tracing

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", LeanTracerProvider(shutdown_on_exit=False))
    assert tracing._is_deferred_span_capable()
