"""An instance id that is used again for something else: its turns go to workers of what it is now."""

from __future__ import annotations

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from tests.unit.scheduler.test_store import given
from tests.waiting import eventually_async

from towline.scheduler.engine import control, lifecycle
from towline.scheduler.engine.model import TERMINATED
from towline.scheduler.server.dispatch import Stream
from towline.scheduler.server.runtime import Runtime


def worker(runtime: Runtime, name: str, version: str) -> Stream:
    """A worker that takes one version of one orchestration."""
    stream = Stream(runtime.hub("h"), f"{name} {version}", (9, 9, 9), ({name: frozenset({version})}, {}, {}))
    runtime.dispatcher.attach(stream)
    return stream


async def start(runtime: Runtime, name: str, version: str) -> None:
    """Start the one instance, instead of one that was terminated."""
    hub = runtime.hub("h")
    request = pb.CreateInstanceRequest(instanceId="one", name=name)
    request.version.value = version
    request.orchestrationIdReusePolicy.replaceableStatus.append(pb.ORCHESTRATION_STATUS_TERMINATED)
    runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
    await runtime.journal.commit()


async def terminate(runtime: Runtime) -> None:
    hub = runtime.hub("h")
    runtime.change(
        lambda changes, world, now: control.terminate(
            changes, world, hub, "one", None, recursive=False, now=now
        )
    )
    await runtime.journal.commit()
    found = runtime.world.instance(hub, "one")
    assert found is not None
    assert found.status == TERMINATED


def started(items: list[pb.WorkItem]) -> list[tuple[str, str]]:
    """Name and version of what each first turn starts."""
    events = [event for item in items for event in item.orchestratorRequest.newEvents]
    starts = [event.executionStarted for event in events if event.HasField("executionStarted")]
    return [(one.name, one.version.value) for one in starts]


@pytest.mark.parametrize(("name", "version"), [("other", "1"), ("job", "2")])
async def test_an_id_that_waited_for_a_worker_in_vain_goes_out_as_what_it_is_now(
    runtime: Runtime, name: str, version: str
) -> None:
    """A deployment: the old version's workers are gone, what they left is ended and started anew."""
    new = worker(runtime, name, version)
    await start(runtime, "job", "1")
    await terminate(runtime)

    await start(runtime, name, version)

    assert started(given(runtime, new)) == [(name, version)]
    old = worker(runtime, "job", "1")
    assert given(runtime, old) == [], "it is not what this worker takes"


async def test_an_id_that_was_given_back_by_a_worker_goes_out_as_what_it_is_now(runtime: Runtime) -> None:
    old = worker(runtime, "job", "1")
    new = worker(runtime, "job", "2")
    await start(runtime, "job", "1")
    (turn,) = given(runtime, old)
    runtime.losses.abandon(turn.completionToken)
    await terminate(runtime)

    await start(runtime, "job", "2")

    turns = await eventually_async(lambda: given(runtime, new), "its backoff is over")
    assert started(turns) == [("job", "2")]
