"""Delivery against FastStream's default subscriber: a handler that does nothing, one process each.

    python benchmarks/delivery.py [--bootstrap HOST:PORT] [--messages N] [--long N] [--runs N]

Each side consumes the same records of one topic with 12 partitions, keyed by run, from its beginning, in a
process of its own, and reports messages/s, CPU per message and resident memory. `--long` consumes that
many more with ours alone and reports memory over time: it must stay flat.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import time
import uuid
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from towline.contracts.settings import KafkaSettings

PARTITIONS = 12
VALUE = json.dumps({"run_id": "r", "run_type": "agent.Writer", "input": {"message": "x" * 200}}).encode()


def resident_mb() -> float:
    """Resident memory now, in MB."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Meter:
    """Counts messages and knows when all have come."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0
        self.done = asyncio.Event()
        self.began = 0.0
        self.cpu = 0.0
        self.memory: list[float] = []

    def tick(self) -> None:
        """One message handled."""
        if self.count == 0:
            self.began, self.cpu = time.perf_counter(), time.process_time()
        self.count += 1
        if self.count % max(1, self.total // 10) == 0:
            self.memory.append(round(resident_mb(), 1))
        if self.count == self.total:
            self.done.set()

    def report(self) -> dict[str, Any]:
        """The figures."""
        seconds, cpu = time.perf_counter() - self.began, time.process_time() - self.cpu
        return {
            "messages": self.count,
            "messages_per_s": round(self.count / seconds),
            "cpu_us_per_message": round(cpu / self.count * 1e6, 1),
            "resident_mb": self.memory,
            "resident_mb_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
        }


async def ours(bootstrap: str, topic: str, total: int) -> dict[str, Any]:
    """The delivery consumer."""
    from towline.delivery import DONE, Consumer, ConsumerOptions, DeadLetter, Delivery, KafkaRecord, Outcome

    meter = Meter(total)

    async def handle(_delivery: Delivery[None]) -> Outcome:
        meter.tick()
        return DONE

    async def dead_letter(_record: KafkaRecord, letter: DeadLetter) -> None:
        raise AssertionError(letter)

    consumer = Consumer(
        KafkaSettings(bootstrap=bootstrap),
        ConsumerOptions(group_id=f"bench-{uuid.uuid4().hex[:8]}", topics=(topic,)),
        read=lambda record: (record.key, None),
        handle=handle,
        dead_letter=dead_letter,
    )
    task = asyncio.create_task(consumer.run())
    await meter.done.wait()
    result = meter.report()
    consumer.stop()
    await task
    return result


async def faststream(bootstrap: str, topic: str, total: int) -> dict[str, Any]:
    """FastStream with its default acknowledgement policy, which commits after each message."""
    from faststream import AckPolicy
    from faststream.kafka import KafkaBroker

    meter = Meter(total)
    broker = KafkaBroker(bootstrap, logger=None)

    @broker.subscriber(
        topic,
        group_id=f"bench-{uuid.uuid4().hex[:8]}",
        auto_offset_reset="earliest",
        no_reply=True,
        ack_policy=AckPolicy.ACK,
    )
    async def handle(_body: bytes) -> None:
        meter.tick()

    await broker.start()
    await meter.done.wait()
    result = meter.report()
    await broker.stop()
    return result


SIDES = {"ours": ours, "faststream": faststream}


async def fill(bootstrap: str, topic: str, total: int) -> None:
    """Create the topic with `total` records."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic(topic, PARTITIONS, 1)])
    await admin.close()
    await asyncio.sleep(0.5)
    producer: Any = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, max_batch_size=256 * 1024)
    await producer.start()
    for number in range(total):
        await producer.send(topic, value=VALUE, key=f"run-{number}".encode(), headers=[("ce_id", b"1")])
    await producer.stop()


def in_a_process(side: str, bootstrap: str, topic: str, total: int) -> dict[str, Any]:
    """Run one side alone and return its report."""
    command = [sys.executable, __file__, "--side", side, "--topic", topic]
    command += ["--bootstrap", bootstrap, "--messages", str(total)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1800)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bootstrap", default=os.environ.get("TOWLINE_KAFKA_BOOTSTRAP", "127.0.0.1:9092"))
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--side", choices=sorted(SIDES))
    parser.add_argument("--topic")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if options.side:
        report = asyncio.run(SIDES[options.side](options.bootstrap, options.topic, options.messages))
        print(json.dumps(report))
        return
    topic = f"bench-{uuid.uuid4().hex[:8]}"
    asyncio.run(fill(options.bootstrap, topic, max(options.messages, options.long)))
    rates: dict[str, list[int]] = {side: [] for side in SIDES}
    for _ in range(options.runs):
        for side in SIDES:
            report = in_a_process(side, options.bootstrap, topic, options.messages)
            rates[side].append(report["messages_per_s"])
            print(side, json.dumps(report), flush=True)
    ratio = sorted(rates["ours"])[options.runs // 2] / sorted(rates["faststream"])[options.runs // 2]
    print(f"ours is {ratio:.1f} times as fast (median of {options.runs})")
    if options.long:
        report = in_a_process("ours", options.bootstrap, topic, options.long)
        print("long", json.dumps(report))
    if ratio < 10:
        raise SystemExit("target missed: at least 10 times")


if __name__ == "__main__":
    main()
