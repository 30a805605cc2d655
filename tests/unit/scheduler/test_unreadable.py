"""What cannot be read from the file holds up itself, and nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import answer, attached, given, raise_event, raised, start
from tests.waiting import eventually_async

from towline.scheduler.engine import control
from towline.scheduler.engine.model import Timer
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.timers import Timers
from towline.scheduler.store.database import connect


@contextmanager
def unreadable(writer: sqlite3.Connection, table: str) -> Generator[None]:
    writer.execute(f"ALTER TABLE {table} RENAME TO away")
    yield
    writer.execute(f"ALTER TABLE away RENAME TO {table}")


@pytest.mark.parametrize("table", ["history", "instance"])
async def test_a_run_that_cannot_be_read_goes_on_when_it_can_and_holds_up_no_other(
    opened: tuple[Runtime, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """It stayed with the worker that was to have it, under a turn that nobody had, until a restart."""
    runtime, writer = opened
    monkeypatch.setattr("towline.scheduler.server.handouts._READ_AGAIN_S", 0.05)
    stream = attached(runtime)
    await start(runtime, "run")
    (first,) = given(runtime, stream)
    answer(runtime, first)
    await raise_event(runtime, "go on")
    for other in ("one", "two"):
        await start(runtime, other)
    assert runtime.world.known_instance(runtime.hub("h"), "run") is None, "it is in the file only"

    with unreadable(writer, table):
        others = given(runtime, stream)
        assert [item.orchestratorRequest.instanceId for item in others] == ["one", "two"]
        await eventually_async(lambda: stream.pending, "it is offered again")
        assert given(runtime, stream) == []
    await eventually_async(lambda: stream.pending, "it is offered once more")

    (second,) = given(runtime, stream)
    assert raised(second) == ["go on"]
    assert runtime.dispatcher.waiting == [0, 0, 0]


async def test_timers_fire_although_the_file_could_not_be_read_for_a_moment(
    opened: tuple[Runtime, sqlite3.Connection],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """None did any more until another one was set, or the server started again."""
    runtime, writer = opened
    monkeypatch.setattr("towline.scheduler.server.timers._READ_AGAIN_S", 0.05)
    signal = pb.SignalEntityRequest(instanceId="@counter@one", name="add")
    signal.scheduledTime.FromMicroseconds(runtime.clock.now() + 50_000)
    runtime.signal(runtime.hub("h"), signal)
    await runtime.journal.commit()
    fired: list[Timer] = []
    runtime.timers.close()

    with closing(connect(runtime.path, readonly=True)) as reader:
        timers = Timers(reader, runtime.clock.now, fired.extend)
        with unreadable(writer, "timer"):
            timers.reset()
            await eventually_async(lambda: "timers.not_read" in caplog.messages, "it cannot be read")
        await eventually_async(lambda: fired, "it fires", timeout_s=3)
        timers.close()


async def test_a_child_that_fails_while_its_parent_cannot_be_read_tells_it_when_it_can(
    opened: tuple[Runtime, sqlite3.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was failed by half: in the file it had ended, and its parent waited for ever."""
    runtime, writer = opened
    monkeypatch.setattr("towline.scheduler.server.handouts._READ_AGAIN_S", 0.05)
    stream = attached(runtime)
    hub = runtime.hub("h")
    await start(runtime, "run")
    (turn,) = given(runtime, stream)
    child = pb.CreateSubOrchestrationAction(instanceId="child", name="x")
    answer(runtime, turn, pb.OrchestratorAction(id=1, createSubOrchestration=child))
    await runtime.journal.commit()
    (turn,) = given(runtime, stream)
    answer(runtime, turn)
    for _ in range(2):  # more than fits into a work item with what was before
        runtime.change(
            lambda changes, world, now: control.raise_event(
                changes, world, hub, "child", "e", "x" * 3_000_000, now
            )
        )
        await runtime.journal.commit()
    (turn,) = given(runtime, stream)
    answer(runtime, turn)
    for other in ("one", "two", "three"):
        await start(runtime, other)
    await runtime.journal.commit()
    assert runtime.world.known_instance(hub, "run") is None, "it is in the file only"
    assert runtime.world.instance(hub, "child") is not None

    with unreadable(writer, "instance"):
        given(runtime, stream)
    await start(runtime, "four")
    await eventually_async(
        lambda: any(
            event.HasField("subOrchestrationInstanceFailed")
            for item in given(runtime, stream)
            for event in item.orchestratorRequest.newEvents
        ),
        "the parent is told",
        timeout_s=5,
    )
