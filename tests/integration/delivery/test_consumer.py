"""Nothing lost, per-key order kept: consumers killed, swapped and cut off from a real Kafka."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tests.chaos.links import Link, LinkedKafka, Links
from tests.waiting import eventually_async

from towline.contracts.settings import KafkaSettings
from towline.delivery import DONE, Backoff, Consumer, ConsumerOptions, DeadLetter, Limits, Policy
from towline.dev import KafkaPart, ports

SCRIPT = Path(__file__).with_name("consuming.py")
KEYS = 60


class Log:
    """The consumers' common file of effects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.touch()

    def effects(self) -> list[tuple[str, int, str]]:
        """Key, number and process of each effect, in order."""
        # The last line may be in the middle of being written.
        written = self.path.read_text().rpartition("\n")[0]
        lines = (line.split() for line in written.splitlines())
        return [(key, int(number), process) for key, number, process in lines]

    def count(self) -> int:
        return len({(key, number) for key, number, _ in self.effects()})

    def check(self, per_key: int) -> Counter[tuple[str, int]]:
        """None lost, none before its predecessor; how often each came."""
        highest: dict[str, int] = {}
        for key, number, _ in self.effects():
            assert number <= highest.get(key, -1) + 1, f"{key}: {number} came before {number - 1}"
            highest[key] = max(number, highest.get(key, -1))
        assert highest == {f"key-{n}": per_key - 1 for n in range(KEYS)}
        return Counter((key, number) for key, number, _ in self.effects())


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "effects")


async def make_topic(bootstrap: str, partitions: int = 6) -> str:
    topic = f"d{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)])
    await admin.close()
    return topic


async def publish(bootstrap: str, topic: str, numbers: range) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True)
    await producer.start()
    for number in numbers:
        for key in range(KEYS):
            await producer.send(topic, key=f"key-{key}".encode(), value=str(number).encode())
    await producer.stop()


@asynccontextmanager
async def crew(bootstrap: str, topic: str, log: Log, *, retries: float = 0.02):
    """Start consumer processes; whatever is left at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []
    group = f"g-{topic}"

    def start(address: str = bootstrap) -> subprocess.Popen[bytes]:
        command = [sys.executable, SCRIPT, address, topic, group, log.path, str(retries)]
        process = subprocess.Popen(command)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)


async def stopped(process: subprocess.Popen[bytes]) -> int:
    return await asyncio.to_thread(process.wait, 20)


async def test_killed_consumers_lose_nothing_and_keep_the_order(kafka, log):
    topic = await make_topic(kafka)
    async with crew(kafka, topic, log) as start:
        first, second = start(), start()
        await publish(kafka, topic, range(40))
        await eventually_async(lambda: log.count() > KEYS * 10)
        first.kill()
        third = start()
        await publish(kafka, topic, range(40, 60))
        await eventually_async(lambda: log.count() > KEYS * 50)
        second.send_signal(signal.SIGKILL)
        # For the third alone: the second may have been done with all before.
        await publish(kafka, topic, range(60, 80))
        await eventually_async(lambda: log.count() == KEYS * 80)
        third.terminate()
        assert await stopped(third) == 0
    log.check(80)


async def test_orderly_swaps_repeat_nothing(kafka, log):
    topic = await make_topic(kafka)
    number = 0
    # A record that waits for its retry holds the offset: what was finished behind it would come again.
    async with crew(kafka, topic, log, retries=0) as start:
        on_duty = None
        for _ in range(4):
            relief = start()
            deadline = asyncio.get_running_loop().time() + 30
            # Records keep coming while the partitions change hands.
            while str(relief.pid) not in {process for *_, process in log.effects()}:
                assert asyncio.get_running_loop().time() < deadline, "the relief gets no work"
                await publish(kafka, topic, range(number, number + 2))
                number += 2
                await asyncio.sleep(0.05)
            if on_duty is not None:
                on_duty.terminate()
                assert await stopped(on_duty) == 0
            on_duty = relief
        await eventually_async(lambda: log.count() == KEYS * number)
        on_duty.terminate()
        assert await stopped(on_duty) == 0
    times = log.check(number)
    assert set(times.values()) == {1}


@pytest.mark.slow
async def test_a_broker_killed_and_restarted_is_outlived(tmp_path, log):
    with KafkaPart(data=tmp_path / "kafka") as part:
        topic = await make_topic(part.bootstrap)
        async with crew(part.bootstrap, topic, log) as start:
            process = start()
            await publish(part.bootstrap, topic, range(20))
            await eventually_async(lambda: log.count() > KEYS * 3)
            await asyncio.to_thread(part.kill)
            await asyncio.to_thread(part.start)
            await publish(part.bootstrap, topic, range(20, 40))
            await eventually_async(lambda: log.count() == KEYS * 40, timeout_s=90)
            process.terminate()
            assert await stopped(process) == 0
        log.check(40)


@pytest.mark.slow
async def test_who_was_cut_off_for_longer_than_a_session_handles_nothing_of_what_its_relief_has(
    tmp_path, log
):
    kafka = LinkedKafka(data=tmp_path / "kafka")
    behind = ports.lease()
    link = Link(behind)
    kafka.listeners = {"CUT": (behind, link)}
    with Links({"cut": link}) as links, kafka as part:
        topic = await make_topic(part.bootstrap)
        async with crew(part.bootstrap, topic, log, retries=0) as start:
            cut_off = start(f"127.0.0.1:{link.port}")
            await publish(part.bootstrap, topic, range(2))
            await eventually_async(lambda: log.count() == KEYS * 2)
            links.set_parted("cut", True)
            # Fetched by both: by the one when it is back, by the other when it has the partitions.
            relief = start(part.bootstrap)
            await publish(part.bootstrap, topic, range(2, 12))
            await eventually_async(lambda: log.count() == KEYS * 12)
            links.set_parted("cut", False)
            number = 12
            while str(cut_off.pid) not in {process for _, n, process in log.effects() if n >= 12}:
                assert number < 200, "who was cut off gets no work any more"
                await publish(part.bootstrap, topic, range(number, number + 2))
                number += 2
                await asyncio.sleep(0.2)
            await eventually_async(lambda: log.count() == KEYS * number)
            for process in (cut_off, relief):
                process.terminate()
                assert await stopped(process) == 0
    times = log.check(number)
    assert {times[key, n] for key, n in times if 2 <= n < 12} == {1}


# -- in this process -----------------------------------------------------------------------------------


@asynccontextmanager
async def consuming(bootstrap, topic, handle, *, hold=lambda: None, letters=None, **options):
    async def dead_letter(record, letter: DeadLetter) -> None:
        assert letters is not None, letter
        letters.append((record.key, letter.reason))

    consumer = Consumer(
        KafkaSettings(bootstrap=bootstrap),
        ConsumerOptions(
            group_id=f"g-{topic}",
            topics=(topic,),
            drain_s=2.0,
            policy=Policy(backoff=Backoff(first_s=0.01, longest_s=0.05), failures_max_count=3),
            **options,
        ),
        read=lambda record: (record.key, int(record.value)),
        handle=handle,
        dead_letter=dead_letter,
        hold=hold,
    )
    task = asyncio.create_task(consumer.run())
    try:
        yield consumer
    finally:
        consumer.stop()
        await asyncio.wait_for(task, 15)


async def test_while_a_neighbour_is_away_nothing_is_consumed_and_membership_is_kept(kafka):
    topic = await make_topic(kafka)
    away, handled, joins = ["scheduler away"], [], []

    async def handle(delivery):
        handled.append(delivery.message)
        return DONE

    async with consuming(kafka, topic, handle, hold=lambda: away[0] if away else None) as consumer:
        assigned = consumer.on_assigned
        consumer.on_assigned = lambda partitions: (joins.append(1), assigned(partitions))
        await publish(kafka, topic, range(2))
        await eventually_async(lambda: joins)
        await asyncio.sleep(1.0)
        assert handled == []
        assert consumer.not_ready() == "scheduler away"
        assert consumer.not_alive() is None
        away.clear()
        await eventually_async(lambda: len(handled) == KEYS * 2)
        assert joins == [1]


async def test_a_full_partition_pauses_and_a_slow_lane_holds_up_nobody_else(kafka):
    topic = await make_topic(kafka, partitions=1)
    gate, handled = asyncio.Event(), []

    async def handle(delivery):
        if delivery.record.key == b"key-0":
            await gate.wait()
        handled.append((delivery.record.key, delivery.message))
        return DONE

    limits = Limits(max_queued_count=200, max_running_count=8)
    async with consuming(kafka, topic, handle, limits=limits) as consumer:
        await publish(kafka, topic, range(50))
        await eventually_async(lambda: len(handled) == (KEYS - 1) * 50)
        assert consumer.processor.lanes.held_count() == 50
        gate.set()
        await eventually_async(lambda: len(handled) == KEYS * 50)


@pytest.mark.slow
async def test_a_log_that_lost_its_end_is_read_from_its_beginning_while_old_records_are_open(tmp_path):
    gate, handled, fenced = asyncio.Event(), [], []

    async def handle(delivery):
        if delivery.record.key == b"key-0" and delivery.message == 0:
            await gate.wait()
        handled.append((delivery.record.key, delivery.message))
        fenced.append(delivery.assigned_at is not None)
        return DONE

    with KafkaPart(data=tmp_path / "kafka") as part:
        topic = await make_topic(part.bootstrap, partitions=1)
        async with consuming(part.bootstrap, topic, handle, session_timeout_s=60) as consumer:
            await publish(part.bootstrap, topic, range(4))
            await eventually_async(lambda: len(handled) == (KEYS - 1) * 4)
            await asyncio.to_thread(part.kill)
            (log,) = (tmp_path / "kafka").rglob(f"{topic}-0")
            shutil.rmtree(log)
            await asyncio.to_thread(part.start)
            handled.clear()
            fenced.clear()
            await publish(part.bootstrap, topic, range(10, 12))
            await eventually_async(lambda: len(handled) == KEYS * 2)
            assert any(fenced), "what was published before may have been handled before"
            gate.set()
            await eventually_async(
                lambda: list(consumer.processor.lanes.next_offsets().values()) == [KEYS * 2]
            )
            assert (b"key-0", 1) not in handled


async def test_what_a_publisher_has_taken_back_with_its_transaction_is_not_handled(kafka):
    topic = await make_topic(kafka, partitions=1)
    handled = []

    async def handle(delivery):
        handled.append(delivery.message)
        return DONE

    producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"t-{topic}")
    await producer.start()
    async with consuming(kafka, topic, handle):
        for number, keep in enumerate([True, False, True, False, True]):
            await producer.begin_transaction()
            await producer.send_and_wait(topic, key=b"key-0", value=str(number).encode())
            await (producer.commit_transaction() if keep else producer.abort_transaction())
        await eventually_async(lambda: 4 in handled)
        await producer.stop()
    assert handled == [0, 2, 4]


async def test_a_poison_record_stops_neither_its_partition_nor_its_key(kafka):
    topic = await make_topic(kafka, partitions=1)
    letters, handled = [], []

    async def handle(delivery):
        if delivery.record.key == b"key-1" and delivery.message == 0:
            raise RuntimeError("poison")
        handled.append((delivery.record.key, delivery.message))
        return DONE

    async with consuming(kafka, topic, handle, letters=letters):
        await publish(kafka, topic, range(2))
        await eventually_async(lambda: len(handled) == KEYS * 2 - 1)
    assert letters == [(b"key-1", "handler_failed")]


async def test_a_consumer_waits_for_a_broker_that_is_not_there_yet(tmp_path):
    handled = []

    async def handle(delivery):
        handled.append(delivery.message)
        return DONE

    part = KafkaPart(data=tmp_path / "kafka")
    async with consuming(part.bootstrap, "late", handle) as consumer:
        await asyncio.sleep(1.0)
        assert consumer.not_alive() is None
        assert "is Kafka up?" in consumer.not_ready()
        with part:
            admin = AIOKafkaAdminClient(bootstrap_servers=part.bootstrap)
            await admin.start()
            await admin.create_topics([NewTopic("late", 1, 1)])
            await admin.close()
            await publish(part.bootstrap, "late", range(1))
            await eventually_async(lambda: len(handled) == KEYS)
        # The broker is gone again: stopping is bounded all the same.
