"""Spans of sending and processing, and the names that they use."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from towline.contracts import tracing
from towline.contracts.events import Event, RunRequested
from towline.contracts.tracing import Processing, note_processed, sending

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE_ID}-00f067aa0ba902b7-01"
UNSAMPLED = f"00-{TRACE_ID}-00f067aa0ba902b7-00"


def event(traceparent: str | None = TRACEPARENT, event_id: str = "e1") -> Event[Any]:
    data = RunRequested(run_id="run-1", run_type="review")
    return Event(id=event_id, source="test", data=data, traceparent=traceparent, tracestate="vendor=1")


def test_names_are_those_of_the_conventions() -> None:
    conventional = {
        value for name, value in vars(messaging_attributes).items() if name.startswith("MESSAGING")
    }
    ours = {
        tracing.SYSTEM,
        tracing.OPERATION_NAME,
        tracing.OPERATION_TYPE,
        tracing.DESTINATION,
        tracing.PARTITION,
        tracing.CONSUMER_GROUP,
        tracing.MESSAGE_ID,
        tracing.OFFSET,
    }
    assert ours <= conventional


def test_an_event_carries_the_span_in_which_it_was_sent(spans: InMemorySpanExporter) -> None:
    with sending([("runs", event()), ("events", event(event_id="e2"))]) as sent:
        pass

    first, second = spans.get_finished_spans()
    assert [first.name, second.name] == ["send runs", "send events"]
    assert first.kind is SpanKind.PRODUCER
    assert first.context is not None
    assert first.parent is not None
    assert f"{first.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert sent[0].traceparent == f"00-{TRACE_ID}-{first.context.span_id:016x}-01"
    assert sent[0].tracestate == "vendor=1"
    assert first.attributes is not None
    assert first.attributes["messaging.message.id"] == "e1"
    assert first.attributes["towline.run_id"] == "run-1"


def test_an_event_without_a_trace_goes_into_the_current_one(spans: InMemorySpanExporter) -> None:
    with (
        trace.get_tracer("test").start_as_current_span("caller") as caller,
        sending([("runs", event(None))]) as sent,
    ):
        pass
    assert sent[0].traceparent is not None
    assert sent[0].traceparent.split("-")[1] == f"{caller.get_span_context().trace_id:032x}"


def test_what_is_not_sampled_stays_so_and_its_trace_goes_on(spans: InMemorySpanExporter) -> None:
    with sending([("runs", event(UNSAMPLED))]) as sent:
        pass
    assert spans.get_finished_spans() == ()
    assert sent[0].traceparent is not None
    assert sent[0].traceparent.startswith(f"00-{TRACE_ID}-")
    assert sent[0].traceparent.endswith("-00")


def test_a_publish_that_fails_is_a_failed_span(spans: InMemorySpanExporter) -> None:
    with pytest.raises(ConnectionError), sending([("runs", event())]):
        raise ConnectionError("no broker")
    (span,) = spans.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR


def test_without_an_sdk_events_stay_as_they_are() -> None:
    given = event()
    with sending([("runs", given)]) as sent:
        assert sent[0] is given


def test_the_body_of_a_consumers_loop_runs_in_its_events_span(spans: InMemorySpanExporter) -> None:
    tracer, processing = trace.get_tracer("test"), Processing()
    with tracer.start_as_current_span("consumer's own") as own:
        for number in (1, 2):
            processing.end()
            processing.begin(event(event_id=f"e{number}"), "results", {})
            tracer.start_span(f"work {number}").end()
        processing.end()
        processing.end()
        assert trace.get_current_span() is own

    by_name = {span.name: span for span in spans.get_finished_spans()}
    work = by_name["work 2"]
    assert work.context is not None
    assert f"{work.context.trace_id:032x}" == TRACE_ID
    assert [span.name for span in spans.get_finished_spans()].count("process results") == 2


async def test_the_next_event_may_be_asked_for_by_another_task(spans: InMemorySpanExporter) -> None:
    processing = Processing()

    async def step(number: int) -> None:
        processing.end()
        processing.begin(event(event_id=f"e{number}"), "results", {})

    for number in range(3):
        await asyncio.create_task(step(number))
    processing.end()
    assert len(spans.get_finished_spans()) == 3
    assert not trace.get_current_span().get_span_context().is_valid


def test_an_outcome_that_was_waited_for_is_linked_with_who_waited(spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("test").start_as_current_span("waiting") as waiting:
        note_processed("results", event())
    (span, _) = spans.get_finished_spans()
    assert span.name == "process results"
    assert [link.context for link in span.links] == [waiting.get_span_context()]


@given(st.from_regex("0[0f]-[0-9a-fA-F]{31,32}-[0-9a-f]{15,16}-[0-9a-f]{2}(-x)?", fullmatch=True))
@example(f"00-{'0' * 32}-00f067aa0ba902b7-01")
@example(f"00-{TRACE_ID}-{'0' * 16}-01")
@example(TRACEPARENT)
def test_the_short_way_to_read_a_traceparent_reads_as_the_propagator_does(traceparent: str) -> None:
    theirs = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context=Context())
    ours = tracing.context_from(traceparent)
    assert (
        trace.get_current_span(ours).get_span_context() == trace.get_current_span(theirs).get_span_context()
    )
