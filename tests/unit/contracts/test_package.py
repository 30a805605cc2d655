"""What the package exports, and what a reader of ids and streams relies on."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

import towline.contracts
from towline.contracts import (
    ErrorInfo,
    Event,
    RunCancelled,
    RunCancelledError,
    RunFailed,
    RunFailedError,
    RunRejected,
    RunRejectedError,
    RunStarted,
    context_of,
)
from towline.contracts.consumers import RecentIds
from towline.contracts.events import is_run_id, parse_time
from towline.contracts.tracing import current_trace

NOW = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)


def test_everything_exported_is_there() -> None:
    for name in towline.contracts.__all__:
        assert getattr(towline.contracts, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = towline.contracts.Nonsense  # pyright: ignore[reportAttributeAccessIssue]


def test_models_and_codec_load_without_kafka_or_telemetry() -> None:
    program = (
        "import sys, towline.contracts as c; c.decode, c.RunRequested;"
        "print([m for m in ('aiokafka', 'opentelemetry', 'faststream') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output.strip() == "[]"


def test_public_api_has_the_types_it_promises() -> None:
    """Type-only: pyright reads tests/unit/contracts/client_types.py, which uses the whole client."""
    file = Path(__file__).with_name("client_types.py")
    result = subprocess.run(
        [sys.executable, "-m", "pyright", "--level", "error", str(file)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout


def test_errors_carry_the_outcome() -> None:
    error = ErrorInfo(type="ValueError", message="no such order")
    failed = Event(
        id="r/outcome", source="w", data=RunFailed(run_id="r", run_type="a", error=error, finished_at=NOW)
    )
    assert str(RunFailedError(failed)) == "run r failed: ValueError: no such order"
    assert RunFailedError(failed).event is failed
    cancelled = Event(id="r/outcome", source="w", data=RunCancelled(run_id="r", finished_at=NOW))
    assert str(RunCancelledError(cancelled)) == "run r was cancelled"
    rejected = Event(id="r/outcome", source="w", data=RunRejected(run_id="r", error=error))
    assert RunRejectedError(rejected).run_id == "r"


@settings(deadline=None)
@given(st.lists(st.integers(0, 30)), st.integers(1, 10))
def test_recent_ids_drop_exactly_what_they_still_remember(ids: list[int], capacity: int) -> None:
    recent = RecentIds(capacity)
    model: list[int] = []
    for number in ids:
        assert recent.is_new(str(number)) == (number not in model)
        if number in model:
            model.remove(number)
        model = [*model, number][-capacity:]
        assert len(recent) == len(model)


@pytest.mark.parametrize(
    "text", ["2026-11-24T20:00:00Z", "2026-11-24t21:00:00.0000000+01:00", "2026-11-24 20:00:00z"]
)
def test_times_are_rfc_3339_and_come_as_utc(text: str) -> None:
    assert parse_time(text) == NOW
    assert parse_time(text).tzinfo is UTC


@pytest.mark.parametrize("text", ["a\n", "", "x" * 129, "a b", "٣", "/", "ä"])
def test_what_is_no_run_id(text: str) -> None:
    assert not is_run_id(text)


def test_trace_context_goes_through_an_event() -> None:
    tracer = TracerProvider().get_tracer("tests")
    assert current_trace() == (None, None)
    with tracer.start_as_current_span("publish") as span:
        traceparent, tracestate = current_trace()
    event = Event(
        id="e",
        source="s",
        data=RunStarted(run_id="r", run_type="a"),
        traceparent=traceparent,
        tracestate=tracestate,
    )
    remote = trace.get_current_span(context_of(event)).get_span_context()
    assert remote.trace_id == span.get_span_context().trace_id
    assert remote.span_id == span.get_span_context().span_id
    assert remote.is_remote
