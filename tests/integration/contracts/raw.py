"""What the tests do to Kafka without the library under test."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.record.util import calc_crc32c

from towline.contracts import Event, KafkaSettings, RunCompleted, RunStarted, ids
from towline.contracts.events import RunFailed

NOW = datetime(2026, 11, 24, 20, 0, tzinfo=UTC)


def completed(run_id: str, output: Any = "done") -> Event[RunCompleted]:
    data = RunCompleted(run_id=run_id, run_type="a", output=output, started_at=NOW, finished_at=NOW)
    return Event(id=ids.outcome_id(run_id), source="tests", data=data)


def failed(run_id: str) -> Event[RunFailed]:
    data = RunFailed(run_id=run_id, run_type="a", error={"type": "E", "message": "m"}, finished_at=NOW)  # pyright: ignore[reportArgumentType]
    return Event(id=ids.outcome_id(run_id), source="tests", data=data)


def started(run_id: str) -> Event[RunStarted]:
    return Event(id=ids.started_id(run_id), source="tests", data=RunStarted(run_id=run_id, run_type="a"))


@asynccontextmanager
async def raw_producer(settings: KafkaSettings) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def write_unreadable(producer: AIOKafkaProducer, topic: str, partition: int) -> None:
    """A record whose header name is no UTF-8, as librdkafka lets anybody write one."""
    batch = producer.create_batch()
    batch.append(key=b"k", value=b"{}", timestamp=None, headers=[("QQQQ", b"x")])
    batch.close()
    data = bytearray(batch._build())
    data[data.index(b"QQQQ")] = 0xFF
    crc_at, crc_from = 17, 21
    struct.pack_into(">I", data, crc_at, calc_crc32c(bytes(data[crc_from:])))
    batch._buffer = bytes(data)
    await (await producer.send_batch(batch, topic, partition=partition))


async def read_all(settings: KafkaSettings, topic: str) -> list[Any]:
    """All records of a topic, as aiokafka gives them."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap)
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, n) for n in await consumer._client._wait_on_metadata(topic)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[Any] = []
        while any([await consumer.position(tp) < end for tp, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                records += batch
        return records
    finally:
        await consumer.stop()


async def grow(settings: KafkaSettings, topic: str, partitions: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(partitions)})
    finally:
        await admin.close()
