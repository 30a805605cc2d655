"""A record that aiokafka cannot read stops no partition and loses no other record."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from tests.integration.contracts.raw import raw_producer, write_unreadable

from towline.contracts import DecodeError, KafkaSettings, decode, salvage
from towline.contracts.kafka import ensure_topics
from towline.contracts.salvage import TolerantConsumer
from towline.dev import KafkaPart


async def test_aiokafka_still_needs_it(kafka_settings: KafkaSettings) -> None:
    """When this fails, aiokafka reads such records: `salvage` can go."""
    topic = kafka_settings.topics.runs
    async with raw_producer(kafka_settings) as raw:
        await write_unreadable(raw, topic, 0)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_settings.bootstrap)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError):
                await consumer.getmany(timeout_ms=10_000)
    finally:
        await consumer.stop()


@pytest.mark.parametrize("max_records", [1, 3, None])
async def test_every_readable_record_comes_once_in_order(
    kafka_settings: KafkaSettings, max_records: int | None
) -> None:
    topic = kafka_settings.topics.runs
    wanted: dict[int, list[bytes | None]] = {}
    async with raw_producer(kafka_settings) as raw:
        for partition in range(3):
            for n in range(12):
                # Two in a row, one alone, one at the end.
                if n in {4, 5, 8, 11} and partition != 1:
                    await write_unreadable(raw, topic, partition)
                    wanted.setdefault(partition, []).append(None)
                else:
                    value = b"%d-%d" % (partition, n)
                    await raw.send_and_wait(topic, value, partition=partition)
                    wanted.setdefault(partition, []).append(value)
    partitions = [TopicPartition(topic, number) for number in range(3)]
    seen: dict[int, list[bytes | None]] = {}
    refused = 0
    consumer = TolerantConsumer(bootstrap_servers=kafka_settings.bootstrap)
    await consumer.start()
    try:
        consumer.assign(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        while sum(map(len, seen.values())) < 36:
            batches = await consumer.getmany(timeout_ms=10_000, max_records=max_records)
            assert batches, seen
            for partition, records in batches.items():
                for record in records:
                    assert record.offset == len(seen.setdefault(partition.partition, []))
                    seen[partition.partition].append(record.value)
                    with pytest.raises(DecodeError) as caught:
                        decode(key=record.key, value=record.value, headers=record.headers)
                    refused += caught.value.reason == "unreadable"
    finally:
        await consumer.stop()
    assert seen == wanted
    assert refused == 8


async def test_brokers_gather_for_as_long_as_they_are_asked_to(kafka_settings: KafkaSettings) -> None:
    """When this fails, aiokafka has elsewhere what `TolerantConsumer.gather` sets: fetches go on without."""
    topic = kafka_settings.topics.runs
    consumer = TolerantConsumer(bootstrap_servers=kafka_settings.bootstrap, fetch_max_wait_ms=1000)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, 0)])
        consumer.seek(TopicPartition(topic, 0), 0)
        async with raw_producer(kafka_settings) as raw:

            async def comes_after_s() -> float:
                began = time.monotonic()
                await raw.send_and_wait(topic, b"value", partition=0)
                assert await consumer.getmany(timeout_ms=10_000)
                return time.monotonic() - began

            # The fetch that is under way ends as it was meant to; the next begins with what it brought.
            await comes_after_s()
            assert min([await comes_after_s() for _ in range(3)]) < 0.3
            consumer.gather(1024 * 1024)
            await comes_after_s()
            assert max([await comes_after_s() for _ in range(3)]) > 0.7
            consumer.gather(1)
            await comes_after_s()
            assert min([await comes_after_s() for _ in range(3)]) < 0.3
    finally:
        await consumer.stop()


async def test_a_consumer_that_has_not_started_gathers_nothing(kafka_settings: KafkaSettings) -> None:
    TolerantConsumer(bootstrap_servers=kafka_settings.bootstrap).gather(1024)


@pytest.mark.slow
async def test_a_batch_spoilt_on_disk_holds_its_partition_alone_until_it_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(salvage, "_RETRY_S", 0.5)
    with KafkaPart(data=tmp_path / "kafka") as part:
        settings = KafkaSettings(bootstrap=part.bootstrap)
        await ensure_topics(settings)
        topic = settings.topics.runs
        async with raw_producer(settings) as raw:
            for number in range(3):
                for partition in range(3):
                    await raw.send_and_wait(topic, b"value-%d" % number, partition=partition)
        (file,) = (tmp_path / "kafka").rglob(f"{topic}-1/00000000000000000000.log")
        written = file.read_bytes()
        with file.open("r+b") as log:
            log.seek(written.index(b"value-1"))
            log.write(b"VALUE")
        partitions = [TopicPartition(topic, number) for number in range(3)]
        seen: dict[int, list[int]] = {number: [] for number in range(3)}
        consumer = TolerantConsumer(bootstrap_servers=part.bootstrap)
        await consumer.start()

        async def read_until(counts: dict[int, int]) -> None:
            while {number: len(offsets) for number, offsets in seen.items()} != counts:
                for partition, records in (await consumer.getmany(timeout_ms=100)).items():
                    seen[partition.partition] += [record.offset for record in records]

        try:
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, 0)
            await read_until({0: 3, 1: 1, 2: 3})
            async with raw_producer(settings) as raw:
                await raw.send_and_wait(topic, b"value-3", partition=0)
            await read_until({0: 4, 1: 1, 2: 3})
            with file.open("r+b") as log:
                log.seek(written.index(b"value-1"))
                log.write(b"value")
            await read_until({0: 4, 1: 3, 2: 3})
        finally:
            await consumer.stop()
    assert seen == {0: [0, 1, 2, 3], 1: [0, 1, 2], 2: [0, 1, 2]}
    lines = [record for record in caplog.records if record.message == "batch_unreadable"]
    assert {(line.levelno, line.partition, line.offset) for line in lines} == {(logging.ERROR, 1, 1)}
