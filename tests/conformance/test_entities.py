"""Entities: locks, order, delayed signals and batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from durabletask import entities, task
from durabletask.client import OrchestrationStatus
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.conformance.hubs import Hub
from tests.conformance.support import unique
from tests.waiting import eventually

Turns = Any


def notes(ctx: entities.EntityContext, text: str) -> None:
    ctx.set_state([*ctx.get_state(list, []), text])


def holder(ctx: task.OrchestrationContext, key: str) -> Turns:
    entity = EntityInstanceId("notes", key)
    with (yield ctx.lock_entities([entity])):
        yield ctx.call_entity(entity, "add", "held 1")
        ctx.set_custom_status("holding")
        yield ctx.wait_for_external_event("go")
        yield ctx.call_entity(entity, "add", "held 2")


def other(ctx: task.OrchestrationContext, key: str) -> Turns:
    yield ctx.call_entity(EntityInstanceId("notes", key), "add", "other")


def wait_until_holding(hub: Hub, key: str) -> str:
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(holder, input=key)

    def holding() -> bool:
        state = sdk.get_orchestration_state(instance)
        return state is not None and state.serialized_custom_status is not None

    eventually(holding, "the lock is granted")
    return instance


def state_of(hub: Hub, key: str) -> list[str]:
    found = hub.client().get_entity(EntityInstanceId("notes", key))
    return [] if found is None else found.get_typed_state(list) or []


def holder_of(hub: Hub, key: str) -> str:
    answer = hub.stub().GetEntity(pb.GetEntityRequest(instanceId=f"@notes@{key}"), timeout=5)
    return str(answer.entity.lockedBy.value)


def serve(hub: Hub) -> None:
    hub.worker(orchestrators=[holder, other], entities=[notes])


@pytest.mark.acceptance(14)
def test_a_lock_excludes_other_callers_in_order(hub: Hub) -> None:
    serve(hub)
    sdk = hub.client()
    key = unique("key")
    holding = wait_until_holding(hub, key)
    second = sdk.schedule_new_orchestration(other, input=key)
    sdk.wait_for_orchestration_start(second, timeout=10)
    sdk.signal_entity(EntityInstanceId("notes", key), "add", "signalled")
    with pytest.raises(TimeoutError):
        sdk.wait_for_orchestration_completion(second, timeout=1)

    sdk.raise_orchestration_event(holding, "go")
    for instance in (holding, second):
        ended = sdk.wait_for_orchestration_completion(instance, timeout=10)
        assert ended is not None
        assert ended.runtime_status == OrchestrationStatus.COMPLETED

    assert eventually(lambda: len(seen := state_of(hub, key)) == 4 and seen) == [
        "held 1",
        "held 2",
        "other",
        "signalled",
    ]


@pytest.mark.acceptance(15)
def test_terminating_a_lock_holder_frees_the_lock(hub: Hub) -> None:
    serve(hub)
    sdk = hub.client()
    key = unique("key")
    holding = wait_until_holding(hub, key)
    second = sdk.schedule_new_orchestration(other, input=key)

    sdk.terminate_orchestration(holding)
    ended = sdk.wait_for_orchestration_completion(second, timeout=10)

    assert ended is not None
    assert ended.runtime_status == OrchestrationStatus.COMPLETED
    assert state_of(hub, key) == ["held 1", "other"]


@pytest.mark.acceptance(16)
def test_the_orphan_sweep_leaves_live_locks_alone(hub: Hub) -> None:
    serve(hub)
    sdk = hub.client()
    key = unique("key")
    holding = wait_until_holding(hub, key)

    swept = sdk.clean_entity_storage(release_orphaned_locks=True)
    locked_by = holder_of(hub, key)
    sdk.raise_orchestration_event(holding, "go")
    sdk.wait_for_orchestration_completion(holding, timeout=10)

    assert swept.orphaned_locks_released == 0
    assert locked_by == holding
    assert holder_of(hub, key) == ""


def test_two_locks_asked_for_in_opposite_order_do_not_deadlock(hub: Hub) -> None:
    def both(ctx: task.OrchestrationContext, keys: list[str]) -> Turns:
        held = [EntityInstanceId("notes", key) for key in keys]
        with (yield ctx.lock_entities(held)):
            for entity in held:
                yield ctx.call_entity(entity, "add", ctx.instance_id)

    hub.worker(orchestrators=[both], entities=[notes])
    sdk = hub.client()
    one, two = unique("a"), unique("b")
    instances = [
        sdk.schedule_new_orchestration(both, input=[one, two] if number % 2 else [two, one])
        for number in range(10)
    ]

    ended = [sdk.wait_for_orchestration_completion(instance, timeout=20) for instance in instances]

    assert {state.runtime_status for state in ended if state is not None} == {OrchestrationStatus.COMPLETED}
    assert state_of(hub, one) == state_of(hub, two), "the sections overlapped"


def test_a_delayed_signal_arrives_at_its_time_and_not_before(hub: Hub) -> None:
    serve(hub)
    sdk = hub.client()
    entity = EntityInstanceId("notes", unique("key"))
    due = datetime.now(UTC) + timedelta(seconds=1.5)
    sdk.signal_entity(entity, "add", "late", signal_time=due)
    sdk.signal_entity(entity, "add", "soon")

    eventually(lambda: state_of(hub, entity.key) == ["soon"])
    eventually(lambda: state_of(hub, entity.key) == ["soon", "late"])

    assert datetime.now(UTC) >= due


def test_a_signal_repeated_with_its_request_id_is_applied_once(hub: Hub) -> None:
    serve(hub)
    key = unique("key")
    request = pb.SignalEntityRequest(
        instanceId=f"@notes@{key}",
        name="add",
        requestId=unique("request"),
        input=wrappers_pb2.StringValue(value='"once"'),
    )
    for _ in range(3):
        hub.stub().SignalEntity(request, timeout=5)
    request.requestId, request.input.value = unique("request"), '"then"'
    hub.stub().SignalEntity(request, timeout=5)

    eventually(lambda: "then" in state_of(hub, key))

    assert state_of(hub, key) == ["once", "then"]


def test_a_failing_operation_keeps_the_state_and_the_rest_of_its_batch(hub: Hub) -> None:
    def careful(ctx: entities.EntityContext, amount: int) -> int:
        ctx.set_state(int(ctx.get_state(int, 0)) + amount)
        if amount < 0:
            raise ValueError("negative")
        return int(ctx.get_state(int, 0))

    def run(ctx: task.OrchestrationContext, key: str) -> Turns:
        entity = EntityInstanceId("careful", key)
        calls = [ctx.call_entity(entity, "add", amount) for amount in (1, -5, 2)]
        seen: list[object] = []
        for call in calls:
            try:
                seen.append((yield call))
            except task.TaskFailedError:
                seen.append("failed")
        return seen

    hub.worker(orchestrators=[run], entities=[careful])
    sdk = hub.client()
    instance = sdk.schedule_new_orchestration(run, input=unique("key"))

    ended = sdk.wait_for_orchestration_completion(instance, timeout=10)

    assert ended is not None
    assert ended.get_output(list) == [1, "failed", 3]
