"""Through the services' own consumer: what no client can read goes to the dead letters, not in the way."""

from __future__ import annotations

import asyncio
from typing import cast

from tests.integration.contracts.raw import raw_producer, read_all, write_unreadable
from tests.waiting import eventually_async

from towline.contracts import DecodeError, EventProducer, KafkaSettings, decode
from towline.delivery import DONE, Consumer, ConsumerOptions, DeadLetter, Delivery, Outcome
from towline.delivery.dead_letters import DeadLetterWriter
from towline.delivery.membership import KafkaRecord

GOOD = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e-1"),
    ("ce_source", b"tests"),
    ("ce_type", b"towline.run.control.v1"),
)


async def test_unreadable_and_empty_records_are_put_aside_and_the_next_one_is_handled(
    kafka_settings: KafkaSettings,
) -> None:
    topic = kafka_settings.topics.runs
    handled: list[str] = []

    def read(record: KafkaRecord) -> tuple[bytes, str | DecodeError]:
        try:
            return b"r-1", decode(key=record.key, value=record.value, headers=record.headers).id
        except DecodeError as error:
            return b"r-1", error

    async def handle(delivery: Delivery[str | DecodeError]) -> Outcome:
        if isinstance(delivery.message, DecodeError):
            return DeadLetter(delivery.message.reason, str(delivery.message))
        handled.append(delivery.message)
        return DONE

    async with EventProducer(kafka_settings) as producer, raw_producer(kafka_settings) as raw:
        await write_unreadable(raw, topic, 0)
        batch = raw.create_batch()
        batch.append(key=None, value=None, timestamp=None)
        batch.close()
        await (await raw.send_batch(batch, topic, partition=0))
        await raw.send_and_wait(topic, b"{", partition=0, headers=[*GOOD, ("x-null", cast("bytes", None))])
        await raw.send_and_wait(
            topic, b'{"run_id": "r-1", "action": "cancel"}', partition=0, headers=list(GOOD)
        )
        consumer = Consumer(
            kafka_settings,
            ConsumerOptions(group_id=f"hostile-{topic}", topics=(topic,)),
            read=read,
            handle=handle,
            dead_letter=DeadLetterWriter(producer, kafka_settings.topics.dead_letters),
        )
        running = asyncio.create_task(consumer.run())
        await eventually_async(lambda: handled == ["e-1"])
        consumer.stop()
        await asyncio.wait_for(running, 30)
    letters = await read_all(kafka_settings, kafka_settings.topics.dead_letters)
    reasons = [dict(letter.headers)["towline_dead_letter_reason"] for letter in letters]
    assert reasons == [b"unreadable", b"no_headers", b"invalid_json"]
    assert [dict(letter.headers)["towline_dead_letter_offset"] for letter in letters] == [
        b"0",
        b"1",
        b"2",
    ]
    assert ("x-null", None) in letters[2].headers, "a header without value stays one"
