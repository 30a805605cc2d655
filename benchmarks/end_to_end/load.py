"""The load generator: publishes requests, reads what a system says, checks every answer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from benchmarks.end_to_end.job import expected
from benchmarks.end_to_end.systems.base import Message, System

SILENCE_S: Final = 60.0
"""No answer for this long: what is missing is lost."""


@dataclass(slots=True)
class _Heard:
    """What runs have said of one kind."""

    by_run: dict[str, Any] = field(default_factory=dict[str, Any])
    missing: set[str] = field(default_factory=set[str])
    """Runs that are waited for; counted down, so that news cost no more with many of them."""


@dataclass(slots=True)
class _Seen:
    asks: _Heard = field(default_factory=_Heard)
    outputs: _Heard = field(default_factory=_Heard)
    at: dict[str, float] = field(default_factory=dict[str, float])
    times: Counter[str] = field(default_factory=Counter[str])


class Load:
    """Publishes requests and reads what a system says. Belongs to one event loop."""

    def __init__(self, system: System, kafka_pid: int, producer: Any) -> None:
        self.system = system
        self.kafka_pid = kafka_pid
        self._producer = producer
        self._seen = _Seen()
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def listening(self, topics: Sequence[str], *, from_start: bool = False) -> AsyncGenerator[None]:
        """Hear what is said on `topics`: from now on, or all of it."""
        if not topics:
            yield
            return
        consumer: Any = AIOKafkaConsumer(bootstrap_servers=self.system.bootstrap)
        await consumer.start()
        reading: asyncio.Task[None] | None = None
        try:
            partitions = [
                TopicPartition(topic, number)
                for topic in topics
                for number in await self._producer.partitions_for(topic)
            ]
            consumer.assign(partitions)
            await (consumer.seek_to_beginning() if from_start else consumer.seek_to_end())
            reading = asyncio.create_task(self._read(consumer))
            yield
        finally:
            if reading is not None:
                reading.cancel()
            await consumer.stop()

    def deciding(self) -> AbstractAsyncContextManager[None]:
        """Hear what the system asks, from now on. Who only waits for outcomes does not read that either."""
        return self.listening(self.system.asks_on)

    async def _read(self, consumer: Any) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    self._note(record)
            async with self._news:
                self._news.notify_all()

    def _note(self, record: Any) -> None:
        said = self.system.read(record)
        if said is None:
            return
        if said.asks is not None:
            self._seen.asks.by_run[said.run_id] = said.asks
            self._seen.asks.missing.discard(said.run_id)
            return
        self._seen.times[said.run_id] += 1
        self._seen.outputs.by_run.setdefault(said.run_id, said.output)
        self._seen.outputs.missing.discard(said.run_id)
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
        await self._until(self._seen.outputs, set(run_ids))

    async def asked(self, run_ids: Iterable[str]) -> dict[str, str]:
        """Wait until each asks for a decision; the approvals by run."""
        wanted = set(run_ids)
        asks = self._seen.asks
        await self._until(asks, wanted)
        return {run_id: asks.by_run[run_id] for run_id in wanted & asks.by_run.keys()}

    async def _until(self, heard: _Heard, wanted: set[str]) -> None:
        """Wait until all `wanted` have been heard, or for silence. One at a time for each kind."""
        heard.missing = wanted - heard.by_run.keys()
        async with self._news:
            last, since = len(heard.missing) + 1, time.monotonic()
            while heard.missing:
                if len(heard.missing) < last:
                    last, since = len(heard.missing), time.monotonic()
                if time.monotonic() - since > SILENCE_S:
                    return
                await self._news.wait()

    def answered_at(self, run_id: str) -> float | None:
        """When the outcome was read (`time.perf_counter`)."""
        return self._seen.at.get(run_id)

    def check(self, messages: Mapping[str, str]) -> tuple[int, int, int]:
        """How many outcomes are missing, came more than once, are wrong."""
        times, outputs = self._seen.times, self._seen.outputs.by_run
        lost = sum(run_id not in outputs for run_id in messages)
        duplicates = sum(times[run_id] - 1 for run_id in messages if run_id in outputs)
        wrong = sum(
            run_id in outputs and outputs[run_id] != expected(message) for run_id, message in messages.items()
        )
        return lost, duplicates, wrong

    def forget(self, run_ids: Iterable[str]) -> None:
        """Drop what was noted about runs that were checked, so that long tests don't grow."""
        seen = self._seen
        for run_id in run_ids:
            for noted in (seen.asks.by_run, seen.outputs.by_run, seen.at, seen.times):
                noted.pop(run_id, None)


@asynccontextmanager
async def load(system: System, kafka_pid: int) -> AsyncGenerator[Load]:
    """A load generator that listens from now on."""
    # aiokafka's methods have no types.
    producer: Any = AIOKafkaProducer(bootstrap_servers=system.bootstrap, acks="all")
    await producer.start()
    try:
        generator = Load(system, kafka_pid, producer)
        async with generator.listening(system.listens, from_start=True):
            yield generator
    finally:
        await producer.stop()
