"""Each command gets one answer, though its bridge dies or an acknowledgement is lost at the worst moment.

The worst moment: the answer is on Kafka, the command's offset is not committed, and the run moves on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
from durabletask.azuremanaged.client import AsyncDurableTaskSchedulerClient
from tests.integration.bridge.conftest import REVIEW
from tests.integration.bridge.test_control import control, decide, working
from tests.integration.bridge.test_requests import started
from tests.waiting import eventually_async

from towline.bridge.scheduler import Scheduler
from towline.contracts.durable import RunEnvelope, wrap_input
from towline.contracts.errors import PublishError
from towline.contracts.events import (
    ApprovalRefused,
    Event,
    EventData,
    RunProgressed,
    RunRejected,
    RunTypeInfo,
)
from towline.contracts.producer import EventProducer
from towline.contracts.settings import SchedulerSettings
from towline.dev.roles import ProcessPart

__all__ = ["working"]  # a fixture

UntilSeen = Callable[[str, str], Awaitable[frozenset[str]]]


async def start_run(hub: AsyncDurableTaskSchedulerClient, run_id: str) -> None:
    """As the bridge starts one; nobody works on it."""
    envelope = RunEnvelope(run_id=run_id, run_type="review", request_id=f"{run_id}-request")
    await hub.schedule_new_orchestration("review", input=wrap_input(envelope, {}), instance_id=run_id)


@pytest.fixture
async def until_seen(scheduler_settings: SchedulerSettings, working) -> AsyncGenerator[UntilSeen]:
    """What a run has been handed, once a command is among it. What came before it is judged by then."""
    # What is raised comes into the history with the run's next turn.
    async with Scheduler(scheduler_settings, call_timeout_s=10.0) as scheduler:

        async def seen(run_id: str, command: str) -> frozenset[str]:
            deadline = asyncio.get_running_loop().time() + 30
            with working():
                while command not in (handed := (await scheduler.commands_of(run_id)).seen):
                    assert asyncio.get_running_loop().time() < deadline, f"{command} is not in {handed}"
                    await asyncio.sleep(0.1)
            return handed

        yield seen


@pytest.mark.slow
@pytest.mark.parametrize("ahead_s", [0.0, 20.0], ids=["one clock", "a publisher's clock ahead"])
async def test_a_bridge_killed_after_its_answers_and_before_its_commit_leaves_them_as_they_are(
    kafka_settings, scheduler_settings, tmp_path, register, start_bridge, wire, hub, until_seen, ahead_s
):
    await register(REVIEW)
    await start_run(hub, "r-2")
    # All three are there when the bridge begins: they are answered at once, long before its first commit.
    refused = await decide(wire, "r-1")
    suspended = await control(wire, "r-2", "suspend")
    await wire.request("r-3", run_type="late", ahead_s=ahead_s)
    bridge = ProcessPart(
        "bridge",
        data=tmp_path / "bridge",
        env={
            "TOWLINE_KAFKA_BOOTSTRAP": kafka_settings.bootstrap,
            "TOWLINE_KAFKA_TOPIC_PREFIX": kafka_settings.topic_prefix,
            "TOWLINE_SCHEDULER_ADDRESS": scheduler_settings.address,
            "TOWLINE_SCHEDULER_TASKHUB": scheduler_settings.taskhub,
            "TOWLINE_BRIDGE_UNKNOWN_RUN_GRACE_S": "0",
            "TOWLINE_BRIDGE_FAILPOINTS": "answer.published@3",
        },
    )
    bridge.prepare()
    bridge.spawn()
    try:
        answers = await wire.until_count(3, lambda seen: seen.topic != kafka_settings.topics.dead_letters)
        deadline = asyncio.get_running_loop().time() + 20
        while bridge.exit_status() is None:
            assert asyncio.get_running_loop().time() < deadline, "the failpoint was not reached"
            await asyncio.sleep(0.05)
    finally:
        bridge.stop()
    assert bridge.exit_status() == -signal.SIGKILL
    assert {seen.type for seen in answers} == {"approval.refused", "run.progressed", "run.rejected"}

    # The run moves on: each command, judged anew, would get another answer.
    await start_run(hub, "r-1")
    await hub.terminate_orchestration("r-2")
    await register(REVIEW, RunTypeInfo(name="late"))
    await start_bridge(unknown_run_grace_s=1.0)

    # What follows in the same lane is judged after it.
    second = await decide(wire, "r-1", "second")
    assert refused not in await until_seen("r-1", second), "it was refused: it must not reach the run"
    late = await control(wire, "r-2", "cancel")
    await wire.until(lambda seen: seen.id.endswith(late))
    assert [seen.type for seen in wire.of("r-2") if seen.id.endswith(suspended)] == ["run.progressed"]
    probe = await control(wire, "r-3", "suspend")
    answer = await wire.until(lambda seen: seen.id.endswith(probe))
    assert answer.data["reason"] == "unknown_run", "it was rejected: it must not be started"
    assert [seen.type for seen in wire.of("r-1")] == ["approval.refused"]
    assert [seen.type for seen in wire.of("r-3")] == ["run.rejected", "control.refused"]


async def test_a_refusal_whose_acknowledgement_is_lost_stays_a_refusal(
    register, start_bridge, wire, hub, until_seen, monkeypatch
):
    send, lost = EventProducer.send, []

    async def lossy(self: EventProducer, event: Event) -> None:
        await send(self, event)
        if isinstance(event.data, ApprovalRefused) and not lost:
            lost.append(event.id)
            await start_run(hub, "r-1")
            raise PublishError("no acknowledgement in time", event_id=event.id)

    monkeypatch.setattr(EventProducer, "send", lossy)
    await register()
    await start_bridge(unknown_run_grace_s=0.0)
    refused = await decide(wire, "r-1")
    await started(hub, "r-1")
    second = await decide(wire, "r-1", "second")
    assert refused not in await until_seen("r-1", second), "it was refused: it must not reach the run"
    assert {seen.id for seen in wire.of("r-1")} == set(lost)


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch):
    """Lose the acknowledgement of the first event of a kind; something happens meanwhile."""

    def losing(kind: type[EventData], meanwhile: Callable[[], Awaitable[None]]) -> None:
        send, lost = EventProducer.send, []

        async def lossy(self: EventProducer, event: Event) -> None:
            await send(self, event)
            if isinstance(event.data, kind) and not lost:
                lost.append(event.id)
                await meanwhile()
                raise PublishError("no acknowledgement in time", event_id=event.id)

        monkeypatch.setattr(EventProducer, "send", lossy)

    return losing


async def test_a_suspension_whose_acknowledgement_is_lost_stays_one(register, start_bridge, wire, hub, lose):
    lose(RunProgressed, lambda: hub.terminate_orchestration("r-1"))
    await register()
    await start_run(hub, "r-1")
    await start_bridge()
    suspended = await control(wire, "r-1", "suspend")
    later = await control(wire, "r-1", "resume")
    await wire.until(lambda seen: seen.id.endswith(later))
    answers = [seen for seen in wire.of("r-1") if seen.id.endswith(suspended)]
    assert {seen.type for seen in answers} == {"run.progressed"}
    assert all(seen.data["status"]["suspended"] for seen in answers)


async def test_a_rejection_whose_acknowledgement_is_lost_stays_one(register, start_bridge, wire, lose):
    # The catalog as the bridge reads it: the app is there before the request can be judged again.
    offers: list[Callable[[], object]] = []

    async def registered() -> None:
        await register(REVIEW, RunTypeInfo(name="late"))
        await eventually_async(lambda: offers[0]())

    lose(RunRejected, registered)
    await register(REVIEW)
    bridge = await start_bridge(unknown_run_grace_s=1.0)
    offers.append(lambda: bridge._follower._catalog.find("late"))
    await wire.request("r-1", run_type="late")
    await wire.until_count(2, lambda seen: seen.id == "r-1/outcome")
    probe = await control(wire, "r-1", "suspend")
    answer = await wire.until(lambda seen: seen.id.endswith(probe))
    assert answer.data["reason"] == "unknown_run", "it was rejected: it must not be started"


async def test_a_command_sent_twice_is_judged_once(register, start_bridge, wire, hub, until_seen):
    await register()
    await start_bridge(unknown_run_grace_s=0.0)
    refused = await decide(wire, "r-1")
    await wire.until(lambda seen: seen.id.endswith(refused))
    await start_run(hub, "r-1")
    data = {"run_id": "r-1", "approval_id": "a-1", "approved": True}
    await wire.event("approvals", "approval.decided", data, event_id=refused)
    second = await decide(wire, "r-1", "second")
    assert refused not in await until_seen("r-1", second)
