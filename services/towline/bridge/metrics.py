"""Metrics of the bridge; what each means is in the registry, `towline.telemetry.metrics`."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from towline.telemetry import metrics

_DELAY_MAX_S: Final = 86_400.0

runs_accepted = metrics.counter("towline.bridge.runs_accepted")
answers = metrics.counter("towline.bridge.answers")
runs_ended = metrics.counter("towline.runs.ended")
_queue_delay = metrics.histogram("towline.bridge.queue_delay")


def record_delay(event_type: str, published: datetime | None, now: datetime) -> None:
    """Note how long an event took; clocks that disagree count as zero."""
    if published is not None:
        delay_s = min(max((now - published).total_seconds(), 0.0), _DELAY_MAX_S)
        _queue_delay.record(delay_s, {"type": event_type})
