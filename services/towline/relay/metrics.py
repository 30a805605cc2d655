"""The relay's metrics; what each means is in the registry, `towline.telemetry.metrics`."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from towline.relay.consumer import LifecycleConsumer
from towline.relay.errors import RedisAwayError
from towline.relay.hub import Hub
from towline.relay.index import RunIndex
from towline.telemetry.metrics import observe_value

_APPROVALS_EVERY_S: Final = 15.0


@dataclass(slots=True)
class OpenApprovals:
    """What is known of the asks that wait for people; asked of Redis every so often."""

    count: int = 0
    oldest_at_s: float | None = None

    def oldest_age_s(self) -> float:
        """Age of the oldest one; 0 without one."""
        return 0.0 if self.oldest_at_s is None else max(0.0, time.time() - self.oldest_at_s)

    async def follow(self, index: RunIndex) -> None:
        """Keep up with `index` until cancelled. Redis being away leaves what was known last."""
        while True:
            with suppress(RedisAwayError):
                self.count, oldest_ms = await index.approvals_waiting()
                self.oldest_at_s = None if oldest_ms is None else oldest_ms / 1000
            await asyncio.sleep(_APPROVALS_EVERY_S)


def observe(hub: Hub, consumer: LifecycleConsumer, approvals: OpenApprovals) -> None:
    """Have the meter ask whenever metrics are collected. Once per process."""
    observe_value("towline.relay.clients", lambda: hub.client_count)
    observe_value("towline.relay.feeds", lambda: hub.feed_count)
    observe_value("towline.relay.clients.dropped", lambda: hub.dropped)
    observe_value("towline.relay.outcomes.held", lambda: consumer.held_count)
    observe_value("towline.relay.lag", lambda: consumer.lag)
    observe_value("towline.relay.events.applied", lambda: consumer.applied)
    observe_value("towline.relay.events.undecodable", lambda: consumer.undecodable)
    observe_value("towline.approvals.open", lambda: approvals.count)
    observe_value("towline.approvals.oldest_age", approvals.oldest_age_s)
