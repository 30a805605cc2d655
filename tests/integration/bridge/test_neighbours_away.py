"""The bridge while the scheduler or Kafka is killed, and while nobody is there yet."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from tests.integration.bridge.conftest import REVIEW
from tests.integration.bridge.wire import Wire
from tests.waiting import eventually_async

from towline.bridge.app import Bridge
from towline.bridge.settings import BridgeSettings
from towline.contracts.events import AppRegistered, Event
from towline.contracts.kafka import ensure_topics
from towline.contracts.producer import EventProducer
from towline.contracts.settings import KafkaSettings, SchedulerSettings
from towline.dev import KafkaPart, SchedulerPart

pytestmark = pytest.mark.slow

WITHIN_S = 40.0


class Running:
    """A bridge as a task."""

    def __init__(self, kafka: KafkaSettings, scheduler: SchedulerSettings, **settings: Any) -> None:
        self.bridge = Bridge(BridgeSettings(create_topics=False, **settings), kafka, scheduler)

    async def __aenter__(self) -> Bridge:
        self.task = asyncio.create_task(self.bridge.run())
        return self.bridge

    async def __aexit__(self, *_exception: object) -> None:
        self.bridge.stop()
        await asyncio.wait_for(self.task, 20)


async def register(kafka: KafkaSettings) -> None:
    async with EventProducer(kafka) as producer:
        app = AppRegistered(app="editors", version="1", run_types=[REVIEW])
        await producer.send(Event(id="registered", source="test", data=app))


async def count_runs(settings: SchedulerSettings) -> int:
    client = AsyncDurableTaskSchedulerClient(
        host_address=settings.address, taskhub=settings.taskhub, token_credential=None, secure_channel=False
    )
    try:
        return len(await client.get_all_orchestration_states())
    finally:
        await client.close()


@pytest.mark.parametrize("calls", ["direct", "grpc"])
async def test_while_the_scheduler_is_away_nothing_is_lost_or_dead_lettered(kafka_settings, tmp_path, calls):
    with SchedulerPart(data=tmp_path / "scheduler") as part:
        scheduler = SchedulerSettings(address=part.address, taskhub="t")
        await register(kafka_settings)
        async with Running(kafka_settings, scheduler, calls=calls) as bridge, Wire(kafka_settings) as wire:
            await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
            await wire.request("before")
            await asyncio.to_thread(part.kill)
            await asyncio.gather(*(wire.request(f"during-{n}") for n in range(50)))
            await wire.event("runs", "run.control", {"run_id": "before", "action": "suspend"})
            await eventually_async(lambda: bridge.not_ready() is not None, timeout_s=WITHIN_S)
            assert bridge.not_alive() is None
            await asyncio.to_thread(part.start)
            suspended = await wire.until(lambda seen: seen.type == "run.progressed", within_s=40)
            assert suspended.data["run_id"] == "before"
            await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
            deadline = asyncio.get_running_loop().time() + 30
            while await count_runs(scheduler) < 51:
                assert asyncio.get_running_loop().time() < deadline
                await asyncio.sleep(0.2)
            assert [seen for seen in wire.seen if seen.topic.endswith("dead-letters")] == []
            assert len(wire.seen) == 1


async def test_the_grace_of_a_decision_does_not_run_out_while_the_scheduler_is_away(kafka_settings, tmp_path):
    grace_s = 3.0
    with SchedulerPart(data=tmp_path / "scheduler") as part:
        scheduler = SchedulerSettings(address=part.address, taskhub="t")
        await register(kafka_settings)
        settings = {"unknown_run_grace_s": grace_s}
        async with Running(kafka_settings, scheduler, **settings) as bridge, Wire(kafka_settings) as wire:
            await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
            await asyncio.to_thread(part.kill)
            decision = {"run_id": "r-1", "approval_id": "a-1", "approved": True}
            await wire.event("approvals", "approval.decided", decision)
            await eventually_async(lambda: bridge.not_ready() is not None, timeout_s=WITHIN_S)
            received_at = time.monotonic()
            await eventually_async(lambda: time.monotonic() > received_at + grace_s, timeout_s=WITHIN_S)
            await asyncio.to_thread(part.start)
            await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
            back_at = time.monotonic()
            refused = await wire.until(lambda seen: seen.type == "approval.refused")
            assert refused.data["reason"] == "unknown_run"
            assert time.monotonic() - back_at > grace_s / 2, "its request may be carried out only now"


async def test_a_bridge_that_starts_before_its_neighbours_waits_and_then_works(tmp_path):
    kafka_part, part = KafkaPart(data=tmp_path / "kafka"), SchedulerPart(data=tmp_path / "scheduler")
    kafka = KafkaSettings(bootstrap=kafka_part.bootstrap, topic_prefix=f"t{uuid4().hex[:8]}.")
    scheduler = SchedulerSettings(address=part.address, taskhub="t")
    async with Running(kafka, scheduler) as bridge:
        await asyncio.sleep(1.0)
        assert "Kafka" in bridge.not_ready()
        with kafka_part:
            await ensure_topics(kafka, partitions=2)
            await register(kafka)
            async with Wire(kafka) as wire:
                await wire.request("early")
                await eventually_async(lambda: "scheduler" in (bridge.not_ready() or ""), timeout_s=WITHIN_S)
                with part:
                    await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
                    await wire.event("runs", "run.control", {"run_id": "early", "action": "suspend"})
                    await wire.until(lambda seen: seen.type == "run.progressed")
                    bridge.stop()


async def test_kafka_killed_and_restarted_is_outlived(tmp_path, scheduler_settings):
    with KafkaPart(data=tmp_path / "kafka") as part:
        kafka = KafkaSettings(bootstrap=part.bootstrap, topic_prefix="t.")
        await ensure_topics(kafka, partitions=2)
        await register(kafka)
        async with Running(kafka, scheduler_settings) as bridge:
            await eventually_async(lambda: bridge.not_ready() is None, timeout_s=WITHIN_S)
            async with Wire(kafka) as wire:
                await asyncio.gather(*(wire.request(f"before-{n}") for n in range(20)))
            await asyncio.to_thread(part.kill)
            await asyncio.sleep(2.0)
            assert bridge.not_alive() is None
            await asyncio.to_thread(part.start)
            async with Wire(kafka) as wire:
                await asyncio.gather(*(wire.request(f"after-{n}") for n in range(20)))
                deadline = asyncio.get_running_loop().time() + 60
                while await count_runs(scheduler_settings) < 40:
                    assert asyncio.get_running_loop().time() < deadline
                    await asyncio.sleep(0.2)
                await wire.request("late", run_type="none")
                await wire.until(lambda seen: seen.id == "late/outcome", within_s=40)
