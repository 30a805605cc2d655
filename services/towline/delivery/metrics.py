"""Metrics of consumers, ``towline.consumer.*``: read off their counts when asked for, a record costs no more.

What each means is in the registry, `towline.telemetry.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from towline.delivery.consumer import Consumer
from towline.telemetry import metrics
from towline.telemetry.metrics import ObservedName

_Values: TypeAlias = Iterable[tuple[float, dict[str, str]]]


def _records(consumer: Consumer[Any]) -> _Values:
    counts = consumer.processor.counts
    return ((counts.done, {"outcome": "done"}), (counts.deferred, {"outcome": "deferred"}))


def _retries(consumer: Consumer[Any]) -> _Values:
    return [(count, {"reason": reason}) for reason, count in list(consumer.processor.counts.retried.items())]


def _dead_letters(consumer: Consumer[Any]) -> _Values:
    found = list(consumer.processor.counts.dead_lettered.items())
    return [(count, {"reason": reason}) for reason, count in found]


_READ: Final[Mapping[ObservedName, Callable[[Consumer[Any]], _Values]]] = {
    "towline.consumer.records": _records,
    "towline.consumer.retries": _retries,
    "towline.consumer.dead_letters": _dead_letters,
    "towline.consumer.held": lambda consumer: ((consumer.processor.lanes.held_count(), {}),),
    "towline.consumer.running": lambda consumer: ((consumer.processor.lanes.running_count(), {}),),
    "towline.consumer.waiting_lanes": lambda consumer: ((consumer.processor.lanes.waiting_count, {}),),
    "towline.consumer.lag": lambda consumer: ((consumer.lag, {}),),
    "towline.consumer.on_hold": lambda consumer: ((float(consumer.on_hold is not None), {}),),
}


def observe(consumers: Iterable[Consumer[Any]]) -> None:
    """Report on `consumers` from now on. Once per process: instruments live as long as it does."""
    watched = list(consumers)

    def reading(read: Callable[[Consumer[Any]], _Values]) -> metrics.Read:
        def values() -> _Values:
            for consumer in watched:
                group = {"group": consumer.options.group_id}
                for value, labels in read(consumer):
                    yield value, group | labels

        return values

    for name, read in _READ.items():
        metrics.observe(name, reading(read))
