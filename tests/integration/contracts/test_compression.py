"""Publishers and administrators choose how records are compressed: every way that Kafka knows is read."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import NewTopic
from tests.waiting import eventually_async

from towline.contracts import EventProducer, KafkaSettings
from towline.contracts.cloudevents import Record
from towline.contracts.kafka import admin
from towline.delivery import DONE, Consumer, ConsumerOptions, DeadLetter, Delivery, KafkaRecord, Outcome


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_topic_is_read_however_it_is_compressed(kafka_settings: KafkaSettings, codec: str) -> None:
    topic = f"{kafka_settings.topic_prefix}{codec}"
    values: list[bytes | None] = []

    async def handle(delivery: Delivery[None]) -> Outcome:
        values.append(delivery.record.value)
        return DONE

    async def no_letters(record: KafkaRecord, letter: DeadLetter) -> None:
        raise AssertionError((record, letter))

    async with admin(kafka_settings) as client:
        await client.create_topics([NewTopic(topic, 1, 1, topic_configs={"compression.type": codec})])
    async with EventProducer(kafka_settings) as producer:
        await producer.send_record(topic, Record(b"k", b"v" * 5_000, ()), name="one")
    consumer = Consumer(
        kafka_settings,
        ConsumerOptions(group_id=f"group-{topic}", topics=(topic,)),
        read=lambda record: (record.key, None),
        handle=handle,
        dead_letter=no_letters,
    )
    running = asyncio.create_task(consumer.run())
    try:
        await eventually_async(lambda: values == [b"v" * 5_000], timeout_s=20)
    finally:
        consumer.stop()
        await asyncio.wait_for(running, 30)
