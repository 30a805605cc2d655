"""Terminating and purging with all children: what it costs, and whom it concerns."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import open_runtime

from towline.scheduler.engine import control, lifecycle
from towline.scheduler.engine.model import COMPLETED, TERMINATED
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.world import CacheLimits

CHILDREN = 200


@pytest.fixture
def runtime_options() -> dict[str, CacheLimits]:
    return {"cache": CacheLimits()}


async def start_all(runtime: Runtime, count: int) -> int:
    hub = runtime.hub("h")
    for number in range(count):
        request = pb.CreateInstanceRequest(instanceId=f"run{number}", name="x")
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
    await runtime.journal.commit()
    return hub


def start_child(runtime: Runtime, hub: int, parent_id: str, child_id: str, task_id: int = 1) -> None:
    parent = runtime.world.instance(hub, parent_id)
    assert parent is not None
    event = pb.ExecutionStartedEvent(name="x")
    runtime.change(
        lambda changes, world, now: lifecycle.start_child(
            changes, world, parent, task_id, event, child_id, now
        )
    )


def terminate(runtime: Runtime, hub: int, instance_id: str) -> None:
    runtime.change(
        lambda changes, world, now: control.terminate(
            changes, world, hub, instance_id, None, recursive=True, now=now
        )
    )


async def test_to_terminate_a_family_costs_the_same_however_many_other_runs_are_in_memory(
    tmp_path: Path,
) -> None:
    """For each of its members all of them were looked at: 2,000 children held everybody up for 5.6 s."""
    costs: list[float] = []
    for others in (10, 10_000):
        folder = tmp_path / str(others)
        folder.mkdir()
        runtime, writer = open_runtime(folder, cache=CacheLimits())
        hub = await start_all(runtime, others)
        for number in range(CHILDREN):
            start_child(runtime, hub, "run0", f"child{number}", number)
        await runtime.journal.commit()

        began = time.process_time()
        terminate(runtime, hub, "run0")
        costs.append(time.process_time() - began)

        await runtime.journal.commit()
        ended = writer.execute("SELECT count(*) FROM instance WHERE status=?", (TERMINATED,)).fetchone()
        assert ended == (CHILDREN + 1,)
        runtime.close()
        writer.close()

    assert costs[1] < 4 * costs[0] + 0.05


async def test_children_that_are_being_started_are_terminated_too(runtime: Runtime) -> None:
    hub = await start_all(runtime, 1)
    start_child(runtime, hub, "run0", "child")

    terminate(runtime, hub, "run0")
    await runtime.journal.commit()

    child = runtime.world.instance(hub, "child")
    assert child is not None
    assert child.status == TERMINATED


async def test_who_was_replaced_under_its_id_is_no_child_any_more(runtime: Runtime) -> None:
    """While that was not on disk it was purged and counted once more, and its children with it."""
    hub = await start_all(runtime, 1)
    start_child(runtime, hub, "run0", "child")
    await runtime.journal.commit()
    terminate(runtime, hub, "run0")
    await runtime.journal.commit()
    again = pb.CreateInstanceRequest(instanceId="child", name="x")
    again.orchestrationIdReusePolicy.replaceableStatus.extend([TERMINATED, COMPLETED])

    runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, again, now))
    parent = runtime.world.instance(hub, "run0")
    assert parent is not None
    purged = runtime.change(
        lambda changes, world, _now: control.purge(changes, world, parent, recursive=True)
    )
    await runtime.journal.commit()

    assert purged == 1
    assert runtime.world.instance(hub, "child") is not None
