"""The run on spans, logs and baggage."""

from __future__ import annotations

import json
import logging
import threading
from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry import baggage, trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

from towline.telemetry import spans as told
from towline.telemetry.logs import JsonFormatter
from towline.telemetry.propagation import in_trace, inject
from towline.telemetry.runs import RunFields, RunRef, bind, current_run, in_run, scope

RUN = RunRef("run-1", "review", "session-1")
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def logged(**extra: str) -> dict[str, object]:
    record = logging.makeLogRecord({"msg": "event", "levelname": "INFO", "name": "towline.test", **extra})
    assert RunFields().filter(record)
    return json.loads(JsonFormatter("towline-test").format(record))


def test_spans_and_baggage_name_the_run_within_the_block_only(spans: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test")
    with in_run(RUN):
        tracer.start_span("inside").end()
        assert baggage.get_baggage("towline.run_id") == "run-1"
        assert baggage.get_baggage("towline.session_id") == "session-1"
    tracer.start_span("outside").end()

    inside, outside = spans.get_finished_spans()
    assert inside.attributes is not None
    assert dict(inside.attributes) == {
        "towline.run_id": "run-1",
        "towline.run_type": "review",
        "towline.session_id": "session-1",
    }
    assert not outside.attributes
    assert baggage.get_baggage("towline.run_id") is None


def test_a_span_that_the_sdk_makes_afterwards_names_the_run_too(spans: InMemorySpanExporter) -> None:
    from durabletask.internal import tracing

    context = told.context_named(TRACEPARENT)
    assert context is not None
    named = tracing._trace_context_from_carrier({"traceparent": TRACEPARENT})
    with in_run(RUN):
        tracing.emit_orchestration_span(
            "review", "run-1", 1, False, parent_trace_context=named, orchestration_trace_context=named
        )
    (span,) = spans.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["towline.run_id"] == "run-1"


def test_log_lines_name_the_run_and_the_trace(spans: InMemorySpanExporter) -> None:
    with in_run(RUN), trace.get_tracer("test").start_as_current_span("work") as span:
        line = logged()
    assert (line["run_id"], line["run_type"], line["session_id"]) == ("run-1", "review", "session-1")
    assert line["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert "run_id" not in logged()


def test_a_log_call_that_names_a_run_itself_is_believed() -> None:
    with in_run(RUN):
        assert logged(run_id="another")["run_id"] == "another"


def test_what_is_bound_ends_with_its_scope_and_stays_within_its_thread() -> None:
    seen: list[RunRef | None] = []
    with scope():
        bind(RUN)
        assert current_run() == RUN
        thread = threading.Thread(target=lambda: seen.append(current_run()))
        thread.start()
        thread.join()
    assert current_run() is None
    assert seen == [None]


def test_a_nearer_span_of_the_same_trace_stays_current(spans: InMemorySpanExporter) -> None:
    tracer = trace.get_tracer("test")
    with in_trace(TRACEPARENT), tracer.start_as_current_span("nearer") as nearer, in_trace(TRACEPARENT):
        assert trace.get_current_span() is nearer
    with tracer.start_as_current_span("another trace"), in_trace(TRACEPARENT):
        assert inject()[0] == TRACEPARENT


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-0-0-01"])
def test_a_traceparent_that_is_none_changes_nothing(traceparent: str | None) -> None:
    with in_trace(traceparent):
        assert not trace.get_current_span().get_span_context().is_valid
    assert told.context_named(traceparent) is None


def test_a_span_told_afterwards_is_the_same_whoever_tells_it(spans: InMemorySpanExporter) -> None:
    parent = told.context_named(TRACEPARENT)
    assert parent is not None
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        told.tell(
            "approval",
            parent=parent,
            span_id=told.span_id_of("run-1", "approval", "a"),
            start=began,
            end=began + timedelta(days=3),
            attributes={"towline.outcome": "approved"},
        )
    first, second = spans.get_finished_spans()
    assert first.context == second.context
    assert first.parent == parent
    assert first.end_time is not None
    assert first.start_time is not None
    assert first.end_time - first.start_time == 3 * 86_400 * 10**9


def test_a_span_below_one_that_is_not_sampled_is_not_told(spans: InMemorySpanExporter) -> None:
    parent = SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0))
    now = datetime.now(UTC)
    told.tell("approval", parent=parent, span_id=3, start=now, end=now, attributes={})
    assert spans.get_finished_spans() == ()
