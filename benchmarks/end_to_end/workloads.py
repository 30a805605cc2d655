"""The workloads: what is asked for, and the check of every answer."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from benchmarks.end_to_end.job import expected
from benchmarks.end_to_end.processes import PeakMemory, cpu_ms, machine_busy_ms
from benchmarks.end_to_end.systems.base import Kind, Message, System
from benchmarks.end_to_end.yardstick import yardstick_ms

_SILENCE_S: Final = 60.0
"""No answer for this long: what is missing is lost."""
_SETTLE_S: Final = 2.0
"""After the last answer: duplicates, and work that the answers did not wait for, come within."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One workload on one system."""

    workload: str
    system: str
    runs: int
    model_ms: int
    seconds: float
    lost: int
    duplicates: int
    wrong: int
    cpu_ms_per_run: dict[str, float]
    own_cpu_ms_per_run: float
    """Of all processes but Kafka and Redis."""
    peak_mb: dict[str, float]
    load: float
    """Load average of the last minute."""
    yardstick_ms: float
    """What one agent turn alone cost in CPU time, before and after; see `yardstick`."""
    others_cores: float
    """Cores that were kept busy by others than the system (the load generator included)."""
    latency_ms: dict[str, float] = field(default_factory=dict[str, float])

    @property
    def runs_per_s(self) -> float:
        """Throughput."""
        return self.runs / self.seconds


@dataclass(slots=True)
class _Seen:
    asks: dict[str, str] = field(default_factory=dict[str, str])
    outputs: dict[str, Any] = field(default_factory=dict[str, Any])
    at: dict[str, float] = field(default_factory=dict[str, float])
    times: Counter[str] = field(default_factory=Counter[str])


class Load:
    """Publishes requests and reads what a system says. Belongs to one event loop."""

    def __init__(self, system: System, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer) -> None:
        self.system = system
        self._producer = producer
        self._consumer = consumer
        self._seen = _Seen()
        self._news = asyncio.Condition()

    async def read(self) -> None:
        """Read until cancelled."""
        while True:
            for records in (await self._consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    self._note(record)
            async with self._news:
                self._news.notify_all()

    def _note(self, record: Any) -> None:
        said = self.system.read(record)
        if said is None:
            return
        if said.asks is not None:
            self._seen.asks[said.run_id] = said.asks
            return
        self._seen.times[said.run_id] += 1
        self._seen.outputs.setdefault(said.run_id, said.output)
        self._seen.at.setdefault(said.run_id, time.perf_counter())

    async def publish(self, messages: Iterable[Message]) -> None:
        """Hand all over, then wait for the acknowledgements."""
        sent = [
            await self._producer.send(
                message.topic, value=message.value, key=message.key, headers=list(message.headers)
            )
            for message in messages
        ]
        await asyncio.gather(*sent)

    async def answered(self, run_ids: Iterable[str]) -> None:
        """Wait for the outcome of each, or for silence."""
        await self._until(lambda missing: missing - self._seen.outputs.keys(), set(run_ids))

    async def asked(self, run_ids: Iterable[str]) -> dict[str, str]:
        """Wait until each asks for a decision; the approvals by run."""
        wanted = set(run_ids)
        await self._until(lambda missing: missing - self._seen.asks.keys(), wanted)
        return {run_id: self._seen.asks[run_id] for run_id in wanted & self._seen.asks.keys()}

    async def _until(self, left: Any, missing: set[str]) -> None:
        async with self._news:
            last, since = len(missing) + 1, time.monotonic()
            while missing := left(missing):
                if len(missing) < last:
                    last, since = len(missing), time.monotonic()
                if time.monotonic() - since > _SILENCE_S:
                    return
                await self._news.wait()

    def answered_at(self, run_id: str) -> float | None:
        """When the outcome was read (`time.perf_counter`)."""
        return self._seen.at.get(run_id)

    def check(self, messages: dict[str, str]) -> tuple[int, int, int]:
        """How many outcomes are missing, came more than once, are wrong."""
        seen = self._seen
        lost = sum(run_id not in seen.outputs for run_id in messages)
        duplicates = sum(seen.times[run_id] - 1 for run_id in messages if run_id in seen.outputs)
        wrong = sum(
            run_id in seen.outputs and seen.outputs[run_id] != expected(message)
            for run_id, message in messages.items()
        )
        return lost, duplicates, wrong


@asynccontextmanager
async def load(system: System) -> AsyncGenerator[Load]:
    """A load generator that listens from now on."""
    producer = AIOKafkaProducer(bootstrap_servers=system.bootstrap, acks="all", linger_ms=2)
    consumer = AIOKafkaConsumer(bootstrap_servers=system.bootstrap, auto_offset_reset="earliest")
    await producer.start()
    await consumer.start()
    reading: asyncio.Task[None] | None = None
    try:
        partitions = [
            TopicPartition(topic, number)
            for topic in system.listens
            for number in await producer.partitions_for(topic)
        ]
        consumer.assign(partitions)
        generator = Load(system, producer, consumer)
        reading = asyncio.create_task(generator.read())
        yield generator
    finally:
        if reading is not None:
            reading.cancel()
        await consumer.stop()
        await producer.stop()


async def warm_up(generator: Load, count: int = 50) -> None:
    """Imports, connections and caches are paid for before anything is measured."""
    messages = {f"warm-{n}": f"w{n}" for n in range(count)}
    system = generator.system
    await generator.publish(system.request(run_id, "answer", text) for run_id, text in messages.items())
    await generator.answered(messages)
    if any(generator.check(messages)):
        raise RuntimeError(f"{system.name}: warming up: lost, duplicate, wrong: {generator.check(messages)}")


async def one_in_flight(generator: Load, runs: int) -> Measured:
    """One run after the other, from handing the request over to reading the outcome."""
    latencies: list[float] = []

    async def work(messages: dict[str, str]) -> float:
        began = time.perf_counter()
        for run_id, text in messages.items():
            asked_at = time.perf_counter()
            await generator.publish([generator.system.request(run_id, "answer", text)])
            await generator.answered([run_id])
            answered_at = generator.answered_at(run_id)
            latencies.append((answered_at or float("inf")) - asked_at)
        return time.perf_counter() - began

    return await _measure(generator, "one in flight", runs, work, latencies)


async def at_once(generator: Load, runs: int) -> Measured:
    """All requests at once."""

    async def work(messages: dict[str, str]) -> float:
        requests = _requests(generator.system, "answer", messages)
        began = time.perf_counter()
        await generator.publish(requests)
        await generator.answered(messages)
        return time.perf_counter() - began

    return await _measure(generator, "at once", runs, work)


async def approvals(generator: Load, runs: int) -> Measured:
    """All requests at once; when all wait for their approval, all decisions at once."""

    async def work(messages: dict[str, str]) -> float:
        requests = _requests(generator.system, "approved_answer", messages)
        began = time.perf_counter()
        await generator.publish(requests)
        asked = await generator.asked(messages)
        await generator.publish([generator.system.decide(*pair) for pair in asked.items()])
        await generator.answered(messages)
        return time.perf_counter() - began

    return await _measure(generator, "approvals", runs, work)


def _requests(system: System, kind: Kind, messages: dict[str, str]) -> list[Message]:
    return [system.request(run_id, kind, text) for run_id, text in messages.items()]


async def _measure(
    generator: Load, workload: str, runs: int, work: Any, latencies: list[float] | None = None
) -> Measured:
    system = generator.system
    tag = f"{workload.replace(' ', '-')}-{time.time_ns()}"
    messages = {f"{tag}-{number}": f"message {number}" for number in range(runs)}
    processes = dict(system.processes)
    yardstick = await asyncio.to_thread(yardstick_ms)
    before = {name: cpu_ms(pid) for name, pid in processes.items()}
    busy_before, clock_before = machine_busy_ms(), time.perf_counter()
    with PeakMemory(lambda: processes) as memory:
        seconds = await work(messages)
        await asyncio.sleep(_SETTLE_S)
    used = {name: cpu_ms(pid) - before[name] for name, pid in processes.items()}
    elapsed_ms = (time.perf_counter() - clock_before) * 1000
    yardstick = (yardstick + await asyncio.to_thread(yardstick_ms)) / 2
    lost, duplicates, wrong = generator.check(messages)
    return Measured(
        workload=workload,
        system=system.name,
        runs=runs,
        model_ms=system.model_ms,
        seconds=seconds,
        lost=lost,
        duplicates=duplicates,
        wrong=wrong,
        cpu_ms_per_run={name: ms / runs for name, ms in used.items()},
        own_cpu_ms_per_run=sum(used[name] for name in system.own) / runs,
        peak_mb=memory.peak_mb,
        load=os.getloadavg()[0],
        yardstick_ms=yardstick,
        others_cores=max(0.0, machine_busy_ms() - busy_before - sum(used.values())) / elapsed_ms,
        latency_ms=_percentiles(latencies) if latencies else {},
    )


def _percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1000
        for name, part in (("p50", 0.5), ("p99", 0.99))
    }
