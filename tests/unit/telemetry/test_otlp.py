"""Our way to write spans against the library's, for any span."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from towline.telemetry import otlp

RESOURCES = [Resource({"service.name": "towline-worker", "n": 1}), Resource({})]
SCOPES = [InstrumentationScope("towline", "1", "https://schema"), InstrumentationScope("durabletask"), None]

text = st.text(max_size=300)
values = st.one_of(
    text,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(text, max_size=3).map(tuple),
)
states = st.sampled_from([TraceState(), TraceState([("vendor", "1")])])
contexts = st.builds(
    SpanContext,
    trace_id=st.integers(1, 2**128 - 1),
    span_id=st.integers(1, 2**64 - 1),
    is_remote=st.booleans(),
    trace_flags=st.just(TraceFlags(1)),
    trace_state=states,
)
times = st.integers(0, 2**63)
statuses = st.one_of(
    st.just(Status()), st.just(Status(StatusCode.OK)), st.builds(Status, st.just(StatusCode.ERROR), text)
)
spans = st.builds(
    ReadableSpan,
    name=text,
    context=contexts,
    parent=st.none() | contexts,
    resource=st.sampled_from(RESOURCES),
    attributes=st.dictionaries(text, values, max_size=8),
    events=st.lists(st.builds(Event, name=text, timestamp=times), max_size=1),
    links=st.lists(st.builds(Link, contexts), max_size=1),
    kind=st.sampled_from(list(SpanKind)),
    status=statuses,
    start_time=times,
    end_time=times,
    instrumentation_scope=st.sampled_from(SCOPES),
)


def flat(request: ExportTraceServiceRequest) -> list[Any]:
    """Every span with what it is wrapped in; the order of scopes is of no matter."""
    found = [
        (resource.resource.SerializeToString(), scope.scope.SerializeToString(), scope.schema_url, span)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(found, key=lambda one: (one[3].SerializeToString(), *one[:3]))


@given(st.lists(spans, max_size=5))
def test_what_is_written_is_what_the_library_writes(batch: list[ReadableSpan]) -> None:
    ours = ExportTraceServiceRequest.FromString(otlp.encode(batch).SerializePartialToString())
    theirs = ExportTraceServiceRequest.FromString(encode_spans(batch).SerializePartialToString())
    assert flat(ours) == flat(theirs)


def test_equal_values_of_different_types_stay_apart() -> None:
    one = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    batch = [
        ReadableSpan("s", context=one, attributes={"a": value}, start_time=1, end_time=2)
        for value in (1, True, 1.0, "1")
    ]
    request = ExportTraceServiceRequest.FromString(otlp.encode(batch).SerializePartialToString())
    kinds = [span.attributes[0].value.WhichOneof("value") for _, _, _, span in flat(request)]
    assert sorted(map(str, kinds)) == ["bool_value", "double_value", "int_value", "string_value"]


def test_a_span_of_every_day_is_not_left_to_the_library() -> None:
    one = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    span = ReadableSpan(
        "s", context=one, attributes={"a": "b", "n": 3, "f": 0.5, "t": True}, start_time=1, end_time=2
    )
    assert otlp._span(span) is not None


def test_the_memory_of_attributes_is_bounded() -> None:
    one = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    nowhere = Resource({})  # a span without one makes one, which takes longer than all the rest
    for number in range(4_100):
        said = {"n": number}
        otlp._span(
            ReadableSpan("s", context=one, resource=nowhere, attributes=said, start_time=1, end_time=2)
        )
    assert len(otlp._attributes) <= 4_096


def spans_in(batch: list[ReadableSpan]) -> list[Any]:
    body = otlp.encode(batch).SerializePartialToString()
    return [span for _, _, _, span in flat(ExportTraceServiceRequest.FromString(body))]


def test_a_text_that_is_no_unicode_costs_its_attribute_alone() -> None:
    one = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    odd = ReadableSpan("odd", context=one, attributes={"a": "\ud800", "b": "c"}, start_time=1, end_time=2)
    good = ReadableSpan("good", context=one, start_time=1, end_time=2)
    by_name = {span.name: span for span in spans_in([odd, good])}
    assert {attribute.key for attribute in by_name["odd"].attributes} == {"b"}
    assert "good" in by_name


def test_a_span_that_cannot_be_written_does_not_cost_the_others() -> None:
    one = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    odd = ReadableSpan("\ud800", context=one, start_time=1, end_time=2)
    late = ReadableSpan("late", context=one, start_time=1, end_time=2**70)
    kind: Any = "client"
    unkind = ReadableSpan("of no kind", context=one, kind=kind, start_time=1, end_time=2)
    good = ReadableSpan("good", context=one, start_time=1, end_time=2)
    assert [span.name for span in spans_in([odd, late, unkind, good])] == ["good"]
