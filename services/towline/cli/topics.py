"""Reads events from topics for a person: the last ones, then new ones as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, cast

from aiokafka import AIOKafkaConsumer, TopicPartition

from towline.cli.connection import reader
from towline.contracts.consumers import (
    ConsumedRecord,
    RecentIds,
    assign,
    end_offsets,
    partitions_of,
    poll,
    resolve,
    resolved,
)
from towline.contracts.errors import DecodeError, KafkaUnavailableError
from towline.contracts.events import Event
from towline.contracts.payloads import PayloadStore
from towline.contracts.settings import KafkaSettings

_POLL_S: Final = 0.2
_SILENCE_TIMEOUT_S: Final = 60.0
_IDS_KEPT: Final = 100_000


async def read(
    settings: KafkaSettings,
    topics: Sequence[str],
    *,
    last: int | None,
    follow: bool,
    run_id: str | None = None,
    on_caught_up: Callable[[], None] = lambda: None,
) -> AsyncGenerator[tuple[Event, datetime]]:
    """Events of `topics` with Kafka's time, in that order, repeats dropped; undecodable records are logged.

    Args:
        settings: Where Kafka is.
        topics: Full names.
        last: How many of those that are there already; None for all.
        follow: Go on with new ones, for ever.
        run_id: Only those of this run.
        on_caught_up: Called once what is there already has been read, before any of it is given.

    Raises:
        KafkaUnavailableError: No broker answers, or a topic does not exist.
    """
    key = None if run_id is None else run_id.encode()
    ids = RecentIds(_IDS_KEPT)
    async with reader(settings) as (source, payloads):
        partitions = await partitions_of(source, topics)
        ends = await end_offsets(source, partitions)
        earliest = await resolve(source, partitions, None)
        # Keys are not counted by Kafka: the last of one run may be anywhere.
        depth = None if key is not None else last
        starts = (
            earliest if depth is None else {at: max(end - depth, earliest[at]) for at, end in ends.items()}
        )
        assign(source, starts)
        events = [
            event
            async for record in _history(source, starts, ends)
            if (event := await _wanted(record, key, ids, payloads)) is not None
        ]
        on_caught_up()
        events.sort(key=itemgetter(1))
        for event in events if last is None else events[len(events) - min(last, len(events)) :]:
            yield event
        while follow:
            for record in await poll(source, timeout_s=_POLL_S):
                if (event := await _wanted(record, key, ids, payloads)) is not None:
                    yield event


async def _wanted(
    record: ConsumedRecord, key: bytes | None, ids: RecentIds, payloads: PayloadStore | None
) -> tuple[Event, datetime] | None:
    if key is not None and record.key != key:
        return None
    try:
        event = await resolved(record, payloads)
    except DecodeError:
        return None  # its data is not to be had; the log says why
    if event is None or not ids.is_new(event.id):
        return None
    recorded_ms: int = cast("Any", record).timestamp
    return event, datetime.fromtimestamp(recorded_ms / 1000, UTC)


async def _history(
    source: AIOKafkaConsumer, starts: dict[TopicPartition, int], ends: dict[TopicPartition, int]
) -> AsyncGenerator[ConsumedRecord]:
    """Everything before `ends`, and what comes with it; one at a time: a topic may be larger than memory."""
    open_ones = {at for at, end in ends.items() if starts[at] < end}
    heard_s = time.monotonic()
    while open_ones:
        for record in await poll(source, timeout_s=_POLL_S):
            yield record
            heard_s = time.monotonic()
        # Not the last record's offset: a compacted or transactional topic has gaps.
        for at in tuple(open_ones):
            if await _position(source, at) >= ends[at]:
                open_ones.discard(at)
                heard_s = time.monotonic()
        if time.monotonic() - heard_s > _SILENCE_TIMEOUT_S:
            raise KafkaUnavailableError(
                f"the broker handed out nothing of what is retained for {_SILENCE_TIMEOUT_S:g} s: see its log"
            )


async def _position(source: AIOKafkaConsumer, at: TopicPartition) -> int:
    try:
        async with asyncio.timeout(_SILENCE_TIMEOUT_S):
            return await cast("Any", source).position(at)
    except TimeoutError as error:
        raise KafkaUnavailableError(
            f"the broker did not say within {_SILENCE_TIMEOUT_S:g} s where {at.topic} begins: see its log"
        ) from error
