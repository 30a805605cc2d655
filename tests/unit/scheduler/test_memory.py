"""What is kept in memory is bounded by its bytes, not only by how many there are."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf.wrappers_pb2 import StringValue
from tests.unit.scheduler.test_store import ACTIVITY, answer, attached, given, start
from tests.waiting import eventually_async

from towline.scheduler.engine import control, lifecycle
from towline.scheduler.engine.model import Activity
from towline.scheduler.server.readers import Readers
from towline.scheduler.server.runtime import Runtime
from towline.scheduler.server.service import Service
from towline.scheduler.server.world import CacheLimits

COUNT = 40
PAYLOAD = "x" * 100_000
BUDGET_BYTES = 10 * len(PAYLOAD)


@pytest.fixture
def runtime_options() -> dict[str, CacheLimits]:
    return {"cache": CacheLimits(instances=1_000, entities=1_000, history_bytes=BUDGET_BYTES)}


async def start_all(runtime: Runtime) -> int:
    hub = runtime.hub("h")
    for number in range(COUNT):
        request = pb.CreateInstanceRequest(
            instanceId=f"run{number}", name="x", input=StringValue(value=PAYLOAD)
        )
        runtime.change(
            lambda changes, world, now, one=request: lifecycle.start(changes, world, hub, one, now)
        )
        await runtime.journal.commit()
    return hub


def known(runtime: Runtime, hub: int) -> int:
    return sum(runtime.world.known_instance(hub, f"run{number}") is not None for number in range(COUNT))


async def test_runs_that_wait_with_large_inputs_are_in_the_file_only(runtime: Runtime) -> None:
    hub = await start_all(runtime)

    assert known(runtime, hub) * len(PAYLOAD) <= BUDGET_BYTES
    turns = given(runtime, attached(runtime))
    assert len(turns) == COUNT


async def test_runs_that_wait_with_large_events_are_in_the_file_only(runtime: Runtime) -> None:
    hub = runtime.hub("h")
    for number in range(COUNT):
        await start(runtime, f"run{number}")
        runtime.change(
            lambda changes, world, now, one=f"run{number}": control.raise_event(
                changes, world, hub, one, "e", PAYLOAD, now
            )
        )
        await runtime.journal.commit()

    assert known(runtime, hub) * len(PAYLOAD) <= BUDGET_BYTES
    assert len(given(runtime, attached(runtime))) == COUNT


async def test_entities_with_large_signals_are_in_the_file_only(runtime: Runtime) -> None:
    hub = runtime.hub("h")
    for number in range(COUNT):
        signal = pb.SignalEntityRequest(instanceId=f"@e@{number}", name="set", input={"value": PAYLOAD})
        runtime.signal(hub, signal)
        await runtime.journal.commit()

    assert runtime.world.sizes()["entities"] * len(PAYLOAD) <= BUDGET_BYTES
    assert len(given(runtime, attached(runtime))) == COUNT


async def test_finished_runs_with_large_outputs_are_in_the_file_only(
    runtime: Runtime, tmp_path: Path
) -> None:
    hub = await start_all(runtime)
    for turn in given(runtime, attached(runtime)):
        end = pb.CompleteOrchestrationAction(
            orchestrationStatus=pb.ORCHESTRATION_STATUS_COMPLETED, result=StringValue(value=PAYLOAD)
        )
        runtime.answers.complete_turn(
            pb.OrchestratorResponse(
                instanceId=turn.orchestratorRequest.instanceId,
                completionToken=turn.completionToken,
                actions=[pb.OrchestratorAction(id=1, completeOrchestration=end)],
            )
        )
        await runtime.journal.commit()

    assert known(runtime, hub) * len(PAYLOAD) <= BUDGET_BYTES

    readers = Readers(runtime.path)
    service = Service(runtime, readers)
    for number in range(COUNT):
        asked = pb.GetInstanceRequest(instanceId=f"run{number}", getInputsAndOutputs=True)
        answer = pb.GetInstanceResponse.FromString(await service.get_instance(asked, hub))
        assert answer.orchestrationState.output.value == PAYLOAD
        assert answer.orchestrationState.input.value == PAYLOAD
    readers.close()
    assert known(runtime, hub) * len(PAYLOAD) <= BUDGET_BYTES, "also if they are only asked after"


async def test_entities_with_large_states_are_in_the_file_only(runtime: Runtime) -> None:
    hub = runtime.hub("h")
    stream = attached(runtime)
    for number in range(COUNT):
        runtime.signal(hub, pb.SignalEntityRequest(instanceId=f"@e@{number}", name="set"))
        await runtime.journal.commit()
        (batch,) = given(runtime, stream)
        result = pb.EntityBatchResult(
            results=[pb.OperationResult(success=pb.OperationResultSuccess())],
            entityState=StringValue(value=PAYLOAD),
            completionToken=batch.completionToken,
        )
        assert runtime.answers.complete_batch(result)
        await runtime.journal.commit()

    assert runtime.world.sizes()["entities"] * len(PAYLOAD) <= BUDGET_BYTES
    assert runtime.world.entity(hub, "@e@0").state == PAYLOAD


async def test_work_that_was_given_back_and_is_not_wanted_any_more_is_forgotten(runtime: Runtime) -> None:
    """Its backoff was kept for ever, and the activity with it."""
    hub, stream = runtime.hub("h"), attached(runtime)
    request = pb.CreateInstanceRequest(instanceId="ended", name="x")
    runtime.change(lambda changes, world, now: lifecycle.start(changes, world, hub, request, now))
    await runtime.journal.commit()
    (turn,) = given(runtime, stream)
    answer(runtime, turn, ACTIVITY)
    await runtime.journal.commit()
    (activity,) = given(runtime, stream)

    runtime.losses.abandon(activity.completionToken)
    runtime.change(
        lambda changes, world, now: control.terminate(
            changes, world, hub, "ended", None, recursive=False, now=now
        )
    )
    await runtime.journal.commit()

    def kept() -> bool:
        return any(isinstance(one, Activity) and one.instance_id == "ended" for one in gc.get_objects())

    await eventually_async(lambda: not kept(), "nothing of it is in memory", timeout_s=5)
