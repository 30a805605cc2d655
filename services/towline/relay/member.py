"""The relay's membership in its consumer group: aiokafka's settings, and bounded waits for it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast

from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings

_log = logging.getLogger(__name__)

_FETCH_MAX_MS: Final = 100


def member(kafka: KafkaSettings, group: str) -> Any:
    """A member of the relay's consumer group, not started, without topics."""
    consumer = TolerantConsumer(
        **kafka.connection(),
        group_id=group,
        client_id="towline-relay",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        # By range, a member gets the same partition numbers of both topics: a run's events and its outcome.
        partition_assignment_strategy=(RangePartitionAssignor,),
        session_timeout_ms=10_000,
        heartbeat_interval_ms=2_500,
        max_poll_interval_ms=600_000,
        request_timeout_ms=15_000,
        # A partition whose records wait here for more than 100 ms is left out of the next fetch, and what
        # comes to it then waits until that one ends: by default for half a second.
        fetch_max_wait_ms=_FETCH_MAX_MS,
        retry_backoff_ms=250,
    )
    return cast("Any", consumer)


async def wait_for(work: Any, timeout_s: float) -> None:
    """Run `work` for at most `timeout_s`; as a task: aiokafka may raise CancelledError by itself."""
    task = asyncio.ensure_future(work)
    await asyncio.wait({task}, timeout=timeout_s)
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.5)
    if task.done() and not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("ended_with_error", extra={"error": repr(error)})
