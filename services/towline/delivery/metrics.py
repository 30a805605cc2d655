"""Metrics of consumers, read off their counts when asked for: a record costs nothing more.

| metric | labels | meaning |
|---|---|---|
| `towline.consumer.records` | group, outcome: done, deferred | records that left their lane |
| `towline.consumer.retries` | group, reason | attempts that are to be repeated |
| `towline.consumer.dead_letters` | group, reason | records put aside |
| `towline.consumer.held` | group | records taken on and not finished |
| `towline.consumer.running` | group | records being handled |
| `towline.consumer.waiting_lanes` | group | lanes that wait for a retry |
| `towline.consumer.lag` | group | records in our partitions above what is finished |
| `towline.consumer.on_hold` | group | 1 while consumption is held because a neighbour is away |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from towline.delivery.consumer import Consumer

_Read: TypeAlias = Callable[[Consumer[Any]], Iterable[tuple[float, dict[str, str]]]]


def _records(consumer: Consumer[Any]) -> Iterable[tuple[float, dict[str, str]]]:
    counts = consumer.processor.counts
    return ((counts.done, {"outcome": "done"}), (counts.deferred, {"outcome": "deferred"}))


def _retries(consumer: Consumer[Any]) -> Iterable[tuple[float, dict[str, str]]]:
    return [(count, {"reason": reason}) for reason, count in list(consumer.processor.counts.retried.items())]


def _dead_letters(consumer: Consumer[Any]) -> Iterable[tuple[float, dict[str, str]]]:
    found = list(consumer.processor.counts.dead_lettered.items())
    return [(count, {"reason": reason}) for reason, count in found]


def observe(consumers: Iterable[Consumer[Any]]) -> None:
    """Report on `consumers` from now on. Once per process: instruments live as long as it does."""
    watched = list(consumers)
    meter = metrics.get_meter("towline.delivery")

    def callback(read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observations(_options: CallbackOptions) -> Iterable[Observation]:
            for consumer in watched:
                group = {"group": consumer.options.group_id}
                for value, labels in read(consumer):
                    yield Observation(value, group | labels)

        return observations

    for name, read in (("records", _records), ("retries", _retries), ("dead_letters", _dead_letters)):
        meter.create_observable_counter(f"towline.consumer.{name}", [callback(read)])
    gauges: dict[str, Callable[[Consumer[Any]], float]] = {
        "held": lambda consumer: consumer.processor.lanes.held_count(),
        "running": lambda consumer: consumer.processor.lanes.running_count(),
        "waiting_lanes": lambda consumer: consumer.processor.lanes.waiting_count,
        "lag": lambda consumer: consumer.lag,
        "on_hold": lambda consumer: float(consumer.on_hold is not None),
    }
    for name, value_of in gauges.items():
        read_one: _Read = lambda consumer, value_of=value_of: ((value_of(consumer), {}),)  # noqa: E731
        meter.create_observable_gauge(f"towline.consumer.{name}", [callback(read_one)])
