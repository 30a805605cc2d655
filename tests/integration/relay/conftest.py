"""A relay process of its own per test, on a Valkey of its own and the session's Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.conftest import unique_prefix
from tests.integration.relay.valkey import Valkey

from towline.contracts import ids
from towline.contracts.events import (
    ApprovalRequested,
    ApprovalResolved,
    ErrorInfo,
    Event,
    EventData,
    RunCompleted,
    RunFailed,
    RunProgressed,
    RunStarted,
)
from towline.contracts.kafka import ensure_topics
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, RedisSettings
from towline.dev.roles import ProcessPart
from towline.worker.streams import StreamSettings, TokenWriter

StartRelay = Callable[..., ProcessPart]


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    server = Valkey().start()
    yield server
    server.close()


@pytest.fixture
def start_relay(own_valkey: Valkey, kafka_settings: KafkaSettings, tmp_path: Path) -> Iterator[StartRelay]:
    with _relays(own_valkey, kafka_settings, tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def quiet_relay(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPart]:
    """One with the default settings, for tests in which it is told and tells nothing: they share it."""
    settings = KafkaSettings(bootstrap=kafka, topic_prefix=unique_prefix())
    asyncio.run(ensure_topics(settings, partitions=3))
    server = Valkey().start()
    with _relays(server, settings, tmp_path_factory.mktemp("quiet")) as start:
        yield start()
    server.close()


@contextmanager
def _relays(valkey: Valkey, kafka: KafkaSettings, folder: Path) -> Iterator[StartRelay]:
    parts: list[ProcessPart] = []

    def start(*, ready: bool = True, **settings: Any) -> ProcessPart:
        env = {
            "TOWLINE_KAFKA_BOOTSTRAP": kafka.bootstrap,
            "TOWLINE_KAFKA_TOPIC_PREFIX": kafka.topic_prefix,
            "TOWLINE_REDIS_URL": valkey.url,
            # Groups are the broker's: every test has its own.
            "TOWLINE_RELAY_GROUP": f"relay-{kafka.topic_prefix}",
            **{
                f"TOWLINE_{'' if name.startswith('redis_') else 'RELAY_'}{name.upper()}": str(value)
                for name, value in settings.items()
            },
        }
        name = f"relay-{len(parts)}"
        part = ProcessPart("relay", data=folder / name, env=env, name=name)
        parts.append(part)
        if ready:
            return part.start()
        part.prepare()
        part.spawn()
        return part

    yield start
    for part in parts:
        part.stop()


@pytest.fixture
def writer(own_valkey: Valkey) -> Iterator[TokenWriter]:
    made = TokenWriter(RedisSettings(url=own_valkey.url), StreamSettings(timeout_s=1))
    made.start()
    yield made
    made.stop(1)


class Publisher:
    """Says what bridge and worker would say of runs."""

    def __init__(self, producer: EventProducer) -> None:
        self._producer = producer

    async def send(self, event_id: str, data: EventData) -> None:
        await self._producer.send(Event(id=event_id, source="test", data=data, time=datetime.now(UTC)))

    async def started(self, run_id: str, run_type: str = "chat", **fields: Any) -> None:
        await self.send(ids.started_id(run_id), RunStarted(run_id=run_id, run_type=run_type, **fields))

    async def progressed(self, run_id: str, number: int, status: Any = None) -> None:
        await self.send(ids.progress_id(run_id, number), RunProgressed(run_id=run_id, status=status))

    async def asked(self, run_id: str, approval_id: str, **fields: Any) -> None:
        await self.send(
            ids.approval_requested_id(run_id, approval_id),
            ApprovalRequested(run_id=run_id, approval_id=approval_id, **fields),
        )

    async def resolved(self, run_id: str, approval_id: str) -> None:
        await self.send(
            ids.approval_resolved_id(run_id, approval_id),
            ApprovalResolved(run_id=run_id, approval_id=approval_id, outcome="approved", approver="ann"),
        )

    async def completed(self, run_id: str, output: Any = None, run_type: str = "chat") -> None:
        now = datetime.now(UTC)
        await self.send(
            ids.outcome_id(run_id),
            RunCompleted(run_id=run_id, run_type=run_type, output=output, started_at=now, finished_at=now),
        )

    async def failed(self, run_id: str, run_type: str = "chat") -> None:
        await self.send(
            ids.outcome_id(run_id),
            RunFailed(
                run_id=run_id,
                run_type=run_type,
                error=ErrorInfo(type="ValueError", message="no"),
                finished_at=datetime.now(UTC),
            ),
        )


@pytest.fixture
async def publisher(kafka_settings: KafkaSettings) -> AsyncIterator[Publisher]:
    async with EventProducer(kafka_settings) as producer:
        yield Publisher(producer)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=1000)
    async with httpx.AsyncClient(timeout=30, limits=limits) as client:
        yield client
