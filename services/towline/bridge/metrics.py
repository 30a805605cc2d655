"""Metrics of the bridge; what its consumers do is in `towline.delivery.metrics`.

| metric | labels | meaning |
|---|---|---|
| `towline.bridge.runs_accepted` | run_type | runs handed to the scheduler |
| `towline.bridge.answers` | type, reason | events that the bridge published itself |
| `towline.bridge.queue_delay` | type | seconds from an event's time to the end of its handling |
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

from opentelemetry import metrics

_meter = metrics.get_meter("towline.bridge")
_DELAY_BOUNDS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_DELAY_MAX_S: Final = 86_400.0

runs_accepted = _meter.create_counter("towline.bridge.runs_accepted")
answers = _meter.create_counter("towline.bridge.answers")
_queue_delay = _meter.create_histogram(
    "towline.bridge.queue_delay", unit="s", explicit_bucket_boundaries_advisory=_DELAY_BOUNDS_S
)


def record_delay(event_type: str, published: datetime | None, now: datetime) -> None:
    """Note how long an event took; clocks that disagree count as zero."""
    if published is not None:
        delay_s = min(max((now - published).total_seconds(), 0.0), _DELAY_MAX_S)
        _queue_delay.record(delay_s, {"type": event_type})
