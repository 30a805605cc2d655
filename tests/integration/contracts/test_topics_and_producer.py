"""Topics are created once and rightly; a producer never waits for ever and never loses its way."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, NodeNotReadyError
from tests.integration.contracts.raw import completed, read_all, started

from towline.contracts import (
    TOPICS,
    EncodeError,
    EventProducer,
    KafkaSettings,
    KafkaUnavailableError,
    PublishError,
    Record,
    RunRequested,
    TowlineClient,
    decode,
)
from towline.contracts.events import Event
from towline.contracts.kafka import admin, ensure_topics
from towline.dev import KafkaPart, kafka_config


@pytest.fixture
def own_kafka(tmp_path: Path) -> KafkaPart:
    """A broker to be killed, not started yet."""
    return KafkaPart(data=tmp_path / "kafka")


def fresh(kafka: str, name: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=kafka, topic_prefix=f"{name}-{time.time_ns()}.")


async def test_topics_are_created_once_with_their_settings(kafka: str) -> None:
    settings = fresh(kafka, "create")
    first, second = await asyncio.gather(ensure_topics(settings), ensure_topics(settings))
    assert set(first) | set(second) == {
        settings.topics.name(name)
        for name in ("runs", "approvals", "events", "results", "catalog", "dead-letters")
    }
    assert not set(first) & set(second), "each topic was created by one of the two"
    assert await ensure_topics(settings) == ()
    async with admin(settings) as client:
        described = {t["topic"]: t for t in await client.describe_topics([*first, *second])}
        assert len(described[settings.topics.runs]["partitions"]) == 12
        assert len(described[settings.topics.catalog]["partitions"]) == 1
        resource = ConfigResource(ConfigResourceType.TOPIC, settings.topics.catalog, {"cleanup.policy": None})
        answers = await client.describe_configs([resource])
        assert answers[0].resources[0][4][0][1] == "compact"


async def test_a_topic_that_differs_is_reported_and_left_alone(
    kafka: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = fresh(kafka, "differs")
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    await client.create_topics(
        [NewTopic(settings.topics.catalog, 1, 1), NewTopic(settings.topics.runs, 2, 1)]
    )
    await client.close()
    with caplog.at_level(logging.WARNING, "towline"):
        await ensure_topics(settings, partitions=3)
    reported = {(r.topic, r.setting) for r in caplog.records if r.message == "topic_differs"}  # pyright: ignore[reportAttributeAccessIssue]
    assert reported == {(settings.topics.catalog, "cleanup.policy"), (settings.topics.runs, "partitions")}


async def test_a_service_takes_topics_with_as_many_partitions_as_they_were_given(
    kafka: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = fresh(kafka, "fewer")
    await ensure_topics(settings, partitions=3)
    with caplog.at_level(logging.WARNING, "towline"):
        await ensure_topics(settings)
        await ensure_topics(settings, partitions=2, insists=False)
    assert [record for record in caplog.records if record.message == "topic_differs"] == []


async def test_a_broker_that_is_away_is_named() -> None:
    settings = KafkaSettings(bootstrap="127.0.0.1:1")
    with pytest.raises(KafkaUnavailableError, match=r"127\.0\.0\.1:1 within 0\.5 s.*TOWLINE_KAFKA_BOOTSTRAP"):
        await ensure_topics(settings, timeout_s=0.5)
    with pytest.raises(KafkaUnavailableError):
        await EventProducer(settings, start_timeout_s=0.5).start()


async def test_a_broker_that_goes_away_while_topics_are_looked_at_is_away(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by chaos: a bridge that started as its network was parted ended with aiokafka's error."""

    async def gone(_: AIOKafkaAdminClient) -> list[str]:
        raise NodeNotReadyError

    monkeypatch.setattr(AIOKafkaAdminClient, "list_topics", gone)
    with pytest.raises(KafkaUnavailableError, match="went away"):
        await ensure_topics(KafkaSettings(bootstrap=kafka, topic_prefix="away."))


@pytest.mark.slow
async def test_a_broker_that_creates_topics_by_itself_is_not_made_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka's default: a misspelt prefix would get topics of its own."""
    by_itself = {**kafka_config._SETTINGS, "auto.create.topics.enable": "true"}
    monkeypatch.setattr(kafka_config, "_SETTINGS", by_itself)
    with KafkaPart(data=tmp_path / "kafka") as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap, topic_prefix="misspelt.")
        async with EventProducer(settings, delivery_timeout_s=2.0) as producer:
            with pytest.raises(PublishError, match="no acknowledgement"):
                await producer.send(started("r-1"))
        async with TowlineClient(settings) as client:
            with pytest.raises(KafkaUnavailableError, match="create the topics, or set another topic prefix"):
                await anext(client.results("g"))
        async with admin(settings) as asking:
            assert await asking.list_topics() == []
        assert len(await ensure_topics(settings)) == len(TOPICS)


async def test_events_go_to_their_topic_in_order(kafka_settings: KafkaSettings) -> None:
    many = [Event(id=f"r/progress/{n}", source="t", data=started("r").data) for n in range(300)]
    async with EventProducer(kafka_settings) as producer:
        await producer.send_many([*many, completed("r")])
        await asyncio.gather(*(producer.send(completed(f"c-{n}")) for n in range(100)))
    events = await read_all(kafka_settings, kafka_settings.topics.events)
    assert [dict(r.headers)["ce_id"] for r in events] == [event.id.encode() for event in many]
    results = await read_all(kafka_settings, kafka_settings.topics.results)
    assert {r.key for r in results} == {b"r", *(b"c-%d" % n for n in range(100))}
    assert decode(key=None, value=results[0].value, headers=results[0].headers)


async def test_an_event_larger_than_a_record_may_be_is_refused(kafka_settings: KafkaSettings) -> None:
    async with EventProducer(kafka_settings) as producer:
        with pytest.raises(EncodeError, match="at most 1000000 are allowed"):
            await producer.send(completed("r", "x" * 1_000_000))
        await producer.send(completed("r", "x" * 990_000))


async def test_an_event_larger_than_the_topic_takes_is_refused(kafka: str) -> None:
    settings = fresh(kafka, "small")
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    await client.create_topics(
        [NewTopic(settings.topics.results, 1, 1, topic_configs={"max.message.bytes": "10000"})]
    )
    await client.close()
    async with EventProducer(settings) as producer:
        with pytest.raises(EncodeError, match=r"max\.message\.bytes"):
            await producer.send(completed("big", "x" * 20_000))
        await producer.send(completed("small"))
    assert [r.key for r in await read_all(settings, settings.topics.results)] == [b"small"]


async def test_an_unencodable_event_stops_the_whole_batch_before_anything_is_sent(
    kafka_settings: KafkaSettings,
) -> None:
    bad = Event(id="", source="t", data=RunRequested(run_id="r", run_type="a"))
    async with EventProducer(kafka_settings) as producer:
        with pytest.raises(EncodeError):
            await producer.send_many([completed("r"), bad])
    assert await read_all(kafka_settings, kafka_settings.topics.results) == []


async def test_any_record_can_be_put_aside(kafka_settings: KafkaSettings) -> None:
    topic = kafka_settings.topics.dead_letters
    async with EventProducer(kafka_settings) as producer:
        for record in (Record(None, None, (("x", b"y"),)), Record(b"k", None, ()), Record(None, b"\xff", ())):
            await producer.send_record(topic, record, name="dead letter")
    found = [(r.key, r.value, r.headers) for r in await read_all(kafka_settings, topic)]
    assert found == [(b"", None, (("x", b"y"),)), (b"k", None, ()), (None, b"\xff", ())]


async def test_a_producer_that_is_not_open_says_so(kafka_settings: KafkaSettings) -> None:
    producer = EventProducer(kafka_settings)
    with pytest.raises(PublishError, match="not started"):
        await producer.send(completed("r"))
    await producer.start()
    await producer.stop()
    await producer.stop()
    with pytest.raises(PublishError, match="stopped"):
        await producer.send(completed("r"))


async def test_a_producer_that_a_fatal_error_ended_is_replaced(kafka_settings: KafkaSettings) -> None:
    async with EventProducer(kafka_settings) as producer:
        await producer.send(completed("before"))
        broken = producer._producer
        assert isinstance(broken, AIOKafkaProducer)
        # What aiokafka does when its sender ends by an error of the idempotent protocol.
        broken._message_accumulator.fail_all(KafkaError("out of order"))
        await asyncio.gather(*(producer.send(completed(f"after-{n}")) for n in range(20)))
        assert producer._producer is not broken
    keys = {r.key for r in await read_all(kafka_settings, kafka_settings.topics.results)}
    assert keys == {b"before", *(b"after-%d" % n for n in range(20))}


@pytest.mark.slow
async def test_sends_over_a_killed_broker_fail_in_time_or_arrive(own_kafka: KafkaPart) -> None:
    with own_kafka:
        settings = KafkaSettings(bootstrap=own_kafka.bootstrap)
        await ensure_topics(settings, partitions=3)
        async with EventProducer(settings, delivery_timeout_s=1.0) as impatient:
            async with EventProducer(settings, delivery_timeout_s=60.0) as patient:
                await patient.send(completed("before"))
                await impatient.send(completed("before"))
                own_kafka.kill()
                begun = time.monotonic()
                with pytest.raises(PublishError, match="send it again") as caught:
                    await impatient.send(completed("late"))
                assert time.monotonic() - begun < 3.0
                assert caught.value.event_id == "late/outcome"
                waiting = [asyncio.create_task(patient.send(completed(f"over-{n}"))) for n in range(50)]
                await asyncio.to_thread(own_kafka.start)
                await asyncio.gather(*waiting)
            await asyncio.wait_for(_sent_again(impatient), 30)
        keys = [r.key for r in await read_all(settings, settings.topics.results)]
        assert {b"before", b"late", *(b"over-%d" % n for n in range(50))} == set(keys)


async def _sent_again(producer: EventProducer) -> None:
    while True:
        try:
            return await producer.send(completed("late"))
        except PublishError:
            continue


@pytest.mark.slow
async def test_stopping_while_the_broker_is_away_is_bounded(own_kafka: KafkaPart) -> None:
    with own_kafka:
        settings = KafkaSettings(bootstrap=own_kafka.bootstrap)
        await ensure_topics(settings, partitions=1)
        producer = EventProducer(settings, delivery_timeout_s=3)
        await producer.start()
        await producer.send(completed("before"))
        own_kafka.kill()
        with pytest.raises(PublishError):
            await producer.send(completed("lost"))
        before = asyncio.all_tasks()
        begun = time.monotonic()
        await producer.stop()
        assert time.monotonic() - begun < 12.0
        assert not {task for task in asyncio.all_tasks() - before if not task.done()}
