"""Streams for downstream consumers: at least once, repeats dropped, bad records passed over."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faststream import AckPolicy
from faststream.kafka import KafkaBroker
from tests.integration.contracts.broker import own_broker
from tests.integration.contracts.raw import (
    completed,
    grow,
    raw_producer,
    started,
    write_unreadable,
)
from tests.waiting import eventually_async

from towline.contracts import (
    ClientError,
    Event,
    EventProducer,
    EventStream,
    KafkaSettings,
    RunOutcome,
    RunProgressed,
    TowlineClient,
    encode,
    streams,
)
from towline.contracts.faststream import decoder, parser
from towline.contracts.payloads import open_payload_store
from towline.contracts.payloads.claim_check import checked_in

TIMEOUT_S = 30.0


async def take(stream: EventStream[RunOutcome], count: int) -> list[str]:
    async with asyncio.timeout(TIMEOUT_S):
        return [(await anext(stream)).data.run_id for _ in range(count)]


async def test_a_group_goes_on_where_it_stopped(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        await platform.send_many([completed(f"r-{n}") for n in range(30)])
        async with client.results("g") as stream:
            first = await take(stream, 20)
        async with client.results("g") as stream:
            second = await take(stream, 11)
        # The twentieth was not followed by a request for the next one: it was not handled for certain.
        assert Counter(first + second) == Counter([*(f"r-{n}" for n in range(30)), first[-1]])


async def test_what_is_handled_is_committed_within_a_second_though_more_is_in_hand(
    kafka_settings: KafkaSettings,
) -> None:
    partition = TopicPartition(kafka_settings.topics.results, 0)
    looking = AIOKafkaConsumer(
        bootstrap_servers=kafka_settings.bootstrap, group_id="slow", enable_auto_commit=False
    )
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        for number in range(200):
            record = encode(completed(f"r-{number}"))
            await platform.send_record(partition.topic, record, name="outcome", partition=partition.partition)
        await looking.start()
        try:
            async with asyncio.timeout(TIMEOUT_S), client.results("slow") as stream:
                handled = 0
                while not await looking.committed(partition):
                    await anext(stream)
                    handled += 1
                    assert handled < 100, "all came with one poll"
                    await asyncio.sleep(0.05)  # what its handling takes
        finally:
            await looking.stop()


async def test_another_group_and_no_group_get_everything(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        await platform.send(completed("early"))
        middle = datetime.now(UTC)
        latest = client.results(start="latest")
        async with latest:
            await platform.send(completed("late"))
            # The two runs may sit in two partitions: their order between each other is not promised.
            assert set(await take(client.results("g1"), 2)) == {"early", "late"}
            assert set(await take(client.results("g2"), 2)) == {"early", "late"}
            assert set(await take(client.results(), 2)) == {"early", "late"}
            assert await take(client.results(since=middle), 1) == ["late"]
            assert await take(latest, 1) == ["late"]


async def test_repeats_are_dropped_as_far_as_is_remembered(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, raw_producer(kafka_settings) as raw:
        for event in (
            completed("a", 1),
            completed("a", 2),
            completed("b"),
            completed("a", 3),
            completed("end"),
        ):
            record = encode(event)
            headers = list(record.headers)
            await raw.send_and_wait(kafka_settings.topics.results, record.value, partition=0, headers=headers)
        stream = client.results()
        assert await take(stream, 3) == ["a", "b", "end"]
        assert stream.repeat_count == 2
        assert await take(client.results(remember=1), 4) == ["a", "b", "a", "end"]


async def test_bad_records_are_reported_and_never_stop_the_stream(
    kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    results = kafka_settings.topics.results
    async with (
        TowlineClient(kafka_settings) as client,
        EventProducer(kafka_settings) as platform,
        raw_producer(kafka_settings) as raw,
    ):
        await platform.send_many([completed(f"r-{n}") for n in range(20)])
        for partition in range(3):
            await raw.send_and_wait(results, None, key=b"k", partition=partition)
            await raw.send_and_wait(results, b"{", partition=partition, headers=[("ce_id", b"\xff")])
            await write_unreadable(raw, results, partition)
        await platform.send_many([completed(f"s-{n}") for n in range(20)])
        with caplog.at_level(logging.WARNING, "towline"):
            stream = client.results("g")
            seen = await take(stream, 40)
        assert Counter(seen) == Counter([*(f"r-{n}" for n in range(20)), *(f"s-{n}" for n in range(20))])
        assert stream.undecodable_count == 9
        reported = Counter(record.message for record in caplog.records)
        assert reported["record_undecodable"] == 9
        assert reported["record_unreadable"] == 3


async def test_members_of_a_group_share_and_lose_nothing_when_one_leaves(
    kafka_settings: KafkaSettings,
) -> None:
    seen: Counter[str] = Counter()

    async def consume(stream: EventStream[RunOutcome], limit: int | None = None) -> int:
        handled = 0
        async for event in stream:
            seen[event.data.run_id] += 1
            handled += 1
            if limit is not None and handled >= limit:
                break
        await stream.aclose()
        return handled

    async with (
        TowlineClient(kafka_settings) as client,
        TowlineClient(kafka_settings) as leaving,
        EventProducer(kafka_settings) as platform,
    ):
        staying = asyncio.create_task(consume(client.results("g")))
        other = asyncio.create_task(consume(leaving.results("g"), limit=30))
        for n in range(300):
            await platform.send(completed(f"r-{n}"))
        await eventually_async(lambda: len(seen) >= 200, timeout_s=60)
        other.cancel()
        await leaving.__aexit__(None, None, None)
        await eventually_async(lambda: len(seen) == 300, timeout_s=60)
        staying.cancel()
        await asyncio.gather(staying, other, return_exceptions=True)
    assert seen.total() < 450, "what was handled and committed is not handled again"


async def test_a_topic_that_grows_is_followed(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_GROWTH_CHECK_S", 0.1)
    monkeypatch.setattr("towline.contracts.consumers.METADATA_MAX_AGE_MS", 200)
    async with TowlineClient(kafka_settings) as client, raw_producer(kafka_settings) as raw:
        stream = client.results(start="latest")
        async with stream:
            following = asyncio.create_task(take(stream, 1))
            await grow(kafka_settings, kafka_settings.topics.results, 5)
            await eventually_async(lambda: _has_partition(raw, kafka_settings.topics.results, 4))
            record = encode(completed("grown"))
            await raw.send_and_wait(
                kafka_settings.topics.results, record.value, partition=4, headers=list(record.headers)
            )
            assert await following == ["grown"]


async def test_a_runs_events_go_on_in_partitions_that_its_topics_have_grown(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_GROWTH_CHECK_S", 0.1)
    monkeypatch.setattr("towline.contracts.consumers.METADATA_MAX_AGE_MS", 200)
    topics = kafka_settings.topics
    async with (
        TowlineClient(kafka_settings) as client,
        EventProducer(kafka_settings) as platform,
        raw_producer(kafka_settings) as raw,
    ):
        run = await client.start("a", run_id="r-1")
        events = run.events()
        await platform.send(started("r-1"))
        async with asyncio.timeout(TIMEOUT_S):
            assert (await anext(events)).id == "r-1/started"
            for topic in (topics.events, topics.results):
                await grow(kafka_settings, topic, 5)
                await eventually_async(lambda topic=topic: _has_partition(raw, topic, 4))
            progress = Event(id="r-1/progress/1", source="t", data=RunProgressed(run_id="r-1", status=1))
            for topic, event in ((topics.events, progress), (topics.results, completed("r-1"))):
                record = encode(event)
                await raw.send_and_wait(
                    topic, record.value, key=record.key, partition=4, headers=list(record.headers)
                )
            assert [event.id async for event in events] == ["r-1/progress/1", "r-1/outcome"]


async def _has_partition(raw: AIOKafkaProducer, topic: str, number: int) -> bool:
    await raw.client.force_metadata_update()
    return number in await raw.partitions_for(topic)


async def test_lifecycle_events_have_a_stream_of_their_own(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client, EventProducer(kafka_settings) as platform:
        await platform.send_many([completed("r-1"), started("r-1")])
        event = await asyncio.wait_for(anext(client.events("g")), TIMEOUT_S)
        assert event.type == "towline.run.started.v1"


async def test_a_closed_stream_is_forgotten_by_its_client(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client:
        async with client.results() as stream:
            pass
        forgotten = weakref.ref(stream)
        del stream
        gc.collect()
        assert forgotten() is None


async def test_a_closed_stream_is_not_opened_again(kafka_settings: KafkaSettings) -> None:
    async with TowlineClient(kafka_settings) as client:
        stream = client.results()
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        with pytest.raises(ClientError, match="closed"):
            await stream.__aenter__()


@pytest.mark.slow
async def test_a_group_survives_a_killed_broker(tmp_path: Path) -> None:
    async with own_broker(tmp_path) as (kafka, client, platform):
        await platform.send(completed("before"))
        stream = client.results("g")
        assert await take(stream, 1) == ["before"]
        waiting = asyncio.create_task(anext(stream))
        kafka.kill()
        await asyncio.to_thread(kafka.start)
        await platform.send(completed("after"))
        event = await asyncio.wait_for(waiting, 90)
        assert event.data.run_id == "after"


@pytest.mark.parametrize("where", ["subscriber", "broker"])
async def test_faststream_subscribers_get_typed_events(kafka_settings: KafkaSettings, where: str) -> None:
    results = kafka_settings.topics.results
    ours = {"decoder": decoder, "parser": parser}
    broker = KafkaBroker(kafka_settings.bootstrap, **(ours if where == "broker" else {}))  # pyright: ignore[reportArgumentType]
    received: asyncio.Queue[Event[RunOutcome]] = asyncio.Queue()

    @broker.subscriber(
        results,
        group_id=f"faststream-{where}",
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.ACK,
        no_reply=True,
        **(ours if where == "subscriber" else {}),
    )
    async def on_outcome(event: Event[RunOutcome]) -> None:
        await received.put(event)

    async with EventProducer(kafka_settings) as platform, raw_producer(kafka_settings) as raw:
        await platform.send(completed("r-1", {"n": 1}))
        await raw.send_and_wait(results, b"{", key=b"r-1")
        await raw.send_and_wait(results, None, key=b"r-1", headers=[("x", b"\xff"), ("y", None)])
        await platform.send(completed("r-1", {"n": 2}))
    async with broker:
        await broker.start()
        got = [await asyncio.wait_for(received.get(), TIMEOUT_S) for _ in range(2)]
    assert [event.data.output for event in got] == [{"n": 1}, {"n": 2}]  # pyright: ignore[reportAttributeAccessIssue]
    assert got[0].time is not None, "the producer gives an event without a time the present one"
    assert got[0] == Event(
        id="r-1/outcome",
        source="tests",
        subject="r-1",
        data=completed("r-1", {"n": 1}).data,
        time=got[0].time,
    )


async def test_a_faststream_subscriber_of_batches_is_told_to_take_single_records(
    kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    broker = KafkaBroker(kafka_settings.bootstrap)

    @broker.subscriber(
        kafka_settings.topics.results,
        auto_offset_reset="earliest",
        batch=True,
        decoder=decoder,  # pyright: ignore[reportArgumentType]
        parser=parser,  # pyright: ignore[reportArgumentType]
        no_reply=True,
    )
    async def on_outcomes(events: list[Event[RunOutcome]]) -> None:
        raise AssertionError(events)

    async with EventProducer(kafka_settings) as platform:
        await platform.send(completed("r-1"))
    async with broker:
        await broker.start()
        await eventually_async(lambda: "subscribe without batch=True" in caplog.text, timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("open_for_ms", [0, 1, 3, 5, 8, 12, 20, 50])
async def test_a_client_that_is_closed_while_it_connects_ends_every_wait_and_leaves_nothing_open(
    kafka_settings: KafkaSettings, open_for_ms: int
) -> None:
    before = open_consumers()
    async with TowlineClient(kafka_settings) as client:
        waits = [
            asyncio.create_task(client.run("r-1").result()),
            asyncio.create_task(anext(client.results("g"))),
            asyncio.create_task(anext(client.results())),
        ]
        await asyncio.sleep(open_for_ms / 1000)
    async with asyncio.timeout(TIMEOUT_S):
        ended = await asyncio.gather(*waits, return_exceptions=True)
    assert [type(one) for one in ended] == [ClientError, StopAsyncIteration, StopAsyncIteration]
    await eventually_async(lambda: open_consumers() == before, timeout_s=TIMEOUT_S)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("towline-")]


async def test_a_stream_that_is_broken_off_while_it_opens_leaves_no_consumer_behind(
    kafka_settings: KafkaSettings,
) -> None:
    missing = kafka_settings.model_copy(update={"topic_prefix": "missing."})
    async with TowlineClient(missing) as client:
        before = open_consumers()
        stream = client.results("g")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                # Connected long before: the topic is what it waits for.
                await asyncio.wait_for(anext(stream), 1)
        await eventually_async(lambda: open_consumers() == before, timeout_s=TIMEOUT_S)


def open_consumers() -> int:
    return sum(isinstance(one, AIOKafkaConsumer) and not one._closed for one in gc.get_objects())


def test_the_faststream_decoder_fetches_payloads_on_one_event_loop_after_another(
    valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a test suite, which gives each test a loop of its own."""
    monkeypatch.setenv("TOWLINE_PAYLOADS_URL", valkey)

    async def decoded(number: int) -> Event:
        store = open_payload_store()
        assert store is not None
        async with store:
            event = completed(f"r-{number}", "x" * 1000)
            record = await checked_in(encode(event), event.id, store)
        return await decoder(SimpleNamespace(raw_message=record))

    assert [asyncio.run(decoded(number)).id for number in range(2)] == ["r-0/outcome", "r-1/outcome"]


@pytest.mark.slow
async def test_a_stream_is_closed_though_kafka_is_away(tmp_path: Path) -> None:
    async with own_broker(tmp_path) as (kafka, client, platform):
        await platform.send_many([completed("one"), completed("two")])
        stream = client.results("g")
        await take(stream, 2)
        await asyncio.to_thread(kafka.kill)
        async with asyncio.timeout(25):
            await stream.aclose()


@pytest.mark.slow
async def test_a_client_of_many_streams_is_closed_as_soon_as_one_of_a_single_one(tmp_path: Path) -> None:
    async with own_broker(tmp_path) as (kafka, client, platform):
        await platform.send_many([completed("one"), completed("two")])
        for number in range(6):
            await take(client.results(f"g{number}"), 2)
        await asyncio.to_thread(kafka.kill)
        async with asyncio.timeout(15):
            await client.__aexit__(None, None, None)
