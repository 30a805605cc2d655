"""Speaks the wire contract raw, as any Kafka client would, and keeps all that comes out."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from towline.contracts.settings import KafkaSettings

WITHIN_S = 20.0


@dataclass(frozen=True)
class Seen:
    """One record that came out."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: dict[str, str]

    @property
    def data(self) -> Any:
        """The body."""
        return json.loads(self.value or b"null")

    @property
    def type(self) -> str:
        """Short name of the event's type, for example ``run.rejected``."""
        return self.headers["ce_type"].removeprefix("towline.").removesuffix(".v1")

    @property
    def id(self) -> str:
        """CloudEvents id."""
        return self.headers["ce_id"]

    @property
    def reason(self) -> str:
        """Why it is a dead letter."""
        return self.headers["towline_dead_letter_reason"]


@dataclass
class Wire:
    """A raw producer, and a reader of everything that the bridge can say."""

    kafka: KafkaSettings
    seen: list[Seen] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._producer = AIOKafkaProducer(bootstrap_servers=self.kafka.bootstrap, max_request_size=2_000_000)
        await self._producer.start()
        topics = self.kafka.topics
        self._consumer = AIOKafkaConsumer(
            topics.events,
            topics.results,
            topics.dead_letters,
            bootstrap_servers=self.kafka.bootstrap,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4_000_000,
        )
        await self._consumer.start()
        self._tasks.append(asyncio.create_task(self._read()))
        return self

    async def __aexit__(self, *_exception: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._consumer.stop()
        await self._producer.stop()

    async def _read(self) -> None:
        async for record in self._consumer:
            headers = {name: value.decode() for name, value in record.headers}
            self.seen.append(Seen(record.topic, record.key, record.value, headers))
            self._news.set()

    async def raw(
        self,
        topic: str,
        *,
        key: bytes | None = None,
        value: bytes | None = None,
        headers: dict[str, str] | None = None,
        ahead_s: float = 0.0,
    ) -> None:
        """Publish exactly this, by a clock that is ahead by so much."""
        await self._producer.send_and_wait(
            f"{self.kafka.topic_prefix}{topic}",
            key=key,
            value=value,
            headers=[(name, text.encode()) for name, text in (headers or {}).items()],
            timestamp_ms=int((time.time() + ahead_s) * 1000),
        )

    async def event(
        self,
        topic: str,
        kind: str,
        data: dict[str, Any],
        *,
        event_id: str | None = None,
        ahead_s: float = 0.0,
        **more: str,
    ) -> str:
        """Publish one event in binary mode, keyed by its run; returns its id."""
        event_id = event_id or f"e-{uuid4().hex[:8]}"
        run_id = data.get("run_id", event_id)
        await self.raw(
            topic,
            key=run_id.encode(),
            value=json.dumps(data).encode(),
            ahead_s=ahead_s,
            headers={
                "ce_specversion": "1.0",
                "ce_id": event_id,
                "ce_source": "test",
                "ce_type": f"towline.{kind}.v1",
                "content-type": "application/json",
                **more,
            },
        )
        return event_id

    async def request(
        self, run_id: str, *, event_id: str | None = None, ahead_s: float = 0.0, **data: Any
    ) -> str:
        """Publish a run request."""
        data = {"run_id": run_id, "run_type": "review", "input": {"topic": "rivers"}} | data
        return await self.event("runs", "run.requested", data, event_id=event_id, ahead_s=ahead_s)

    async def until(self, wanted: Callable[[Seen], bool], *, within_s: float = WITHIN_S) -> Seen:
        """The first record that is wanted.

        Raises:
            AssertionError: It did not come in time; names what came.
        """
        return (await self.until_count(1, wanted, within_s=within_s))[0]

    async def until_count(
        self, count: int, wanted: Callable[[Seen], bool], *, within_s: float = WITHIN_S
    ) -> list[Seen]:
        """The first `count` records that are wanted."""
        deadline = asyncio.get_running_loop().time() + within_s
        while len(found := [seen for seen in self.seen if wanted(seen)]) < count:
            self._news.clear()
            remaining = deadline - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._news.wait(), remaining)
            except TimeoutError:
                came = [(seen.topic, seen.headers, seen.value) for seen in self.seen]
                raise AssertionError(f"{len(found)} of {count} in {within_s} s; came: {came}") from None
        return found

    def of(self, run_id: str) -> list[Seen]:
        """All events of a run so far, dead letters aside."""
        return [
            seen
            for seen in self.seen
            if seen.topic != self.kafka.topics.dead_letters and seen.data.get("run_id") == run_id
        ]

    async def dead_letter(self, event_id: str) -> Seen:
        """The dead letter of an event."""
        return await self.until(
            lambda seen: (
                seen.topic == self.kafka.topics.dead_letters and seen.headers.get("ce_id") == event_id
            )
        )
