"""Follows the catalog topic: reads all of it, then what comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from towline.bridge.catalog import Catalog
from towline.contracts.cloudevents import decode
from towline.contracts.errors import DecodeError
from towline.contracts.events import AppRegistered
from towline.contracts.salvage import TolerantConsumer
from towline.contracts.settings import KafkaSettings
from towline.delivery import Backoff, KafkaRecord

logger = logging.getLogger(__name__)

_POLL_MS: Final = 500
_CALL_S: Final = 15.0
_STOP_S: Final = 2.0


class CatalogFollower:
    """Keeps `catalog` up to date. `caught_up` stays true once it was: an old catalog beats none."""

    def __init__(self, kafka: KafkaSettings, catalog: Catalog) -> None:
        self._kafka = kafka
        self._catalog = catalog
        self.caught_up = False

    async def run(self) -> None:
        """Follow until cancelled. Trouble with Kafka is logged and outlived."""
        backoff, attempt = Backoff(first_s=0.2, longest_s=5.0), 0
        while True:
            try:
                await self._follow()
            except (KafkaError, OSError, TimeoutError) as error:
                attempt += 1
                logger.warning("catalog_lost", extra={"error": repr(error), "attempt": attempt})
            await asyncio.sleep(backoff.delay_s(max(attempt, 1)))

    async def _follow(self) -> None:
        consumer = cast(
            "_Reader",
            # Without a group: all partitions are ours.
            TolerantConsumer(
                self._kafka.topics.catalog,
                **self._kafka.connection(),
                client_id="towline-bridge-catalog",
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                request_timeout_ms=10_000,
            ),
        )
        try:
            async with asyncio.timeout(_CALL_S):
                await consumer.start()
                ends = await consumer.end_offsets(list(consumer.assignment()))
            while True:
                for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                    for record in records:
                        self._apply(record)
                if not self.caught_up and await _is_past(consumer, ends):
                    self.caught_up = True
                    logger.info("catalog_caught_up", extra={"empty": self._catalog.empty})
        finally:
            stopping = asyncio.ensure_future(consumer.stop())
            await asyncio.wait({stopping}, timeout=_STOP_S)
            stopping.cancel()

    def _apply(self, record: KafkaRecord) -> None:
        if record.value is None and record.key is not None:
            self._catalog.remove(record.key.decode("utf-8", "replace"))
            return
        try:
            event = decode(key=record.key, value=record.value, headers=record.headers)
        except DecodeError as error:
            logger.warning(
                "catalog_record_ignored",
                extra={"offset": record.offset, "reason": error.reason, "error": str(error)},
            )
            return
        if isinstance(event.data, AppRegistered):
            self._catalog.register(event.data)


class _Reader(Protocol):
    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def assignment(self) -> set[TopicPartition]: ...
    async def end_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]: ...
    async def position(self, partition: TopicPartition) -> int: ...
    def getmany(self, *, timeout_ms: int) -> Awaitable[Mapping[TopicPartition, Sequence[KafkaRecord]]]: ...


async def _is_past(consumer: _Reader, ends: Mapping[TopicPartition, int]) -> bool:
    positions: dict[Any, int] = {}
    async with asyncio.timeout(_CALL_S):
        for partition in ends:
            positions[partition] = await consumer.position(partition)
    return all(positions[partition] >= end for partition, end in ends.items())
