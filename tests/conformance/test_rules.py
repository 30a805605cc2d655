"""Rules of the protocol that the SDK's own suites leave open."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from durabletask import entities, task
from durabletask.client import OrchestrationState, OrchestrationStatus
from durabletask.entities import EntityInstanceId
from durabletask.internal import orchestrator_service_pb2 as pb
from google.protobuf import wrappers_pb2
from tests.conformance.hand_worker import complete
from tests.conformance.hubs import Hub
from tests.conformance.processes import ServerProcess
from tests.conformance.support import retrying, unique
from tests.waiting import eventually

Turns = Any
TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"


def begin(hub: Hub, **fields: Any) -> str:
    instance = unique("run")
    request = pb.CreateInstanceRequest(instanceId=instance, name="by-hand", **fields)
    hub.stub().StartInstance(request, timeout=5)
    return instance


def code_of(error: pytest.ExceptionInfo[grpc.RpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[attr-defined,no-any-return]


def ended(hub: Hub, instance: str) -> OrchestrationState:
    state = hub.client().wait_for_orchestration_completion(instance, timeout=15)
    assert state is not None
    return state


def test_calls_about_unknown_and_finished_instances_answer_as_clients_expect(hub: Hub) -> None:
    sdk, hand = hub.client(), hub.hand_worker()
    done = begin(hub)
    hand.answer_turn(hand.next("orchestratorRequest"), complete())
    ended(hub, done)

    with pytest.raises(grpc.RpcError) as event:
        sdk.raise_orchestration_event("unknown", "event")
    with pytest.raises(grpc.RpcError) as again:
        sdk.schedule_new_orchestration("by-hand", instance_id=done)
    with pytest.raises(grpc.RpcError) as rewind:
        sdk.rewind_orchestration(done)
    with pytest.raises(grpc.RpcError) as restart:
        sdk.restart_orchestration("unknown")
    with pytest.raises(grpc.RpcError) as history:
        sdk.get_orchestration_history("unknown")
    sdk.raise_orchestration_event(done, "late")
    sdk.terminate_orchestration(done)
    sdk.terminate_orchestration("unknown")

    assert code_of(event) == grpc.StatusCode.NOT_FOUND
    assert code_of(again) == grpc.StatusCode.ALREADY_EXISTS
    assert code_of(rewind) == grpc.StatusCode.FAILED_PRECONDITION
    assert code_of(restart) == grpc.StatusCode.NOT_FOUND
    assert code_of(history) == grpc.StatusCode.NOT_FOUND
    assert sdk.wait_for_orchestration_completion("unknown", timeout=5) is None
    assert sdk.purge_orchestration("unknown").deleted_instance_count == 0
    assert ended(hub, done).runtime_status == OrchestrationStatus.COMPLETED


def test_a_restart_is_a_new_execution_with_the_same_input_version_and_tags(hub: Hub) -> None:
    def echo(_: task.OrchestrationContext, value: str) -> str:
        return value

    hub.worker(orchestrators=[echo])
    sdk, stub = hub.client(), hub.stub()
    instance = sdk.schedule_new_orchestration(echo, input="again", version="3.0", tags={"a": "b"})
    ended(hub, instance)
    request = pb.GetInstanceRequest(instanceId=instance, getInputsAndOutputs=True)
    first = stub.GetInstance(request, timeout=5).orchestrationState

    assert sdk.restart_orchestration(instance) == instance
    ended(hub, instance)
    second = stub.GetInstance(request, timeout=5).orchestrationState

    assert second.executionId.value
    assert second.executionId.value != first.executionId.value
    assert (second.input, second.output, second.version) == (first.input, first.output, first.version)
    assert dict(second.tags) == {"a": "b"}


def test_a_turn_that_cannot_be_processed_fails_its_instance(hub: Hub) -> None:
    hand = hub.hand_worker()
    instance = begin(hub)

    hand.answer_turn(hand.next("orchestratorRequest"), pb.OrchestratorAction(id=1))

    state = ended(hub, instance)
    assert state.runtime_status == OrchestrationStatus.FAILED
    assert state.failure_details is not None
    assert state.failure_details.message


def test_the_time_of_turns_only_moves_forward_and_never_before_a_fired_timer(hub: Hub) -> None:
    hand = hub.hand_worker()
    begin(hub)
    fire_at = datetime.now(UTC) + timedelta(seconds=0.5)
    action = pb.OrchestratorAction(id=1, createTimer=pb.CreateTimerAction())
    action.createTimer.fireAt.FromDatetime(fire_at)
    first = hand.next("orchestratorRequest")
    hand.answer_turn(first, action)
    second = hand.next("orchestratorRequest")
    hand.answer_turn(second, complete())

    begun = [started_at(item) for item in (first, second)]
    fired = next(
        event.timerFired for event in second.orchestratorRequest.newEvents if event.HasField("timerFired")
    )
    assert begun[0] < begun[1]
    assert begun[1] >= fire_at
    assert fired.fireAt == action.createTimer.fireAt
    assert fired.timerId == 1
    replayed = [
        event for event in second.orchestratorRequest.pastEvents if event.HasField("orchestratorStarted")
    ]
    assert replayed[0].timestamp == first.orchestratorRequest.newEvents[0].timestamp


def started_at(item: pb.WorkItem) -> datetime:
    first = item.orchestratorRequest.newEvents[0]
    assert first.HasField("orchestratorStarted")
    return first.timestamp.ToDatetime(tzinfo=UTC)


def test_an_abandoned_turn_comes_back_with_patience(hub: Hub) -> None:
    hand = hub.hand_worker()
    begin(hub)
    seen = threading.Event()
    deliveries = 0

    def abandon_for_a_second() -> None:
        nonlocal deliveries
        while not seen.is_set():
            try:
                item = hand.next("orchestratorRequest", timeout_s=1)
            except AssertionError:
                continue
            deliveries += 1
            hand.stub.AbandonTaskOrchestratorWorkItem(
                pb.AbandonOrchestrationTaskRequest(completionToken=item.completionToken), timeout=5
            )

    abandoning = threading.Thread(target=abandon_for_a_second)
    abandoning.start()
    seen.wait(2)
    seen.set()
    abandoning.join()

    assert 2 <= deliveries <= 8, "0.2 s doubling gives about four in two seconds"


def test_an_entity_result_of_an_earlier_generation_does_not_fail_the_new_one(hub: Hub) -> None:
    new_began = threading.Event()

    def slow(_: entities.EntityContext, __: object) -> str:
        new_began.wait(10)
        return "late"

    def replace(ctx: task.OrchestrationContext, generation: int) -> Turns:
        if generation == 0:
            ctx.call_entity(EntityInstanceId("slow", "one"), "get")
            yield ctx.create_timer(timedelta(seconds=0.2))
            ctx.continue_as_new(1)
            return None
        new_began.set()
        yield ctx.create_timer(timedelta(seconds=1))
        return "fine"

    hub.worker(orchestrators=[replace], entities=[slow])
    state = ended(hub, hub.client().schedule_new_orchestration(replace, input=0))

    assert state.runtime_status == OrchestrationStatus.COMPLETED, state.failure_details
    assert state.get_output(str) == "fine"


@pytest.mark.parametrize("ending", ["fail", "again", "purge", "replace"])
def test_a_lock_is_free_once_its_holder_is_gone(hub: Hub, ending: str) -> None:
    def ledger(ctx: entities.EntityContext, text: str) -> None:
        ctx.set_state([*ctx.get_state(list, []), text])

    def holder(ctx: task.OrchestrationContext, given: list[str]) -> Turns:
        how, key = given
        if how == "done":
            return
        with (yield ctx.lock_entities([EntityInstanceId("ledger", key)])):
            ctx.set_custom_status("holding")
            yield ctx.wait_for_external_event("go")
            if how == "fail":
                raise RuntimeError("inside the section")
            ctx.continue_as_new(["done", key])

    def caller(ctx: task.OrchestrationContext, key: str) -> Turns:
        yield ctx.call_entity(EntityInstanceId("ledger", key), "add", "caller")

    hub.worker(orchestrators=[holder, caller], entities=[ledger])
    sdk = hub.client()
    key = unique("key")
    holding = sdk.schedule_new_orchestration(holder, input=[ending, key])
    eventually(lambda: (s := sdk.get_orchestration_state(holding)) and s.serialized_custom_status is not None)
    waiting = sdk.schedule_new_orchestration(caller, input=key)
    with pytest.raises(TimeoutError):
        sdk.wait_for_orchestration_completion(waiting, timeout=0.7)
    if ending == "purge":
        sdk.terminate_orchestration(holding)
        sdk.purge_orchestration(holding)
    elif ending == "replace":
        policy = pb.OrchestrationIdReusePolicy(replaceableStatus=[pb.ORCHESTRATION_STATUS_RUNNING])
        sdk.schedule_new_orchestration(
            holder, input=["done", key], instance_id=holding, reuse_id_policy=policy
        )
    else:
        sdk.raise_orchestration_event(holding, "go")

    assert ended(hub, waiting).runtime_status == OrchestrationStatus.COMPLETED


def test_an_entity_operation_joins_the_trace_of_its_signal_and_of_its_caller(hub: Hub) -> None:
    hand = hub.hand_worker()
    span = "00f067aa0ba902b7"
    trace = pb.TraceContext(traceParent=f"00-{TRACE_ID}-{span}-01", spanID=span)
    hand.stub.SignalEntity(
        pb.SignalEntityRequest(
            instanceId="@traced@a", name="op", requestId=unique("request"), parentTraceContext=trace
        ),
        timeout=5,
    )
    signalled = hand.next("entityRequest").entityRequest.operations[0]
    begin(hub, parentTraceContext=trace)
    call = pb.OrchestratorAction(
        id=1,
        sendEntityMessage=pb.SendEntityMessageAction(
            entityOperationCalled=pb.EntityOperationCalledEvent(
                requestId=unique("request"),
                operation="op",
                targetInstanceId=wrappers_pb2.StringValue(value="@traced@b"),
            )
        ),
    )
    turn = hand.next("orchestratorRequest")
    context = pb.OrchestrationTraceContext(spanID=wrappers_pb2.StringValue(value="2222222222222222"))
    hand.answer_turn(turn, call, trace=context)
    called = hand.next("entityRequest").entityRequest.operations[0]

    assert signalled.traceContext == trace
    assert TRACE_ID in called.traceContext.traceParent
    assert "2222222222222222" in called.traceContext.traceParent


def test_falsy_entity_state_is_state_and_deleted_state_leaves_nothing(hub: Hub) -> None:
    def holds(ctx: entities.EntityContext, value: object) -> None:
        ctx.set_state(value)

    hub.worker(entities=[holds])
    sdk = hub.client()
    entity = EntityInstanceId("holds", unique("key"))
    sdk.signal_entity(entity, "set", 0)
    stub = hub.stub()
    request = pb.GetEntityRequest(instanceId=str(entity), includeState=True)
    found = eventually(
        lambda: (now := stub.GetEntity(request, timeout=5).entity).HasField("serializedState") and now
    )
    sdk.signal_entity(entity, "set", None)
    eventually(lambda: sdk.get_entity(entity) is None)

    assert found.serializedState.value == "0"
    assert sdk.clean_entity_storage().empty_entities_removed == 0
    assert [one for one in sdk.get_all_entities() if one.id == entity] == []


def test_a_scheduled_start_survives_a_restart(own_server: ServerProcess, own_hub: Hub) -> None:
    hand = own_hub.hand_worker()
    due = datetime.now(UTC) + timedelta(seconds=4)
    request = pb.CreateInstanceRequest(instanceId=unique("run"), name="by-hand")
    request.scheduledStartTimestamp.FromDatetime(due)
    hand.stub.StartInstance(request, timeout=5)
    own_server.restart()

    turn = own_hub.hand_worker().next("orchestratorRequest", timeout_s=15)

    assert started_at(turn) >= due
    assert datetime.now(UTC) >= due


def test_the_standard_health_service_answers(server: ServerProcess) -> None:
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=5) == b"\x08\x01", "SERVING is field 1, value 1"


def test_a_wait_over_a_restart_is_answered_unavailable_and_can_be_asked_again(
    own_server: ServerProcess, own_hub: Hub
) -> None:
    sdk = own_hub.client()
    instance = begin(own_hub)
    failed: list[grpc.StatusCode] = []

    def wait() -> None:
        try:
            sdk.wait_for_orchestration_completion(instance, timeout=30)
        except grpc.RpcError as error:
            failed.append(error.code())  # type: ignore[attr-defined]

    waiting = threading.Thread(target=wait)
    waiting.start()
    threading.Event().wait(0.3)
    own_server.restart()
    waiting.join(15)
    hand = own_hub.hand_worker()
    hand.answer_turn(hand.next("orchestratorRequest"), complete('"after"'))
    state = retrying(lambda: own_hub.client().wait_for_orchestration_completion(instance, timeout=10))

    assert failed == [grpc.StatusCode.UNAVAILABLE]
    assert state is not None
    assert state.get_output(str) == "after"
