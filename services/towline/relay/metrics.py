"""The relay's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from towline.relay.consumer import LifecycleConsumer
from towline.relay.hub import Hub


def observe(hub: Hub, consumer: LifecycleConsumer) -> None:
    """Have the meter ask `hub` and `consumer` whenever metrics are collected."""
    meter = metrics.get_meter("towline.relay")

    def gauge(name: str, unit: str, about: str, value: Callable[[], float]) -> None:
        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            yield Observation(value())

        meter.create_observable_gauge(name, [callback], unit=unit, description=about)

    def counter(name: str, unit: str, about: str, value: Callable[[], float]) -> None:
        def callback(_options: CallbackOptions) -> Iterable[Observation]:
            yield Observation(value())

        meter.create_observable_counter(name, [callback], unit=unit, description=about)

    gauge("towline.relay.clients", "{client}", "SSE clients now", lambda: hub.client_count)
    gauge("towline.relay.feeds", "{stream}", "Streams read for clients now", lambda: hub.feed_count)
    gauge(
        "towline.relay.outcomes.held", "{run}", "Outcomes that wait for their run's last tokens",
        lambda: consumer.held_count,
    )  # fmt: skip
    gauge(
        "towline.relay.lag", "{event}", "Lifecycle events not applied yet, of this replica's partitions",
        lambda: consumer.lag,
    )  # fmt: skip
    counter(
        "towline.relay.events.applied", "{event}", "Lifecycle events and outcomes applied",
        lambda: consumer.applied,
    )  # fmt: skip
    counter(
        "towline.relay.events.undecodable", "{event}", "Records that are no event of the contract",
        lambda: consumer.undecodable,
    )  # fmt: skip
    counter(
        "towline.relay.clients.dropped", "{client}", "SSE clients that took nothing for too long",
        lambda: hub.dropped,
    )  # fmt: skip
