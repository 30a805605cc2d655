"""A bridge of each test's own, in its process, on the session's Kafka and scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack
from uuid import uuid4

import pytest
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from tests.integration.bridge.wire import Wire

from towline.bridge.app import Bridge
from towline.bridge.settings import BridgeSettings
from towline.contracts.events import AppRegistered, Event, RunTypeInfo
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, PayloadSettings, SchedulerSettings

REVIEW = RunTypeInfo(
    name="review",
    input_schema={
        "type": "object",
        "properties": {"topic": {"type": "string"}, "length": {"type": "integer"}},
        "required": ["topic"],
    },
)

StartBridge = Callable[..., Awaitable[Bridge]]


@pytest.fixture
def scheduler_settings(scheduler: str) -> SchedulerSettings:
    """A task hub of this test's own."""
    return SchedulerSettings(address=scheduler, taskhub=f"t{uuid4().hex[:8]}")


@pytest.fixture
async def start_bridge(
    kafka_settings: KafkaSettings, scheduler_settings: SchedulerSettings
) -> AsyncGenerator[StartBridge]:
    """Start bridges; they are stopped at the end, and a bug that ended one fails the test."""
    running: list[tuple[Bridge, asyncio.Task[None]]] = []

    async def start(payloads: PayloadSettings | None = None, **settings: object) -> Bridge:
        chosen = {"unknown_run_grace_s": 2.0, "run_type_grace_s": 2.0, "create_topics": False} | settings
        bridge = Bridge(
            BridgeSettings(**chosen), kafka_settings, scheduler_settings, payloads or PayloadSettings()
        )
        task = asyncio.create_task(bridge.run())
        running.append((bridge, task))
        deadline = asyncio.get_running_loop().time() + 20
        while (problem := bridge.not_ready()) is not None and not task.done():
            assert asyncio.get_running_loop().time() < deadline, problem
            await asyncio.sleep(0.05)
        return bridge

    yield start
    for bridge, _ in running:
        bridge.stop()
    await asyncio.wait_for(asyncio.gather(*(task for _, task in running)), 20)


@pytest.fixture
async def register(kafka_settings: KafkaSettings) -> AsyncGenerator[Callable[..., Awaitable[None]]]:
    """Put an app into the catalog."""
    async with AsyncExitStack() as exits:
        producer = await exits.enter_async_context(EventProducer(kafka_settings))

        async def put(*run_types: RunTypeInfo, app: str = "editors") -> None:
            data = AppRegistered(app=app, version="1", run_types=list(run_types or (REVIEW,)))
            await producer.send(Event(id=f"{app}/registered/{uuid4().hex}", source="test", data=data))

        yield put


@pytest.fixture
async def wire(kafka_settings: KafkaSettings) -> AsyncGenerator[Wire]:
    """The contract spoken raw."""
    async with Wire(kafka_settings) as wire:
        yield wire


@pytest.fixture
async def hub(scheduler_settings: SchedulerSettings) -> AsyncGenerator[AsyncDurableTaskSchedulerClient]:
    """A stock client of the test's task hub."""
    client = AsyncDurableTaskSchedulerClient(
        host_address=scheduler_settings.address,
        taskhub=scheduler_settings.taskhub,
        token_credential=None,
        secure_channel=False,
    )
    yield client
    await client.close()


@pytest.fixture
async def bridged(register: Callable[..., Awaitable[None]], start_bridge: StartBridge, wire: Wire) -> Wire:
    """A bridge with the run type ``review`` registered; nobody works on runs."""
    await register()
    await start_bridge()
    return wire
