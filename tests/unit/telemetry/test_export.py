"""Spans that are lost on their way out are counted; a collector that hangs does not keep a process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from towline.telemetry import export
from towline.telemetry.export import SpanBatches


class Hanging(SpanExporter):
    """Takes a batch and never comes back, until it is released."""

    def __init__(self) -> None:
        self.taken: list[ReadableSpan] = []
        self.began, self.released = threading.Event(), threading.Event()
        self.result = SpanExportResult.SUCCESS

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += spans
        self.began.set()
        self.released.wait(30)
        return self.result

    def shutdown(self) -> None:
        pass


class Lost:
    def __init__(self) -> None:
        self.by_reason: dict[str, int] = {}

    def add(self, count: int, labels: dict[str, str]) -> None:
        self.by_reason[labels["reason"]] = self.by_reason.get(labels["reason"], 0) + count


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> Lost:
    counted = Lost()
    monkeypatch.setattr(export, "dropped", counted)
    return counted


def span(name: str = "s") -> ReadableSpan:
    about = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(1))
    return ReadableSpan(name, context=about, start_time=1, end_time=2)


def batches(exporter: SpanExporter, **options: Any) -> SpanBatches:
    return SpanBatches(exporter, end_within_ms=50, schedule_delay_millis=1, **options)


def test_spans_that_find_the_queue_full_are_counted(lost: Lost) -> None:
    exporter = Hanging()
    queue = batches(exporter, max_queue_size=4, max_export_batch_size=1)
    queue.on_end(span())
    assert exporter.began.wait(10)
    for _ in range(6):
        queue.on_end(span())
    assert lost.by_reason == {"queue_full": 2}
    exporter.released.set()
    queue.shutdown()


def test_a_batch_that_nobody_took_is_counted(lost: Lost) -> None:
    exporter = Hanging()
    exporter.result = SpanExportResult.FAILURE
    exporter.released.set()
    queue = batches(exporter)
    for _ in range(3):
        queue.on_end(span())
    queue.shutdown()
    assert len(exporter.taken) == 3
    assert lost.by_reason == {"export_failed": 3}


def test_what_is_left_goes_out_at_the_end(lost: Lost) -> None:
    exporter = Hanging()
    exporter.released.set()
    queue = SpanBatches(exporter, end_within_ms=10_000, schedule_delay_millis=60_000)
    queue.on_end(span("last"))
    queue.shutdown()
    assert [taken.name for taken in exporter.taken] == ["last"]
    assert lost.by_reason == {}


def test_a_collector_that_hangs_does_not_keep_the_process() -> None:
    exporter = Hanging()
    queue = batches(exporter, max_export_batch_size=1)
    for _ in range(3):
        queue.on_end(span())
    assert exporter.began.wait(10)
    ending = threading.Thread(target=queue.shutdown)
    ending.start()
    ending.join(10)
    over = not ending.is_alive()
    exporter.released.set()
    assert over
